"""Synthetic classes find the real ones they stand for."""

import pytest

from synguide_jax.data import classes
from synguide_jax.errors import UserError

_REAL = ("cat", "dog", "owl")


def test_by_name():
  assert classes.match(_REAL, ("owl", "cat", "dog")) == ("owl", "cat", "dog")


def test_by_index():
  assert classes.match(_REAL, ("0", "1", "2"), by="index") == _REAL
  # Also where the names would match in another order.
  assert classes.match(_REAL, ("owl", "cat", "dog"), by="index") == _REAL


def test_mapping():
  found = classes.match(
    _REAL,
    ("tabby", "dog", "owl", "kitten"),
    mapping=("tabby=cat", "kitten=cat"),
  )
  assert found == ("cat", "dog", "owl", "cat")


def test_a_mapping_may_be_of_another_source():
  found = classes.match(_REAL, _REAL, mapping=("kitten=cat",))
  assert found == _REAL


def _message(*args, **options):
  with pytest.raises(UserError) as error:
    classes.match(*args, **options)
  return str(error.value)


def test_names_that_do_not_match():
  message = _message(
    ("cat", "dog"),
    ("cat", "fox"),
    real_spec="tfds:pets",
    synthetic_spec="folder:x",
  )
  assert "tfds:pets: 'cat', 'dog'. folder:x: 'cat', 'fox'." in message
  assert "Only in tfds:pets: 'dog'; only in folder:x: 'fox'." in message
  assert "data.class_mapping and data.match_classes" in message
  assert "only in synthetic: none" in _message(("a", "b"), ("a",))


def test_long_lists_are_cut():
  message = _message(tuple(f"c{i}" for i in range(200)), ("cat",))
  assert "'c19', ... (200 in all)." in message and "'c20'" not in message


def test_numbers_that_do_not_match():
  message = _message(_REAL, ("0", "1"), by="index")
  assert "as many synthetic as real classes: 2 and 3" in message
  assert "real: 'cat', 'dog', 'owl'. synthetic: '0', '1'." in message


@pytest.mark.parametrize("pair", ["kitten", "kitten=lion", "kitten="])
def test_mappings_that_lead_nowhere(pair):
  message = _message(_REAL, _REAL, mapping=(pair,))
  assert f"data.class_mapping: {pair!r} must be 'synthetic name=real" in message
  assert "real: 'cat', 'dog', 'owl'." in message


def test_a_mapping_is_of_names():
  message = _message(_REAL, _REAL, by="index", mapping=("kitten=cat",))
  assert "data.class_mapping is of names" in message


def test_unknown_way():
  message = _message(_REAL, _REAL, by="order")
  assert "data.match_classes='order' is unknown; known: name, index" in message
