"""Two stages: their lengths, and the optimiser that passes from one on."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from synguide_jax import methods, models
from synguide_jax.errors import UserError
from synguide_jax.methods import two_stage
from synguide_jax.methods.base import Batch, Info, Stream
from synguide_jax.models.base import Architecture
from synguide_jax.models.small_cnn import SmallCNN
from tests import tiny

INFO = Info(
  class_names=("a", "b", "c"),
  image_shape=(8, 8, 1),
  class_counts={"real": (4, 4, 4), "synthetic": (8, 8, 8)},
)
KEY = jax.random.key(0)
RATE = 0.1
FIRST, SECOND = Stream("synthetic", 16), Stream("mixed", 8)


def _lengths(info=INFO, **overrides):
  return two_stage.lengths(tiny.config(**overrides), info, FIRST, SECOND)


@pytest.mark.parametrize(
  "num_steps, share, expected",
  [
    (200, 0.75, (150, 50)),
    (20, 0.5, (10, 10)),
    (10, 0.33, (3, 7)),
    (2, 0.75, (1, 1)),
    (3, 0.01, (1, 2)),
    (1, 0.5, None),
  ],
)
def test_steps_are_divided(num_steps, share, expected):
  fields = {"num_steps": num_steps, "two_stage.first_share": share}
  if expected:
    assert _lengths(**fields) == expected
  else:
    with pytest.raises(UserError, match=f"num_steps={num_steps} leaves one of"):
      _lengths(**fields)


@pytest.mark.parametrize(
  "of, steps",
  [
    # Six passes over 24 images, 16 a step; two over 12, 8 a step.
    ("real", (9, 3)),
    # Two over 24; not over the 36 that the second stage's stream is of.
    ("synthetic", (9, 6)),
  ],
)
def test_epochs_are_of_the_sets(of, steps):
  fields = {"num_steps": 0, "num_epochs": 8.0, "two_stage.second_epochs_of": of}
  assert _lengths(**fields) == steps


@pytest.mark.parametrize(
  "fields, message",
  [
    ({"first_share": 0.0}, r"two_stage.first_share=0.0 must be in \(0, 1\)"),
    ({"first_share": 1.0}, r"two_stage.first_share=1.0 must be in \(0, 1\)"),
    (
      {"second_epochs_of": "mixed"},
      "two_stage.second_epochs_of='mixed' is unknown; known: real, synthetic",
    ),
  ],
)
@pytest.mark.parametrize("num_steps", [0, 20])
def test_bad_values_are_named(fields, message, num_steps):
  fields = {f"two_stage.{name}": value for name, value in fields.items()}
  with pytest.raises(UserError, match=message):
    _lengths(num_steps=num_steps, **fields)


def test_some_length_is_needed():
  with pytest.raises(UserError, match="num_steps=0 and num_epochs=0.0"):
    _lengths(num_steps=0, num_epochs=0.0)


@pytest.fixture
def adp(monkeypatch):
  """Makes ``adp`` of 3 + 2 steps, for a head on the mean of the pixels."""
  network = Architecture(SmallCNN, {"widths": ()})
  monkeypatch.setitem(models.MODELS, "mean_pixel", network)

  def make(reset, info=INFO):
    config = tiny.config(
      **{
        "method": "adp",
        "model.name": "mean_pixel",
        "num_steps": 5,
        "optimizer.name": "sgd",
        "optimizer.learning_rate": RATE,
        "optimizer.schedule": "cosine",
        "two_stage.first_share": 0.6,
        "two_stage.reset_optimizer": reset,
      }
    )
    return methods.make(config, info)

  return make


def test_adp_begins_on_synthetic_images_and_ends_on_real_ones(adp):
  pretrain, adapt = adp(True).stages
  assert (pretrain.name, pretrain.num_steps) == ("pretrain", 3)
  assert pretrain.streams == {"synthetic": Stream("synthetic", 16)}
  assert (adapt.name, adapt.num_steps) == ("adapt", 2)
  assert adapt.streams == {"real": Stream("real", 16)}


@pytest.mark.parametrize("name", ["real", "synthetic"])
def test_adp_needs_both_sets(adp, name):
  counts = {name: INFO.class_counts[name]}
  (missing,) = {"real", "synthetic"} - {name}
  with pytest.raises(UserError, match=f"'adp' needs {missing} training images"):
    adp(True, Info(INFO.class_names, INFO.image_shape, counts))


IMAGES = np.random.default_rng(0).random((16, 8, 8, 1), np.float32)
BATCH = Batch(IMAGES, np.arange(16) % 3, np.ones(16, bool))


@pytest.mark.parametrize(
  "reset, share",
  [
    # The second stage's cosine, of two steps, at its second one ...
    (True, 0.5),
    # ... and at that of both, of five.
    (False, 0.9045085),
  ],
)
def test_the_optimiser_is_reset_or_goes_on(adp, reset, share):
  method = adp(reset)
  adapt = method.stages[1]
  fresh, _ = jax.jit(method.init)(KEY, IMAGES[:1])
  # As after a step: a count of 1, and momenta, of 1 too.
  used = jax.tree.map(lambda x: x + 1, fresh.opt_state)
  entered = adapt.enter(fresh.replace(opt_state=used), KEY)
  jax.tree.map(
    np.testing.assert_array_equal,
    *(entered, fresh if reset else fresh.replace(opt_state=used)),
  )
  state = entered.replace(opt_state=used)
  after, _ = jax.jit(adapt.step)(state, None, {"real": BATCH}, KEY, 0.0)
  error = jax.nn.softmax(jax.jit(method.predict)(state, None, IMAGES))
  gradient = (error - jax.nn.one_hot(BATCH.labels, 3)).mean(0)
  np.testing.assert_allclose(
    _bias(after),
    _bias(state) - share * RATE * (gradient + 0.9),
    rtol=1e-5,
  )


def _bias(state):
  return state.params["head"]["bias"]


@pytest.mark.parametrize(
  "reset, expected",
  [
    # Half a cosine in so many steps, twice or once.
    (True, [1, 3 / 4, 1 / 4, 1, 1 / 2]),
    (False, [1, 0.9045085, 0.6545085, 0.3454915, 0.0954915]),
  ],
)
def test_the_schedule_is_of_each_stage_or_of_both(reset, expected):
  config = tiny.config(
    **{
      "optimizer.name": "sgd",
      "optimizer.momentum": 0.0,
      "optimizer.learning_rate": 1.0,
      "optimizer.schedule": "cosine",
      "two_stage.reset_optimizer": reset,
    }
  )
  steps, rates, weight = (3, 2), [], jnp.zeros(())
  state = None
  for count, tx in zip(
    steps, two_stage.optimizers_of(config, steps), strict=True
  ):
    if state is None or reset:
      state = tx.init(weight)
    for _ in range(count):
      update, state = tx.update(jnp.ones(()), state, weight)
      rates.append(-update)
  np.testing.assert_allclose(rates, expected, rtol=1e-5)
