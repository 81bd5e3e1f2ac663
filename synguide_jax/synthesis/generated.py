"""A generator's images as a prepared set, made in groups that survive a kill.

Image number i is of class ``i % K``. A group of them is a file as soon as it is
made, so that a command that was killed makes the others only, and writes the
same set bit for bit.
"""

from collections.abc import Iterator, Sequence
import io
import json
from pathlib import Path
import shutil
import time
from typing import Any

import numpy as np
import tqdm

from synguide_jax import cache
from synguide_jax.console import duration, say
from synguide_jax.data import prepared, records
from synguide_jax.data.experiment_data import ExperimentData
from synguide_jax.data.layouts import enumerate_names
from synguide_jax.data.pixels import Pixels
from synguide_jax.errors import UserError
from synguide_jax.synthesis import copies
from synguide_jax.synthesis.contact_sheet import contact_sheets, SHOWN
from synguide_jax.synthesis.modes import Modes
from synguide_jax.synthesis.sampling import Generator, GROUP

# Candidates of a class after which the dropped modes must have left some.
_PATIENCE = 1_000
# Pixels that copies are looked for at, and of images on sheets, a side.
_COPY_SIZE, _SHEET_SIZE = 32, 128
_COPIES, _OVERVIEW = "copies.json", "contact_sheet.png"


def groups(
  generator: Generator,
  folder: Path,
  *,
  num_classes: int,
  batch_size: int = GROUP,
  last: int | None = None,
) -> Iterator[np.ndarray]:
  """Yields the images of group after group: those of 0 to 63, and so on.

  Args:
    generator: Makes those that are not there yet.
    folder: Where each group is a file, made if missing.
    num_classes: K, classes that take turns.
    batch_size: Images to ask the generator for at a time, whole groups.
    last: Number of groups; None: without end.

  Yields:
    uint8 ``[64, H, W, C]``.
  """
  folder.mkdir(parents=True, exist_ok=True)
  for partial in cache.leftovers(folder):
    partial.unlink(missing_ok=True)
  per_batch, begin = batch_size // GROUP, 0
  while last is None or begin < last:
    end = begin + per_batch if last is None else min(begin + per_batch, last)
    found = {n: _read(_file(folder, n)) for n in range(begin, end)}
    if missing := [n for n, images in found.items() if images is None]:
      index = (np.arange(GROUP) + GROUP * np.array(missing)[:, None]).ravel()
      images = generator(index % num_classes, index)
      for n, group in zip(missing, np.split(images, len(missing)), strict=True):
        written = io.BytesIO()
        np.save(written, group)
        cache.write_whole(_file(folder, n), written.getvalue())
        found[n] = group
    yield from found.values()
    begin = end


def _file(folder: Path, group: int) -> Path:
  return folder / f"{group:06}.npy"


def _read(file: Path) -> np.ndarray | None:
  try:
    return np.load(file)
  except (OSError, ValueError, EOFError):  # Not there, or damaged.
    return None


def examples(
  config: Any,
  generator: Generator,
  folder: Path,
  class_names: Sequence[str],
  *,
  batch_size: int = GROUP,
  modes: Modes | None = None,
) -> Iterator[prepared.Example]:
  """Yields the images of a set, ``config.sample.per_class`` of each class.

  A larger ``per_class`` adds images without changing the first ones.

  Args:
    config: The generator's config.
    generator: Makes images.
    folder: See `groups`.
    class_names: Names of the classes.
    batch_size: See `groups`.
    modes: Images of those it does not keep are left out, and others made.

  Raises:
    UserError: the modes kept are hardly ever made of a class.
  """
  wanted, num_classes = config.sample.per_class, len(class_names)
  last = None if modes else -(-wanted * num_classes // GROUP)
  made, kept = np.zeros((2, num_classes), int)
  progress = _Progress(wanted * num_classes)
  found = groups(
    generator, folder, num_classes=num_classes, batch_size=batch_size, last=last
  )
  for number, images in enumerate(found):
    index = np.arange(GROUP) + number * GROUP
    labels = index % num_classes
    chosen = modes.kept(images, labels) if modes else np.ones(GROUP, bool)
    for i in np.flatnonzero(chosen):
      if kept[labels[i]] < wanted:
        kept[labels[i]] += 1
        yield prepared.Example(images[i], int(labels[i]), f"{index[i]:06}")
    made += np.bincount(labels, minlength=num_classes)
    progress.update(int(kept.sum()))
    if (kept == wanted).all():
      break
    rare = (made > _PATIENCE) & (100 * kept < made) & (kept < wanted)
    if rare.any():
      names = {class_names[c] for c in np.flatnonzero(rare)}
      raise UserError(
        f"config.sample.dropped_modes={config.sample.dropped_modes} leaves "
        "less than a hundredth of what is made of class "
        f"{enumerate_names(names)}; drop fewer."
      )
  progress.close()


class _Progress:
  """A bar on terminals; elsewhere a line that says how long it will take."""

  def __init__(self, total: int):
    self._bar = tqdm.tqdm(
      total=total, desc="Sampling", unit=" images", disable=None
    )
    self._total, self._begin, self._said = total, None, False

  def update(self, done: int) -> None:
    now = time.monotonic()
    self._bar.update(done - self._bar.n)
    if self._begin is None:  # The first batch is compilation, too.
      self._begin = now, done
      return
    passed, images = now - self._begin[0], done - self._begin[1]
    if self._bar.disable and passed > 5 and not self._said and images:
      left = duration((self._total - done) * passed / images)
      say(f"  {done:,} of {self._total:,} images, {left} left")
      self._said = True

  def close(self) -> None:
    self._bar.close()


def count(folder: Path) -> int:
  """Number of images in a folder of groups."""
  return GROUP * len(list(folder.glob("[0-9]*.npy")))


def clear(folder: Path) -> None:
  """Removes the groups of a set that is written."""
  shutil.rmtree(folder, ignore_errors=True)


def is_looked_at(folder: Path) -> bool:
  """Whether a set's folder has what `look_at` writes."""
  return all((folder / name).exists() for name in (_COPIES, _OVERVIEW))


def look_at(folder: Path, data: ExperimentData) -> list[str]:
  """Writes contact sheets and copies.json into a set's folder.

  Args:
    folder: A prepared set's.
    data: Of the generator; its run's real images were trained on.

  Returns:
    Lines about copies of those.
  """
  images = records.of_prepared(folder)["train"]
  labels = images.index.labels
  first = [np.flatnonzero(labels == c)[:SHOWN] for c in np.unique(labels)]
  shown, channels = np.concatenate(first), data.pixels.shape[3]
  side = min(int(images.index.widths.max()), _SHEET_SIZE)
  sheets = Pixels([(images, shown)], side, channels).read()
  contact_sheets(sheets, labels[shown], images.class_names, folder)
  real = data.members["real"][0]
  say(f"  looking for copies of {len(real):,} training images")
  side = min(side, _COPY_SIZE)
  samples = Pixels([(images, np.arange(len(images)))], side, channels)
  try:
    report = copies.report(samples.read(), data.pixels.resized(side).read(real))
    lines = copies.lines(report)
  except UserError as error:  # Too few to compare.
    report = {"not_compared": str(error)}
    lines = [f"not looked for copies: {error}"]
  content = json.dumps(report, indent=1).encode()
  cache.write_whole(folder / _COPIES, content)
  return lines
