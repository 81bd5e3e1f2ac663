"""Runs the cells of a sweep, in this process or in several.

Imports nothing heavy, so that finished cells are skipped at once.
"""

import collections
from collections.abc import Iterator, Mapping, Sequence
import contextlib
import dataclasses
import gc
import os
import signal
import subprocess
import sys
import time
import traceback
from typing import Any

from synguide_jax import console, experiment, hosts, workdir
from synguide_jax.console import say
from synguide_jax.errors import DivergedError, InUse, Preempted, UserError
from synguide_jax.grid import Cell

# How often a cell that was stopped after saving, or killed, is started again.
RESTARTS = 3
# How main ends after it was told to.
_CUT = {console.PREEMPTED: "stopped", 130: "interrupted"}
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_POLL_SECONDS = 0.1


class _Progress:
  """Prints a line for each cell that is through, and counts."""

  def __init__(self, total: int):
    self._total, self._count, self.unfinished = total, 0, 0

  def finished(
    self, cell: Cell, results: Mapping[str, Any], began: float | None
  ) -> None:
    took = "  (finished before)"
    if began is not None:
      took = f"  in {console.duration(time.monotonic() - began)}"
    self._say(cell, experiment.headline(results) + took)

  def left(self, cell: Cell, outcome: str) -> None:
    self.unfinished += 1
    self._say(cell, " ".join(outcome.split()))

  def _say(self, cell: Cell, outcome: str) -> None:
    self._count += 1
    say(f"[{self._count:2}/{self._total}] {cell.name}: {outcome}")


def run_here(cells: Sequence[Cell]) -> int:
  """Runs cells one after the other in this process, with a line for each.

  One that fails, for want of memory or otherwise, does not keep the others from
  running, but for a disk that is full. Of several processes, all end after an
  error that the others may not have had.

  Args:
    cells: The cells.

  Returns:
    How many are not finished in the end.
  """
  progress = _Progress(len(cells))
  for cell in cells:
    began = time.monotonic()
    try:
      finished = workdir.results(cell.folder) is not None
      results = experiment.run(cell.config, cell.folder, show_progress=False)
      progress.finished(cell, results, None if finished else began)
    except InUse as error:
      progress.left(cell, f"skipped: {error}")
    except (DivergedError, UserError) as error:
      progress.left(cell, f"failed: {error}")
    except (Preempted, OSError):
      raise
    except Exception as error:
      if hosts.are_several():
        raise
      what = f"{type(error).__name__}: {error}".partition("\n")[0]
      log = cell.folder / "log.txt"
      log.parent.mkdir(parents=True, exist_ok=True)
      log.write_text(traceback.format_exc())
      progress.left(cell, f"failed: {what.removesuffix(': ')} (see {log})")
    # What a failed cell held on the device may be in cycles.
    gc.collect()
  return progress.unfinished


def slots(jobs: int | None, gpus: Sequence[str]) -> list[str | None]:
  """Returns the slots that `run_jobs` wants, none for `run_here`.

  Args:
    jobs: The value of --jobs, or None.
    gpus: That of --gpus, () for none.

  Raises:
    UserError: if they do not agree, or a GPU has no name.
  """
  if not gpus:
    return [None] * jobs if jobs and jobs > 1 else []
  if not all(gpus) or jobs not in (None, len(gpus)):
    raise UserError(
      f"--gpus={','.join(gpus)} wants GPUs as CUDA_VISIBLE_DEVICES names them, "
      "with a cell at a time on each; leave --jobs out."
    )
  return list(gpus)


def run_jobs(cells: Sequence[Cell], slots: Sequence[str | None]) -> int:
  """Runs cells in processes of their own, with a line for each.

  What a process prints is in its workdir's log.txt. A cell that was stopped
  after saving, or killed, is started again, at most `RESTARTS` times. SIGINT,
  SIGTERM and, as SIGTERM, SIGHUP are passed on to the processes, which then
  stop; one that this process ignores is not.

  Args:
    cells: The cells.
    slots: One for each process at a time: its CUDA_VISIBLE_DEVICES, or None
      for what this process has.

  Returns:
    How many are not finished in the end.

  Raises:
    KeyboardInterrupt: after a SIGINT, when the processes have stopped.
    Preempted: after another signal, likewise.
  """
  progress, waiting = _Progress(len(cells)), collections.deque()
  for cell in cells:
    try:
      workdir.claim(cell.folder, cell.config)
      if (results := workdir.results(cell.folder)) is None:
        waiting.append(_Job(cell))
      else:
        progress.finished(cell, results, None)
    except UserError as error:
      progress.left(cell, f"failed: {error}")
  with _received_signals() as received:
    _run_all(waiting, slots, received, progress)
  if signal.SIGINT in received:
    raise KeyboardInterrupt
  if received:
    raise Preempted(f"Stopped by {signal.Signals(received[0]).name}.")
  return progress.unfinished


