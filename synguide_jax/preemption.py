"""Notices that a training is to stop: SIGTERM, or a preempted host."""

import os
import signal
from typing import Any

from jax.experimental import multihost_utils

from synguide_jax import hosts

# The last number that JAX was asked about, in several processes.
_last = 0


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

  def __exit__(self, kind: Any, *error: Any) -> None:
    if self._before is not None:
      signal.signal(signal.SIGTERM, self._before)
      if self._asked and kind is None:
        # Too late to be told here.
        os.kill(os.getpid(), signal.SIGTERM)

  def begin(self, done: int) -> None:
    """Called before the first step, with the number of those done before."""
    if hosts.are_several():
      # JAX names the step to stop at when the signal comes: the one after the
      # last it was asked about, which may be of another training, or before
      # those that this one skips.
      for step in range(_last + 1, max(_last + 1, done) + 1):
        self._asked |= self._reached_together(step)

  def reached(self, step: int, count: int = 1) -> bool:
    """Whether to stop after this step; asked in every process.

    Args:
      step: Number of steps done.
      count: How many of them were done since it was asked before.
    """
    if hosts.are_several():
      for number in range(step - count + 1, step + 1):
        self._asked |= self._reached_together(number)
    return self._asked

  def _reached_together(self, step: int) -> bool:
    global _last
    _last = step
    return multihost_utils.reached_preemption_sync_point(step)

  def _note(self, number: int, frame: Any) -> None:
    del number, frame
    self._asked = True
