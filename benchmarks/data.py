"""What the images cost: augmentation, decoding, memory.

  python -m benchmarks.data [--parts=resident,stream,memory]

resident: images in device memory, gathered, cropped and flipped, against the
training step they are for (ResNet-18 at 32 px, batches of 128, method "real").
stream: JPEG images of 224 px, decoded and put into batches on the device,
against Pillow decoding the same files in memory, in one thread and in one a
core: cores that share their caches and memory slow each other. "Of a core" is
images by CPU seconds of this process and its workers, so that waiting for a
busy machine does not count.
memory: resident memory of the process and its workers over 10,000 training
steps on the digits.

Candidates take turns; medians over rounds, with the slowest and the fastest in
brackets. Images are random, with the spectrum of photographs.
"""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
import io
import itertools
import os
from pathlib import Path
import platform
import statistics
import tempfile
import time

from absl import app, flags
import jax
import numpy as np
from PIL import Image
import psutil

from synguide_jax import config as config_lib
from synguide_jax import console, images, mesh, train
from synguide_jax.data import sources
from synguide_jax.data.augment import Augmentation
from synguide_jax.data.feed import Feed
from synguide_jax.data.pixels import Pixels

CORES = len(os.sched_getaffinity(0))
PARTS = ("resident", "stream", "memory")
NUM_SMALL, NUM_LARGE = 10_000, 2_000
STREAM_SIZE, STREAM_BATCH = 224, 64
# Batches before time is taken, more than are decoded ahead, and after.
WARM_UP, STREAM_STEPS = 12, 48
MEMORY_STEPS, MEMORY_SEEN = 10_000, (1_000, 2_000, 5_000, 10_000)

_PARTS = flags.DEFINE_list("parts", list(PARTS), "What to measure.")
_ROUNDS = flags.DEFINE_integer("rounds", 5, "Timed turns of each candidate.")
_WORKERS = flags.DEFINE_list("workers", ["0", "1", "2"], "data.num_workers.")


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


def spread(values: list[float], digits: int = 1) -> str:
  """Formats the median and, in brackets, the extremes."""
  middle, low, high = statistics.median(values), min(values), max(values)
  return f"{middle:,.{digits}f} [{low:,.{digits}f}, {high:,.{digits}f}]"


def milliseconds(call: Callable[[], object]) -> float:
  """Time that a call takes, its arrays computed."""
  start = time.perf_counter()
  jax.block_until_ready(call())
  return 1e3 * (time.perf_counter() - start)


def training(**overrides: object):
  """Returns feed, program, its first carry and its step."""
  config = config_lib.override(
    config_lib.classifier_defaults(),
    {"method": "real", "num_runs": 1, "select": "last", **overrides},
  )
  program, data = train.set_up(config)
  feed = Feed(data.members, data.labels, seed=config.seed, runs=(0,))
  carry, frozen = program.init()
  carry, _ = program.enter(0, carry, frozen)
  return feed, program, carry, program.step(0, frozen)


