r"""A training that is stopped in every way there is, against one left alone.

  python -m benchmarks.chaos
  python -m benchmarks.chaos --early= --overrides=method=ltda,num_runs=2,\
num_steps=600,eval_every=30,checkpoint_every=20

Both are the command `python -m synguide_jax.main`, with a cache of their own;
one is started again after each of a random but repeatable series of
interruptions, see `ACTS`. At the end everything it has is compared with what
the other has, bit for bit: arrays and records of the checkpoints, what
`load_trained` returns, results.json (but for its times), and the names of all
files. Exits with 1 if anything differs, is left over or was lost.

The workdir is on a small tmpfs, which is filled for "full"; where that cannot
be mounted, "full" is left out.
"""

import collections
from collections.abc import Iterator, Sequence
import contextlib
import dataclasses
import functools
import json
import os
from pathlib import Path
import random
import re
import subprocess
import tempfile
import time
from typing import Any
from unittest import mock

from absl import app, flags
import jax
import numpy as np
import orbax.checkpoint as ocp

from benchmarks.interruptions import (
  ACTS,
  Interruption,
  KILLED,
  Repeated,
  TEMPORARY,
  Training,
)
from synguide_jax import console, experiment, inputs, workdir
from synguide_jax.train import load_trained

DISK = 32 * 2**20  # bytes

EARLY = ("start", "term_early", "start", "term_early")
MIDDLE = {
  **{"start": 2, "kill": 5, "write": 6, "delete": 3},
  **{"term": 3, "term_kill": 2, "twice": 2, "full": 3, "damage": 4},
}

_CONFIG = flags.DEFINE_string(
  "config", "configs/digits_lowshot.py:weak", "Config file, with :argument."
)
_OVERRIDES = flags.DEFINE_list(
  "overrides",
  ["num_runs=2", "num_steps=1200", "eval_every=30", "checkpoint_every=20"],
  "Config fields of both trainings, field=value.",
)
_EARLY = flags.DEFINE_list(
  "early", list(EARLY), "Interruptions at any moment, before the others."
)
_MIDDLE = flags.DEFINE_list(
  "middle",
  [act for act, count in MIDDLE.items() for _ in range(count)],
  "Interruptions spread over the training.",
)
_SEED = flags.DEFINE_integer("seed", 0, "Of the interruptions.")
_FOLDER = flags.DEFINE_string("folder", "", "Where to work; kept if given.")


@dataclasses.dataclass
class Report:
  """What came out of it.

  Attributes:
    acts: The interruptions, in order.
    codes: The exit codes of their sessions.
    in_write: Kills that left a checkpoint half written.
    repeated: Steps done again.
    problems: What is not as it should be.
    seconds: Wall time of both trainings.
  """

  acts: list[str]
  codes: list[int]
  in_write: int
  repeated: list[Repeated]
  problems: list[str]
  seconds: float

  def lines(self) -> Iterator[str]:
    """A summary."""
    for act, count in collections.Counter(self.acts).items():
      meaning = getattr(Interruption, act).__doc__.partition("\n")[0]
      yield f"  {count:>2} {act:<11} {meaning}"
    yield (
      f"{len(self.acts)} interruptions, {self.codes.count(KILLED)} ended with "
      f"SIGKILL, {self.codes.count(console.PREEMPTED)} with code "
      f"{console.PREEMPTED}; of the kills "
      f"{self.in_write} left a checkpoint half written"
    )
    yield f"lost, different or left over: {len(self.problems)}"
    yield from (f"  {problem}" for problem in self.problems)
    for name in dict.fromkeys(again.name for again in self.repeated):
      of = [again for again in self.repeated if again.name == name]
      longest = {again.act: 0 for again in of if again.steps}
      for again in of:
        if again.steps:
          longest[again.act] = max(longest[again.act], again.steps)
      most = ", ".join(f"{steps} ({act})" for act, steps in longest.items())
      total = sum(again.steps for again in of)
      yield f"{name}: {total} steps repeated; at most {most or 'none'} at once"
    yield f"{console.duration(self.seconds)} in all"


def plan(rng: random.Random, steps: int, acts: Sequence[str]) -> list[tuple]:
  """Spreads acts over a training; returns ``(act, step)``."""
  every = steps / (len(acts) + 1)
  return [
    (act, int(every * (number + rng.uniform(0.6, 1.0))))
    for number, act in enumerate(rng.sample(acts, len(acts)))
  ]


def interrupt(
  training: Training, act: str, step: int, rng: random.Random, size: int
) -> tuple[int, bool, list[str]]:
  """Starts a session and interrupts it.

  Returns:
    Its exit code, whether it left a half-written checkpoint, and problems.
  """

  def do(process):
    getattr(Interruption(training, process, step, rng, size), act)()

  code, errors = training.session(act, do, cached=act != "start")
  left = bool(list(training.checkpoints.glob(TEMPORARY)))
  problems = []
  if code not in ACTS[act]:
    problems.append(f"{act}: exit code {code}: {errors[-2000:]}")
  last = errors.rstrip().rpartition("\n")[2]
  if act == "full" and not last.startswith("error: the disk is full"):
    problems.append(f"full: {errors[-2000:]}")
  console.say(f"  {act} at {dict(training.done)}: {code}")
  return code, left and code == KILLED, problems


