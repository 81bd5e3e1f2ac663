"""A training, and the ways in which chaos.py interrupts it."""

import collections
from collections.abc import Callable, Sequence
import contextlib
import dataclasses
import os
from pathlib import Path
import random
import shutil
import signal
import subprocess
import sys
import time
from typing import Any, NamedTuple

from synguide_jax import console, workdir

ROOT = Path(__file__).parents[1]
TEMPORARY = "*.orbax-checkpoint-tmp*"

# The command itself, with a hook that notes each step in a file.
SESSION = """
import functools, pathlib, sys
from synguide_jax import console, main, train

log = open(sys.argv.pop(1), "a", buffering=1)

@functools.wraps(train.train_and_evaluate)
def logged(config, workdir, writer, hooks=(), **kwargs):
  name = pathlib.Path(workdir).name
  hook = lambda step: print(name, step, file=log)
  return original(config, workdir, writer, (*hooks, hook), **kwargs)

original, train.train_and_evaluate = train.train_and_evaluate, logged
console.run(main.main)
"""


class Repeated(NamedTuple):
  """Steps that a session did again, of one training.

  Attributes:
    act: How the session before was interrupted.
    code: Its exit code.
    name: The training.
    steps: How many.
  """

  act: str
  code: int
  name: str
  steps: int


class Training:
  """A workdir in which one command is started again and again.

  Args:
    arguments: Flags of `synguide_jax.main`, without --workdir.
    folder: For all it writes; ``folder/disk`` may be a mount.
    compiled: Folder of compiled programs.

  Attributes:
    workdir: Where it trains.
    done: The last step done of each training: this one, and those of its
      inputs, by the name of their workdirs.
    repeated: What sessions had to do again.
  """

  def __init__(self, arguments: Sequence[str], folder: Path, compiled: Path):
    self.disk, self.cache = folder / "disk", folder / "cache"
    self.disk.mkdir(parents=True, exist_ok=True)
    self.workdir = self.disk / "main"
    self.log, self._errors = folder / "steps", folder / "stderr"
    self.log.touch()
    self._command = [
      *(sys.executable, "-c", SESSION, str(self.log)),
      *(*arguments, f"--workdir={self.workdir}"),
    ]
    self._env = {
      **os.environ,
      "PYTHONPATH": str(ROOT),
      "SYNGUIDE_CACHE": str(self.cache),
      "JAX_COMPILATION_CACHE_DIR": str(compiled),
      "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
      "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
    }
    self.done: dict[str, int] = collections.defaultdict(int)
    self.repeated: list[Repeated] = []
    self._before = ("", 0)

  @property
  def checkpoints(self) -> Path:
    """Its folder of checkpoints."""
    return self.workdir / "checkpoints"

  def steps(self, since: int = 0) -> list[tuple[str, int]]:
    """The steps done from an offset in the log on, whole lines only."""
    with self.log.open("rb") as file:
      file.seek(since)
      lines = file.read().decode().split("\n")[:-1]
    return [(name, int(step)) for name, step in map(str.split, lines)]

  def session(
    self, act: str, do: Callable[[subprocess.Popen], Any], cached: bool = True
  ) -> tuple[int, str]:
    """Starts the command, does something to it, returns exit code and errors.

    Args:
      act: What is done, for the record.
      do: Does it.
      cached: Whether programs that were compiled before are read.
    """
    start = self.log.stat().st_size
    env = {**self._env, "JAX_ENABLE_COMPILATION_CACHE": str(cached).lower()}
    with self._errors.open("w") as errors:
      process = subprocess.Popen(
        self._command,
        cwd=ROOT,
        env=env,
        stdout=subprocess.DEVNULL,
        stderr=errors,
      )
      try:
        do(process)
        code = process.wait(timeout=900)
      finally:
        process.kill()
        process.wait()
    self._count(self.steps(start))
    self._before = (act, code)
    return code, self._errors.read_text()

  def _count(self, steps: Sequence[tuple[str, int]]) -> None:
    first: dict[str, int] = {}
    for name, step in steps:
      if name not in first:
        first[name] = step
        again = self.done[name] + 1 - step
        if again < 0:
          raise AssertionError(f"{name}: steps before {step} were left out.")
        self.repeated.append(Repeated(*self._before, name, again))
      self.done[name] = max(self.done[name], step)

  def too_often(self) -> list[str]:
    """Says what was repeated that had been saved.

    A checkpoint is written while training goes on; the next waits for it. So
    the last whole one is less than two intervals old, or three if the newest
    was damaged.
    """
    every = workdir.config(self.workdir).checkpoint_every
    problems = []
    for act, code, name, steps in self.repeated:
      most = {"damage": 3 * every, "": 0}.get(act, 2 * every)
      if code == console.PREEMPTED:
        most = 0
      if steps > most and (name == self.workdir.name or not most):
        problems.append(f"{name}: {steps} steps repeated after {act}")
    return problems


