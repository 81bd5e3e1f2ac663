"""Splits are stratified, disjoint and fixed by their own seed."""

import numpy as np
import pytest

from synguide_jax.data import splits
from synguide_jax.errors import UserError

LABELS = np.repeat(np.arange(5), 40)
ALL = np.arange(200, dtype=np.int32)
NAMES = ("a", "b", "c", "d", "e")


def test_split_is_a_stratified_partition():
  stay, off = splits.split_off(LABELS, ALL, 50, seed=1, field="data.test")
  np.testing.assert_array_equal(np.sort(np.concatenate([stay, off])), ALL)
  np.testing.assert_array_equal(np.bincount(LABELS[off]), [10] * 5)


def test_split_depends_on_its_seed_only():
  one, two, three = (
    splits.split_off(LABELS, ALL, 50, seed=s, field="x")[1] for s in (1, 1, 2)
  )
  np.testing.assert_array_equal(one, two)
  assert not np.array_equal(one, three)


def test_nothing_is_split_off_by_zero():
  stay, off = splits.split_off(LABELS, ALL, 0, seed=1, field="x")
  np.testing.assert_array_equal(stay, ALL)
  assert len(off) == 0


def test_too_large_a_split_names_the_field():
  with pytest.raises(UserError, match="data.test=500"):
    splits.split_off(LABELS, ALL, 500, seed=1, field="data.test")


def draw(shots, run=0, pool=ALL):
  return splits.draw_shots(LABELS, pool, shots, NAMES, seed=0, run=run)


def test_shots_are_of_every_class_and_of_the_run():
  shots = draw(3)
  np.testing.assert_array_equal(np.bincount(LABELS[shots]), [3] * 5)
  assert len(np.unique(shots)) == 15
  np.testing.assert_array_equal(shots, draw(3))
  assert not np.array_equal(shots, draw(3, run=1))


def test_all_and_no_shots():
  np.testing.assert_array_equal(draw(-1), ALL)
  assert len(draw(0)) == 0


def test_too_few_images_name_the_class():
  with pytest.raises(UserError, match="class 'c' has only 2"):
    draw(3, pool=np.delete(ALL, np.arange(80, 118)))
  with pytest.raises(UserError, match="data.shots=-2"):
    draw(-2)
