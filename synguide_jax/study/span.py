"""How far apart features are: the frozen network's, with PG and without."""

from typing import Any

import numpy as np

from synguide_jax.analysis import embedding
from synguide_jax.analysis.features import embed
from synguide_jax.models.pretrained import Pretrained
from synguide_jax.study.base import frozen, REAL, run, Source, Study

# Images whose distances make the span, and points of a source in its plane.
_SPAN, _POINTS = 2_000, 500


def span(study: Study, source: Source) -> dict[str, Any]:
  """Compares the pairwise distances of features, with guidance and without."""
  guided = study.cell(
    f"{source.name}_pg",
    {
      "select": "last",
      "method": "guided",
      "guidance.rg": False,
      "guidance.pg_real": False,
      "data.shots": 0,
      "data.synthetic": source.spec,
      "data.synthetic_per_class": source.per_class,
    },
  )
  plain = study.of_synthetic(source)
  run([plain, guided])
  part = source.part(REAL, "training")
  rows = np.random.default_rng(study.config.seed).permutation(len(part.index))
  index = part.index[rows[:_SPAN]]
  network, layer = frozen(study)
  edges = np.linspace(0, 2, 81)

  def counts(network, layer):
    features = embed(network, part.pixels, index, layer=layer)
    features /= np.maximum(
      np.linalg.norm(features, axis=1, keepdims=True), 1e-12
    )
    above = np.triu_indices(len(features), 1)
    distances = np.clip(1 - (features @ features.T)[above], 0, 2)
    return np.histogram(distances, edges)[0].tolist()

  own = study.config.guidance.feature_layer
  return {
    "edges": edges.tolist(),
    "frozen": counts(network, layer),
    "networks": {
      "fake": counts(study.networks(plain)[0], own),
      "guided": counts(study.networks(guided)[0], own),
    },
    "embedding": _embedding(study, network, layer),
  }


def _embedding(study: Study, network: Pretrained, layer: str) -> dict[str, Any]:
  """Projects features of all sources to the plane."""
  parts = [study.sources[0].part(REAL, "training")]
  parts += [source.part(source.name, "all") for source in study.sources]
  features, names = [], []
  for number, part in enumerate(parts):
    rows = np.random.default_rng([study.config.seed, number]).permutation(
      len(part.index)
    )[:_POINTS]
    found = embed(network, part.pixels, part.index[rows], layer=layer)
    features.append(found)
    names += [part.source] * len(found)
  return {
    "source": names,
    "points": {
      method: points.round(4).tolist()
      for method, points in embedding.project(features).items()
    },
  }
