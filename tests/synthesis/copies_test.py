"""Tests of synguide_jax.synthesis.copies."""

import json

import numpy as np
import pytest

from synguide_jax.errors import UserError
from synguide_jax.synthesis import copies


def _images(seed, number, shape=(4, 5, 3)):
  rng = np.random.default_rng(seed)
  return rng.integers(0, 256, (number, *shape), np.uint8)


def _by_hand(queries, references, k, exclude_self=False):
  """Distances in float64, all at once."""
  x, y = (a.reshape(len(a), 1, -1) / 255 for a in (queries, references))
  distances = np.sqrt(((x - y.swapaxes(0, 1)) ** 2).mean(-1))
  if exclude_self:
    np.fill_diagonal(distances, np.inf)
  indices = np.argsort(distances, axis=1, kind="stable")[:, :k]
  return np.take_along_axis(distances, indices, 1), indices


@pytest.mark.parametrize(
  ("exclude_self", "k", "block"), [(False, 2, 8), (True, 1, 8), (True, 3, 64)]
)
def test_nearest_of_all_blocks(exclude_self, k, block):
  references = _images(0, 21)
  queries = references if exclude_self else _images(1, 13)
  distances, indices = copies.nearest(
    *(queries, references),
    own=np.arange(21) if exclude_self else None,
    k=k,
    block=block,
  )
  expected = _by_hand(queries, references, k, exclude_self)
  assert distances.dtype == np.float32 and indices.dtype == np.int32
  np.testing.assert_allclose(distances, expected[0], rtol=1e-6)
  np.testing.assert_array_equal(indices, expected[1])


def test_distances_are_exact_for_bright_large_images():
  # Sums of squares here pass 2^24, where float32 skips integers.
  shape = (32, 32, 3)
  white = np.full((1, *shape), 255, np.uint8)
  almost, black = white.copy(), np.zeros_like(white)
  almost[0, -1, -1, -1] = 254
  references = np.concatenate([black, almost, white, _images(0, 3, shape)])
  distances, indices = copies.nearest(references, references, block=4)
  np.testing.assert_array_equal(distances[:, 0], np.zeros(6))
  np.testing.assert_array_equal(indices[:, 0], np.arange(6))
  one_level = 1 / 255 / np.sqrt(32 * 32 * 3)
  np.testing.assert_allclose(distances[1:3, 1], one_level, rtol=1e-6)
  # The largest distance that there is.
  furthest, _ = copies.nearest(black, white, k=1)
  np.testing.assert_array_equal(furthest, [[1]])


def test_the_largest_images_do_not_overflow():
  black, white = (np.full((1, 25, 1321, 1), v, np.uint8) for v in (0, 255))
  distances, _ = copies.nearest(black, white, k=1, block=2)
  np.testing.assert_array_equal(distances, [[1]])


def test_equal_references_are_found_in_order():
  same = np.full((7, 2, 2, 1), 9, np.uint8)
  distances, indices = copies.nearest(same, same, k=3, block=2)
  assert not distances.any()
  np.testing.assert_array_equal(indices, [[0, 1, 2]] * 7)
  _, indices = copies.nearest(
    same, same, k=2, own=np.arange(len(same)), block=2
  )
  np.testing.assert_array_equal(indices, [[1, 2], [0, 2]] + [[0, 1]] * 5)


def test_one_program_for_any_number_of_images():
  references = _images(0, 30)
  copies.nearest(_images(1, 16), references, block=16)
  programs = copies._merge._cache_size()
  for queries, those in ((3, 30), (16, 7), (40, 17), (1, 16)):
    copies.nearest(_images(2, queries), references[:those], block=16)
  copies.nearest(
    references, references, own=np.arange(len(references)), block=16
  )
  assert copies._merge._cache_size() == programs


def test_no_queries():
  distances, indices = copies.nearest(_images(0, 0), _images(1, 3), k=2)
  assert distances.shape == indices.shape == (0, 2)


@pytest.mark.parametrize(
  ("queries", "references", "options", "message"),
  [
    (np.zeros((1, 2, 2, 1)), _images(0, 3), {}, "queries must be uint8"),
    (_images(0, 3), np.zeros((1, 4), np.uint8), {}, "references must be uint8"),
    (_images(0, 3, (2, 2, 1)), _images(0, 3), {}, r"\[2, 2, 1\] .* resized"),
    (_images(0, 1), _images(0, 1), {}, "k=2 .* find, 1"),
    (_images(0, 2), _images(0, 2), {"own": np.arange(2)}, "k=2 .* find, 1"),
    (_images(0, 0), _images(0, 0), {"own": np.arange(0)}, "k=2 .* find, 0"),
    (_images(0, 2), _images(0, 3), {"k": 0}, "k=0"),
    (
      _images(0, 2),
      _images(0, 3),
      {"own": np.arange(3)},
      "2 queries, got 3",
    ),
    (*[_images(0, 2, (8, 4129, 1))] * 2, {}, "33032 values .* 33025"),
  ],
)
def test_wrong_arguments(queries, references, options, message):
  with pytest.raises(UserError, match=message):
    copies.nearest(queries, references, **options)


