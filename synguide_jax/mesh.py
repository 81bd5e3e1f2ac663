"""Devices as a mesh of runs and shares of a batch."""

from collections.abc import Iterator, Sequence
import contextlib
import math

import jax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
import numpy as np
from orbax.checkpoint import multihost

from synguide_jax.errors import UserError

RUN, DATA = "run", "data"
_PATIENCE = 24 * 60 * 60 * 1000  # A day, ms.


def create(num_runs: int, devices: Sequence[jax.Device] | None = None) -> Mesh:
  """Spreads the runs over the devices first, then each run's batch.

  Args:
    num_runs: Runs trained side by side.
    devices: Devices to use; by default all.

  Returns:
    A mesh with axes ``("run", "data")``; the run axis is the largest divisor
    of both the number of runs and the number of devices.
  """
  devices = list(devices if devices is not None else jax.devices())
  runs = math.gcd(num_runs, len(devices))
  grid = np.asarray(devices).reshape(runs, -1)
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


def over_images(mesh: Mesh) -> NamedSharding:
  """A leading batch axis, spread over the mesh's data axis."""
  return NamedSharding(mesh, PartitionSpec(DATA))


def place(array: np.ndarray, sharding: NamedSharding) -> jax.Array:
  """Puts an array that every process has on the devices of all of them."""
  if jax.process_count() == 1:
    return jax.device_put(array, sharding)
  # Without comparing it between the processes, as device_put would.
  return jax.make_array_from_callback(
    array.shape, sharding, lambda part: array[part]
  )


@contextlib.contextmanager
def first_process_first(name: str) -> Iterator[None]:
  """Lets the first process make what the others then find.

  Args:
    name: Of what is made, the same in all processes.
  """
  if jax.process_count() == 1:
    yield
    return
  # One that waits for hours; those of devices give up after half a minute.
  wait = multihost.get_barrier_sync_fn()
  first = jax.process_index() == 0
  try:
    if not first:
      wait(key=name, timeout_ms=_PATIENCE)
    yield
  finally:
    if first:
      wait(key=name, timeout_ms=_PATIENCE)


def check_batch_size(mesh: Mesh, batch_size: int, stream: str) -> None:
  """Raises UserError unless the batch can be split over the data axis."""
  shares = mesh.shape[DATA]
  if batch_size % shares:
    raise UserError(
      f"The {stream!r} stream has {batch_size} images a step, which cannot be "
      f"split over {shares} devices; make batch_size a multiple, or use fewer "
      "devices."
    )