@contextlib.contextmanager
def _received_signals() -> Iterator[list[int]]:
  """Collects the numbers of signals instead of ending."""
  received: list[int] = []
  before = {
    number: signal.signal(number, lambda got, _: received.append(got))
    for number in _SIGNALS
    # As under nohup.
    if signal.getsignal(number) is not signal.SIG_IGN
  }
  try:
    yield received
  finally:
    for number, handler in before.items():
      signal.signal(number, handler)


def _run_all(
  waiting: collections.deque["_Job"],
  slots: Sequence[str | None],
  received: Sequence[int],
  progress: _Progress,
) -> None:
  """Keeps a job in each slot until all are through, or stopped."""
  running, free, passed_on = [], collections.deque(slots), 0
  try:
    while running or (waiting and not received):
      while waiting and free and not received:
        job = waiting.popleft()
        job.start(free.popleft())
        running.append(job)
      while passed_on < len(received):
        # Trainings save on SIGTERM, and would die of SIGHUP.
        interrupt = received[passed_on] == signal.SIGINT
        number = signal.SIGINT if interrupt else signal.SIGTERM
        for job in running:
          job.process.send_signal(number)
        passed_on += 1
      time.sleep(_POLL_SECONDS)
      for job in [job for job in running if job.process.poll() is not None]:
        if job.was_cut() and not received and job.starts <= RESTARTS:
          job.start(job.slot)
        else:
          running.remove(job)
          free.append(job.slot)
          job.report(progress)
  finally:
    # There are any only after an error of this process, as on a full disk. Or
    # of a terminal that is gone: then they are saving, and a second SIGTERM
    # could kill them.
    for job in running:
      if not passed_on:
        job.process.terminate()
    for job in running:
      job.process.wait()


@dataclasses.dataclass(eq=False)
class _Job:
  """A cell in a process of its own."""

  cell: Cell
  process: subprocess.Popen | None = None
  slot: str | None = None
  began: float = 0.0
  starts: int = 0
  log_position: int = 0

  def start(self, slot: str | None) -> None:
    self.began = self.began or time.monotonic()
    self.starts += 1
    self.slot = slot
    # Or a traceback would end with JAX's note on it, not with the error.
    environment = {"JAX_TRACEBACK_FILTERING": "off", **os.environ}
    if slot is not None:
      environment["CUDA_VISIBLE_DEVICES"] = slot
    # Appended, since another sweep's process may be writing there.
    with open(self.cell.folder / "log.txt", "ab") as log:
      self.log_position = log.tell()
      self.process = subprocess.Popen(
        [sys.executable, *self.cell.command()[1:]],
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=subprocess.STDOUT,
        env=environment,
        # Or a terminal's Ctrl-C would reach it twice.
        process_group=0,
      )

  def was_cut(self) -> bool:
    """Whether it stopped after saving, or was killed."""
    code = self.process.returncode
    return code == console.PREEMPTED or code < 0

  def report(self, progress: _Progress) -> None:
    """Says what came out."""
    code, see = self.process.returncode, f"see {self.cell.folder / 'log.txt'}"
    try:
      results = workdir.results(self.cell.folder)
    except UserError as error:
      progress.left(self.cell, f"failed: {error}")
      return
    if code == 0 and results is not None:
      progress.finished(self.cell, results, self.began)
    elif code < 0 or code in _CUT:
      how = _CUT.get(code, f"killed by signal {-code}")
      starts = f", {self.starts} starts" if self.starts > 1 else ""
      progress.left(self.cell, f"{how}{starts}; {see}")
    elif code == console.IN_USE:
      progress.left(self.cell, f"skipped: {self._last_line()}")
    else:
      how, line = f"exit code {code}, {see}", self._last_line()
      progress.left(self.cell, f"failed: {f'{line} ({how})' if line else how}")

  def _last_line(self) -> str:
    """What the process printed last, which is the error if there was one."""
    with open(self.cell.folder / "log.txt", "rb") as log:
      log.seek(self.log_position)
      text = log.read().decode(errors="replace").strip()
    return text.rpartition("\n")[2].removeprefix("error: ")
