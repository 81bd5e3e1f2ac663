"""DADA's losses, and whose gradient its step applies to what."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from synguide_jax import methods, models
from synguide_jax.errors import UserError
from synguide_jax.methods import dada
from synguide_jax.methods.base import Batch, Info
from synguide_jax.models.base import Architecture
from tests import tiny

# Three classes and the domain.
SOURCE = np.array([[2.0, 1.0, 0.0, 0.5], [0.0, 1.0, -1.0, 1.5]])
LABELS = np.array([0, 2])
TARGET = np.array([[1.0, 0.0, -1.0, 0.2], [0.3, 0.3, 0.6, 2.0]])


def losses(source, target):
  told, hidden = dada.target_losses(target)
  told_at_all, hidden_at_all = dada.target_losses(target, discriminative=False)
  return {
    "source": dada.source_loss(source, LABELS),
    "told": told,
    "hidden": hidden,
    "told, not discriminative": told_at_all,
    "hidden, not discriminative": hidden_at_all,
    "entropy": dada.entropy(target),
  }


def naive(source, target):
  """The same from probabilities, which must not be 0."""
  p = jax.nn.softmax(source)
  d, p_y = p[:, -1], p[jnp.arange(2), LABELS]
  source = -(1 - d) * jnp.log(p_y) - d * jnp.log(1 - p_y)
  d, classes = jax.nn.softmax(target)[:, -1], jax.nn.softmax(target[:, :-1])
  odds = jnp.exp(target)
  q = odds[:, -1:] / (odds[:, :-1] + odds[:, -1:])
  return {
    "source": source.mean(),
    "told": -(classes * jnp.log(q)).sum(1).mean(),
    "hidden": (classes * jnp.log(1 - q)).sum(1).mean(),
    "told, not discriminative": -jnp.log(d).mean(),
    "hidden, not discriminative": jnp.log(1 - d).mean(),
    "entropy": -(classes * jnp.log(classes)).sum(1).mean(),
  }


OFFICIAL = {
  "source": 1.0558166444,
  "told": 0.5690717873,
  "hidden": -1.1710226093,
  "told, not discriminative": 0.9732931485,
  "hidden, not discriminative": -0.6150310673,
  "entropy": 0.9602129032,
}


def test_losses_have_the_official_values():
  with jax.enable_x64(True):
    values = jax.jit(losses)(SOURCE, TARGET)
  for name, expected in OFFICIAL.items():
    np.testing.assert_allclose(values[name], expected, rtol=1e-9, err_msg=name)


@pytest.mark.parametrize(
  "weight, discriminative, expected",
  [
    (1.0, True, (2.5851013349, 1.0754188682)),
    (0.5, True, (1.7726571190, 1.0178158857)),
    # From the values above.
    (0.5, False, (1.9747677996, 0.7398201147)),
  ],
)
def test_objectives_have_the_official_values(weight, discriminative, expected):
  with jax.enable_x64(True):
    both = jax.jit(dada.objectives, static_argnames="discriminative")(
      SOURCE, LABELS, TARGET, weight=weight, discriminative=discriminative
    )
  np.testing.assert_allclose(both, expected, rtol=1e-9)


def sum_of(losses):
  """A weighted sum, whose gradient tells what any of the losses' would."""
  return sum(n * losses[name] for n, name in enumerate(OFFICIAL, start=1))


def test_nothing_is_detached():
  def gradient(losses, logits):
    return jax.grad(lambda x: sum_of(losses(*x)))(logits)

  logits = np.random.default_rng(0).normal(size=(2, 2, 4)) * 2
  with jax.enable_x64(True):
    ours, theirs = jax.jit(lambda x: [gradient(f, x) for f in (losses, naive)])(
      logits
    )
  np.testing.assert_allclose(ours, theirs, rtol=1e-9)


