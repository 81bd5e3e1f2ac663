"""Notices that a training is to stop: SIGTERM, or a preempted host."""

import signal
from typing import Any

from jax.experimental import multihost_utils

from synguide_jax import hosts


class Preemption:
  """A context in which SIGTERM does not kill, but is told.

  In one process it catches the signal (only the main thread can). Of several,
  JAX's coordination service catches it in any, and lets all of them stop at the
  same step.
  """

  def __init__(self):
    self._asked = False
    self._before: Any = None

  def __enter__(self) -> "Preemption":
    if not hosts.are_several():
      try:
        self._before = signal.signal(signal.SIGTERM, self._note)
      except ValueError:  # not the main thread
        pass
    return self

  def __exit__(self, *error: Any) -> None:
    if self._before is not None:
      signal.signal(signal.SIGTERM, self._before)

  def reached(self, step: int) -> bool:
    """Whether to stop after this step; asked after each, in every process."""
    if hosts.are_several():
      return multihost_utils.reached_preemption_sync_point(step)
    return self._asked

  def _note(self, number: int, frame: Any) -> None:
    del number, frame
    self._asked = True
