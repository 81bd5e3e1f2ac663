"""The cells of a sweep: which there are, and how they are run.

A cell is one config in the workdir that main would choose for it. Imports
nothing heavy, so that finished cells are skipped at once.
"""

import collections
from collections.abc import Iterator, Mapping, Sequence
import contextlib
import dataclasses
import itertools
import json
from pathlib import Path
import shlex
import signal
import subprocess
import sys
import time
from typing import Any

from absl import flags
from ml_collections import config_flags, ConfigDict

from synguide_jax import config as config_lib
from synguide_jax import console, experiment, workdir
from synguide_jax.analysis import table
from synguide_jax.console import say
from synguide_jax.errors import DivergedError, Preempted, UserError

# How main ends after it was told to.
_CUT = {console.PREEMPTED: "stopped", 130: "interrupted"}
_POLL_SECONDS = 0.1
# From the message of the trainer for a workdir that is locked.
_IN_USE = "in use by another process"


@dataclasses.dataclass(frozen=True)
class Cell:
  """One experiment of a sweep.

  Attributes:
    name: What the row of a table would be called.
    file: ``<config file>[:arg]``.
    config: The file's config with all overrides.
    folder: Its workdir.
    overrides: Fields, but for the method, that are not as in the file.
  """

  name: str
  file: str
  config: ConfigDict
  folder: Path
  overrides: Mapping[str, Any]

  def command(self) -> list[str]:
    """The command that runs this cell, and this alone."""
    values = {"method": self.config.method, **self.overrides}
    return [
      *("python", "-m", "synguide_jax.main", f"--config={self.file}"),
      *(f"--config.{field}={_text(v)}" for field, v in values.items()),
      f"--workdir={self.folder}",
    ]


def _text(value: Any) -> str:
  """A value as the command line reads it; lists are those of tuples."""
  if isinstance(value, str):
    return value
  return repr(tuple(value) if isinstance(value, list) else value)


def cells(
  files: Sequence[str],
  overrides: Mapping[str, Any],
  *,
  methods: Sequence[str] = (),
  grid: str = "",
) -> list[Cell]:
  """Crosses the rows of config files with a grid.

  Args:
    files: ``<config file>[:arg]`` each, with a ``get_sweep()``.
    overrides: Values by field, for all cells.
    methods: Only rows of these; () for all.
    grid: ``<field>=<value>,<value>;<field>=...``, see `parse_grid`.

  Returns:
    The cells, each once. What a row sets itself holds against the grid, and
    the grid holds against the overrides.

  Raises:
    UserError: for an unknown method, a field that a config lacks, a value of
      another type, or a field that the grid could not change in any row.
  """
  rows = {}
  for path, arg in map(config_lib.find, files):
    file = f"{path}:{arg}" if arg else str(path)
    rows[file] = config_lib.load_sweep(file)
  known = {row["method"] for of_file in rows.values() for row in of_file}
  if unknown := set(methods) - known:
    raise UserError(
      f"--methods={','.join(sorted(unknown))}: {', '.join(rows)} has rows of "
      f"{', '.join(sorted(known))}."
    )
  made, changed, axes = {}, set(), {}
  for file, of_file in rows.items():
    base = config_lib.load(file)
    try:
      config = config_lib.override(base, dict(overrides))
      axes = parse_grid(grid, config)
    except UserError as error:
      raise UserError(f"{file}: {error}") from error
    chosen = [row for row in of_file if row["method"] in (methods or known)]
    for row, values in itertools.product(
      chosen, itertools.product(*axes.values())
    ):
      changed |= axes.keys() - row.keys()
      own = row | dict(zip(axes, values, strict=True)) | row
      cell = _cell(file, config_lib.override(config, own), base, own)
      if len(rows) > 1:
        name = f"{cell.folder.parent.name}: {cell.name}"
        cell = dataclasses.replace(cell, name=name)
      as_text = json.dumps(workdir.as_json(cell.config), sort_keys=True)
      made.setdefault((cell.folder, as_text), cell)
  if in_vain := axes.keys() - changed:
    raise UserError(
      f"--grid: every row sets {sorted(in_vain)[0]} itself; rows are chosen "
      "with --methods, or changed in get_sweep()."
    )
  return list(made.values())