@dataclasses.dataclass
class Interruption:
  """One session that does not end well.

  Attributes:
    training: What is interrupted.
    process: Its process.
    step: The step to wait for.
    rng: Of the moments.
    checkpoint: Bytes of a checkpoint.
  """

  training: Training
  process: subprocess.Popen
  step: int
  rng: random.Random
  checkpoint: int

  def wait_until(self, condition: Callable[[], Any]) -> None:
    """Waits until it holds, or the process has ended."""
    while not condition() and self.process.poll() is None:
      time.sleep(0.002)

  def wait_at_most(self, seconds: float) -> None:
    """Waits for the process to end."""
    with contextlib.suppress(subprocess.TimeoutExpired):
      self.process.wait(seconds)

  def __post_init__(self):
    self._offset = self.training.log.stat().st_size

  def reached(self, step: int) -> bool:
    """Whether a step of the training itself was done in this session."""
    name, steps = self.training.workdir.name, self.training.steps(self._offset)
    return any(of == name and done >= step for of, done in steps)

  def wait_for_step(self) -> None:
    """Waits for it, and a random moment more."""
    self.wait_until(lambda: self.reached(self.step))
    time.sleep(self.rng.uniform(0, 0.1))

  def wait_early(self, least: float) -> None:
    """Waits for a random moment, at the longest until the first step."""
    until = time.monotonic() + self.rng.uniform(least, 30)
    self.wait_until(lambda: time.monotonic() > until or self.reached(1))

  def temporary(self) -> list[Path]:
    """Folders of a checkpoint that is being written."""
    return list(self.training.checkpoints.glob(TEMPORARY))

  def start(self) -> None:
    """SIGKILL before the first step: imports, data, inputs, compilation."""
    self.wait_early(1)
    self.process.kill()

  def kill(self) -> None:
    """SIGKILL after some step."""
    self.wait_for_step()
    self.process.kill()

  def write(self) -> None:
    """SIGKILL while a checkpoint is being written."""
    self.wait_for_step()
    self.wait_until(lambda: not self.temporary())
    self.wait_until(self.temporary)
    time.sleep(self.rng.uniform(0, 0.05))
    self.process.kill()

  def delete(self) -> None:
    """SIGKILL when one was written, and an older one is being deleted."""
    self.wait_for_step()
    self.wait_until(self.temporary)
    self.wait_until(lambda: not self.temporary())
    time.sleep(self.rng.uniform(0, 0.005))
    self.process.kill()

  def term(self) -> None:
    """SIGTERM after some step: saves, ends with 75."""
    self.wait_for_step()
    self.process.terminate()

  def term_early(self) -> None:
    """SIGTERM before the first step, or in a training of its inputs."""
    self.wait_early(5)
    self.process.terminate()

  def term_kill(self) -> None:
    """SIGTERM, and SIGKILL before it has saved."""
    self.term()
    self.wait_at_most(self.rng.uniform(0, 0.2))
    self.process.kill()

  def twice(self) -> None:
    """SIGTERM, and again."""
    self.term()
    self.wait_at_most(self.rng.uniform(0, 0.3))
    self.process.terminate()

  def full(self) -> None:
    """The disk gets full: less than a checkpoint is left."""
    self.wait_for_step()
    left = self.rng.uniform(0.1, 0.9) * self.checkpoint
    disk = self.training.disk
    with (disk / "filler").open("wb", buffering=0) as filler:
      while self.process.poll() is None:
        # Again and again, because old checkpoints are deleted.
        free = shutil.disk_usage(disk).free
        with contextlib.suppress(OSError):
          filler.write(bytes(max(0, int(free - left))))
        time.sleep(0.01)
    (disk / "filler").unlink()

  def damage(self) -> None:
    """SIGKILL, and a file of the newest checkpoint is spoilt."""
    self.wait_until(lambda: len(self.finished()) > 1)
    self.kill()
    self.process.wait()
    newest = self.training.checkpoints / str(max(self.finished()))
    files = [path for path in newest.rglob("*/*") if path.is_file()]
    file = self.rng.choice(sorted(files))
    self.spoil(file)

  def spoil(self, file: Path) -> None:
    """Truncates, empties, removes or changes a file."""
    content = file.read_bytes()
    middle = len(content) // 2
    match self.rng.choice(["truncate", "empty", "remove", "change"]):
      case "truncate":
        file.write_bytes(content[:middle])
      case "empty":
        file.write_bytes(b"")
      case "remove":
        file.unlink()
      case "change":
        changed = bytes([content[middle] ^ 1])
        file.write_bytes(content[:middle] + changed + content[middle + 1 :])

  def finished(self) -> list[int]:
    """Steps of the checkpoints that are whole."""
    folders = self.training.checkpoints.glob("[0-9]*")
    return [int(path.name) for path in folders if path.name.isdecimal()]

  def evaluation(self) -> None:
    """SIGKILL after the last step, before results.json is written."""
    self.wait_for_step()
    self.wait_until((self.training.checkpoints / str(self.step)).exists)
    time.sleep(self.rng.uniform(0, 0.3))
    self.process.kill()


KILLED, ENDED = -signal.SIGKILL, -signal.SIGTERM
# How each may end. SIGTERM is caught in training; before and after, and while
# a process waits for its last save, it ends it as it does any other.
ACTS: dict[str, tuple[int, ...]] = {
  "start": (KILLED,),
  "kill": (KILLED,),
  "write": (KILLED,),
  "delete": (KILLED,),
  "term": (console.PREEMPTED,),
  "term_early": (console.PREEMPTED, ENDED),
  "term_kill": (console.PREEMPTED, KILLED),
  "twice": (console.PREEMPTED, ENDED),
  "full": (1,),
  "damage": (KILLED,),
  "evaluation": (KILLED,),
}
