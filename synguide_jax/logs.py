"""What a training writes while it runs: scalars, and examples of its batches.

``writer`` is whatever the trainer was given; only `write_figures` needs clu,
and with it TensorFlow.
"""

from collections.abc import Mapping, Sequence
import os
import time
from typing import Any

from etils import epath
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from synguide_jax import hosts
from synguide_jax.data.feed import Feed
from synguide_jax.methods.base import Batch
from synguide_jax.program import Program

_EXAMPLES = 16  # Images of a batch that are shown.
_COLUMNS = 8
_CELL = 96  # Smallest side of an enlarged image, pixels.
_FONT = 12  # Height of the captions, pixels.
_GAP = 4  # Around images, pixels.


class Log:
  """Writes what a training does, at its evaluations.

  Scalars are ``progress`` (share of the training done), ``learning_rate`` (of
  the last step, before the factors of a method's parts), ``steps_per_sec`` and
  ``images_per_sec`` (of all runs; compilation and evaluations left out),
  ``seconds_left`` (at the mean pace of the stage, evaluations included), and
  ``train/<metric>`` and ``validation/<metric>``, means over the steps since the
  last evaluation and over the runs, those that diverged left out. Images are
  ``examples/<stage>/<stream>``.

  Args:
    writer: See `train.train_and_evaluate`.
    program: What is trained.
  """

  def __init__(self, writer: Any, program: Program):
    self._writer, self._program = writer, program
    self._total = sum(stage.num_steps for stage in program.method.stages)

  def enter(self, number: int, before: int) -> None:
    """Notes that stage ``number`` goes on, after ``before`` steps of others."""
    self._number, self._before = number, before
    self._began = self._resumed = None
    self._in_stage = self._since = 0
    self._speed: dict[str, float] = {}

  def stepped(self, count: int) -> None:
    """Counts steps that were dispatched."""
    if self._began is None:
      # The first are compiled, which says nothing of the others.
      self._began = self._resumed = time.monotonic()
    else:
      self._in_stage += count
      self._since += count

  def measure(self) -> None:
    """Takes the time of the steps since the last evaluation, which are done."""
    now, self._speed = time.monotonic(), {}
    if self._since:
      rate = self._since / max(now - self._resumed, 1e-9)
      images = self._program.images_per_step(self._number)
      self._speed = {"steps_per_sec": rate, "images_per_sec": rate * images}

  def write(self, record: Mapping[str, Any]) -> None:
    """Writes an evaluation's record; the next steps are timed from here on.

    Args:
      record: ``step`` (those of all stages), and ``train`` and ``validation``,
        metrics ``[runs]`` by name.
    """
    done, stage = record["step"], self._program.method.stages[self._number]
    scalars = {"progress": done / self._total, **self._speed}
    if stage.learning_rate is not None:
      last = done - self._before - 1
      scalars["learning_rate"] = float(stage.learning_rate(last))
    self._resumed, self._since = time.monotonic(), 0
    if self._in_stage:
      pace = (self._resumed - self._began) / self._in_stage
      scalars["seconds_left"] = pace * (self._total - done)
    for group in ("train", "validation"):
      for name, values in record.get(group, {}).items():
        finite = values[np.isfinite(values)]
        if len(finite):
          scalars[f"{group}/{name}"] = float(finite.mean())
    self._writer.write_scalars(done, scalars)

  def examples(self, feed: Feed) -> None:
    """Shows what the stage's first step shows the first run.

    Only the first process does, and only to a writer that takes images.
    """
    write = getattr(self._writer, "write_images", None)
    if write is None or not hosts.is_first():
      return
    stage = self._program.method.stages[self._number]
    found = self._program.examples(feed, self._number, _EXAMPLES)
    names = self._program.info.class_names
    grids = {
      f"examples/{stage.name}/{stream}": grid(batch, names)
      for stream, batch in found.items()
    }
    write(self._before, grids)


def grid(batch: Batch, class_names: Sequence[str]) -> np.ndarray:
  """Draws a batch's images in rows of eight, each over the name of its class.

  Args:
    batch: Images in [0, 1], of one or three channels, numpy's arrays.
    class_names: Names of the classes, in label order.

  Returns:
    A picture for each view of the images, uint8 ``[views, H, W, 3]``. Where
    real and synthetic images are mixed, captions say which they are.
  """
  mixed = batch.real.any() and not batch.real.all()
  captions = [
    class_names[label] + (" (real)" if mixed and real else "")
    for label, real in zip(batch.labels, batch.real, strict=True)
  ]
  images = np.asarray(batch.images)
  views = images if images.ndim == 5 else images[None]
  pixels = np.rint(255 * np.clip(views, 0, 1)).astype(np.uint8)
  return np.stack([_draw(view, captions) for view in pixels])


def _draw(images: np.ndarray, captions: Sequence[str]) -> np.ndarray:
  height, width = images.shape[1:3]
  scale = max(1, -(-_CELL // min(height, width)))
  cell = width * scale, height * scale
  step = cell[0] + _GAP, cell[1] + _FONT + 2 * _GAP
  columns = min(_COLUMNS, len(images))
  rows = -(-len(images) // columns)
  size = columns * step[0] + _GAP, rows * step[1] + _GAP
  sheet = Image.new("RGB", size, (255, 255, 255))
  draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(_FONT)
  for number, (image, caption) in enumerate(zip(images, captions, strict=True)):
    row, column = divmod(number, columns)
    left, top = _GAP + column * step[0], _GAP + row * step[1]
    tile = Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image)
    sheet.paste(tile.resize(cell, Image.Resampling.NEAREST), (left, top))
    below = left, top + cell[1] + _GAP // 2
    draw.text(below, _cut(caption, font, cell[0]), fill=(0, 0, 0), font=font)
  return np.asarray(sheet)


def _cut(text: str, font: Any, width: int) -> str:
  """Shortens a text to a width in pixels, in the middle: ends tell apart."""
  kept, shown = len(text), text
  while font.getlength(shown) > width and kept > 2:
    kept -= 1
    shown = f"{text[: -(-kept // 2)]}..{text[len(text) - kept // 2 :]}"
  return shown


def write_figures(
  folder: os.PathLike | str,
  figures: Mapping[str, np.ndarray | os.PathLike | str],
  step: int = 0,
) -> None:
  """Writes pictures as TensorBoard events; of several processes the first does.

  Args:
    folder: Folder of the events, which holds no others: those of an earlier
      call are removed.
    figures: Pictures by the names they get: files, or uint8 ``[H, W, 3]``.
    step: The step they are shown at.
  """
  if not hosts.is_first():
    return
  from clu import metric_writers

  for events in epath.Path(folder).glob("events.out.tfevents.*"):
    events.unlink()
  writer = metric_writers.SummaryWriter(os.fspath(folder))
  for name, figure in figures.items():
    if not isinstance(figure, np.ndarray):
      figure = _read(figure)
    writer.write_images(step, {name: figure})
  writer.close()


def _read(path: os.PathLike | str) -> np.ndarray:
  """Decodes a picture, its transparent parts on white: ``[H, W, 3]``."""
  with epath.Path(path).open("rb") as file, Image.open(file) as image:
    image = image.convert("RGBA")
  white = Image.new("RGBA", image.size, (255, 255, 255))
  return np.asarray(Image.alpha_composite(white, image).convert("RGB"))