def test_sure_logits_have_finite_losses_and_gradients():
  # Every combination.
  grid = np.meshgrid(*[np.float32([-1e4, 0.0, 1e4])] * 4)
  logits = np.stack(grid, -1).reshape(-1, 1, 4).repeat(2, 1)

  def loss(logits):
    values = losses(logits, logits)
    return sum_of(values), values

  grads, values = jax.jit(jax.vmap(jax.grad(loss, has_aux=True)))(logits)
  assert np.isfinite(grads).all()
  for name, value in values.items():
    assert np.isfinite(value).all(), name
    # And not cut off.
    assert np.ptp(value) > (1 if name == "entropy" else 4e3), name


def test_without_a_domain_the_source_loss_is_cross_entropy():
  logits = SOURCE.copy()
  logits[:, -1] = -1e4
  loss = jax.jit(dada.source_loss)(np.float32(logits), LABELS)
  expected = np.log(np.exp(SOURCE[:, :3]).sum(1)) - SOURCE[[0, 1], LABELS]
  np.testing.assert_allclose(loss, expected.mean(), rtol=1e-6)


INFO = Info(
  class_names=("a", "b", "c"),
  image_shape=(4, 4, 1),
  class_counts={"real": (4, 4, 4), "synthetic": (8, 8, 8)},
)
KEY = jax.random.key(0)
RATE = 0.1
# tanh(5 p), the ramp, is 1/4.
PROGRESS = np.float32(np.arctanh(0.25) / 5)


def make(**overrides):
  config = tiny.config(
    **{
      "method": "dada",
      "model.name": "dense",
      "optimizer.name": "sgd",
      "optimizer.learning_rate": RATE,
      "dada.weight": 2.0,
      **overrides,
    }
  )
  with pytest.MonkeyPatch.context() as patch:
    patch.setitem(models.MODELS, "dense", Architecture(tiny.Dense))
    return methods.make(config, INFO)


def batch(seed, real):
  rng = np.random.default_rng(seed)
  return Batch(
    images=rng.random((8, 4, 4, 1), np.float32),
    labels=rng.integers(0, 3, 8).astype(np.int32),
    real=np.full(8, real),
  )


BATCHES = {"real": batch(1, True), "synthetic": batch(2, False)}


@pytest.fixture(scope="module")
def begun():
  """A method, the state that its second stage begins with, and the step."""
  method = make()
  state, _ = jax.jit(method.init)(KEY, BATCHES["real"].images[:1])
  state = jax.jit(method.stages[1].enter)(state, KEY)
  return method, state, jax.jit(method.stages[1].step)


def test_head_and_features_descend_their_own_objective(begun):
  method, before, step = begun
  after, metrics = step(before, None, BATCHES, KEY, PROGRESS)
  np.testing.assert_allclose(metrics["domain_weight"], 0.5, rtol=1e-6)

  def objectives(params, head):
    logits = {}
    for name, of in BATCHES.items():
      output = method.model.apply({"params": params}, of.images, train=True)
      domain = output.features["embedding"] @ head["kernel"] + head["bias"]
      logits[name] = jnp.concatenate([output.logits, domain], 1)
    both = dada.objectives(
      logits["synthetic"],
      BATCHES["synthetic"].labels,
      logits["real"],
      weight=0.5,
    )
    return jnp.stack(both)

  variables = before.params, before.extra["domain_head"]
  values, (of_network, of_domain) = jax.jit(
    lambda *v: (objectives(*v), jax.jacrev(objectives, (0, 1))(*v))
  )(*variables)
  np.testing.assert_allclose(
    [metrics["loss"], metrics["feature_loss"]], values, rtol=1e-5
  )
  assert list(of_network) == ["Dense_0", "head"]
  expected = [
    jax.tree.map(lambda g: g[1], of_network["Dense_0"]),
    jax.tree.map(lambda g: g[0], (of_network["head"], of_domain)),
  ]
  applied = jax.tree.map(
    lambda old, new: (old - new) / RATE,
    variables,
    (after.params, after.extra["domain_head"]),
  )
  for ours, theirs in zip(
    jax.tree.leaves(applied), jax.tree.leaves(expected), strict=True
  ):
    np.testing.assert_allclose(ours, theirs, rtol=1e-3, atol=1e-5)


