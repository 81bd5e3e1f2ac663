"""Where the images are while a method trains: in device memory, or streamed.

Both show the same images at the same step.
"""

from collections.abc import Callable, Iterator, Mapping
import functools
import gc
import os
from typing import Any, NamedTuple

from absl import flags
import flax.struct
import grain
from grain.multiprocessing import SharedMemoryArray
import jax
import numpy as np

from synguide_jax import mesh as mesh_lib
from synguide_jax.data.pixels import Pixels
from synguide_jax.errors import check_known, UserError

FEEDS = ("auto", "resident", "stream")
# Cores that threads of one process keep busy, with less work an image than
# processes, which hand their images over; see BENCHMARKS.md.
_THREADS_SUFFICE = 4
_AHEAD = 4 << 30

# step -> indices by stream, [runs, batch_size].
Draw = Callable[[int], Mapping[str, np.ndarray]]


class Steps(NamedTuple):
  """What a device is given to do at a time.

  Attributes:
    count: Number of steps.
    drawn: What they draw, by stream. Where a device may do several, arrays have
      a leading axis of as many, of which the first ``count`` are to be used.
  """

  count: int
  drawn: Mapping[str, "Drawn"]


@flax.struct.dataclass
class Drawn:
  """Some images, by number.

  Attributes:
    index: int32 ``[...]``.
    images: uint8 ``[..., H, W, C]`` if they are streamed; else None.
  """

  index: jax.Array
  images: jax.Array | None

  def look_up(self, stored: jax.Array | None) -> jax.Array:
    """Returns the images, out of ``stored`` ``[N, H, W, C]`` if it is there."""
    return self.images if stored is None else stored[self.index]


def create(
  data: Any, pixels: Pixels, mesh: jax.sharding.Mesh
) -> "Resident | Streamed":
  """Makes one of the two, as the config's ``data`` section says.

  ``"auto"`` is resident if all images take no more than ``resident_share`` of
  a device's memory; on the CPU, of the machine's.

  Raises:
    UserError: for an unknown feed or a share out of range.
  """
  check_known("data.feed", data.feed, FEEDS)
  if not 0 < data.resident_share <= 1:
    raise UserError(
      f"data.resident_share={data.resident_share} must be in (0, 1]."
    )
  if data.num_workers < -1:
    raise UserError(
      f"data.num_workers={data.num_workers} must be a number of processes, or "
      "-1."
    )
  resident = data.feed == "resident"
  if data.feed == "auto":
    # Others', and those of a topology that is not there, could not say.
    device, copies = mesh.local_devices[0], 1
    if device.platform == "cpu":
      # The devices of a CPU share its memory.
      copies = mesh.size // jax.process_count()
    resident = copies * pixels.nbytes <= data.resident_share * _memory(device)
  if resident:
    return Resident(pixels, mesh)
  workers = data.num_workers
  if workers < 0:
    cores = os.cpu_count() or 1
    workers = 0 if cores <= _THREADS_SUFFICE else cores - 1
  return Streamed(pixels, mesh, workers)


def _memory(device: jax.Device) -> int:
  stats = device.memory_stats() if device.platform != "cpu" else None
  if stats and "bytes_limit" in stats:
    return stats["bytes_limit"]
  return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


