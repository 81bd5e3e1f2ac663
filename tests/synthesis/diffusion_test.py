import importlib.util
import pathlib

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import pytest

from synguide_jax.methods.base import Batch, Info
from synguide_jax.synthesis import diffusion

_ROOT = pathlib.Path(__file__).parents[2]
_INFO = Info(("a", "b", "c"), (4, 4, 1), {"real": (8, 8, 8)})


def _digits_config(arg=None):
  path = _ROOT / "configs" / "generators" / "digits.py"
  spec = importlib.util.spec_from_file_location("digits", path)
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module.get_config(arg)


def _config(**overrides):
  config = _digits_config("smoke")
  config.batch_size = 12
  config.sample.batch_size = 8
  config.sample.num_steps = 4
  config.update_from_flattened_dict(overrides)
  return config


def _batch(seed=0, size=12):
  """Noisy patterns, one a class."""
  rng = np.random.default_rng(seed)
  labels = np.arange(size) % 3
  patterns = np.random.default_rng(99).uniform(size=(3, 4, 4, 1))
  images = patterns[labels] + 0.05 * rng.normal(size=(size, 4, 4, 1))
  return Batch(
    jnp.asarray(images.clip(0, 1), jnp.float32),
    jnp.asarray(labels, jnp.int32),
    jnp.ones(size, bool),
  )


def _random_params(network, shape=(4, 4, 1), seed=0):
  """Parameters without the zeros of the initialisation."""
  params = jax.eval_shape(
    network.init,
    jax.random.key(seed),
    jnp.zeros((1, *shape)),
    jnp.zeros(1),
    jnp.zeros(1, jnp.int32),
  )["params"]
  leaves, tree = jax.tree.flatten(params)
  rng = np.random.default_rng(seed)
  leaves = [jnp.asarray(rng.normal(0, 0.2, x.shape), x.dtype) for x in leaves]
  return jax.tree.unflatten(tree, leaves)


# Computed from the formulas with Python's math module in float64.
@pytest.mark.parametrize(
  ("sigma", "c_skip", "c_out", "c_in", "c_noise", "weight"),
  [
    (0.002, 0.999984, 0.00199998400, 1.99998400, -1.553652025, 250004.0),
    (0.5, 0.5, 0.3535533906, 1.414213562, -0.1732867951, 8.0),
    (2.0, 0.05882352941, 0.4850712501, 0.4850712501, 0.1732867951, 4.25),
    (80.0, 3.906097e-05, 0.4999902, 0.01249976, 1.0955067, 4.000156),
  ],
)  # fmt: skip
def test_preconditioning_and_weight_match_the_formulas(
  sigma, c_skip, c_out, c_in, c_noise, weight
):
  scales = diffusion.preconditioning(sigma, sigma_data=0.5)
  np.testing.assert_allclose(scales, (c_skip, c_out, c_in, c_noise), rtol=1e-6)
  np.testing.assert_allclose(
    diffusion.loss_weight(sigma, sigma_data=0.5), weight, rtol=1e-6
  )


def test_sigma_schedule_matches_the_formula():
  expected = [
    80.0, 57.5859847212, 40.7855737965, 28.3745846042, 19.3524529803,
    12.9100823808, 8.4009353091, 5.31519452180, 3.25682151977, 1.92333983704,
    1.08817063655, 0.585348123195, 0.296442284479, 0.139516468731,
    0.0599473112355, 0.0229345183723, 0.00752801996278, 0.002, 0.0,
  ]  # fmt: skip
  np.testing.assert_allclose(
    diffusion.sigma_schedule(18), expected, rtol=1e-6, atol=0
  )


def test_sigma_schedule_needs_two_steps():
  with pytest.raises(ValueError, match="num_steps of at least 2, got 1"):
    diffusion.sigma_schedule(1)


def test_training_sigma_is_log_normal():
  logs = np.log(diffusion.training_sigma(jax.random.key(0), (40_000,)))
  # Five standard errors.
  assert abs(logs.mean() + 1.2) < 5 * 1.2 / 200
  assert abs(logs.std() - 1.2) < 5 * 1.2 / 200 / np.sqrt(2)


