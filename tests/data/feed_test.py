"""Batches are a pure function of (seed, run, stage, step)."""

import pickle

import numpy as np
import pytest

from synguide_jax.data.feed import Feed, Sampler, Stream
from synguide_jax.errors import UserError

MEMBERS = np.arange(100, 110, dtype=np.int32)
LABELS = np.array([0, 0, 0, 0, 0, 0, 1, 1, 2, 2])


def sampler(batch_size, kind="epoch", key=(0, 0, 0, 0)):
  return Sampler(Stream("real", batch_size, kind), MEMBERS, LABELS, key)


@pytest.mark.parametrize("batch_size", [1, 3, 10, 32])
def test_epoch_draws_every_image_equally_often(batch_size):
  draw = sampler(batch_size)
  drawn = np.concatenate([draw(step) for step in range(30)])
  for start in range(0, len(drawn) - 9, 10):
    np.testing.assert_array_equal(np.sort(drawn[start : start + 10]), MEMBERS)


def test_passes_are_shuffled_differently():
  draw = sampler(10)
  assert not np.array_equal(draw(0), draw(1))


def test_balanced_draws_every_class_and_image_in_it_equally_often():
  draw = sampler(6, "balanced")
  drawn = np.concatenate([draw(step) for step in range(60)])
  counts = np.bincount(drawn - 100, minlength=10)
  np.testing.assert_array_equal(counts, [20] * 6 + [60] * 4)
  for step in range(10):
    labels = LABELS[draw(step) - 100]
    np.testing.assert_array_equal(np.bincount(labels), [2, 2, 2])


def test_uniform_draws_independently():
  draw = sampler(10_000, "uniform")
  counts = np.bincount(draw(0) - 100, minlength=10)
  # Binomial(10,000, 0.1): five standard deviations are 150.
  np.testing.assert_allclose(counts, 1_000, atol=150)
  assert counts.std() > 0


@pytest.mark.parametrize("kind", ["epoch", "uniform", "balanced"])
def test_any_step_can_be_drawn_first(kind):
  forward = [sampler(7, kind)(step) for step in range(20)]
  draw = sampler(7, kind)
  for step in reversed(range(20)):
    np.testing.assert_array_equal(draw(step), forward[step])


def make_feed(runs, seed=0):
  members = {
    "real": [MEMBERS[:4]] * len(runs),
    "synthetic": [MEMBERS[4:]] * len(runs),
  }
  labels = np.concatenate([np.zeros(100, int), LABELS])
  return Feed(members, labels, seed=seed, runs=runs)


STREAMS = {"a": Stream("real", 4), "b": Stream("synthetic", 6)}


def test_a_run_draws_the_same_alone_and_in_company():
  together, alone = make_feed((0, 1, 2)), make_feed((2,))
  for step in range(5):
    for name in STREAMS:
      np.testing.assert_array_equal(
        together(0, STREAMS, step)[name][2], alone(0, STREAMS, step)[name][0]
      )


def test_seed_run_stage_and_stream_each_change_the_batch():
  first = make_feed((0,))(0, STREAMS, 0)["b"][0]
  others = [
    make_feed((0,), seed=1)(0, STREAMS, 0)["b"][0],
    make_feed((1,))(0, STREAMS, 0)["b"][0],
    make_feed((0,))(1, STREAMS, 0)["b"][0],
    make_feed((0,))(0, {"b": STREAMS["b"]}, 0)["b"][0],
  ]
  for other in others:
    assert not np.array_equal(first, other)


def test_mixed_is_the_union():
  batch = make_feed((0,))(0, {"m": Stream("mixed", 10)}, 0)["m"][0]
  np.testing.assert_array_equal(np.sort(batch), MEMBERS)


def test_unknown_set_and_sampler_are_named():
  with pytest.raises(UserError, match="reel"):
    Stream("reel", 4)
  with pytest.raises(UserError, match="random"):
    Stream("real", 4, "random")
  with pytest.raises(UserError, match="batch_size"):
    Stream("real", 0)
  for value in (-0.1, 1.5, float("nan")):
    with pytest.raises(UserError, match=rf"replacement={value} must be in"):
      Stream("real", 4, replacement=value)


