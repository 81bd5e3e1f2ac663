"""Checkpoints of a training, with Orbax."""

from collections.abc import Callable, Iterator, Mapping
import contextlib
import errno
import os
from typing import Any

from absl import logging
from etils import epath
import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers as policies

from synguide_jax.errors import UserError

_KEPT = 2  # The newest, and the one before in case the newest is damaged.

# What Orbax raises for files that are missing or cut short.
_DAMAGE = (OSError, ValueError, KeyError)


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
    )
    with _disk_full():
      self._manager = ocp.CheckpointManager(folder.resolve(), options=options)
    self._every = every

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
    with _disk_full():
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
      deleted.

    Raises:
      UserError: if there are checkpoints and none can be read.
    """
    damaged = []
    for step in sorted(self._manager.all_steps(), reverse=True):
      try:
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
      for newer in damaged:
        # Saving over it later would silently do nothing.
        self._manager.delete(newer)
      return arrays, record
    if damaged:
      raise UserError(
        f"No checkpoint in {self._manager.directory} can be read (see the "
        "warnings). Delete the folder to start over."
      )
    return None

  def _read(self, step: int, **args: Any) -> Any:
    (name,) = args
    return self._manager.restore(step, args=ocp.args.Composite(**args))[name]

  def __enter__(self) -> "Checkpointer":
    return self

  def __exit__(self, *error: Any) -> None:
    """Waits for the saves under way, also if training was interrupted."""
    with _disk_full():
      self._manager.wait_until_finished()
      self._manager.close()


@contextlib.contextmanager
def _disk_full() -> Iterator[None]:
  """Turns what Orbax makes of a full disk back into an OSError."""
  try:
    yield
  except Exception as error:
    for number in (errno.ENOSPC, errno.EDQUOT):
      if os.strerror(number) in str(error):
        first = str(error).partition("\n")[0]
        raise OSError(number, os.strerror(number), first) from error
    raise


def _report(step: int, error: Exception) -> int:
  reason = str(error).partition("\n")[0]
  logging.warning("The checkpoint of step %d is damaged: %s", step, reason)
  return step
