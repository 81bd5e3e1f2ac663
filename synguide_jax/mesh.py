"""Devices as a mesh of runs and shares of a batch."""

from collections.abc import Sequence
import math
from typing import Any

import jax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
import numpy as np

from synguide_jax.errors import UserError

RUN, DATA = "run", "data"


def create(
  num_runs: int,
  devices: Sequence[jax.Device] | None = None,
  *,
  run_axis: int = 0,
) -> Mesh:
  """Spreads the runs over the devices first, then each run's batch.

  Args:
    num_runs: Runs trained side by side.
    devices: Devices to use; by default all.
    run_axis: Size of the run axis. 0: the largest that divides both numbers,
      or, where that is 1, the largest that divides the number of devices and
      gives more than half of its places to a run (so that five runs use eight
      devices, and one splits its batch over them).

  Returns:
    A mesh with axes ``("run", "data")``.

  Raises:
    UserError: if the devices cannot be divided so.
  """
  devices = list(devices if devices is not None else jax.devices())
  count = len(devices)
  if run_axis < 0 or (run_axis and count % run_axis):
    raise UserError(
      f"mesh.runs={run_axis} must divide the number of devices, {count}; 0 "
      "chooses."
    )
  size = run_axis or math.gcd(num_runs, count)
  if not run_axis and size == 1:
    size = max(
      size
      for size in range(1, count + 1)
      if count % size == 0 and 2 * num_runs > num_places(num_runs, size)
    )
  grid = np.asarray(devices).reshape(size, -1)
  return Mesh(grid, (RUN, DATA), axis_types=(AxisType.Auto, AxisType.Auto))


def replicated(mesh: Mesh) -> NamedSharding:
  """The same value on every device."""
  return NamedSharding(mesh, PartitionSpec())


def per_run(mesh: Mesh) -> NamedSharding:
  """A leading run axis, spread over the mesh's run axis."""
  return NamedSharding(mesh, PartitionSpec(RUN))


def per_run_and_image(mesh: Mesh) -> NamedSharding:
  """Leading run and batch axes, each spread over its mesh axis."""
  return NamedSharding(mesh, PartitionSpec(RUN, DATA))


def per_step_run_and_image(mesh: Mesh) -> NamedSharding:
  """The same behind a leading axis of steps, which every device has."""
  return NamedSharding(mesh, PartitionSpec(None, RUN, DATA))


def over_images(mesh: Mesh) -> NamedSharding:
  """A leading batch axis, spread over the mesh's data axis."""
  return NamedSharding(mesh, PartitionSpec(DATA))


def split(mesh: Mesh, tree: Any, *, runs: bool) -> Any:
  """Shardings that split every array over the devices that would have copies.

  Each is split along the longest axis that their number divides, and kept
  whole where there is none.

  Args:
    mesh: The mesh.
    tree: Arrays, or their shapes and types.
    runs: Whether they have a leading run axis; it is spread over the mesh's.
  """
  kept = [RUN] if runs else []
  copies = (DATA,) if runs else (RUN, DATA)
  shares = math.prod(mesh.shape[axis] for axis in copies)

  def of(leaf):
    sizes = {
      axis: size
      for axis, size in enumerate(leaf.shape)
      if axis >= len(kept) and size % shares == 0
    }
    spec = kept + [None] * (leaf.ndim - len(kept))
    if sizes:
      spec[max(sizes, key=sizes.get)] = copies
    return NamedSharding(mesh, PartitionSpec(*spec))

  return jax.tree.map(of, tree)


def place(array: np.ndarray, sharding: NamedSharding) -> jax.Array:
  """Puts an array that every process has on the devices of all of them."""
  if sharding.is_fully_addressable:
    return jax.device_put(array, sharding)
  # Without comparing it between the processes, as device_put would.
  return jax.make_array_from_callback(
    array.shape, sharding, lambda part: array[part]
  )


def num_places(num_runs: int, run_axis: int) -> int:
  """Returns the number of runs that a run axis of this size takes evenly."""
  return math.ceil(num_runs / run_axis) * run_axis


def check_batch_size(
  mesh: Mesh, batch_size: int, stream: str, microbatches: int = 1
) -> None:
  """Raises UserError unless the batch can be split over the data axis."""
  shares = mesh.shape[DATA]
  if batch_size % (shares * microbatches):
    also = f" and {microbatches} microbatches" if microbatches > 1 else ""
    raise UserError(
      f"The {stream!r} stream has {batch_size} images a step, which cannot be "
      f"split over {shares} devices{also}; make batch_size a multiple, or use "
      "fewer devices."
    )
