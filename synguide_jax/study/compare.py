"""Synthetic sets beside the real images: by features, and by pixels."""

import dataclasses
from typing import Any

import numpy as np

from synguide_jax.analysis import fidelity
from synguide_jax.analysis.features import embed
from synguide_jax.analysis.observations import Part
from synguide_jax.console import say
from synguide_jax.study.base import frozen, REAL, Study
from synguide_jax.synthesis import copies

# Pixels that copies are looked for at, a side; and real images to show that no
# synthetic one is near.
_COPY_SIZE, _UNCOVERED = 32, 24


def compare(study: Study) -> dict[str, Any]:
  """Compares the sets with the real images, by features and by pixels.

  Precision, recall, density and coverage depend on how many images there are,
  so as many of each set are drawn as there are held-out real ones, which are
  compared with the training images likewise.
  """
  first = study.sources[0]
  real, test = (first.part(REAL, part) for part in ("training", "test"))
  network, layer = frozen(study)
  name = network.model.name
  found, copied = {}, {}
  sizes = [len(source.data.indices["synthetic"]) for source in study.sources]
  count = min([*sizes, len(test.index)] if len(test.index) else sizes)
  of_real = embed(network, real.pixels, real.index, layer=layer)
  parts = {
    source.name: source.part(source.name, "all") for source in study.sources
  }
  if len(test.index):
    parts["held-out real"] = test
  for number, (key, part) in enumerate(parts.items()):
    say(f"  comparing {key} with the real images, by {name}'s {layer}")
    rows = np.random.default_rng([study.config.seed, number]).permutation(
      len(part.index)
    )[:count]
    drawn = dataclasses.replace(
      part, index=part.index[rows], labels=part.labels[rows]
    )
    features = embed(network, drawn.pixels, drawn.index, layer=layer)
    found[key] = _fidelity(study, real, drawn, of_real, features)
    found[key] |= {"network": name, "layer": layer, "images": count}
  for source in study.sources:
    side = min(source.data.pixels.shape[1], _COPY_SIZE)
    pixels = source.data.pixels.resized(side)
    images = pixels.read(source.data.indices["synthetic"])
    copied[source.name] = copies.report(images, pixels.read(real.index))
  return {"fidelity": found, "copies": copied}


def _fidelity(
  study: Study,
  real: Part,
  drawn: Part,
  of_real: np.ndarray,
  features: np.ndarray,
) -> dict[str, Any]:
  names = study.sources[0].data.class_names
  precision, recall = fidelity.precision_recall(of_real, features)
  found = fidelity.prdc(of_real, features)
  classes = fidelity.per_class(
    of_real, features, real.labels, drawn.labels, len(names)
  )
  # A few images, each beside the real one nearest to it.
  shown = [np.flatnonzero(drawn.labels == c)[:1] for c in range(len(names))]
  shown = np.concatenate(shown)
  distances = np.sqrt(
    np.square(features[shown, None] - of_real[None]).sum(-1, dtype=np.float64)
  )
  nearest = distances.argmin(1)
  uncovered = np.flatnonzero(~found.covered)
  return {
    "overall": {
      "precision": precision,
      "recall": recall,
      "density": found.density,
      "coverage": found.coverage,
      "frechet": fidelity.frechet_distance(of_real, features),
    },
    "classes": dict(zip(names, classes, strict=True)),
    "neighbours": [
      [*pair, float(distance)]
      for *pair, distance in zip(
        study.save(drawn, shown),
        study.save(real, nearest),
        distances.min(1),
        strict=True,
      )
    ],
    "uncovered": study.save(real, uncovered[:_UNCOVERED]),
  }