def test_denoiser_of_a_zero_network_is_the_skip_connection():
  network = diffusion.make_network(_config(), _INFO)
  images = jax.random.normal(jax.random.key(0), (5, 4, 4, 1))
  labels = jnp.array([0, 1, 2, 3, 0])
  params = jax.jit(network.init)(
    jax.random.key(1), images, jnp.zeros(5), labels
  )
  sigma = jnp.array([0.1, 0.5, 1.0, 2.0, 80.0])
  denoised = diffusion.denoiser(network, params["params"])(
    images, sigma, labels
  )
  c_skip = 0.25 / (sigma**2 + 0.25)
  np.testing.assert_allclose(
    denoised, c_skip[:, None, None, None] * images, rtol=1e-6
  )


def test_denoising_loss_by_hand():
  # A denoiser that is off by 0.1 everywhere: lambda(0.5) = 8, lambda(2) = 4.25.
  images = jnp.zeros((2, 1, 1, 1))
  loss = diffusion.denoising_loss(
    lambda x, sigma, labels: images + 0.1,
    images,
    jnp.zeros(2, jnp.int32),
    jnp.array([0.5, 2.0]),
    jnp.ones_like(images),
  )
  np.testing.assert_allclose(loss, 0.01 * (8 + 4.25) / 2, rtol=1e-6)


def test_heun_step_by_hand():
  # D(x, s) = x / (1 + s^2) from x = 2 at s = 2 to s = 1: slopes
  # (2 - 0.4) / 2 = 0.8 and, at 1.2, (1.2 - 0.6) / 1 = 0.6, so x = 1.3; the
  # last step returns D(1.3, 1) = 0.65.
  out = diffusion.heun(
    lambda x, s: x / (1 + s**2), jnp.ones(1), [2.0, 1.0, 0.0]
  )
  np.testing.assert_allclose(out, [0.65], rtol=1e-6)


def test_sampler_reaches_a_gaussian():
  mean = jnp.array([0.4, -0.3])
  covariance = jnp.array([[0.2, 0.1], [0.1, 0.15]])

  def denoise(x, sigma):
    gain = covariance @ jnp.linalg.inv(covariance + sigma**2 * jnp.eye(2))
    return mean + (x - mean) @ gain.T

  noise = jax.random.normal(jax.random.key(0), (50_000, 2))
  samples = diffusion.heun(denoise, noise, diffusion.sigma_schedule(40))
  # Standard errors are 0.002 and 0.0013, the pure noise at 80 instead of
  # N(mean, 80^2 + covariance) shifts the mean by 0.002, 40 steps change the
  # covariance by less than 0.001.
  np.testing.assert_allclose(samples.mean(0), mean, atol=0.01)
  np.testing.assert_allclose(np.cov(samples.T), covariance, atol=0.006)


def test_sampler_is_of_second_order():
  mean, std, sigma_max = 0.3, 0.5, 80.0
  errors = []
  with jax.enable_x64(True):
    noise = jnp.linspace(-2.0, 2.0, 9)
    # The flow of a Gaussian only rescales the distance from its mean.
    exact = mean + std / np.hypot(std, sigma_max) * (sigma_max * noise - mean)
    for num_steps in (64, 128, 256, 512):
      samples = diffusion.heun(
        lambda x, s: mean + std**2 / (std**2 + s**2) * (x - mean),
        noise,
        # The last step is of first order; so small a level hides it.
        diffusion.sigma_schedule(num_steps, sigma_min=1e-5),
      )
      errors.append(np.abs(samples - exact).max())
  orders = np.log2(np.array(errors[:-1]) / errors[1:])
  assert errors[-1] < 1e-4
  np.testing.assert_allclose(orders, 2, atol=0.1)


def test_guidance_extrapolates_from_the_unconditional_model():
  def denoise(x, sigma, labels):
    return x * sigma[:, None] + labels[:, None]

  x, labels = jnp.array([[1.0], [2.0]]), jnp.array([0, 1])
  out = diffusion.guided(denoise, 3.0, null_label=5)(x, 0.5, labels)
  # D_cond = [0.5, 2], D_null = [5.5, 6].
  np.testing.assert_allclose(out, [[0.5 + 3 * -5], [2 + 3 * -4]], rtol=1e-6)


def test_guidance_of_zero_makes_no_unconditional_pass():
  seen = []

  def denoise(x, sigma, labels):
    seen.append(np.asarray(labels))
    return x

  x, labels = jnp.ones((2, 1)), jnp.array([0, 1])
  diffusion.guided(denoise, 0.0, null_label=5)(x, 0.5, labels)
  np.testing.assert_array_equal(seen, [[0, 1]])


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


