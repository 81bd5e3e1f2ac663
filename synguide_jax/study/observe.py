"""The paper's three observations, on classifiers that are trained for them."""

from typing import Any

from synguide_jax import workdir
from synguide_jax.analysis import observations
from synguide_jax.study.base import REAL, run, Study

# Images of a class on a grid.
_SHOWN = 6


def observe(study: Study) -> dict[str, Any]:
  """Trains a classifier on every source: the paper's three observations."""
  cells = {REAL: study.of_real()}
  cells |= {source.name: study.of_synthetic(source) for source in study.sources}
  run(cells.values())
  parts = [study.sources[0].part(REAL, part) for part in ("training", "test")]
  for source in study.sources:
    parts += [source.part(source.name, p) for p in ("training", "held out")]
  correct, distributions, judge = {}, [], None
  for name, cell in cells.items():
    networks = study.networks(cell)
    # The cells' networks are of one kind.
    judge = judge or observations.judging(networks[0])
    for part in parts:
      if not len(part.index):
        continue
      losses, correct[name, part.source, part.part] = observations.losses(
        networks, part, judge
      )
      # Of the opposite source: real ones or synthetic ones.
      opposite = (name == REAL) != (part.source == REAL)
      if opposite and part.part == "training":
        found = observations.loss_distribution(losses, name, part.source)
        extremes = observations.extremes(losses, part.labels, _SHOWN)
        for which, of_class in zip(
          ("lowest", "highest"), extremes, strict=True
        ):
          found[which] = {
            study.sources[0].data.class_names[c]: study.save(part, numbers)
            for c, numbers in of_class.items()
          }
        distributions.append(found)
  parts = [part for part in parts if len(part.index)]
  return {
    "accuracy": observations.accuracy_matrix(correct, list(cells), parts),
    "curves": {
      name: observations.curves(workdir.results(cell.folder), name)
      for name, cell in cells.items()
    },
    "losses": distributions,
  }