def _cell(file: str, config: Any, base: Any, own: Mapping[str, Any]) -> Cell:
  old, new = (workdir.flatten(workdir.as_json(c)) for c in (base, config))
  return Cell(
    name=table.label(workdir.flatten(config.to_dict()), own),
    file=file,
    config=config,
    folder=workdir.default_workdir(file, config, base),
    # By text, since 1 is neither 1.0 nor True in config.json.
    overrides={
      field: value
      for field, value in new.items()
      if field != "method" and repr(value) != repr(old.get(field))
    },
  )


def parse_grid(text: str, config: ConfigDict) -> dict[str, list[Any]]:
  """Returns ``{"data.shots": [1, 5], ...}`` for ``data.shots=1,5;...``.

  Values are those of ``--config.<field>=<value>``. Commas and semicolons in
  brackets or quotes are part of a value, ``model.mean=(0.5,),(0.4,0.6)``, and
  a text all in quotes stands for what is within.

  Args:
    text: The grid; "" for none.
    config: What has the fields.

  Raises:
    UserError: for a field that the config lacks or a value of another type.
  """
  axes = {}
  for part in _split(text, ";"):
    if not part:
      continue
    field, equals, values = (piece.strip() for piece in part.partition("="))
    if not equals or field in axes:
      raise UserError(
        f"--grid={part}: wants <field>=<value>,<value> between semicolons, "
        "each field once."
      )
    config_lib.check_fields(config, [field])
    axes[field] = [_parse(config, field, value) for value in _split(values)]
  return axes


def _split(text: str, separator: str = ",") -> list[str]:
  """Splits at the separators that are not in brackets or quotes."""
  parts, depth, quote = [""], 0, ""
  for character in text:
    if quote:
      quote = "" if character == quote else quote
    elif character in "'\"":
      quote = character
    else:
      depth += (character in "([{") - (character in ")]}")
    if character == separator and not depth and not quote:
      parts.append("")
    else:
      parts[-1] += character
  if depth or quote:
    raise UserError(f"--grid={text}: a bracket or a quote is not closed.")
  return [part.strip() for part in parts]


def _parse(config: ConfigDict, field: str, text: str) -> Any:
  """Parses a value by the type of its field, as the command line does."""
  before = workdir.flatten(config.to_dict()).get(field)
  if before is None:
    raise UserError(f"--grid: {field} is a section; name one of its fields.")
  if isinstance(before, str) and len(text) > 1 and text[0] in "'\"":
    text = text[1:-1] if text[-1] == text[0] else text
  argv = ["", f"--config.{field}={text}"]
  values = flags.FlagValues()
  try:
    config_flags.DEFINE_config_dict(
      "config",
      config.copy_and_resolve_references(),
      flag_values=values,
      sys_argv=argv,
    )
    values(argv)
  except (flags.Error, TypeError, ValueError) as error:
    raise UserError(f"--grid: {' '.join(str(error).split())}.") from error
  return config_flags.get_override_values(values["config"])[field]


def commands(cells: Sequence[Cell]) -> list[str]:
  """Returns the commands of the unfinished cells, each as a shell's line.

  Raises:
    UserError: if a line would be several.
  """
  lines = []
  for cell in cells:
    # What cannot be read, or is another config's, main refuses.
    with contextlib.suppress(UserError):
      if workdir.results(cell.folder) is not None:
        workdir.claim(cell.folder, cell.config)
        continue
    lines.append(shlex.join(cell.command()))
    if "\n" in lines[-1]:
      raise UserError(f"{cell.name}: a value has a line break; use --jobs.")
  return lines


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

  def failed(self, cell: Cell, message: str) -> None:
    if _IN_USE in message:
      self.cut(cell, f"skipped: {cell.folder} is {_IN_USE}")
    else:
      self.cut(cell, f"failed: {' '.join(message.split())}")

  def cut(self, cell: Cell, outcome: str) -> None:
    self.unfinished += 1
    self._say(cell, outcome)

  def _say(self, cell: Cell, outcome: str) -> None:
    self._count += 1
    say(f"[{self._count:2}/{self._total}] {cell.name}: {outcome}")


def run_here(cells: Sequence[Cell]) -> int:
  """Runs cells one after the other in this process, with a line for each.

  Returns:
    How many are not finished in the end.
  """
  progress = _Progress(len(cells))
  for cell in cells:
    began = time.monotonic()
    # One cell that cannot run must not keep the others from it.
    try:
      finished = workdir.results(cell.folder) is not None
      results = experiment.run(cell.config, cell.folder, show_progress=False)
      progress.finished(cell, results, None if finished else began)
    except (DivergedError, UserError) as error:
      progress.failed(cell, str(error))
  return progress.unfinished


