"""What the images cost: augmentation, decoding, memory. `--parts`:

resident: images in device memory, gathered, cropped and flipped, against the
training step they are for (ResNet-18 at 32 px, batches of 128, method "real").
stream: JPEG images of 224 px, decoded and put into batches on the device,
against Pillow decoding the same files in memory, in one thread and in one a
core: cores that share their caches and memory slow each other. "Of a core" is
images by CPU seconds of this process and its workers, so that waiting for a
busy machine does not count.
memory: resident memory of the process and its workers over 10,000 training
steps on the digits.

Candidates take turns. Images are random, with the spectrum of photographs.
"""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
import dataclasses
import io
import itertools
import os
from pathlib import Path
import statistics
import tempfile
import time
from unittest import mock

from absl import flags
import jax
import numpy as np
from PIL import Image
import psutil

from benchmarks import tables
from benchmarks.tables import CORES, Table
from synguide_jax import config as config_lib
from synguide_jax import images, mesh, train
from synguide_jax.data import sources
from synguide_jax.data.augment import Augmentation
from synguide_jax.data.feed import Feed
from synguide_jax.data.pixels import Pixels

PARTS = ("resident", "stream", "memory")
STREAM_SIZE, STREAM_BATCH = 224, 64
# Batches before time is taken, more than are decoded ahead.
WARM_UP = 12

_PARTS = flags.DEFINE_list("parts", list(PARTS), "Parts of the suite data.")
_WORKERS = flags.DEFINE_list("workers", ["0", "1", "2"], "data.num_workers.")
_NETWORK = flags.DEFINE_string(
  "data_network", "cifar_resnet18", "Network of the resident images."
)
_BATCH = flags.DEFINE_integer("data_batch", 128, "Resident images a step.")
_RESIDENT = flags.DEFINE_integer("resident", 10_000, "Resident images.")
_PHOTOS = flags.DEFINE_integer("photos", 2_000, "Images of the stream.")
_STREAM_STEPS = flags.DEFINE_integer("stream_steps", 48, "Batches of a turn.")
_MEMORY_STEPS = flags.DEFINE_list(
  "memory_steps", ["1000", "2000", "5000", "10000"], "When to look at memory."
)


def photo_like(rng: np.random.Generator, size: int) -> np.ndarray:
  """Returns uint8 ``[size, size, 3]`` with amplitudes of 1 / frequency."""
  rows, columns = np.fft.fftfreq(size)[:, None], np.fft.rfftfreq(size)
  amplitude = 1 / np.maximum(np.hypot(rows, columns), 1 / size)
  noise = np.fft.rfft2(rng.normal(size=(3, size, size)))
  # Colours vary less than brightness does.
  brightness, red, blue = np.fft.irfft2(noise * amplitude, (size, size))
  colour = np.stack([red, -(red + blue) / 2, blue], axis=-1)
  image = brightness[..., None] + colour / 4
  image = 128 + 50 * (image - image.mean()) / image.std()
  return np.clip(image, 0, 255).astype(np.uint8)


def cpu_seconds() -> float:
  """CPU time of this process and its workers so far."""
  processes = [psutil.Process(), *psutil.Process().children(recursive=True)]
  return sum(sum(process.cpu_times()[:2]) for process in processes)


def resident_mib() -> float:
  """Resident memory of this process and its workers."""
  processes = [psutil.Process(), *psutil.Process().children(recursive=True)]
  return sum(process.memory_info().rss for process in processes) / 2**20


def milliseconds(call: Callable[[], object]) -> float:
  """Time that a call takes, its arrays computed."""
  start = time.perf_counter()
  jax.block_until_ready(call())
  return 1e3 * (time.perf_counter() - start)


def training(**overrides: object):
  """Returns feed, program, its first carry and its step."""
  config = config_lib.override(
    config_lib.classifier_defaults(),
    {
      **{"method": "real", "num_runs": 1, "select": "last"},
      # One is timed.
      "steps_per_dispatch": 1,
      **overrides,
    },
  )
  program, data = train.set_up(config)
  feed = Feed(data.members, data.labels, seed=config.seed, runs=(0,))
  carry, frozen = program.init()
  carry, _ = program.enter(0, carry, frozen)
  return feed, program, carry, program.step(0, frozen)


def resident(folder: Path) -> Table:
  """Measures the share of gather and augmentation in a training step."""
  rng = np.random.default_rng(0)
  np.savez(
    folder / "small.npz",
    images=np.stack([photo_like(rng, 32) for _ in range(_RESIDENT.value)]),
    labels=np.arange(_RESIDENT.value) % 10,
  )
  overrides = {"data.padding": 4, "data.flip": True, "data.feed": "resident"}
  feed, program, carry, step = training(
    **overrides,
    **{
      "data.real": f"npz:{folder / 'small.npz'}",
      "model.name": _NETWORK.value,
      "evaluate_on": (),
      "batch_size": _BATCH.value,
    },
  )
  config = config_lib.override(config_lib.classifier_defaults(), overrides)
  augment = Augmentation.from_config(config.data)

  @jax.jit
  def augmented(stored, drawn, number):
    key = jax.random.fold_in(jax.random.key(0), number)
    return augment.train(key, drawn.look_up(stored)[0])

  batches, own_batches = (program.batches(feed, 0, 0) for _ in range(2))
  shares, alone, whole = [], [], []
  for number in range(tables.rounds() + 1):
    # It is short, so it takes several turns.
    part = statistics.median(
      milliseconds(
        lambda: augmented(
          program.images.stored,
          next(own_batches).drawn["real"],
          number,  # noqa: B023
        )
      )
      for _ in range(10)
    )
    start = time.perf_counter()
    carry = jax.block_until_ready(step(carry, next(batches), number))
    total = 1e3 * (time.perf_counter() - start)
    if number:  # the first one compiles
      alone.append(part)
      whole.append(total)
      shares.append(100 * part / total)
  return Table(
    f"data: batches of {_BATCH.value} at 32 px, {_RESIDENT.value:,} images in "
    f"memory, {_NETWORK.value}",
    [
      {"": "draw, gather, crop, flip", "ms": alone},
      {"": "all of a step", "ms": whole},
      {"": "share, %", "ms": shares},
    ],
  )