def resident(folder: Path, rounds: int) -> None:
  """Prints the share of gather and augmentation in a training step."""
  rng = np.random.default_rng(0)
  np.savez(
    folder / "small.npz",
    images=np.stack([photo_like(rng, 32) for _ in range(NUM_SMALL)]),
    labels=np.arange(NUM_SMALL) % 10,
  )
  overrides = {"data.padding": 4, "data.flip": True, "data.feed": "resident"}
  feed, program, carry, step = training(
    **overrides,
    **{
      "data.real": f"npz:{folder / 'small.npz'}",
      "model.name": "cifar_resnet18",
      "evaluate_on": (),
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
  for number in range(rounds + 1):
    # It is short, so it takes several turns.
    part = statistics.median(
      milliseconds(
        lambda: augmented(
          program.images.stored,
          next(own_batches)["real"],
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
  print(
    f"\nresident: batches of 128 at 32 px, {NUM_SMALL:,} images, n = {rounds}\n"
    "\n| | ms |\n| --- | ---: |\n"
    f"| draw, gather, crop, flip | {spread(alone, 2)} |\n"
    f"| all of a step of cifar_resnet18 | {spread(whole, 0)} |\n"
    f"| share, % | {spread(shares, 2)} |",
    flush=True,
  )


class _Draw:
  """Shuffled passes over all images, as a Feed draws them."""

  def __call__(self, step: int) -> dict[str, np.ndarray]:
    per_pass = NUM_LARGE // STREAM_BATCH
    order = np.random.default_rng(step // per_pass).permutation(NUM_LARGE)
    start = step % per_pass * STREAM_BATCH
    return {"real": order[None, start : start + STREAM_BATCH]}


def streamed(pixels: Pixels, workers: int) -> tuple[float, float]:
  """Returns images/s, and images per CPU second, of the stream."""
  stream = images.Streamed(pixels, mesh.create(1), workers)
  batches = stream.batches(_Draw(), 0, 1_000_000)
  for drawn in itertools.islice(batches, WARM_UP):
    jax.block_until_ready(drawn)
  start, cpu = time.perf_counter(), cpu_seconds()
  for drawn in itertools.islice(batches, STREAM_STEPS):
    jax.block_until_ready(drawn)
  seconds, cpu = time.perf_counter() - start, cpu_seconds() - cpu
  batches.close()
  count = STREAM_STEPS * STREAM_BATCH
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


def stream(folder: Path, rounds: int) -> None:
  """Prints the speed of the stream beside Pillow's."""
  rng, root = np.random.default_rng(0), folder / "photos"
  (root / "all").mkdir(parents=True)
  for number in range(NUM_LARGE):
    image = Image.fromarray(photo_like(rng, STREAM_SIZE))
    image.save(root / "all" / f"{number:04}.jpg", quality=90)
  records = sources.open_set(f"folder:{root}").splits["train"]
  rows = np.arange(NUM_LARGE)
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
  for _ in range(rounds):
    for name, measure in candidates.items():
      results[name].append(measure())
  size = sum(map(len, files)) / len(files) / 1024
  print(
    f"\nstream: {NUM_LARGE:,} JPEG files of {STREAM_SIZE} px, quality 90, "
    f"{size:.0f} KiB on average, batches of {STREAM_BATCH}, n = {rounds}\n\n"
    f"| | images/s | of a core | {' | '.join(f'to {b}' for b in baselines)} |\n"
    f"| --- | ---: | ---: |{' ---: |' * len(baselines)}"
  )
  for name, rates in results.items():
    rate, of_core = map(list, zip(*rates, strict=True))
    cells = [name, spread(rate, 0), spread(of_core, 0)]
    for baseline in baselines:
      pairs = zip(of_core, results[baseline], strict=True)
      cells.append(spread([own / other for own, (_, other) in pairs], 2))
    print(f"| {' | '.join(cells)} |", flush=True)


def memory() -> None:
  """Prints resident memory during a training, for both feeds."""
  print(
    "\nmemory: MiB of the process and its workers after so many steps on the "
    "digits, batches of 64, n = 1\n\n"
    f"| feed | {' | '.join(f'{step:,}' for step in MEMORY_SEEN)} |\n"
    f"| --- |{' ---: |' * len(MEMORY_SEEN)}"
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
        "num_steps": MEMORY_STEPS,
      }
    )
    seen = []
    for number, drawn in enumerate(program.batches(feed, 0, 0)):
      carry = step(carry, drawn, number)
      if number + 1 in MEMORY_SEEN:
        jax.block_until_ready(carry)
        seen.append(f"{resident_mib():,.0f}")
    name = feed_name if not workers else f"{feed_name}, {workers} worker"
    print(f"| {name} | {' | '.join(seen)} |", flush=True)


def main(argv):
  """Prints the tables."""
  del argv
  console.quiet()
  print(
    f"Python {platform.python_version()}, jax {jax.__version__}; "
    f"{CORES} cores, load {os.getloadavg()[0]:.1f}"
  )
  with tempfile.TemporaryDirectory() as folder:
    os.environ["SYNGUIDE_CACHE"] = f"{folder}/cache"
    if "resident" in _PARTS.value:
      resident(Path(folder), _ROUNDS.value)
    if "stream" in _PARTS.value:
      stream(Path(folder), _ROUNDS.value)
    if "memory" in _PARTS.value:
      memory()
  print(f"\nload {os.getloadavg()[0]:.1f} at the end")


if __name__ == "__main__":
  app.run(main)
