"""DANN's losses, and what its step must and must not depend on."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from synguide_jax import methods, models
from synguide_jax.errors import UserError
from synguide_jax.methods import adversarial, dann
from synguide_jax.methods.base import Batch, Info
from synguide_jax.models.base import Architecture
from synguide_jax.models.mlp import MLP
from synguide_jax.models.small_cnn import SmallCNN
from tests import tiny

KEY = jax.random.key(0)
RATE = 0.1
INFO = Info(
  class_names=("a", "b", "c"),
  image_shape=(8, 8, 1),
  class_counts={"real": (4, 4, 4), "synthetic": (8, 8, 8)},
)


def _batch(seed):
  image_key, label_key = jax.random.split(jax.random.key(seed))
  return Batch(
    images=jax.random.uniform(image_key, (8, 8, 8, 1)),
    labels=jax.random.randint(label_key, (8,), 0, 3),
    real=jnp.full(8, seed == 1),
  )


@pytest.fixture(autouse=True, scope="module")
def network():
  """One layer, which compiles fast."""
  with pytest.MonkeyPatch.context() as patch:
    architecture = Architecture(SmallCNN, {"widths": (8,)})
    patch.setitem(models.MODELS, "one_layer", architecture)
    yield


BATCHES = {"real": _batch(1), "synthetic": _batch(2)}


def _make(**overrides):
  """Gradient descent with a discriminator without dropout."""
  config = tiny.config(
    **{
      "method": "dann",
      "model.name": "one_layer",
      "num_steps": 1000,
      "optimizer.name": "sgd",
      "optimizer.momentum": 0.0,
      "optimizer.learning_rate": RATE,
      "dann.hidden": (8,),
      "dann.dropout": 0.0,
      **overrides,
    }
  )
  return methods.make(config, INFO)


@functools.cache
def _start():
  return jax.jit(_make().init)(KEY, BATCHES["real"].images[:1])[0]


@functools.cache
def _compiled(items):
  """Returns the state to begin with, and the step."""
  method = _make(**dict(items))
  shapes, _ = jax.eval_shape(method.init, KEY, BATCHES["real"].images[:1])
  opt_state = jax.tree.map(
    lambda x: jnp.zeros(x.shape, x.dtype), shapes.opt_state
  )
  start = _start()
  extra = None if shapes.extra is None else start.extra
  state = start.replace(opt_state=opt_state, extra=extra)
  return state, jax.jit(method.stages[0].step)


def _step(batches=BATCHES, key=KEY, progress=0.0, **overrides):
  """Takes one step; returns the gradients applied to both, and the metrics."""
  state, step = _compiled(tuple(overrides.items()))
  new, metrics = step(state, None, batches, key, jnp.float32(progress))

  def gradient(old, new):
    return jax.tree.map(lambda a, b: np.asarray(a - b) / RATE, old, new)

  extra = None if state.extra is None else gradient(state.extra, new.extra)
  return gradient(state.params, new.params), extra, metrics


def _assert_close(actual, expected, atol=1e-5):
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=atol),
    actual,
    expected,
  )


def test_ramp_has_its_published_values():
  with jax.enable_x64():
    values = adversarial.ramp(jnp.array([0.0, 0.1, 0.25, 0.5, 1.0]))
    expected = [0.0, 0.4621171573, 0.8482836400, 0.9866142982, 0.9999092043]
    np.testing.assert_allclose(values, expected, rtol=1e-9, atol=1e-12)


def test_domain_loss_is_binary_cross_entropy_with_source_1():
  with jax.enable_x64():
    source, target = jnp.array([0.7, -0.2]), jnp.array([0.1, -1.0])
    np.testing.assert_allclose(
      dann.domain_loss(source, target), 0.5647458165, rtol=1e-9
    )
    # Of an image that is beyond doubt, the loss is 0.
    sure = jnp.array([1e4])
    for logits, expected in (
      ((source, -sure), 0.6006624591),
      ((sure, target), 0.5288291738),
      ((source, target), 2 * 0.5647458165),
    ):
      np.testing.assert_allclose(
        dann.domain_loss(*logits, "sum"), expected, rtol=1e-9
      )


def test_domain_loss_of_logits_that_know_nothing_is_at_least_log_2():
  logits = jax.random.normal(KEY, (64,))
  assert dann.domain_loss(logits, logits) > np.log(2)
  zeros = jnp.zeros(3)
  np.testing.assert_allclose(
    dann.domain_loss(zeros, jnp.zeros(5)), np.log(2), rtol=1e-6
  )


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_reverse_gradient_is_the_identity_with_another_gradient(dtype):
  x = jax.random.normal(KEY, (4, 3)).astype(dtype)
  weights = jnp.arange(12.0).reshape(4, 3).astype(dtype)

  def loss(x, scale):
    y = dann.reverse_gradient(x, scale)
    return (y * weights).sum(), y

  # The scale is traced, and may differ along a mapped axis.
  scales = jnp.array([0.0, 0.5, 2.0])
  gradients, (same, *_) = jax.jit(
    jax.vmap(jax.grad(loss, has_aux=True), (None, 0))
  )(x, scales)
  np.testing.assert_array_equal(same, x)
  assert gradients.dtype == dtype
  for gradient, scale in zip(gradients, (0, 0.5, 2), strict=True):
    np.testing.assert_array_equal(gradient, -scale * weights)
  assert jax.grad(lambda s: loss(x, s)[0].astype(float))(2.0) == 0


def test_domain_accuracy_counts_both_domains_alike():
  accuracy = adversarial.domain_accuracy
  assert accuracy(jnp.array([1.0, 2.0, 3.0, -1.0]), jnp.array([-1.0])) == 0.875
  # A discriminator that says the same of all images is right about half.
  assert accuracy(jnp.ones(3), jnp.ones(5)) == 0.5
  assert accuracy(jnp.zeros(3), jnp.zeros(5)) == 0.5


def test_without_weight_the_network_descends_both_cross_entropies():
  # Lambda is 0 in the beginning.
  network, _, metrics = _step(**{"dann.batch_norm": "separate"})
  plain, _, expected = _step(
    **{"method": "weighted", "weighted.real_weight": 0.5}
  )
  assert metrics["domain_weight"] == 0
  _assert_close(network, plain, atol=1e-6)
  assert metrics["real_accuracy"] == expected["real_accuracy"]
  assert metrics["synthetic_accuracy"] == expected["synthetic_accuracy"]
  np.testing.assert_allclose(
    metrics["loss"], expected["loss"] + metrics["domain_loss"], rtol=1e-6
  )


def test_the_weight_scales_what_reaches_the_network_and_nothing_else():
  begin, middle, end = (_step(progress=p) for p in (0.0, 0.1, 1.0))
  reversed_ = jax.tree.map(np.subtract, end[0], begin[0])
  assert max(np.abs(x).max() for x in jax.tree.leaves(reversed_)) > 1e-3
  ratio = np.tanh(0.5) / np.tanh(5)
  _assert_close(
    jax.tree.map(np.subtract, middle[0], begin[0]),
    jax.tree.map(lambda x: ratio * x, reversed_),
  )
  # The head does not see the domains.
  assert not np.any(reversed_["head"]["kernel"])
  # The discriminator descends its loss with weight 1 from the beginning.
  assert max(np.abs(x).max() for x in jax.tree.leaves(begin[1])) > 1e-3
  for other in (begin, middle):
    _assert_close(other[1], end[1])


def test_the_discriminator_learns_that_synthetic_images_are_the_source():
  state, _ = _compiled(())
  model, discriminator = _make().model, MLP((8, 1))

  @jax.jit
  @jax.value_and_grad
  def loss(params):
    domains = {}
    for name, batch in BATCHES.items():
      output = model.apply({"params": state.params}, batch.images, train=True)
      embedding = output.features["embedding"]
      domains[name] = discriminator.apply(params, embedding)[:, 0]
    return dann.domain_loss(domains["synthetic"], domains["real"])

  value, expected = loss(state.extra["discriminator"])
  _, gradient, metrics = _step(progress=0.5)
  np.testing.assert_allclose(metrics["domain_loss"], value, rtol=1e-5)
  _assert_close(gradient["discriminator"], expected)


# A discriminator with dropout, to show that of the key, too.
SOURCE_ONLY = {"dann.labels": "source", "dann.dropout": 0.5}


@pytest.mark.parametrize("overrides", [{}, SOURCE_ONLY])
def test_labels_of_real_images_count_only_where_both_are_learned(overrides):
  real = BATCHES["real"]
  relabelled = dataclasses.replace(real, labels=(real.labels + 1) % 3)
  steps = [
    _step({**BATCHES, "real": batch}, progress=0.5, **overrides)[:2]
    for batch in (real, relabelled)
  ]
  same = jax.tree.all(jax.tree.map(np.array_equal, *steps))
  assert same == bool(overrides)


def test_dropout_of_the_discriminator_is_drawn_from_the_key():
  first, second = (
    _step(key=jax.random.key(seed), **SOURCE_ONLY)[2] for seed in (1, 2)
  )
  assert first["domain_loss"] != second["domain_loss"]


@pytest.mark.parametrize(
  "schedule,expected",
  [
    ("progress", 0.5 * 0.8482836400),
    # Step 250 of 1,000.
    ("steps", 0.5 * np.tanh(0.125)),
    ("constant", 0.5),
  ],
)
def test_the_weight_follows_its_schedule(schedule, expected):
  state, _ = _compiled(())
  overrides = {"dann.schedule": schedule, "dann.domain_weight": 0.5}
  step = _make(**overrides).stages[0].step

  @jax.jit
  def weight(progress):
    return step(state, None, BATCHES, KEY, progress)[1]["domain_weight"]

  np.testing.assert_allclose(weight(0.25), expected, rtol=1e-6)


@pytest.mark.parametrize(
  "field,value,message",
  [
    ("dann.labels", "target", "dann.labels='target' is unknown; known: both"),
    ("dann.schedule", "linear", "dann.schedule='linear' is unknown"),
    ("dann.reduction", "none", "dann.reduction='none' is unknown"),
    ("dann.batch_norm", "frozen", "dann.batch_norm='frozen' is unknown"),
    ("dann.domain_weight", -1.0, "dann.domain_weight=-1.0 must not be"),
    ("dann.domain_weight", float("nan"), "dann.domain_weight=nan must not be"),
    ("dann.hidden", (64, 0), r"dann.hidden=\(64, 0\) must be positive"),
    ("dann.dropout", 1.0, r"dann.dropout=1.0 must be in \[0, 1\)"),
    ("dann.backbone_rate", -2.0, "dann.backbone_rate=-2.0 must not be"),
    ("batch_size", 15, "batch_size=15 times two_streams.real_share=0.5 must"),
    (
      "two_streams.running_statistics",
      "real",
      "batch_norm='joint' has the",
    ),
    (
      "two_streams.running_statistics",
      "none",
      "running_statistics='none' is unknown",
    ),
  ],
)
def test_a_bad_value_is_named(field, value, message):
  with pytest.raises(UserError, match=message):
    _make(**{field: value})


def test_a_missing_set_is_named():
  info = Info(INFO.class_names, INFO.image_shape, {"synthetic": (8, 8, 8)})
  with pytest.raises(UserError, match="'dann' needs real training images"):
    methods.make(tiny.config(method="dann"), info)
