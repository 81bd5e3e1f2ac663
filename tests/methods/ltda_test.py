"""LTDA's weights, and what its step descends."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from synguide_jax import methods, models
from synguide_jax.errors import UserError
from synguide_jax.methods import ltda
from synguide_jax.methods.base import Batch, Info
from synguide_jax.models.base import Architecture
from tests import tiny


def test_class_weights_have_the_official_values():
  np.testing.assert_allclose(
    ltda.class_balanced_weights((100, 10, 1), beta=0.9999),
    [0.0271587216, 0.2703688740, 2.7024724044],
    rtol=1e-9,
  )


def test_class_weights_between_none_and_inverse_frequency():
  counts = np.array([12, 3, 1])
  even = ltda.class_balanced_weights(counts, beta=0.0)
  np.testing.assert_allclose(even, [1, 1, 1])
  inverse = ltda.class_balanced_weights(counts, beta=1 - 1e-8)
  np.testing.assert_allclose(inverse, 3 / counts / (1 / counts).sum(), 1e-6)


def test_classes_without_images_weigh_nothing():
  weights = ltda.class_balanced_weights([10, 0, 1, 0], beta=0.9)
  np.testing.assert_array_equal(weights[[1, 3]], 0)
  of_two = ltda.class_balanced_weights([10, 1], beta=0.9)
  np.testing.assert_allclose(weights[[0, 2]], 2 * of_two)
  with pytest.raises(UserError, match="no class has an image"):
    ltda.class_balanced_weights([0, 0], beta=0.9)


def cross_entropies(logits, labels):
  return optax.softmax_cross_entropy_with_integer_labels(logits, labels)


def toy(params):
  """Losses of a linear classifier, and that of two development examples."""
  x = np.array([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])
  dev = np.array([[1.0, -1.0], [0.5, 1.0]])
  return (
    cross_entropies(x @ params, np.array([0, 1, 0])),
    cross_entropies(dev @ params, np.array([0, 1])).mean(),
  )


def test_conditional_weights_have_the_official_values():
  params, weights = np.array([[0.1, -0.2], [0.3, 0.05]]), np.array([1, 0.5, 2])

  @jax.jit
  def run():
    epsilon, dev_loss = ltda.conditional_weights(
      lambda p: toy(p)[0],
      lambda p: toy(p)[1],
      params,
      weights,
      inner_rate=0.1,
      example_rate=0.01,
    )
    return epsilon, dev_loss, ((weights + epsilon) * toy(params)[0]).mean()

  with jax.enable_x64(True):
    epsilon, dev_loss, outer = jax.device_get(run())
  np.testing.assert_allclose(dev_loss, 0.8216624078, rtol=1e-9)
  gradient = [-0.0054818422, -0.0618005230, 0.0355068715]
  np.testing.assert_allclose(epsilon / -0.01, gradient, rtol=1e-7)
  np.testing.assert_allclose(
    epsilon, [5.48184e-5, 6.180052e-4, -3.550687e-4], rtol=1e-6
  )
  np.testing.assert_allclose(outer, 0.6262296700, rtol=1e-9)


@pytest.mark.parametrize("reduction", ["sum", "mean"])
def test_conditional_weights_are_the_gradient_through_the_virtual_step(
  reduction,
):
  rng = np.random.default_rng(0)
  params = {"a": rng.normal(size=(5, 4)), "b": rng.normal(size=(4, 3))}
  x, dev = rng.normal(size=(2, 6, 5))
  labels, dev_labels = rng.integers(0, 3, (2, 6))
  weights = rng.random(6)

  def losses_fn(params, x, labels):
    # Normalised by the batch, so that examples see each other.
    hidden = x @ params["a"]
    hidden = jnp.tanh((hidden - hidden.mean(0)) / hidden.std(0))
    return cross_entropies(hidden @ params["b"], labels)

  def dev_loss(epsilon):
    reduce = {"sum": jnp.sum, "mean": jnp.mean}[reduction]
    grads = jax.grad(
      lambda p: reduce((weights + epsilon) * losses_fn(p, x, labels))
    )(params)
    virtual = jax.tree.map(lambda p, g: p - 0.3 * g, params, grads)
    return losses_fn(virtual, dev, dev_labels).mean()

  @jax.jit
  def run():
    return ltda.conditional_weights(
      lambda p: losses_fn(p, x, labels),
      lambda p: losses_fn(p, dev, dev_labels).mean(),
      params,
      weights,
      inner_rate=0.3,
      example_rate=2.0,
      inner_reduction=reduction,
    ), jax.value_and_grad(dev_loss)(jnp.zeros(6))

  with jax.enable_x64(True):
    (epsilon, value), (expected, gradient) = jax.device_get(run())
  np.testing.assert_allclose(value, expected, rtol=1e-12)
  np.testing.assert_allclose(epsilon, -2 * gradient, rtol=1e-9)
  assert np.abs(gradient).max() > 1e-3


def test_conditional_weights_know_their_reductions():
  with pytest.raises(UserError, match="'max' is unknown; known: sum, mean"):
    ltda.conditional_weights(
      lambda p: p,
      jnp.sum,
      jnp.ones(2),
      jnp.ones(2),
      inner_rate=1.0,
      example_rate=1.0,
      inner_reduction="max",
    )


INFO = Info(
  class_names=("a", "b", "c"),
  image_shape=(4, 4, 1),
  class_counts={"real": (9, 6, 2), "synthetic": (1, 8, 70)},
)
KEY = jax.random.key(0)
RATE = 0.1


def make(**overrides):
  config = tiny.config(
    **{
      "method": "ltda",
      "num_steps": 20,
      "model.name": "dense",
      "optimizer.name": "sgd",
      "optimizer.momentum": 0.0,
      "optimizer.learning_rate": RATE,
      **overrides,
    }
  )
  with pytest.MonkeyPatch.context() as patch:
    patch.setitem(models.MODELS, "dense", Architecture(tiny.Dense))
    return methods.make(config, INFO)


def batch(seed, size):
  rng = np.random.default_rng(seed)
  return Batch(
    images=rng.random((size, 4, 4, 1), np.float32),
    labels=rng.integers(0, 3, size).astype(np.int32),
    real=np.full(size, False),
  )


BATCHES = {"train": batch(1, 8), "dev": batch(2, 6)}


@pytest.fixture(scope="module")
def state():
  return jax.jit(make().init)(KEY, BATCHES["dev"].images[:1])[0]


def one_step(state, progress=0.0, **overrides):
  step = jax.jit(make(**overrides).stages[1].step)
  return step(state, None, BATCHES, KEY, np.float32(progress))


@pytest.mark.parametrize(
  "train_on, counts",
  [("synthetic", (1, 8, 70)), ("mixed", (10, 14, 72))],
)
def test_without_conditional_weights_a_step_is_class_balanced(
  train_on, counts, state
):
  after, metrics = one_step(
    state, **{"ltda.train_on": train_on, "ltda.example_rate": 0.0}
  )
  train, model = BATCHES["train"], make().model
  weights = ltda.class_balanced_weights(counts, beta=0.9999)[train.labels]

  def loss_fn(params):
    logits = model.apply({"params": params}, train.images, train=True).logits
    return (np.float32(weights) * cross_entropies(logits, train.labels)).mean()

  loss, grads = jax.jit(jax.value_and_grad(loss_fn))(state.params)
  np.testing.assert_allclose(metrics["loss"], loss, rtol=1e-5)
  jax.tree.map(
    lambda old, new, g: np.testing.assert_allclose(
      (old - new) / RATE, g, rtol=1e-3, atol=1e-5
    ),
    state.params,
    after.params,
    grads,
  )
  assert metrics["example_weight_change"] == 0
  np.testing.assert_allclose(
    metrics["example_weight_mean"], weights.mean(), rtol=1e-5
  )
  np.testing.assert_allclose(
    metrics["example_weight_std"], weights.std(), rtol=1e-5
  )


@pytest.mark.parametrize(
  "overrides, step, rate",
  [
    # Of five steps.
    ({"optimizer.schedule": "cosine"}, 2, optax.cosine_decay_schedule(0.1, 5)),
    # Of twenty, after fifteen.
    (
      {"optimizer.schedule": "cosine", "two_stage.reset_optimizer": False},
      17,
      optax.cosine_decay_schedule(0.1, 20),
    ),
  ],
)
def test_virtual_step_has_the_learning_rate_of_the_moment(
  overrides, step, rate, state
):
  progress = step % 15 / 5
  actual, given = (
    one_step(state, progress, **overrides, **{"ltda.inner_rate": inner})[1]
    for inner in (0.0, float(rate(step)))
  )
  assert given["example_weight_change"] > 0
  for name in ("dev_loss", "example_weight_change"):
    np.testing.assert_allclose(actual[name], given[name], rtol=1e-5)


def test_weights_lower_the_development_loss(state):
  """Those of a large tau change the step in the direction that it is for."""
  dev, model = BATCHES["dev"], make().model

  @jax.jit
  def dev_loss(params):
    logits = model.apply({"params": params}, dev.images, train=True).logits
    return cross_entropies(logits, dev.labels).mean()

  plain, weighted = (
    dev_loss(one_step(state, **{"ltda.example_rate": rate})[0].params)
    for rate in (0.0, 10.0)
  )
  assert weighted < plain - 1e-3


def test_development_images_are_real_and_balanced():
  def streams(**overrides):
    stage = make(**overrides).stages[1]
    assert (stage.name, stage.num_steps) == ("adapt", 5)
    return {
      name: (s.set, s.batch_size, s.sampler)
      for name, s in stage.streams.items()
    }

  assert streams() == {
    "train": ("synthetic", 16, "epoch"),
    "dev": ("real", 16, "balanced"),
  }
  overrides = {"ltda.train_on": "mixed", "ltda.dev_batch_size": 4}
  assert streams(**overrides) == {
    "train": ("mixed", 16, "epoch"),
    "dev": ("real", 4, "balanced"),
  }
  info = Info(INFO.class_names, INFO.image_shape, {"synthetic": (8, 8, 8)})
  with pytest.raises(UserError, match="'ltda' needs real training images"):
    methods.make(tiny.config(method="ltda"), info)


@pytest.mark.parametrize("reset", [True, False])
def test_second_stage_resets_the_optimizer_if_it_is_to(reset, state):
  overrides = {
    "optimizer.momentum": 0.9,
    "two_stage.reset_optimizer": reset,
  }
  stage = make(**overrides).stages[1]
  ones = jax.tree.map(jnp.ones_like, state.params)
  tx = optax.sgd(lambda count: RATE, momentum=0.9)
  _, opt_state = tx.update(ones, tx.init(state.params), state.params)
  entered = stage.enter(state.replace(opt_state=opt_state), KEY)
  assert entered.opt_state[1].count == 1 - reset
  for leaf in jax.tree.leaves(entered.opt_state[0].trace):
    np.testing.assert_array_equal(leaf, 1 - reset)


@pytest.mark.parametrize(
  "field, value, message",
  [
    ("train_on", "all", "'all' is unknown; known: real, synthetic, mixed"),
    ("inner_reduction", "max", "'max' is unknown; known: sum, mean"),
    ("dev_batch_size", -1, "-1 must not be negative"),
    ("example_rate", -0.1, "-0.1 must not be negative"),
    ("inner_rate", -0.1, "-0.1 must not be negative"),
    ("beta", 1.0, "1.0 must be at least 0 and below 1"),
    ("beta", -0.5, "-0.5 must be at least 0 and below 1"),
  ],
)
def test_bad_values_are_named(field, value, message):
  with pytest.raises(UserError, match=f"ltda.{field}={message}"):
    make(**{f"ltda.{field}": value})
