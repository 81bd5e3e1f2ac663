"""An image is a function of seed, label and index alone."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from synguide_jax.errors import UserError
from synguide_jax.synthesis import diffusion, edm, sampling
from tests import pictures
from tests.synthesis import small


def _sampler(**overrides):
  config = small.config(**{"sample.seed": 7} | overrides)
  return sampling.Sampler(
    config,
    small.random_params(config),
    small.INFO,
    devices=jax.local_devices()[:1],
  )


@pytest.mark.parametrize("guidance", [0.0, 3.0])
def test_images_depend_on_seed_and_index_only(guidance):
  sampler = _sampler(**{"sample.guidance": guidance})
  number = 2 * sampling.GROUP + 5

  def images_of(indices):
    return sampler(indices % 3, indices)

  everything = np.arange(number)
  images = images_of(everything)
  assert images.shape == (number, 4, 4, 1) and images.dtype == np.uint8
  assert len(np.unique(images.reshape(number, -1), axis=0)) == number
  order = np.random.default_rng(0).permutation(number)
  for subset in (order, order[:5], order[:1]):
    np.testing.assert_array_equal(images_of(subset), images[subset])
  other = _sampler(**{"sample.guidance": guidance, "sample.seed": 8})
  assert (other(everything % 3, everything) != images).any((1, 2, 3)).all()


@pytest.mark.parametrize(
  "network", ["residual_mlp", pytest.param("unet", marks=pytest.mark.slow)]
)
def test_another_number_of_devices_makes_the_same_images(network, monkeypatch):
  # In a process of its own, which has three devices.
  code = """
    import sys
    import jax, numpy as np
    from synguide_jax.synthesis import sampling
    from tests.synthesis import small
    config = small.config(**{"sample.guidance": 1.0})
    if sys.argv[1] == "unet":
      config.model = {
        "name": "unet", "width": 8, "multipliers": (1, 2), "blocks": 1,
        "attention": (2,), "dropout": 0.0, "dtype": "float32",
      }
    params = small.random_params(config)
    index, devices = np.arange(150), jax.local_devices()
    images = [
      sampling.Sampler(config, params, small.INFO, these)(index % 3, index)
      for these in (devices[:1], devices)
    ]
    assert images[0].std() > 10
    np.testing.assert_array_equal(*images)
  """
  monkeypatch.setenv("XLA_FLAGS", "--xla_force_host_platform_device_count=3")
  process = pictures.python(code, network)
  process.communicate()
  assert process.returncode == 0


def test_images_are_those_of_the_guided_sampler():
  config = small.config(**{"sample.guidance": 3.0, "sample.seed": 7})
  params = small.random_params(config)
  network = diffusion.make_network(config, small.INFO)
  labels = jnp.array([2, 0])
  noise = jnp.stack(
    [
      jax.random.normal(jax.random.fold_in(jax.random.key(7), i), (4, 4, 1))
      for i in (2, 6)
    ]
  )

  def denoise(x, sigma):
    model = edm.denoiser(network, params)
    conditional = model(x, sigma, labels)
    unconditional = model(x, sigma, jnp.full(2, 3))
    return conditional + 3 * (conditional - unconditional)

  sigmas = edm.sigma_schedule(4)
  x = jax.jit(lambda noise: edm.heun(denoise, noise, sigmas))(noise)
  expected = np.clip((np.asarray(x) + 1) / 2, 0, 1) * 255
  images = sampling.Sampler(config, params, small.INFO)(labels, [2, 6])
  # Half a level of rounding to uint8, and rounding of the two programs.
  np.testing.assert_allclose(images, expected, atol=0.51)
  assert images.std() > 10


def test_truncated_noise_makes_images_more_alike():
  index = np.arange(1_000)
  spread = []
  for limit in (0.0, 1.0, 0.1):
    config = small.config(
      **{"sample.truncation": limit, "sample.num_steps": 40}
    )
    # The denoiser of zeros is that of N(0, 1/4): images are scaled noise.
    params = jax.tree.map(jnp.zeros_like, small.random_params(config))
    images = sampling.Sampler(config, params, small.INFO)(0 * index, index)
    assert abs(images.mean() - 127.5) < 3
    spread.append(images.std())
  # 127.5 times half the standard deviation of N(0, 1) within 1 and 0.1 of its
  # mean; without a limit those beyond 2 are cut off.
  np.testing.assert_allclose(spread[1:], [34.4, 3.68], rtol=0.03)
  assert 55 < spread[0] < 63


def test_images_that_are_not_finite_are_reported():
  config = small.config()
  params = jax.tree.map(lambda x: x * jnp.nan, small.random_params(config))
  with pytest.raises(UserError, match="2 of 2 images are not finite"):
    sampling.Sampler(config, params, small.INFO)([0, 1], [0, 1])


def test_no_images():
  assert _sampler()([], []).shape == (0, 4, 4, 1)


def test_wrong_arguments_are_reported():
  sampler = _sampler()
  with pytest.raises(UserError, match=r"in \[0, 3\), got values from 0 to 3"):
    sampler([0, 3], [0, 1])
  with pytest.raises(UserError, match="one length"):
    sampler([0, 1], [0])


@pytest.mark.parametrize(
  ("overrides", "message"),
  [
    (
      {"diffusion.label_dropout": 0.0, "sample.guidance": 1.0},
      "never trained",
    ),
    ({"sample.num_steps": 1}, "sample.num_steps=1 must be at least 2"),
    ({"sample.truncation": -1.0}, "truncation=-1.0 must be at least 0"),
    ({"sample.guidance": -1.0}, "guidance=-1.0 must be at least 0"),
    ({"diffusion.sigma_min": 0.0}, "sigma_min=0.0 must be above 0"),
    ({"diffusion.sigma_max": 0.001}, "below sigma_max=0.001"),
    ({"diffusion.rho": 0.0}, "rho=0.0 must be positive"),
    ({"diffusion.label_dropout": 1.0}, "label_dropout=1.0 .* no class"),
  ],
)
def test_a_wrong_config_is_reported(overrides, message):
  with pytest.raises(UserError, match=message):
    sampling.check(small.config(**overrides))
