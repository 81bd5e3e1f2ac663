"""The images that an experiment uses of its sets, under one numbering."""

from collections.abc import Sequence
import dataclasses

import numpy as np

from synguide_jax.data import layouts
from synguide_jax.data.records import Index, Records
from synguide_jax.data.sources import ImageSet
from synguide_jax.errors import UserError


class Collection:
  """Rows of several sets' splits, given numbers and labels of this experiment.

  Args:
    real: The set whose classes are the experiment's.
    wanted: Names of those to use; (): all.
  """

  def __init__(self, real: ImageSet, wanted: Sequence[str]):
    known = real.class_names
    if unknown := set(wanted) - set(known):
      raise UserError(
        f"data.classes: {real.spec} has no class "
        f"{layouts.enumerate_names(unknown)}; it has "
        f"{layouts.enumerate_names(known)}."
      )
    self.class_names = tuple(wanted) or known
    self.parts: list[tuple[Records, np.ndarray]] = []
    self._labels, self._members = [], []

  def add(
    self, found: ImageSet, split: str, names: Sequence[str]
  ) -> np.ndarray:
    """Adds a split's images of these classes, and returns their numbers.

    Args:
      found: The set.
      split: One of its splits.
      names: What the experiment calls each of its classes.
    """
    records = found.splits[split]
    new = np.array(
      [
        self.class_names.index(name) if name in self.class_names else -1
        for name in names
      ],
      np.int32,
    )
    labels = records.index.labels
    labels = np.where(labels < 0, labels, new[labels])
    rows = np.flatnonzero(labels >= 0)
    start = sum(len(rows) for _, rows in self.parts)
    self.parts.append((records, rows))
    self._labels.append(labels[rows])
    self._members.append((f"{found.spec} {split}", records.index, rows))
    return np.arange(start, start + len(rows), dtype=np.int32)

  def members(self) -> list[tuple[str, Index, np.ndarray]]:
    """Name, index and rows in use of every split."""
    return self._members

  @property
  def labels(self) -> np.ndarray:
    return np.concatenate(self._labels)

  def column(self, name: str, chosen: np.ndarray | None = None) -> np.ndarray:
    """A column of the indices, for all images or the chosen ones."""
    column = np.concatenate(
      [getattr(index, name)[rows] for _, index, rows in self._members]
    )
    return column if chosen is None else column[chosen]

  def facts(self, chosen: np.ndarray) -> Index:
    """The index of the chosen images."""
    return Index(
      **{
        field.name: self.column(field.name, chosen)
        for field in dataclasses.fields(Index)
      }
    )
