"""The runs of a program: side by side or in turn, and where they are."""

from collections.abc import Callable
import functools
from typing import Any

import jax
import numpy as np

from synguide_jax import mesh as mesh_lib
from synguide_jax.errors import check_known, UserError

MODES = ("auto", "vmap", "map")


# Pixels of a step up to which a run leaves most of an accelerator idle: a batch
# of 128 images of 64 px.
_SMALL = 128 * 64 * 64


def choose_mode(wanted: str, platform: str, pixels: int) -> str:
  """Returns "vmap" or "map"; for "auto", by a rule.

  The rule: on a CPU "map"; neither is faster throughout there (BENCHMARKS.md),
  and in turn a run is the same in company bit for bit. On others "vmap", unless
  a run by itself gives a device enough to do, more than 128 images of 64 px at
  a time: then "map", which needs the memory of one run's activations. On one
  device the number of runs has no part in it, so that a run trains in the same
  mode alone and in company.

  Args:
    wanted: ``config.runs_mode``.
    platform: Of the devices.
    pixels: Of the images of one run that a device sees at a time.

  Raises:
    UserError: for an unknown mode.
  """
  check_known("runs_mode", wanted, MODES)
  if wanted != "auto":
    return wanted
  return "map" if platform == "cpu" or pixels > _SMALL else "vmap"


# Steps that are done at a time where a step is short: for its dispatch to
# matter, and for SIGTERM not to wait long. On a CPU it is with few pixels.
_AT_A_TIME, _SHORT_ON_CPU = 16, 64 * 16 * 16


def choose_steps(
  wanted: int, platform: str, pixels: int, *, resident: bool
) -> int:
  """Returns how many steps a device does at a time; for 0, by a rule.

  The rule: 16 if a run sees no more than 128 images of 64 px at a time, on a
  CPU no more than 64 of 16 px; else 1. What a step does is the same, bit for
  bit on a CPU.

  Args:
    wanted: ``config.steps_per_dispatch``.
    platform: Of the devices.
    pixels: Of the images of one run that a device sees at a time.
    resident: Whether the images are in the devices' memory; where they are
      streamed, a step waits for its own.

  Raises:
    UserError: if it is negative, or more than 1 of streamed images.
  """
  if wanted < 0:
    raise UserError(f"steps_per_dispatch={wanted} must be positive, or 0.")
  if wanted > 1 and not resident:
    raise UserError(
      f"steps_per_dispatch={wanted}, but images are streamed, a step at a "
      "time; set it to 1, or data.feed='resident'."
    )
  if wanted:
    return wanted
  short = pixels <= (_SHORT_ON_CPU if platform == "cpu" else _SMALL)
  return _AT_A_TIME if resident and short else 1


def over_runs(
  function: Callable[..., Any],
  mode: str,
  mesh: jax.sharding.Mesh,
  *,
  frozen_per_run: bool,
) -> Callable[..., Any]:
  """Makes a function of one run one of all.

  Args:
    function: ``(frozen, *of_run) -> result``.
    mode: "vmap": all runs of a device at once; "map": one after the other.
    mesh: The devices.
    frozen_per_run: Whether ``frozen`` has a leading run axis too.

  Returns:
    ``(frozen, *of_runs) -> results`` with a leading run axis.
  """

  def side_by_side(function):
    def over(frozen, *args):
      axes = (0 if frozen_per_run else None, *(0 for _ in args))
      over_axis = jax.vmap(function, axes, spmd_axis_name=mesh_lib.RUN)
      return over_axis(frozen, *args)

    return over

  def in_turn(frozen, *args):
    if frozen_per_run:
      return jax.lax.map(lambda of_run: function(*of_run), (frozen, *args))
    return jax.lax.map(lambda of_run: function(frozen, *of_run), args)

  if mode == "vmap":
    return side_by_side(function)
  devices = mesh.shape[mesh_lib.RUN]
  if devices == 1:
    return in_turn
  by_device = functools.partial(
    jax.tree.map, lambda x: x.reshape(devices, -1, *x.shape[1:])
  )

  def over(frozen, *args):
    # Devices side by side, the runs of each of them in turn.
    frozen = by_device(frozen) if frozen_per_run else frozen
    found = side_by_side(in_turn)(frozen, *by_device(args))
    return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), found)

  return over


def fill(array: np.ndarray, count: int) -> np.ndarray:
  """Puts copies of the first element behind the last, up to a length."""
  missing = count - len(array)
  if not missing:
    return array
  return np.concatenate([array, np.repeat(array[:1], missing, 0)])


class Places:
  """Where runs are along a mesh's run axis.

  It may be longer than there are runs, or no divisor of their number: copies of
  the first run then fill the last places, and count for nothing.

  Args:
    mesh: The mesh.
    num_runs: Number of runs.

  Attributes:
    count: Number of places, a multiple of the run axis.
    num_runs: Number of runs.
    sharding: Of arrays with a leading axis of places.
  """

  def __init__(self, mesh: jax.sharding.Mesh, num_runs: int):
    self.count = mesh_lib.num_places(num_runs, mesh.shape[mesh_lib.RUN])
    self.num_runs, self.sharding = num_runs, mesh_lib.per_run(mesh)
    self._everywhere = mesh_lib.replicated(mesh)
    self._gather = jax.jit(lambda tree: tree, out_shardings=self._everywhere)

  def fill(self, array: np.ndarray) -> np.ndarray:
    """Returns an array with a leading axis of runs, with one of places."""
    return fill(array, self.count)

  def cut(self, array: Any) -> Any:
    """Returns an array with a leading axis of places, with one of runs."""
    return array[: self.num_runs]

  def place(self, array: np.ndarray) -> jax.Array:
    """Puts an array with a leading axis of runs on the devices."""
    return mesh_lib.place(self.fill(array), self.sharding)

  def filled(self, value: float | int) -> jax.Array:
    """Returns the same number for every run, on the devices."""
    dtype = np.int32 if isinstance(value, int) else np.float32
    return self.place(np.full(self.num_runs, value, dtype))

  def fetch(self, tree: Any) -> Any:
    """Returns arrays from the devices, in all processes, of runs."""
    if not self.sharding.is_fully_addressable:
      tree = self._gather(tree)
    return jax.tree.map(self.cut, jax.device_get(tree))

  def abstract(self, tree: Any, count: int) -> Any:
    """Returns abstract arrays of these places as those of others."""
    if count == self.count:
      return tree
    tree = jax.tree.map(
      lambda x: jax.ShapeDtypeStruct((count, *x.shape[1:]), x.dtype), tree
    )
    return jax.tree.map(
      lambda x, sharding: x.update(sharding=sharding),
      tree,
      mesh_lib.split(self._everywhere.mesh, tree, runs=False),
    )