def _random_state(method, seed=0):
  """A state with random parameters, without compiling the initialisation."""
  state, _ = jax.eval_shape(
    method.init, jax.random.key(0), jnp.zeros((1, 4, 4, 1))
  )
  state = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), state)
  params = _random_params(diffusion.make_network(_config(), _INFO), seed=seed)
  return state.replace(params=params, ema=state.ema._replace(params=params))


def _step(config):
  method = diffusion.make(config, _INFO)
  (stage,) = method.stages

  def step(state, batch, key):
    return stage.step(state, None, {"real": batch}, key, jnp.float32(0))

  return method, step


def test_step_without_labels_learns_the_null_class_only():
  method, step = _step(_config(**{"diffusion.label_dropout": 1.0}))
  batch, key, state = _batch(), jax.random.key(0), _random_state(method)
  step = jax.jit(step)
  after, metrics = step(state, batch, key)
  relabelled = batch.replace(labels=jnp.zeros_like(batch.labels))
  assert metrics["loss"] == step(state, relabelled, key)[1]["loss"]
  moved = (
    after.params["class_embedding"]["embedding"]
    != state.params["class_embedding"]["embedding"]
  ).any(axis=1)
  np.testing.assert_array_equal(moved, [False, False, False, True])


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
  config = _config(**{"num_steps": 400, "model.width": 48})
  method, step = _step(config)
  step = jax.jit(step, donate_argnums=0)  # As the trainer does.
  batch = _batch(size=48)
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
  images = diffusion.sample(
    diffusion.make_network(config, _INFO),
    diffusion.ema_params(state),
    labels,
    indices=np.arange(30),
    image_shape=_INFO.image_shape,
    guidance=1.0,
  )
  centres = np.stack(
    [batch.images[batch.labels == c].mean(0) for c in range(3)]
  )
  distances = np.square(images[:, None] / 255 - centres).sum((2, 3, 4))
  np.testing.assert_array_equal(distances.argmin(1), labels)


def test_step_over_runs_equals_single_runs():
  # sgd, since adam turns the rounding of a zero gradient into a full step.
  config = _config(**{"optimizer.name": "sgd", "model.dropout": 0.1})
  method, step = _step(config)
  keys = [jax.random.key(number) for number in range(2)]
  batches = [_batch(seed) for seed in range(2)]
  states = [_random_state(method, seed) for seed in range(2)]
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


def test_make_reports_a_wrong_config():
  with pytest.raises(ValueError, match=r"model.name 'unet9'.*residual_mlp"):
    diffusion.make(_config(**{"model.name": "unet9"}), _INFO)
  with pytest.raises(ValueError, match="num_steps must be at least 1, got 0"):
    diffusion.make(_config(num_steps=0), _INFO)


@pytest.fixture(scope="module")
def network_and_params():
  network = diffusion.make_network(_config(), _INFO)
  return network, _random_params(network)


def _sample(network_and_params, indices, **kwargs):
  kwargs = {"num_steps": 4, "batch_size": 8, "seed": 7} | kwargs
  return diffusion.sample(
    *network_and_params,
    np.asarray(indices) % 3,
    indices=indices,
    image_shape=_INFO.image_shape,
    **kwargs,
  )


@pytest.mark.parametrize("guidance", [0.0, 3.0])
def test_samples_depend_on_seed_and_index_only(network_and_params, guidance):
  order = np.random.default_rng(0).permutation(21)
  programs = diffusion._sample_batch._cache_size()
  images = _sample(network_and_params, np.arange(21), guidance=guidance)
  assert images.shape == (21, 4, 4, 1) and images.dtype == np.uint8
  assert len(np.unique(images.reshape(21, -1), axis=0)) == 21
  for subset in (order, order[:5], order[:1]):
    np.testing.assert_array_equal(
      _sample(network_and_params, subset, guidance=guidance), images[subset]
    )
  other = _sample(network_and_params, np.arange(21), guidance=guidance, seed=8)
  assert (other != images).any((1, 2, 3)).all()
  assert diffusion._sample_batch._cache_size() <= programs + 1