def run_jobs(cells: Sequence[Cell], jobs: int, restarts: int) -> int:
  """Runs cells in processes of their own, with a line for each.

  What a process prints is in its workdir's log.txt. A cell that was stopped
  after saving, or killed, is started again. SIGINT and SIGTERM are passed on to
  the processes, which then stop.

  Args:
    cells: The cells.
    jobs: How many run at a time.
    restarts: How often a cell is started again at most.

  Returns:
    How many are not finished in the end.

  Raises:
    KeyboardInterrupt: after a SIGINT, when the processes have stopped.
    Preempted: after a SIGTERM, likewise.
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
      progress.failed(cell, str(error))
  with _received_signals() as received:
    _run_all(waiting, jobs, restarts, received, progress)
  if signal.SIGINT in received:
    raise KeyboardInterrupt
  if received:
    raise Preempted("Stopped by SIGTERM.")
  return progress.unfinished


@contextlib.contextmanager
def _received_signals() -> Iterator[list[int]]:
  """Collects the numbers of SIGINT and SIGTERM instead of ending."""
  received: list[int] = []
  before = {
    number: signal.signal(number, lambda got, _: received.append(got))
    for number in (signal.SIGINT, signal.SIGTERM)
  }
  try:
    yield received
  finally:
    for number, handler in before.items():
      signal.signal(number, handler)


def _run_all(
  waiting: collections.deque["_Job"],
  jobs: int,
  restarts: int,
  received: Sequence[int],
  progress: _Progress,
) -> None:
  """Keeps so many of the jobs running until all are through, or stopped."""
  running, passed_on = [], 0
  try:
    while running or (waiting and not received):
      while waiting and len(running) < jobs and not received:
        job = waiting.popleft()
        job.start()
        running.append(job)
      while passed_on < len(received):
        for job in running:
          job.process.send_signal(received[passed_on])
        passed_on += 1
      time.sleep(_POLL_SECONDS)
      for job in [job for job in running if job.process.poll() is not None]:
        if job.was_cut() and not received and job.starts <= restarts:
          job.start()
        else:
          running.remove(job)
          job.report(progress)
  finally:
    # There are any only after an error of this process, as on a full disk.
    for job in running:
      job.process.terminate()
    for job in running:
      job.process.wait()


@dataclasses.dataclass(eq=False)
class _Job:
  """A cell in a process of its own."""

  cell: Cell
  process: subprocess.Popen | None = None
  began: float = 0.0
  starts: int = 0
  log_position: int = 0

  def start(self) -> None:
    self.began = self.began or time.monotonic()
    self.starts += 1
    # Appended, since another sweep's process may be writing there.
    with open(self.cell.folder / "log.txt", "ab") as log:
      self.log_position = log.tell()
      self.process = subprocess.Popen(
        [sys.executable, *self.cell.command()[1:]],
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=subprocess.STDOUT,
        # Or a terminal's Ctrl-C would reach it twice.
        process_group=0,
      )

  def was_cut(self) -> bool:
    """Whether it stopped after saving, or was killed."""
    code = self.process.returncode
    return code == console.PREEMPTED or code < 0

  def report(self, progress: _Progress) -> None:
    """Says what came out."""
    code, log = self.process.returncode, self.cell.folder / "log.txt"
    try:
      results = workdir.results(self.cell.folder)
      if code == 0 and results is not None:
        progress.finished(self.cell, results, self.began)
      elif code < 0 or code in _CUT:
        how = _CUT.get(code, f"killed by signal {-code}")
        starts = f", {self.starts} starts" if self.starts > 1 else ""
        progress.cut(self.cell, f"{how}{starts}; see {log}")
      else:
        error = self._last_error() or f"exit code {code}; see {log}"
        progress.failed(self.cell, error)
    except UserError as error:
      progress.failed(self.cell, str(error))

  def _last_error(self) -> str | None:
    """What the process printed as its error."""
    with open(self.cell.folder / "log.txt", "rb") as log:
      log.seek(self.log_position)
      lines = log.read().decode(errors="replace").splitlines()
    errors = [line for line in lines if line.startswith("error: ")]
    return errors[-1].removeprefix("error: ") if errors else None
