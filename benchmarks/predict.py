"""How much of decoding and inference `predict` hides behind each other.

Writes JPEG files of 224 px into a temporary folder and asks an untrained
network about them, at --read px. Taken apart: reading and decoding the files
in as many threads, into batches, with nothing else at work; and the network on
one batch, as often as there are batches. The three take turns. The ratio is of
images a second: predict's to those of decoding and inference one after the
other. Where both share the same cores, 1 is all that there is to gain.
"""

from collections.abc import Iterator
import os
from pathlib import Path
import tempfile
import time

from absl import flags
import jax
import numpy as np
from PIL import Image

from benchmarks import tables
from benchmarks.data import photo_like
from benchmarks.tables import Table
from synguide_jax import models
from synguide_jax.analysis import predictions
from synguide_jax.analysis.predictions import Ensemble
from synguide_jax.data import decode
from synguide_jax.data.files import Files
from synguide_jax.models.pretrained import Pretrained
from synguide_jax.synthesis.classifier import Classifier

_FILES = flags.DEFINE_integer("files", 2000, "Number of files.")
_SIDE = flags.DEFINE_integer("side", 224, "Of the files, pixels.")
_READ = flags.DEFINE_integer("read", 64, "Side that the network sees, pixels.")
_MODEL = flags.DEFINE_string("model", "small_cnn", "Network.")
_MEMBERS = flags.DEFINE_integer("members", 1, "Networks of the ensemble.")
_BATCH_SIZE = flags.DEFINE_integer("batch_size", 64, "Images a step.")


def _write(folder: str) -> None:
  rng = np.random.default_rng(0)
  # A few pictures will do; decoding does not know that it has seen one.
  pictures = [Image.fromarray(photo_like(rng, _SIDE.value)) for _ in range(50)]
  for number in range(_FILES.value):
    path = Path(folder, f"{number}.jpg")
    pictures[number % len(pictures)].save(path, quality=90)


def _ensemble() -> Ensemble:
  shape = (_READ.value, _READ.value, 3)
  model = models.create(_MODEL.value, num_classes=10, channels=3)
  init = jax.jit(model.init)
  members = [
    Classifier(
      Pretrained(
        model, init(jax.random.key(run), np.zeros((1, *shape))), shape
      ),
      tuple("0123456789"),
      _READ.value,
      {"run": run},
    )
    for run in range(_MEMBERS.value)
  ]
  return Ensemble(tuple(members))


def _decode(images: Files) -> None:
  side = _READ.value
  batch = np.empty((_BATCH_SIZE.value, side, side, 3), np.uint8)
  found = decode.in_threads(
    lambda name: decode.decode(images.read(name), side, 3),
    images.names,
    max(2, os.cpu_count() or 1),
  )
  for number, pixels in enumerate(found):
    batch[number % len(batch)] = pixels


def _infer(ensemble: Ensemble) -> None:
  side = _READ.value
  batch = np.zeros((_BATCH_SIZE.value, side, side, 3), np.uint8)
  waiting = ensemble.ask(batch)
  for _ in range(-(-_FILES.value // len(batch)) - 1):
    waiting, before = ensemble.ask(batch), waiting
    jax.device_get(before)
  jax.device_get(waiting)


def measure() -> Iterator[Table]:
  """Yields the table of times, with the ratio."""
  ensemble = _ensemble()
  with tempfile.TemporaryDirectory() as folder:
    _write(folder)
    images = predictions.open_images(folder)
    turns = {
      "decoding": lambda: _decode(images),
      "inference": lambda: _infer(ensemble),
      "predict": lambda: list(
        predictions.classify(ensemble, images, batch_size=_BATCH_SIZE.value)
      ),
    }
    turns["predict"]()  # compiles
    seconds = {name: [] for name in turns}
    for _ in range(tables.rounds()):
      for name, turn in turns.items():
        start = time.perf_counter()
        turn()
        seconds[name].append(time.perf_counter() - start)
  rows = [{"": name, "s": values} for name, values in seconds.items()]
  apart = [
    a + b
    for a, b in zip(seconds["decoding"], seconds["inference"], strict=True)
  ]
  rows[-1]["speed to both apart"] = tables.ratios(apart, seconds["predict"])
  yield Table(
    f"analysis: {_FILES.value:,} JPEG files of {_SIDE.value} px, read at "
    f"{_READ.value} px, {_MODEL.value}",
    rows,
  )
