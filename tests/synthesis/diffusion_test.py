"""The diffusion model as a method: its step, its average, its configs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from synguide_jax import config as config_lib
from synguide_jax.errors import UserError
from synguide_jax.methods.base import Info
from synguide_jax.synthesis import diffusion, edm, sampling
from tests.synthesis import small


def test_denoiser_of_a_zero_network_is_the_skip_connection():
  network = diffusion.make_network(small.config(), small.INFO)
  images = jax.random.normal(jax.random.key(0), (5, 4, 4, 1))
  labels = jnp.array([0, 1, 2, 3, 0])
  params = jax.jit(network.init)(
    jax.random.key(1), images, jnp.zeros(5), labels
  )
  sigma = jnp.array([0.1, 0.5, 1.0, 2.0, 80.0])
  denoised = edm.denoiser(network, params["params"])(images, sigma, labels)
  c_skip = 0.25 / (sigma**2 + 0.25)
  np.testing.assert_allclose(
    denoised, c_skip[:, None, None, None] * images, rtol=1e-6
  )


def test_drop_labels():
  labels = jnp.arange(10_000) % 10
  key = jax.random.key(0)
  kept = diffusion.drop_labels(key, labels, 0.0, 10)
  np.testing.assert_array_equal(kept, labels)
  none = diffusion.drop_labels(key, labels, 1.0, 10)
  np.testing.assert_array_equal(none, 10)
  some = diffusion.drop_labels(key, labels, 0.1, 10)
  dropped = some == 10
  assert abs(dropped.mean() - 0.1) < 5 * np.sqrt(0.09 / 10_000)
  np.testing.assert_array_equal(some[~dropped], labels[~dropped])


def _step(config):
  method = diffusion.make(config, small.INFO)
  (stage,) = method.stages

  def step(state, batch, key):
    return stage.step(state, None, {"real": batch}, key, jnp.float32(0))

  return method, step


def test_step_without_labels_learns_the_null_class_only():
  config = small.config(**{"diffusion.label_dropout": 1.0})
  method, step = _step(config)
  batch, key = small.batch(), jax.random.key(0)
  state = small.random_state(method, config)
  step = jax.jit(step)
  after, metrics = step(state, batch, key)
  relabelled = batch.replace(labels=jnp.zeros_like(batch.labels))
  assert metrics["loss"] == step(state, relabelled, key)[1]["loss"]
  moved = (
    after.params["class_embedding"]["embedding"]
    != state.params["class_embedding"]["embedding"]
  ).any(axis=1)
  np.testing.assert_array_equal(moved, [False, False, False, True])


def test_augmentation_is_told_to_the_network_in_training_only():
  plain = small.config()
  config = small.config(**{"diffusion.augment": 1.0})
  params = small.random_params(config)
  told = "augmentation_embedding"
  assert told in params and told not in small.random_params(plain)
  method, step = _step(config)
  state, key = small.random_state(method, config), jax.random.key(0)
  step = jax.jit(step)
  after, _ = step(state, small.batch(), key)
  moved = (after.params[told]["kernel"] != state.params[told]["kernel"]).any(
    axis=1
  )
  np.testing.assert_array_equal(moved, np.ones(9, bool))
  # Samples are told of nothing: they are those of the network without it.
  without = {name: layer for name, layer in params.items() if name != told}
  images = [
    sampling.Sampler(of_config, of_params, small.INFO)([0, 1], [4, 5])
    for of_config, of_params in ((config, params), (plain, without))
  ]
  np.testing.assert_array_equal(*images)


def test_update_ema_warms_up():
  ema = diffusion.Ema({"w": jnp.array(1.0)}, jnp.array(0, jnp.int32))
  ema = diffusion.update_ema(ema, {"w": jnp.array(2.0)}, 0.999)
  # Decay 1/10, then 2/11.
  np.testing.assert_allclose(ema.params["w"], 1.9, rtol=1e-6)
  ema = diffusion.update_ema(ema, {"w": jnp.array(0.0)}, 0.999)
  np.testing.assert_allclose(ema.params["w"], 1.9 * 2 / 11, rtol=1e-6)
  late = diffusion.Ema({"w": jnp.array(1.0)}, jnp.array(10**6, jnp.int32))
  late = diffusion.update_ema(late, {"w": jnp.array(0.0)}, 0.999)
  np.testing.assert_allclose(late.params["w"], 0.999, rtol=1e-6)
  assert late.count == 10**6 + 1


def test_training_reduces_the_loss_and_learns_the_classes():
  config = small.config(
    **{"num_steps": 400, "model.width": 48, "sample.num_steps": 18}
  )
  method, step = _step(config)
  step = jax.jit(step, donate_argnums=0)  # As the trainer does.
  batch = small.batch(size=48)
  state, frozen = jax.jit(method.init)(jax.random.key(0), batch.images)
  assert frozen is None
  losses = []
  for i in range(config.num_steps):
    key = jax.random.fold_in(jax.random.key(1), i)
    state, metrics = step(state, batch, key)
    losses.append(metrics["loss"])
  assert np.mean(losses[-50:]) < 0.6 * np.mean(losses[:10])
  assert state.ema.count == config.num_steps

  labels = np.arange(30) % 3
  config.sample.guidance = 1.0
  params = diffusion.ema_params(state)
  sampler = sampling.Sampler(config, params, small.INFO)
  images = sampler(labels, np.arange(30))
  centres = np.stack(
    [batch.images[batch.labels == c].mean(0) for c in range(3)]
  )
  distances = np.square(images[:, None] / 255 - centres).sum((2, 3, 4))
  np.testing.assert_array_equal(distances.argmin(1), labels)


def test_step_over_runs_equals_single_runs():
  # sgd, since adam turns the rounding of a zero gradient into a full step.
  config = small.config(
    **{
      "optimizer.name": "sgd",
      "model.dropout": 0.1,
      "diffusion.augment": 0.5,
    }
  )
  method, step = _step(config)
  keys = [jax.random.key(number) for number in range(2)]
  batches = [small.batch(seed) for seed in range(2)]
  states = [small.random_state(method, config, seed) for seed in range(2)]
  step_one = jax.jit(step)
  single = [step_one(*args) for args in zip(states, batches, keys, strict=True)]

  def stack(trees):
    return jax.tree.map(lambda *leaves: np.stack(leaves), *trees)

  together = jax.jit(jax.vmap(step))(
    stack(states), stack(batches), jnp.stack(keys)
  )
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6),
    together,
    stack(single),
  )


@pytest.mark.parametrize(
  ("field", "value", "message"),
  [
    ("model.name", "unet9", r"model.name 'unet9'.*residual_mlp, unet"),
    ("num_steps", 0, "num_steps must be at least 1, got 0"),
    ("diffusion.augment", 1.5, "augment=1.5 must be a probability"),
    ("diffusion.label_dropout", -0.1, "label_dropout=-0.1 must be"),
    ("diffusion.sigma_data", 0.0, "sigma_data=0.0 must be positive"),
    ("ema", 1.0, "ema=1.0 must be at least 0 and below 1"),
    ("model.width", 0, "model.width=0 must be positive"),
  ],
)
def test_make_reports_a_wrong_config(field, value, message):
  with pytest.raises(UserError, match=message):
    diffusion.make(small.config(**{field: value}), small.INFO)


def test_a_field_of_another_network_is_reported():
  config = small.config().unlock()
  config.model.attention = (8,)
  with pytest.raises(UserError, match="residual_mlp: .*'attention'"):
    diffusion.make(config, small.INFO)


def test_digits_config_arguments():
  narrow, weak, strong = (
    config_lib.load(f"configs/generators/digits.py:{arg}")
    for arg in ("narrow", "weak", "strong")
  )
  assert narrow == config_lib.load("configs/generators/digits.py")
  assert (narrow.num_steps, narrow.sample.guidance) == (3000, 3.0)
  assert (weak.num_steps, weak.sample.guidance) == (300, 3.0)
  assert (strong.num_steps, strong.sample.guidance) == (3000, 0.0)
  # Nothing else differs between the three generators.
  for config in (weak, strong):
    config.num_steps, config.sample.guidance = 3000, 3.0
    assert config == narrow


@pytest.mark.parametrize(("arg", "millions"), [("full", 35.2), ("tiny", 1.0)])
def test_the_networks_of_cifar10_have_their_sizes(arg, millions):
  config = config_lib.load(f"configs/generators/cifar10.py:{arg}")
  info = Info(tuple("0123456789"), (32, 32, 3), {"real": (90,) * 10})
  network = diffusion.make_network(config, info)
  variables = jax.eval_shape(
    network.init,
    jax.random.key(0),
    jnp.zeros((1, 32, 32, 3)),
    jnp.zeros(1),
    jnp.zeros(1, jnp.int32),
  )
  count = sum(leaf.size for leaf in jax.tree.leaves(variables))
  assert round(count / 1e6, 1) == millions