class Resident:
  """All images on every device, decoded at first use; steps gather theirs.

  Attributes:
    stored: uint8 ``[N, H, W, C]``.
  """

  name = "resident"

  def __init__(self, pixels: Pixels, mesh: jax.sharding.Mesh):
    self._pixels, self._mesh = pixels, mesh

  @functools.cached_property
  def stored(self) -> jax.Array:
    everywhere = mesh_lib.replicated(self._mesh)
    return mesh_lib.place(self._pixels.read_all(), everywhere)

  @property
  def abstract_stored(self) -> jax.ShapeDtypeStruct:
    """Shape and type of ``stored``, which is not made for that."""
    return jax.ShapeDtypeStruct(self._pixels.shape, np.uint8)

  def abstract(self, shape: tuple[int, ...]) -> Drawn:
    """Shapes and types of what is drawn, for indices of a shape."""
    return Drawn(jax.ShapeDtypeStruct(shape, np.int32), None)

  def batches(
    self,
    draw: Draw,
    start: int,
    stop: int,
    *,
    at_a_time: int = 1,
    due: Callable[[int], bool] = lambda step: False,
  ) -> Iterator[Steps]:
    """Yields what the steps from ``start`` to ``stop`` draw, on devices.

    Args:
      draw: What a step draws.
      start: Number of the first step.
      stop: One more than that of the last.
      at_a_time: Most steps to yield together.
      due: Whether something is to be done after so many steps, for which those
        that follow have to wait.
    """
    if at_a_time == 1:
      sharding = mesh_lib.per_run_and_image(self._mesh)
      for step in range(start, stop):
        yield Steps(1, self._place(draw(step), sharding))
      return
    sharding = mesh_lib.per_step_run_and_image(self._mesh)
    while start < stop:
      last = min(start + at_a_time, stop)
      end = next((s for s in range(start + 1, last) if due(s)), last)
      drawn = [draw(step) for step in range(start, end)]
      # Filled up, so that one program serves all.
      drawn += drawn[-1:] * (at_a_time - len(drawn))
      stacked = {name: np.stack([d[name] for d in drawn]) for name in drawn[0]}
      yield Steps(end - start, self._place(stacked, sharding))
      start = end

  def _place(
    self, drawn: Mapping[str, np.ndarray], sharding: jax.sharding.Sharding
  ) -> dict[str, Drawn]:
    return {
      name: Drawn(mesh_lib.place(index, sharding), None)
      for name, index in drawn.items()
    }

  def listed(
    self, batches: list[np.ndarray], sharding: jax.sharding.Sharding
  ) -> Iterator[Drawn]:
    """Yields batches of given indices ``[B]``, on devices."""
    for index in batches:
      yield Drawn(mesh_lib.place(index, sharding), None)


class Streamed:
  """Images decoded as steps need them, ahead, by Grain.

  Every process decodes what its own devices see, and no more.

  Attributes:
    stored: None.
  """

  name, stored, abstract_stored = "stream", None, None

  def __init__(self, pixels: Pixels, mesh: jax.sharding.Mesh, workers: int):
    self._pixels, self._mesh, self._workers = pixels, mesh, workers

  def abstract(self, shape: tuple[int, ...]) -> Drawn:
    """Shapes and types of what is drawn, for indices of a shape."""
    images = (*shape, *self._pixels.shape[1:])
    return Drawn(
      jax.ShapeDtypeStruct(shape, np.int32),
      jax.ShapeDtypeStruct(images, np.uint8),
    )

  def batches(self, draw: Draw, start: int, stop: int) -> Iterator[Steps]:
    """Yields what each step from ``start`` to ``stop`` draws, on devices."""
    sharding = mesh_lib.per_run_and_image(self._mesh)
    source = _Batches(
      self._pixels, draw, stop, sharding, shared=self._workers > 0
    )
    for drawn in _prefetched(source, start, stop, self._workers):
      placed = {
        name: source.place(index, images)
        for name, (index, images) in drawn.items()
      }
      yield Steps(1, placed)

  def listed(
    self, batches: list[np.ndarray], sharding: jax.sharding.Sharding
  ) -> Iterator[Drawn]:
    """Yields batches of given indices ``[B]``, on devices."""
    # Too short for processes to start.
    source = _Batches(self._pixels, _Listed(batches), len(batches), sharding)
    for drawn in _prefetched(source, 0, len(batches), 0):
      yield source.place(*drawn[""])


class _Listed:
  """Draws given batches."""

  def __init__(self, batches: list[np.ndarray]):
    self._batches = batches

  def __call__(self, step: int) -> Mapping[str, np.ndarray]:
    return {"": self._batches[step]}