def compare(whole: Training, other: Training) -> Iterator[str]:
  """Yields what the second has not, has too much or has differently."""
  for left, right in ((whole.disk, other.disk), (whole.cache, other.cache)):
    names, others = _names(left), _names(right)
    yield from (f"missing: {name}" for name in sorted(names - others))
    yield from (f"left over: {name}" for name in sorted(others - names))
  results, others = _results(whole), _results(other)
  yield from (
    f"results.json: {field} differs"
    for field in workdir.differences(results, others)
  )
  if _file(whole, "splits.npz") != _file(other, "splits.npz"):
    yield "splits.npz differs"
  for folder in whole.checkpoints.iterdir():
    yield from _compare_arrays(
      f"checkpoint {folder.name}: ",
      *(_raw(of.checkpoints / folder.name) for of in (whole, other)),
    )
  yield from _compare_arrays("load_trained: ", _trained(whole), _trained(other))


def _names(folder: Path) -> set[str]:
  """Names of files, without what is random or a session's own."""
  names = set()
  for path in folder.rglob("*"):
    name = path.relative_to(folder).as_posix()
    name = re.sub(r"/d/[0-9a-f]{32}$", "/d/*", name)
    names.add(re.sub(r"events\.out\.tfevents\..*", "events", name))
  return names


def _file(training: Training, name: str) -> bytes:
  return (training.workdir / name).read_bytes()


def _results(training: Training) -> dict[str, Any]:
  text = _file(training, "results.json").decode()
  # Where the inputs were made is written there, and not the same.
  found = json.loads(text.replace(str(training.cache), "cache"))
  del found["seconds"]
  return found


def _raw(folder: Path) -> dict[str, Any]:
  """All arrays of a checkpoint and its record, as they were saved."""
  with ocp.StandardCheckpointer() as checkpointer:
    arrays = checkpointer.restore(folder / "arrays")
  record = json.loads((folder / "record" / "metadata").read_text())
  del record["seconds"]
  return {"arrays": jax.device_get(arrays), "record": json.dumps(record)}


def _trained(training: Training) -> Any:
  """What a user of the finished training gets."""
  with mock.patch.dict(os.environ, SYNGUIDE_CACHE=str(training.cache)):
    config = workdir.config(training.workdir)
    train = functools.partial(experiment.train, show_progress=False)
    made = inputs.make(config, train)
    return load_trained(config, training.workdir, inputs=made)[1]


def _compare_arrays(title: str, left: Any, right: Any) -> Iterator[str]:
  left, right = (
    {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in leaves}
    for leaves in map(jax.tree_util.tree_leaves_with_path, (left, right))
  )
  if left.keys() != right.keys():
    yield f"{title}other arrays"
    return
  for name, array in left.items():
    other = right[name]
    if array.dtype != other.dtype or array.tobytes() != other.tobytes():
      yield f"{title}{name} differs"


@contextlib.contextmanager
def small_disk(folder: Path) -> Iterator[bool]:
  """Mounts a tmpfs on a folder; False where that is not allowed."""
  mount = ["mount", "-t", "tmpfs", "-o", f"size={DISK}", "tmpfs", folder]
  folder.mkdir(parents=True)
  try:
    mounted = not subprocess.run(mount, capture_output=True).returncode
  except FileNotFoundError:
    mounted = False
  try:
    yield mounted
  finally:
    if mounted:
      subprocess.run(["umount", folder], check=True)


def run(
  arguments: Sequence[str],
  folder: Path,
  *,
  early: Sequence[str] = (),
  middle: Sequence[str] = (),
  last: Sequence[str] = (),
  seed: int = 0,
) -> Report:
  """Trains once without and once with interruptions, and compares.

  Args:
    arguments: Flags of `synguide_jax.main`, without --workdir.
    folder: For all files; must not exist.
    early: Acts before any step is waited for; see `ACTS`.
    middle: Acts spread over the training, in random order.
    last: Acts after its last step.
    seed: Of the acts' order and moments.

  Returns:
    The report. "full" is left out where no tmpfs can be mounted.
  """
  started, rng = time.monotonic(), random.Random(seed)
  folder.mkdir(parents=True)
  with small_disk(folder / "chaos" / "disk") as mounted:
    whole, chaos = (
      Training(arguments, folder / name, folder / "compiled")
      for name in ("whole", "chaos")
    )
    code, errors = whole.session("", lambda process: None)
    if code:
      raise RuntimeError(errors)
    console.say(f"whole: {dict(whole.done)}")
    steps = whole.done[whole.workdir.name]
    newest = whole.checkpoints / str(steps)
    size = sum(path.stat().st_size for path in newest.rglob("*"))
    if not mounted:
      middle = [act for act in middle if act != "full"]
    acts = [
      *((act, 0) for act in early),
      *plan(rng, steps, middle),
      *((act, steps) for act in last),
    ]
    ends = [interrupt(chaos, act, step, rng, size) for act, step in acts]
    codes, in_write, problems = zip(*ends, strict=True)
    problems = [problem for of_act in problems for problem in of_act]
    code, errors = chaos.session("", lambda process: None)
    problems += [f"not finished: {code}: {errors}"] if code else []
    problems += [*chaos.too_often(), *compare(whole, chaos)]
    return Report(
      acts=[act for act, _ in acts],
      codes=list(codes),
      in_write=sum(in_write),
      repeated=chaos.repeated,
      problems=problems,
      seconds=time.monotonic() - started,
    )


def main(argv: Sequence[str]) -> int:
  """Prints a summary."""
  del argv
  console.quiet()
  arguments = [f"--config={_CONFIG.value}"]
  arguments += [f"--config.{override}" for override in _OVERRIDES.value]
  with contextlib.ExitStack() as stack:
    folder = _FOLDER.value or stack.enter_context(tempfile.TemporaryDirectory())
    report = run(
      arguments,
      Path(folder, "files"),
      early=_EARLY.value,
      middle=_MIDDLE.value,
      last=["evaluation"],
      seed=_SEED.value,
    )
  for line in report.lines():
    console.say(line)
  return 1 if report.problems else 0


if __name__ == "__main__":
  app.run(main)
