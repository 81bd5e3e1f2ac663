"""Checkpoints of a training, with Orbax."""

from collections.abc import Callable, Iterator, Mapping
import contextlib
import errno
import hashlib
import json
import logging as python_logging
import os
from pathlib import Path
from typing import Any

from absl import logging
from etils import epath
import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers as policies

from synguide_jax import hosts
from synguide_jax.cache import write_whole
from synguide_jax.errors import UserError

_KEPT = 2  # The newest, and the one before in case the newest is damaged.

# What Orbax raises for files that are missing or cut short.
_DAMAGE = (OSError, ValueError, KeyError)

# In a checkpoint's folder: what the files hold that are read.
_CHECKSUMS = "checksums.json"


class Checkpointer:
  """Saves arrays and a JSON record by step; restores the newest readable pair.

  A context manager: what is being saved is finished on leaving it.

  Args:
    folder: Where the checkpoints live; local or remote.
    every: Steps between two saves.
  """

  def __init__(self, folder: epath.Path, every: int):
    options = ocp.CheckpointManagerOptions(
      save_decision_policy=policies.FixedIntervalPolicy(every),
      preservation_policy=policies.LatestN(_KEPT),
      # A killed save leaves a temporary folder.
      cleanup_tmp_directories=True,
      async_options=ocp.AsyncOptions(
        post_finalization_callback=self._write_checksums
      ),
    )
    for logger in ("absl", "asyncio"):
      python_logging.getLogger(logger).addFilter(_is_no_full_disk)
    self._folder = folder.resolve()
    with self._disk_full():
      self._manager = ocp.CheckpointManager(self._folder, options=options)
    self._local = "://" not in os.fspath(folder)
    self._every, self._saving = every, None

  def due(self, step: int) -> bool:
    """Whether `save` saves at ``step`` without being forced."""
    return step % self._every == 0

  def save(
    self,
    step: int,
    arrays: Any,
    record: Mapping[str, Any],
    *,
    force: bool = False,
  ) -> None:
    """Saves in the background if ``step`` is due, or ``force`` is given.

    Args:
      step: Global step.
      arrays: A pytree of jax.Arrays.
      record: JSON-serialisable data.
      force: Save whether due or not.
    """
    if not (force or self.due(step)):
      return
    with self._disk_full():
      self._manager.wait_until_finished()
      self._saving = step
      self._manager.save(
        step,
        args=ocp.args.Composite(
          arrays=ocp.args.StandardSave(arrays),
          record=ocp.args.JsonSave(dict(record)),
        ),
        force=force,
      )

  def restore(
    self, abstract_of: Callable[[dict[str, Any]], Any]
  ) -> tuple[Any, dict[str, Any]] | None:
    """Restores the newest checkpoint that can be read.

    Args:
      abstract_of: ``record -> arrays``, as shapes, types and shardings; their
        structure may depend on the record.

    Returns:
      ``(arrays, record)``, or None if there is no checkpoint. Where the newest
      is damaged this is said, the one before is read, and the damaged one is
      deleted, as is what a save that was killed would have deleted.

    Raises:
      UserError: if there are checkpoints and none can be read.
    """
    damaged = []
    for step in sorted(self._manager.all_steps(), reverse=True):
      try:
        with hosts.in_turn("checkpoint"):
          if hosts.is_first():
            self._check(step)
        record = self._read(step, record=ocp.args.JsonRestore())
      except _DAMAGE as error:
        damaged.append(_report(step, error))
        continue
      abstract = abstract_of(record)
      try:
        arrays = self._read(step, arrays=ocp.args.StandardRestore(abstract))
      except _DAMAGE as error:
        damaged.append(_report(step, error))
        continue
      # Saving over a damaged one later would fail. The old ones were to go
      # after a save; a process that was killed then has not done it.
      older = [other for other in self._manager.all_steps() if other < step]
      for other in (*damaged, *sorted(older)[: 1 - _KEPT]):
        self._manager.delete(other)
      return arrays, record
    if damaged:
      raise UserError(
        f"No checkpoint in {self._folder} can be read (see the "
        "warnings). Delete the folder to start over."
      )
    return None

  def _read(self, step: int, **args: Any) -> Any:
    (name,) = args
    try:
      return self._manager.restore(step, args=ocp.args.Composite(**args))[name]
    except Exception as error:
      # Orbax hides what reading an array raised behind a plain Exception.
      if type(error) is Exception and isinstance(error.__cause__, _DAMAGE):
        raise error.__cause__ from None
      raise

  def _write_checksums(self) -> None:
    """Called in the thread that saves, when all but the rename is done.

    Storage that is not local has checksums of its own.
    """
    if not self._local:
      return
    # Orbax's temporary name, of a folder that becomes the checkpoint whole.
    pattern = f"{self._saving}.orbax-checkpoint-tmp*"
    for folder in self._folder.glob(pattern):
      text = json.dumps(_checksums(Path(folder)), indent=1) + "\n"
      write_whole(folder / _CHECKSUMS, text.encode())

  def _check(self, step: int) -> None:
    """Raises ValueError if files are not what was written.

    Orbax reads some that were changed as other numbers.
    """
    folder = Path(self._folder, str(step))
    if not self._local or not (folder / _CHECKSUMS).exists():
      return
    written = json.loads((folder / _CHECKSUMS).read_text())
    found = _checksums(folder)
    for name, checksum in written.items():
      if found.get(name) != checksum:
        problem = "is not what was written" if name in found else "is missing"
        raise ValueError(f"{name} {problem}.")

  @contextlib.contextmanager
  def _disk_full(self) -> Iterator[None]:
    """Turns what Orbax makes of a full disk back into an OSError."""
    try:
      yield
    except Exception as error:
      if number := _full_disk(error):
        folder = os.fspath(self._folder)
        raise OSError(number, os.strerror(number), folder) from error
      raise

  def __enter__(self) -> "Checkpointer":
    return self

  def __exit__(self, *error: Any) -> None:
    """Waits for the saves under way, also if training was interrupted."""
    with self._disk_full():
      self._manager.wait_until_finished()
      self._manager.close()


def _checksums(folder: Path) -> dict[str, str]:
  """Of what lies in its subfolders; other files may still be written to."""
  sums = {}
  for path in sorted(folder.rglob("*/*")):
    if path.is_file():
      with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256")
      sums[path.relative_to(folder).as_posix()] = digest.hexdigest()
  return sums


def _is_no_full_disk(record: python_logging.LogRecord) -> bool:
  """A filter for logs: Orbax raises that, and logs pages of tracebacks too."""
  return not (record.exc_info and _full_disk(record.exc_info[1]))


def _full_disk(error: BaseException | None) -> int | None:
  """The errno of a full disk or quota, of which Orbax keeps only the text."""
  for number in (errno.ENOSPC, errno.EDQUOT):
    if os.strerror(number) in str(error):
      return number
  return None


def _report(step: int, error: Exception) -> int:
  reason = str(error).partition("\n")[0]
  logging.warning("The checkpoint of step %d is damaged: %s", step, reason)
  return step