def _weighted(sampler, sizes, weights, batch, seed=0):
  """A sampler over sources of some sizes, with weights of whole sources."""
  source = np.repeat(np.arange(len(sizes)), sizes)
  members = np.arange(len(source), dtype=np.int32)
  of_image = (np.asarray(weights) / sizes)[source]
  labels = np.zeros(len(source), np.int32)
  stream = Stream("synthetic", batch, sampler)
  return Sampler(stream, members, labels, (seed,), of_image), source


def test_sources_are_drawn_in_proportion_to_their_weights():
  draw, source = _weighted("epoch", [10, 1000, 7], [1, 2, 5], 16)
  drawn = np.concatenate([draw(step) for step in range(500)])
  # 8,000 images are one eighth of a round of 65,536: shuffled, not exact.
  shares = np.bincount(source[drawn]) / len(drawn)
  np.testing.assert_allclose(shares, [1 / 8, 2 / 8, 5 / 8], atol=0.02)
  # Inside a source every image equally often, up to one pass.
  for number in range(3):
    counts = np.bincount(drawn, minlength=1017)[source == number]
    assert counts.max() - counts.min() <= 1


def test_shares_are_exact_after_a_round():
  # gcd: a round of weights 1, 2 and 5 has eight images.
  draw, source = _weighted("epoch", [3, 4, 5], [1, 2, 5], 8)
  for step in range(20):
    assert np.bincount(source[draw(step)]).tolist() == [1, 2, 5]


def test_weighted_draws_are_a_function_of_the_step():
  for sampler in ("epoch", "uniform"):
    draw, _ = _weighted(sampler, [9, 5], [1, 3], 6, seed=1)
    forward = [draw(step) for step in range(30)]
    again, _ = _weighted(sampler, [9, 5], [1, 3], 6, seed=1)
    for step in (29, 3, 17):
      np.testing.assert_array_equal(again(step), forward[step])
    # A batch is where it is, whatever the size of the batches before.
    if sampler == "epoch":
      larger, _ = _weighted(sampler, [9, 5], [1, 3], 12, seed=1)
      np.testing.assert_array_equal(
        larger(4), np.concatenate([forward[8], forward[9]])
      )


def test_uniform_draws_with_weights():
  draw, source = _weighted("uniform", [10, 1000], [3, 1], 1000)
  drawn = np.concatenate([draw(step) for step in range(20)])
  share = (source[drawn] == 0).mean()
  assert abs(share - 0.75) < 5 * np.sqrt(0.75 * 0.25 / 20_000)


def test_a_rare_source_is_drawn_at_all():
  draw, source = _weighted("epoch", [5, 5], [1e-9, 1.0], 1 << 16)
  drawn = draw(0)
  assert (source[drawn] == 0).sum() == 1


def test_equal_weights_are_the_union():
  plain = Sampler(
    Stream("mixed", 6), np.arange(14, dtype=np.int32), np.zeros(14), (4,)
  )
  weighted, _ = _weighted("epoch", [9, 5], [9, 5], 6, seed=4)
  for step in range(5):
    np.testing.assert_array_equal(plain(step), weighted(step))


def test_a_feed_survives_pickling():
  members = {"real": [np.arange(9)] * 2, "synthetic": [np.arange(9, 30)] * 2}
  labels = np.arange(30, dtype=np.int32) % 3
  feed = Feed(members, labels, seed=1, runs=(0, 4))
  streams = {
    "a": Stream("mixed", 5),
    "b": Stream("real", 3, "balanced"),
    "c": Stream("real", 4, replacement=0.5),
  }
  first = feed(0, streams, 3)
  copy = pickle.loads(pickle.dumps(feed))
  for name, index in copy(0, streams, 3).items():
    np.testing.assert_array_equal(index, first[name])


# Twelve real images of classes 0, 1 and 2; synthetic ones of 0 and 1 only.
_REAL = np.arange(12)
_SYNTHETIC = np.arange(12, 40)
_LABELS = np.concatenate([np.arange(12) % 3, np.arange(28) % 2])


def _exchanging(probability, runs=(0,), sampler="epoch", weights=None):
  """A function of the step that returns the indices of 600 images a run."""
  members = {
    "real": [_REAL] * len(runs),
    "synthetic": [_SYNTHETIC] * len(runs),
  }
  feed = Feed(members, _LABELS, seed=3, runs=runs, weights=weights)
  stream = Stream("real", 600, sampler, replacement=probability)
  return lambda step: feed(0, {"x": stream}, step)["x"]


