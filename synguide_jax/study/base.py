"""The sets of a study, and its cells: experiments in workdirs of their own.

They are under ``cells/`` of the study's workdir, so that a command that was
interrupted goes on where it was.
"""

from collections.abc import Iterable, Mapping, Sequence
import dataclasses
from pathlib import Path
import re
from typing import Any

import numpy as np
from PIL import Image

from synguide_jax import config as config_lib
from synguide_jax import experiment, jobs, workdir
from synguide_jax.analysis.observations import Part
from synguide_jax.data import experiment_data, sources, splits
from synguide_jax.errors import UserError
from synguide_jax.grid import Cell
from synguide_jax.models.pretrained import load_pretrained, Pretrained

REAL = "real"
# Share of the images of a synthetic set that its classifier does not see.
_HELD_OUT = 0.2


@dataclasses.dataclass(frozen=True)
class Source:
  """A synthetic set.

  Attributes:
    name: What it is called.
    spec: As in data.synthetic.
    data: The real images and this set's, all of them.
    per_class: Images of a class that its classifier is trained on, at most.
    trained_on: Their numbers.
  """

  name: str
  spec: str
  data: experiment_data.ExperimentData
  per_class: int
  trained_on: np.ndarray

  def part(self, source: str, part: str) -> Part:
    """Returns a part of the set, or of the real images."""
    data = self.data
    index = {
      (REAL, "training"): data.indices["pool"],
      (REAL, "test"): data.indices["test"],
      (self.name, "all"): data.indices["synthetic"],
      (self.name, "training"): self.trained_on,
      (self.name, "held out"): np.setdiff1d(
        data.indices["synthetic"], self.trained_on
      ),
    }[source, part]
    return Part(source, part, data.pixels, index, data.labels[index])


def open_sources(config: Any, made: Mapping[str, str]) -> list[Source]:
  """Opens every synthetic set of the config by itself.

  Args:
    config: The experiment's config.
    made: What stands for specs that something was made for.

  Raises:
    UserError: there is none, or a set is too small.
  """
  pairs = sources.parse_weights(config.data.synthetic)
  if not pairs:
    raise UserError("data.synthetic is empty; name a set to look at.")
  found = []
  for (spec, _), name in zip(
    pairs, names_of([s for s, _ in pairs]), strict=True
  ):
    data = config.data.copy_and_resolve_references()
    data.synthetic, data.shots = made.get(spec, spec), -1
    loaded = experiment_data.load(data, seed=config.seed, runs=(0,))
    counts = np.bincount(loaded.labels[loaded.indices["synthetic"]])
    per_class = int((1 - _HELD_OUT) * counts.min())
    if per_class < 1:
      raise UserError(f"{spec} has a class of {counts.min()} images; too few.")
    trained_on = splits.at_most(
      loaded.labels,
      loaded.indices["synthetic"],
      per_class,
      seed=data.split_seed,
    )
    found.append(Source(name, spec, loaded, per_class, trained_on))
  return found


def names_of(specs: Sequence[str]) -> list[str]:
  """Short names of specs, each another, and none that of the real images."""
  short = []
  for spec in specs:
    scheme, _, path = spec.partition(":")
    parts = [p for p in re.split(r"[:/]", path or scheme) if p]
    # The end says enough, but for a version or a config's argument.
    whole = scheme in ("prepared", "tfds") or ":" in path.rpartition("/")[2]
    words = [re.sub(r"\.\w+$", "", p) for p in parts[-2 if whole else -1 :]]
    short.append(re.sub(r"\W+", "_", "_".join(words)))
  return [
    name if short.count(name) == 1 and name != REAL else f"{name}_{number}"
    for number, name in enumerate(short, 1)
  ]


@dataclasses.dataclass(frozen=True)
class Study:
  """An analysis in the making.

  Attributes:
    file: ``<config file>[:arg]``, for the commands of its cells.
    config: The experiment's config.
    folder: Its workdir.
    sources: The synthetic sets.
    made: What stands for specs that something was made for.
  """

  file: str
  config: Any
  folder: Path
  sources: Sequence[Source]
  made: Mapping[str, str]

  def cell(self, name: str, overrides: Mapping[str, Any]) -> Cell:
    """An experiment of its own."""
    fields = {"evaluate_on": ("test",), **overrides}
    config = config_lib.override(self.config, fields)
    folder = self.folder / "cells" / name
    return Cell(name, self.file, config, folder, fields)

  def of_real(self) -> Cell:
    """The classifier of all real images."""
    fields = {"method": REAL, "data.shots": -1, "data.synthetic": ""}
    return self.cell(REAL, {"select": "last", **fields})

  def of_synthetic(self, source: Source) -> Cell:
    """The classifier of a synthetic set."""
    fields = {
      # No real image, not of validation either, is to choose the weights.
      "select": "last",
      "method": "fake",
      "data.shots": -1,
      "data.synthetic": source.spec,
      "data.synthetic_per_class": source.per_class,
    }
    return self.cell(source.name, fields)

  def networks(self, cell: Cell) -> list[Pretrained]:
    """Loads the networks of a finished cell's runs."""
    results = workdir.results(cell.folder)
    runs = [n for n in results["runs"] if str(n) not in results["diverged"]]
    return experiment.load_classifiers(cell.folder, results, runs)

  def remove_images(self) -> None:
    """Removes the images of an earlier analysis, and no other files."""
    for path in (self.folder / "images").glob("*.png"):
      # As `save` names them.
      if re.search(r"_[0-9]{6,}$", path.stem):
        path.unlink()

  def save(self, part: Part, numbers: Iterable[int]) -> list[str]:
    """Writes images of a part; returns their files, relative to the workdir."""
    chosen = part.index[np.asarray(list(numbers), int)]
    files = [f"images/{part.source}_{number:06}.png" for number in chosen]
    pixels = part.pixels.read(chosen)
    for file, image in zip(files, pixels, strict=True):
      path = self.folder / file
      path.parent.mkdir(parents=True, exist_ok=True)
      Image.fromarray(
        image.squeeze(-1) if image.shape[-1] == 1 else image
      ).save(path)
    return files


def run(cells: Iterable[Cell]) -> None:
  """Runs cells that are not finished; raises UserError if one cannot be."""
  cells = list(cells)
  if unfinished := jobs.run_here(cells):
    raise UserError(
      f"{unfinished} of {len(cells)} experiments of the analysis failed; see "
      "the lines above. The same command does what is missing."
    )


def frozen(study: Study) -> tuple[Pretrained, str]:
  """Loads the config's frozen network, and names its layer.

  Raises:
    UserError: the config names none.
  """
  section = study.config.pretrained
  if section.weights in ("", "random"):
    raise UserError(
      f"pretrained.weights={section.weights!r}: name a network in whose "
      "features images are to be compared."
    )
  network = load_pretrained(
    study.made.get(section.weights, section.weights),
    dtype=section.dtype,
    image_size=section.image_size or None,
  )
  return network, section.feature_layer