def test_sample_equals_the_guided_sampler(network_and_params):
  network, params = network_and_params
  labels = jnp.array([2, 0])
  noise = jnp.stack(
    [
      jax.random.normal(jax.random.fold_in(jax.random.key(7), i), (4, 4, 1))
      for i in (2, 6)
    ]
  )

  def denoise(x, sigma):
    model = diffusion.denoiser(network, params)
    conditional = model(x, sigma, labels)
    unconditional = model(x, sigma, jnp.full(2, 3))
    return conditional + 3 * (conditional - unconditional)

  sigmas = diffusion.sigma_schedule(4)
  x = jax.jit(lambda noise: diffusion.heun(denoise, noise, sigmas))(noise)
  expected = np.clip((np.asarray(x) + 1) / 2, 0, 1) * 255
  images = _sample(network_and_params, [2, 6], guidance=3.0)
  # Half a level of rounding to uint8, and rounding of the two programs.
  np.testing.assert_allclose(images, expected, atol=0.51)
  assert images.std() > 10


def test_sample_of_nothing(network_and_params):
  assert _sample(network_and_params, []).shape == (0, 4, 4, 1)


def test_sample_reports_wrong_arguments(network_and_params):
  shape = _INFO.image_shape
  with pytest.raises(ValueError, match=r"in \[0, 3\), got values from 0 to 3"):
    diffusion.sample(
      *network_and_params, [0, 3], indices=[0, 1], image_shape=shape
    )
  with pytest.raises(ValueError, match="one length"):
    diffusion.sample(
      *network_and_params, [0, 1], indices=[0], image_shape=shape
    )
  with pytest.raises(ValueError, match="batch_size must be at least 1, got 0"):
    _sample(network_and_params, [0], batch_size=0)


def _generate(params, **overrides):
  pairs = list(diffusion.generate(_config(**overrides), params, _INFO))
  images, labels = zip(*pairs, strict=True)
  return np.stack(images), list(labels)


def test_generate_orders_and_extends_the_same_images(network_and_params):
  _, params = network_and_params
  images, labels = _generate(params, **{"sample.per_class": 4})
  assert labels == [0, 1, 2] * 4
  by_class, class_labels = _generate(
    params, **{"sample.per_class": 4, "sample.order": "by_class"}
  )
  assert class_labels == [0] * 4 + [1] * 4 + [2] * 4
  order = np.arange(12).reshape(4, 3).T.ravel()
  np.testing.assert_array_equal(by_class, images[order])
  fewer, _ = _generate(params, **{"sample.per_class": 3})
  np.testing.assert_array_equal(fewer, images[:9])


@pytest.mark.parametrize(
  ("overrides", "message"),
  [
    ({"sample.order": "sorted"}, "order 'sorted'; known: interleaved"),
    ({"sample.per_class": 0}, "per_class must be at least 1, got 0"),
    ({"diffusion.label_dropout": 0.0}, "never trained"),
  ],
)
def test_generate_reports_a_wrong_config(
  network_and_params, overrides, message
):
  with pytest.raises(ValueError, match=message):
    _generate(network_and_params[1], **overrides)


def test_digits_config_arguments():
  narrow, weak, strong, smoke = (
    _digits_config(arg) for arg in (None, "weak", "strong", "smoke")
  )
  assert isinstance(narrow, ml_collections.ConfigDict)
  assert narrow == _digits_config("narrow")
  assert (narrow.num_steps, narrow.sample.guidance) == (3000, 3.0)
  assert (weak.num_steps, weak.sample.guidance) == (300, 3.0)
  assert (strong.num_steps, strong.sample.guidance) == (3000, 0.0)
  assert smoke.num_steps < 10 and smoke.sample.per_class == 20
  # Nothing else differs between the three generators.
  for config in (weak, strong):
    config.num_steps, config.sample.guidance = 3000, 3.0
    assert config == narrow


def test_digits_config_reports_an_unknown_argument():
  with pytest.raises(ValueError, match="'wide'.*narrow, weak, strong, smoke"):
    _digits_config("wide")


def test_digits_smoke_config_trains_and_generates():
  config = _digits_config("smoke")
  info = Info(tuple("0123456789"), (8, 8, 1), {"real": (90,) * 10})
  method = diffusion.make(config, info)
  assert method.predict is None
  (stage,) = method.stages
  assert stage.num_steps == config.num_steps
  assert stage.streams["real"].batch_size == config.batch_size
  image = jnp.zeros((1, 8, 8, 1))
  state, _ = jax.jit(method.init)(jax.random.key(0), image)
  params = diffusion.ema_params(state)
  pairs = list(diffusion.generate(config, params, info))
  assert len(pairs) == 200
  assert pairs[0][0].shape == (8, 8, 1)