def test_only_metrics_see_the_labels_of_real_images(begun):
  def relabelled(name):
    labels = (BATCHES[name].labels + 1) % 3
    return {**BATCHES, name: BATCHES[name].replace(labels=labels)}

  _, before, step = begun
  after, metrics = step(before, None, BATCHES, KEY, PROGRESS)
  same, changed = step(before, None, relabelled("real"), KEY, PROGRESS)
  jax.tree.map(np.testing.assert_array_equal, same, after)
  assert changed.pop("real_accuracy") != metrics.pop("real_accuracy")
  assert changed == metrics
  other, _ = step(before, None, relabelled("synthetic"), KEY, PROGRESS)
  bias = after.params["head"]["bias"]
  assert np.abs(other.params["head"]["bias"] - bias).max() > 1e-3


def test_domain_accuracy_is_of_both_domains(begun):
  method, state, step = begun
  # All images of a domain are the same, and a plane lies between the two.
  batches = {
    name: of.replace(images=of.images[:1].repeat(8, 0))
    for name, of in BATCHES.items()
  }
  images = [batches[name].images[0] for name in ("real", "synthetic")]
  output = jax.jit(method.model.apply, static_argnames="train")(
    {"params": state.params}, np.stack(images), train=False
  )
  real, synthetic = np.asarray(output.features["embedding"])
  kernel = 1e3 * (real - synthetic)[:, None]
  bias = -(real + synthetic) / 2 @ kernel
  for sign, shift, right in ((1, 0, 1.0), (-1, 0, 0.0), (1, 1e6, 0.5)):
    head = {"kernel": sign * kernel, "bias": sign * bias + shift}
    told = state.replace(extra={"domain_head": head})
    _, metrics = step(told, None, batches, KEY, np.float32(0))
    assert metrics["domain_accuracy"] == right
    assert metrics["domain_weight"] == 0


def test_second_stage_begins_with_a_domain_head_and_a_new_optimizer(begun):
  method, fresh, step = begun
  first, second = method.stages
  assert (first.name, second.name) == ("pretrain", "adapt")
  assert [s.set for s in first.streams.values()] == ["synthetic"]
  sizes = {name: (s.set, s.batch_size) for name, s in second.streams.items()}
  assert sizes == {"real": ("real", 8), "synthetic": ("synthetic", 8)}
  # As a state with momentum.
  used, _ = step(fresh, None, BATCHES, KEY, PROGRESS)
  entered = jax.jit(second.enter)(used, jax.random.key(1))
  jax.tree.map(np.testing.assert_array_equal, entered.params, used.params)
  head = entered.extra["domain_head"]
  assert head["kernel"].shape == (16, 1)
  assert 0.1 < head["kernel"].std() < 0.5
  assert head["bias"] == 0
  assert (head["kernel"] != fresh.extra["domain_head"]["kernel"]).all()
  momentum = entered.opt_state[0].trace
  assert set(momentum) == {"network", "domain_head"}
  assert any(map(np.any, jax.tree.leaves(used.opt_state[0].trace)))
  assert not any(map(np.any, jax.tree.leaves(momentum)))
  images = BATCHES["real"].images
  logits = method.predict(entered.for_prediction(), None, images)
  assert logits.shape == (8, 3)


@pytest.mark.parametrize(
  "overrides, message",
  [
    ({"dada.weight": -1.0}, r"dada.weight=-1.0 must not be negative"),
    (
      {"dada.schedule": "linear"},
      "dada.schedule='linear' is unknown; known: progress, constant",
    ),
    ({"batch_size": 15}, "batch_size=15 times two_streams.real_share=0.5 must"),
    (
      {"two_streams.running_statistics": "none"},
      "running_statistics='none' is unknown",
    ),
  ],
)
def test_bad_values_are_named(overrides, message):
  with pytest.raises(UserError, match=message):
    make(**overrides)


def test_real_images_are_needed():
  info = Info(INFO.class_names, INFO.image_shape, {"synthetic": (8, 8, 8)})
  with pytest.raises(UserError, match="'dada' needs real training images"):
    methods.make(tiny.config(method="dada"), info)
