"""What synthetic images are worth in real ones: accuracy by numbers of both."""

from typing import Any

import numpy as np

from synguide_jax import workdir
from synguide_jax.analysis import exchange
from synguide_jax.study.base import REAL, run, Source, Study

# Real images a class, and shares of the synthetic ones.
_SHOTS = (1, 2, 5, 10, 20, 50, 100, 200, 500)
_AMOUNTS = (1 / 32, 1 / 16, 1 / 8, 1 / 4, 1 / 2)
# Methods that use both, that of `amount` first.
_MIXED = ("balanced", "guided")


def exchange_rate(study: Study, source: Source) -> dict[str, Any]:
  """Trains with several numbers of real and synthetic images.

  Args:
    study: The study.
    source: The set whose worth is asked for.

  Returns:
    An entry of "exchange" of analysis.json; the method of its ``worth`` is the
    one that was better on validation images.
  """
  data = source.data
  smallest = int(np.bincount(data.labels[data.indices["pool"]]).min())
  shots = [count for count in _SHOTS if count < smallest]
  spec = {"data.synthetic": source.spec}
  at = (
    study.config.data.shots if study.config.data.shots in shots else shots[-1]
  )

  def cell(method, count, per_class=0):
    fields = {"method": method, "data.shots": count}
    if method != REAL:
      fields |= spec | {"data.synthetic_per_class": per_class}
    else:
      fields["data.synthetic"] = ""
    name = f"{method}_{count}" + (f"_of_{per_class}" if per_class else "")
    return study.cell(
      name if method == REAL else f"{source.name}_{name}", fields
    )

  without = [cell(REAL, count) for count in shots]
  mixed = {m: [cell(m, count) for count in shots] for m in _MIXED}
  per_class = int(np.bincount(data.labels[data.indices["synthetic"]]).max())
  amounts = sorted({max(1, int(share * per_class)) for share in _AMOUNTS})
  fewer = [cell(_MIXED[0], at, amount) for amount in amounts]
  run([*without, *fewer, *(c for cells in mixed.values() for c in cells)])

  def accuracy(cell, *sets):
    results = workdir.results(cell.folder)
    return next(results[s]["accuracy"] for s in sets if s in results)

  def tested(cell):
    return accuracy(cell, "test", "validation")

  classes = len(data.class_names)
  real = [tested(c) for c in without]
  found = {
    method: [tested(c) for c in cells] for method, cells in mixed.items()
  }
  place = shots.index(at)
  # Not by test images, if there are others.
  validated = {
    method: accuracy(cells[place], "validation", "test")["mean"]
    for method, cells in mixed.items()
  }
  best = max(validated, key=validated.get)
  whole = found[_MIXED[0]][place]
  return {
    "shots": shots,
    "real": real,
    "with": found,
    "amount": {
      "images": [
        0,
        *(n * classes for n in amounts),
        len(data.indices["synthetic"]),
      ],
      "accuracy": [real[place], *(tested(c) for c in fewer), whole],
      "shots": at,
      "method": _MIXED[0],
    },
    "worth": exchange.worth(
      shots,
      [summary["runs"] for summary in real],
      [summary["runs"] for summary in found[best]],
      at=at,
    )
    | {"method": best},
  }