@dataclasses.dataclass(frozen=True)
class _Draw:
  """Shuffled passes over so many images, as a Feed draws them."""

  # Not of a flag, which processes that decode do not know.
  count: int

  def __call__(self, step: int) -> dict[str, np.ndarray]:
    per_pass = self.count // STREAM_BATCH
    order = np.random.default_rng(step // per_pass).permutation(self.count)
    start = step % per_pass * STREAM_BATCH
    return {"real": order[None, start : start + STREAM_BATCH]}


def streamed(pixels: Pixels, workers: int) -> tuple[float, float]:
  """Returns images/s, and images per CPU second, of the stream."""
  stream = images.Streamed(pixels, mesh.create(1), workers)
  batches = stream.batches(_Draw(len(pixels)), 0, 1_000_000)
  for steps in itertools.islice(batches, WARM_UP):
    jax.block_until_ready(steps.drawn)
  start, cpu = time.perf_counter(), cpu_seconds()
  for steps in itertools.islice(batches, _STREAM_STEPS.value):
    jax.block_until_ready(steps.drawn)
  seconds, cpu = time.perf_counter() - start, cpu_seconds() - cpu
  batches.close()
  count = _STREAM_STEPS.value * STREAM_BATCH
  return count / seconds, count / cpu


def pillow(files: list[bytes], threads: int) -> tuple[float, float]:
  """Returns the same of decoding alone."""

  def decode(part):
    for content in part:
      np.asarray(Image.open(io.BytesIO(content)).convert("RGB"))

  with ThreadPoolExecutor(threads) as pool:
    start, cpu = time.perf_counter(), cpu_seconds()
    list(pool.map(decode, [files[i::threads] for i in range(threads)]))
    seconds, cpu = time.perf_counter() - start, cpu_seconds() - cpu
  return len(files) / seconds, len(files) / cpu


def stream(folder: Path) -> Table:
  """Measures the speed of the stream beside Pillow's."""
  rng, root = np.random.default_rng(0), folder / "photos"
  (root / "all").mkdir(parents=True)
  for number in range(_PHOTOS.value):
    image = Image.fromarray(photo_like(rng, STREAM_SIZE))
    image.save(root / "all" / f"{number:04}.jpg", quality=90)
  records = sources.open_set(f"folder:{root}").splits["train"]
  rows = np.arange(_PHOTOS.value)
  pixels = Pixels([(records, rows)], STREAM_SIZE, 3)
  files = records.encoded(rows)

  baselines = {
    f"Pillow, {n} thread{'s' * (n > 1)}": lambda n=n: pillow(files, n)
    for n in (1, CORES)
  }
  candidates = dict(baselines)
  for workers in map(int, _WORKERS.value):
    name = f"stream, num_workers={workers}"
    candidates[name] = lambda workers=workers: streamed(pixels, workers)
  results = {name: [] for name in candidates}
  for _ in range(tables.rounds()):
    for name, measure in candidates.items():
      results[name].append(measure())
  size = sum(map(len, files)) / len(files) / 1024
  table = Table(
    f"data: {_PHOTOS.value:,} JPEG files of {STREAM_SIZE} px, quality 90, "
    f"{size:.0f} KiB on average, batches of {STREAM_BATCH}; ratios are of "
    "images by CPU second"
  )
  for name, rates in results.items():
    rate, of_core = map(list, zip(*rates, strict=True))
    row = {"": name, "images/s": rate, "of a core": of_core}
    for baseline in baselines:
      theirs = [of_core for _, of_core in results[baseline]]
      row[f"to {baseline}"] = tables.ratios(of_core, theirs)
    table.rows.append(row)
  return table


def memory() -> Table:
  """Measures resident memory during a training, for both feeds."""
  seen = [int(step) for step in _MEMORY_STEPS.value]
  table = Table(
    "data: MiB of the process and its workers after so many steps on the "
    "digits, batches of 64, once"
  )
  for feed_name, workers in (("resident", 0), ("stream", 0), ("stream", 1)):
    feed, program, carry, step = training(
      **{
        "data.real": "digits",
        "data.image_size": 8,
        "data.channels": 1,
        "data.padding": 1,
        "data.feed": feed_name,
        "data.num_workers": workers,
        "model.name": "small_cnn",
        "evaluate_on": (),
        "batch_size": 64,
        "num_steps": seen[-1],
      }
    )
    name = feed_name if not workers else f"{feed_name}, {workers} worker"
    row = {"feed": name}
    for number, steps in enumerate(program.batches(feed, 0, 0), start=1):
      carry = step(carry, steps, number - 1)
      if number in seen:
        jax.block_until_ready(carry)
        row[f"{number:,}"] = resident_mib()
    table.rows.append(row)
  return table


def measure() -> Iterator[Table]:
  """Yields the table of each part."""
  with tempfile.TemporaryDirectory() as name:
    folder = Path(name)
    with mock.patch.dict(os.environ, SYNGUIDE_CACHE=str(folder / "cache")):
      if "resident" in _PARTS.value:
        yield resident(folder)
      if "stream" in _PARTS.value:
        yield stream(folder)
      if "memory" in _PARTS.value:
        yield memory()