class _Batches:
  """Grain's random access source: item ``n`` is what step ``n`` draws.

  Items are, by stream, all indices and the decoded images of those that the
  devices of this process see.
  """

  def __init__(
    self,
    pixels: Pixels,
    draw: Draw,
    length: int,
    sharding: jax.sharding.Sharding,
    shared: bool = False,
  ):
    self._pixels, self._draw, self._length = pixels, draw, length
    self._sharding = sharding
    # Workers decode into memory that this process sees, without a copy.
    self._empty = SharedMemoryArray if shared else np.empty
    self._share: dict[tuple[int, ...], tuple[slice, ...]] = {}
    count = 0
    for index in draw(0).values():
      self._share[index.shape] = _own_share(sharding, index.shape)
      count += index[self._share[index.shape]].size
    self.item_bytes = max(1, count * pixels.nbytes // pixels.shape[0])

  def __getstate__(self) -> dict[str, Any]:
    # Workers have no devices.
    return {**vars(self), "_sharding": None}

  def __len__(self) -> int:
    return self._length

  def __repr__(self) -> str:
    return f"{type(self).__name__}({self._length})"

  def __getitem__(self, step: int) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    drawn = {}
    for name, index in self._draw(int(step)).items():
      own = index[self._share[index.shape]]
      # Several items are decoded at a time, each by one thread.
      images = self._pixels.read(own, threads=1, empty=self._empty)
      drawn[name] = index, images
    return drawn

  def place(self, index: np.ndarray, images: np.ndarray) -> Drawn:
    """Puts an item's arrays on the devices."""
    shape = (*index.shape, *images.shape[index.ndim :])
    return Drawn(
      mesh_lib.place(index, self._sharding),
      jax.make_array_from_process_local_data(self._sharding, images, shape),
    )


def _own_share(
  sharding: jax.sharding.Sharding, shape: tuple[int, ...]
) -> tuple[slice, ...]:
  """The part of an array that is on this process's devices."""
  slices = sharding.addressable_devices_indices_map(shape).values()
  return tuple(
    slice(
      min(s.start or 0 for s in of_axis),
      max(size if s.stop is None else s.stop for s in of_axis),
    )
    for size, of_axis in zip(shape, zip(*slices, strict=True), strict=False)
  )


def _prefetched(
  source: _Batches, start: int, stop: int, workers: int
) -> Iterator[Any]:
  """Iterates over ``source[start:stop]``, decoding ahead of the consumer.

  What is decoded ahead takes about ``_AHEAD`` bytes at most, of shared memory
  where there are workers.
  """
  ahead = max(2, _AHEAD // source.item_bytes)
  data = grain.MapDataset.source(source)[start:stop]
  if workers:
    # Grain asks its own flags, which only commands parse.
    if not flags.FLAGS.is_parsed():
      flags.FLAGS.mark_as_parsed()
    options = grain.ReadOptions(num_threads=0, prefetch_buffer_size=0)
    data = data.to_iter_dataset(options).mp_prefetch(
      # Each has one item in its hands, and one that waits.
      grain.MultiprocessingOptions(max(1, min(workers, ahead // 2)), 1)
    )
  else:
    threads = min(os.cpu_count() or 1, ahead)
    buffer = min(2 * threads, ahead)
    options = grain.ReadOptions(threads, prefetch_buffer_size=buffer)
    data = data.to_iter_dataset(options)
  iterator = iter(data)
  try:
    for item in iterator:
      if workers:
        # Copies, since on the CPU a device's array may be the host's, and what
        # workers share has to be given back.
        item = jax.tree.map(np.array, item)
      yield item
  finally:
    iterator.close()
    if workers:
      # The last items are in cycles; shared memory that is left at the end of
      # the process is complained about. It takes a second, so only then.
      del iterator, data
      gc.collect()
