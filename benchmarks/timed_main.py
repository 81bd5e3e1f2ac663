"""The command `python -m synguide_jax.main` with a clock, for end_to_end.py.

The first argument is the file that the times go to, the others are the
command's. Nothing is imported, decoded or computed earlier than the command
does it, but for this package's own modules.
"""

import builtins
import collections
from collections.abc import Iterator
import contextlib
import functools
import json
from pathlib import Path
import resource
import sys
import threading
import time
from typing import Any


class Clock:
  """Moments of the training in one workdir, and what time went to.

  Attributes:
    marks: By name, ``at`` (seconds, of a clock that all processes share) and
      the seconds spent so far by kind. What lasts within another kind counts
      as its own alone.
  """

  def __init__(self):
    self.marks: dict[str, dict[str, float]] = {}
    self._spent = collections.Counter()

  def mark(self, name: str, **more: float) -> None:
    """Notes a moment."""
    self.marks[name] = {"at": time.monotonic(), **self._spent, **more}

  @contextlib.contextmanager
  def spent_on(self, kind: str) -> Iterator[None]:
    """Adds the time that a block takes."""
    started, before = time.monotonic(), self._spent.total()
    try:
      yield
    finally:
      within = self._spent.total() - before
      self._spent[kind] += time.monotonic() - started - within

  def timed(self, function: Any, kind: str) -> Any:
    """Returns a function whose calls are timed."""

    @functools.wraps(function)
    def call(*args, **kwargs):
      with self.spent_on(kind):
        return function(*args, **kwargs)

    return call

  def time_imports(self) -> None:
    """Times imports from here on, those of the main thread."""
    original, main = builtins.__import__, threading.get_ident()
    timed, depth = self.timed(original, "import"), 0

    def outermost(*args, **kwargs):
      nonlocal depth
      if depth or threading.get_ident() != main:
        return original(*args, **kwargs)
      depth += 1
      try:
        return timed(*args, **kwargs)
      finally:
        depth -= 1

    builtins.__import__ = outermost


def watch(clock: Clock, file: Path, folder: Path) -> None:
  """Lets the trainer tell a clock where it is.

  Args:
    clock: Is told.
    file: Where its marks are written at the end, as JSON.
    folder: The workdir; trainings of inputs have others.
  """
  import jax

  from synguide_jax import images, train
  from synguide_jax.checkpoint import Checkpointer
  from synguide_jax.program import Program

  set_up, train_and_evaluate = train.set_up, train.train_and_evaluate
  batches = Program.batches
  # Steps of the training, once it has begun.
  total = None

  @functools.wraps(train_and_evaluate)
  def watched(config, workdir, writer, hooks=(), **kwargs):
    nonlocal total
    if Path(workdir) != folder:
      return train_and_evaluate(config, workdir, writer, hooks, **kwargs)
    total = 0
    hooks = (*hooks, stepped)
    results = train_and_evaluate(config, workdir, writer, hooks, **kwargs)
    usage = resource.getrusage(resource.RUSAGE_SELF)
    unit = 2**20 if sys.platform == "darwin" else 2**10
    clock.mark("evaluated", peak_mib=usage.ru_maxrss / unit)
    file.write_text(json.dumps(clock.marks))
    return results

  @functools.wraps(set_up)
  def watched_set_up(*args, **kwargs):
    nonlocal total
    program, data = set_up(*args, **kwargs)
    if total is not None:
      total = sum(stage.num_steps for stage in program.method.stages)
      clock.mark("data")
    return program, data

  def stepped(step):
    # Several steps may have been dispatched as one, and none be done.
    if "first" not in clock.marks or step == total:
      jax.block_until_ready(jax.live_arrays())
      clock.mark("last", step=step)
      clock.marks.setdefault("first", clock.marks["last"])

  @functools.wraps(batches)
  def watched_batches(*args, **kwargs):
    with contextlib.closing(batches(*args, **kwargs)) as drawn:
      while True:
        with clock.spent_on("input"):
          found = next(drawn, None)
        if found is None:
          return
        yield found

  train.train_and_evaluate, train.set_up = watched, watched_set_up
  Program.batches = watched_batches
  Program.evaluate = clock.timed(Program.evaluate, "evaluate")
  Checkpointer.save = clock.timed(Checkpointer.save, "save")
  stored = images.Resident.stored.func
  stored = functools.cached_property(clock.timed(stored, "decode"))
  stored.__set_name__(images.Resident, "stored")
  images.Resident.stored = stored


def run() -> None:
  """Runs the command."""
  clock = Clock()
  clock.mark("begun")
  clock.time_imports()
  from synguide_jax import console, main

  # Before libraries are loaded, as the command does.
  console.quiet()
  file = Path(sys.argv.pop(1))
  folders = [x for x in sys.argv if x.startswith("--workdir=")]
  watch(clock, file, Path(folders[0].removeprefix("--workdir=")))
  console.run(main.main)


if __name__ == "__main__":
  run()