@pytest.mark.parametrize("kind", ["epoch", "uniform", "balanced"])
def test_images_are_exchanged_for_synthetic_ones_of_their_class(kind):
  drawn, without = (_exchanging(p, sampler=kind)(5)[0] for p in (0.3, 0.0))
  assert drawn.dtype == without.dtype == np.int32
  np.testing.assert_array_equal(_LABELS[drawn], _LABELS[without])
  exchanged = drawn != without
  assert (drawn[exchanged] >= 12).all() and (without < 12).all()
  # There is nothing to exchange class 2 for.
  able = _LABELS[without] < 2
  assert not exchanged[~able].any() and (~able).sum() > 100
  # Binomial, five standard deviations.
  count, limit = able.sum(), 5 * np.sqrt(able.sum() * 0.3 * 0.7)
  assert abs(exchanged.sum() - 0.3 * count) < limit


def test_exchanged_images_are_drawn_with_replacement_from_all():
  draw = _exchanging(0.5)
  drawn = np.concatenate([draw(step)[0] for step in range(20)])
  # Half of the 8,000 of classes 0 and 1, of 28 images.
  counts = np.bincount(drawn, minlength=40)[12:]
  expected = 4000 / 28
  np.testing.assert_allclose(counts, expected, atol=5 * np.sqrt(expected))
  # Passes would differ by less.
  assert counts.std() > 5


def test_probability_1_leaves_no_image_of_a_class_that_has_synthetic_ones():
  drawn, without = (_exchanging(p)(0)[0] for p in (1.0, 0.0))
  np.testing.assert_array_equal(drawn >= 12, _LABELS[without] < 2)


def test_probability_0_draws_as_without_synthetic_images():
  draw = _exchanging(0.0)
  stream = Stream("real", 600)
  plain = Sampler(stream, _REAL.astype(np.int32), _LABELS[_REAL], (3, 0, 0, 0))
  only_real = Feed({"real": [_REAL]}, _LABELS, seed=3, runs=(0,))
  for step in range(3):
    np.testing.assert_array_equal(draw(step)[0], plain(step))
    found = only_real(0, {"x": stream}, step)["x"]
    np.testing.assert_array_equal(found, draw(step))


def test_the_exchange_is_a_function_of_run_and_step():
  draw = _exchanging(0.5, runs=(0, 1))
  forward = [draw(step) for step in range(4)]
  again = _exchanging(0.5, runs=(0, 1))
  for step in (3, 0, 2):
    np.testing.assert_array_equal(again(step), forward[step])
  alone = _exchanging(0.5, runs=(1,))
  np.testing.assert_array_equal(alone(2)[0], forward[2][1])
  # Which places are exchanged differs; 1/2 of 600 agree by chance.
  places = [forward[0][0] >= 12, forward[0][1] >= 12, forward[1][0] >= 12]
  for a, b in ((0, 1), (0, 2), (1, 2)):
    assert 100 < (places[a] != places[b]).sum() < 400


@pytest.mark.parametrize("kind", ["epoch", "uniform"])
def test_exchanged_images_are_drawn_by_their_weights(kind):
  # Two sources of 8 and 20 images, the first three times the second.
  source = np.repeat([0, 0, 1], [12, 8, 20])
  weights = np.where(source == 0, 3 / 8, 1 / 20)
  weights[_REAL] = 1.0
  draw = _exchanging(1.0, sampler=kind, weights=weights)
  drawn = np.concatenate([draw(step)[0] for step in range(20)])
  drawn = drawn[drawn >= 12]
  for label in (0, 1):
    of_class = drawn[_LABELS[drawn] == label]
    share, count = (source[of_class] == 0).mean(), len(of_class)
    assert abs(share - 0.75) < 5 * np.sqrt(0.75 * 0.25 / count)
    # All of them, and inside a source evenly.
    counts = np.bincount(of_class, minlength=40)[_LABELS == label][4:]
    np.testing.assert_allclose(counts[:4] / count, 0.75 / 4, atol=0.04)
    np.testing.assert_allclose(counts[4:] / count, 0.25 / 10, atol=0.015)


def test_without_synthetic_images_nothing_is_exchanged():
  members = {"real": [_REAL], "synthetic": [np.zeros(0, np.int32)]}
  feed = Feed(members, _LABELS, seed=3, runs=(0,))
  whole = feed(0, {"x": Stream("real", 12, replacement=1.0)}, 0)["x"][0]
  np.testing.assert_array_equal(np.sort(whole), _REAL)