def _near(images, seed=9):
  """The images with noise of a few levels."""
  noise = np.random.default_rng(seed).integers(-4, 5, images.shape)
  return np.clip(images.astype(int) + noise, 0, 255).astype(np.uint8)


def test_report_finds_copies_and_no_fresh_samples():
  references = _images(0, 30)
  samples = np.concatenate(
    [_images(1, 10), references[[4]], _near(references[[7, 20]])]
  )
  report = copies.report(samples, references)
  assert json.loads(json.dumps(report, allow_nan=False)) == report
  found, ours = report["samples"], report["references"]
  assert found["count"] == 13
  assert found["exact_copies"] == 1 and found["near_copies"] == 3
  assert (ours["count"], ours["duplicates"], ours["near_copies"]) == (30, 0, 0)

  distances, _ = _by_hand(samples, references, 2)
  listed = report["closest_copies"]
  pairs = [(c["sample"], c["reference"]) for c in listed]
  assert pairs[0] == (10, 4) and listed[0]["distance"] == 0
  assert set(pairs[1:]) == {(11, 7), (12, 20)}
  assert listed[1]["distance"] <= listed[2]["distance"]
  for copy in listed:
    np.testing.assert_allclose(
      [copy["distance"], copy["second_distance"]],
      distances[copy["sample"]],
      rtol=1e-6,
    )
  for summary, nearest in (
    (found, distances[:, 0]),
    (ours, _by_hand(references, references, 1, exclude_self=True)[0]),
  ):
    for percent, value in summary["distance_percentiles"].items():
      np.testing.assert_allclose(
        value, np.percentile(nearest, float(percent)), rtol=1e-6
      )


def test_a_copy_of_an_image_that_is_there_twice_is_seen():
  different = _images(0, 10)
  references = np.concatenate([different[:3], different])
  report = copies.report(_near(different[[1, 8]]), references)
  assert report["samples"]["near_copies"] == 2
  listed = {(c["sample"], c["reference"]) for c in report["closest_copies"]}
  # Numbers are those of the references given; 8 stands behind three.
  assert listed == {(0, 1), (1, 11)}
  ours = report["references"]
  assert (ours["count"], ours["duplicates"]) == (13, 3)
  # Equal ones count once here, too.
  assert ours["distance_percentiles"]["0"] > 0


def test_the_rule_is_a_third_of_the_second_distance():
  # One value each: the distances of v to 0, 100 and 200 are v, 100 - v, ...
  references = np.array([0, 100, 200], np.uint8).reshape(3, 1, 1, 1)
  samples = np.array([24, 26, 50, 51], np.uint8).reshape(4, 1, 1, 1)
  report = copies.report(samples, references)
  # 24 < 76 / 3, but 26 > 74 / 3.
  assert [c["sample"] for c in report["closest_copies"]] == [0]
  # Of the references none: each is 100 from the next, 100 or 200 from others.
  assert report["references"]["near_copies"] == 0


def test_at_most_twenty_copies_are_listed():
  references = _images(0, 30)
  report = copies.report(references[::-1], references)
  assert report["samples"]["exact_copies"] == 30
  pairs = [(c["sample"], c["reference"]) for c in report["closest_copies"]]
  assert pairs == [(i, 29 - i) for i in range(20)]


@pytest.mark.parametrize(
  ("samples", "references", "message"),
  [
    (_images(0, 0), _images(0, 9), "samples are none"),
    (_images(0, 2), _images(0, 2), "references have 2 different"),
    (_images(0, 2), np.ones((5, 4, 5, 3), np.uint8), "have 1 different"),
  ],
)
def test_too_few_to_compare(samples, references, message):
  with pytest.raises(UserError, match=message):
    copies.report(samples, references)


def test_lines_say_the_numbers():
  different = _images(0, 40)
  samples = np.concatenate(
    [different[:1], _near(different[1:5]), _images(1, 5)]
  )
  said = copies.lines(copies.report(samples, different))
  assert len(said) == 2
  assert "10 samples 1 are exact and 5 near copies (50.0%)" in said[0]
  assert "flags 0 (0.0%)" in said[0]
  middle = np.median(_by_hand(different, different, 1, exclude_self=True)[0])
  assert f"training images {middle:.3f} (" in said[1]
  with_equal = np.concatenate([different, different[:2]])
  said = copies.lines(copies.report(samples, with_equal))
  assert said[2].startswith("2 of 42 training images")
