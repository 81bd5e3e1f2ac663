"""The formulas of EDM, with values computed from the paper's."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from synguide_jax.synthesis import edm


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
  scales = edm.preconditioning(sigma, sigma_data=0.5)
  np.testing.assert_allclose(scales, (c_skip, c_out, c_in, c_noise), rtol=1e-6)
  np.testing.assert_allclose(
    edm.loss_weight(sigma, sigma_data=0.5), weight, rtol=1e-6
  )


def test_sigma_schedule_matches_the_formula():
  expected = [
    80.0, 57.5859847212, 40.7855737965, 28.3745846042, 19.3524529803,
    12.9100823808, 8.4009353091, 5.31519452180, 3.25682151977, 1.92333983704,
    1.08817063655, 0.585348123195, 0.296442284479, 0.139516468731,
    0.0599473112355, 0.0229345183723, 0.00752801996278, 0.002, 0.0,
  ]  # fmt: skip
  np.testing.assert_allclose(
    edm.sigma_schedule(18), expected, rtol=1e-6, atol=0
  )


def test_sigma_schedule_needs_two_steps():
  with pytest.raises(ValueError, match="num_steps=1 must be at least 2"):
    edm.sigma_schedule(1)


def test_training_sigma_is_log_normal():
  logs = np.log(edm.training_sigma(jax.random.key(0), (40_000,)))
  # Five standard errors.
  assert abs(logs.mean() + 1.2) < 5 * 1.2 / 200
  assert abs(logs.std() - 1.2) < 5 * 1.2 / 200 / np.sqrt(2)


def test_denoising_loss_by_hand():
  # A denoiser that is off by 0.1 everywhere: lambda(0.5) = 8, lambda(2) = 4.25.
  images = jnp.zeros((2, 1, 1, 1))
  loss = edm.denoising_loss(
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
  out = edm.heun(lambda x, s: x / (1 + s**2), jnp.ones(1), [2.0, 1.0, 0.0])
  np.testing.assert_allclose(out, [0.65], rtol=1e-6)


def test_sampler_reaches_a_gaussian():
  mean = jnp.array([0.4, -0.3])
  covariance = jnp.array([[0.2, 0.1], [0.1, 0.15]])

  def denoise(x, sigma):
    gain = covariance @ jnp.linalg.inv(covariance + sigma**2 * jnp.eye(2))
    return mean + (x - mean) @ gain.T

  noise = jax.random.normal(jax.random.key(0), (50_000, 2))
  samples = edm.heun(denoise, noise, edm.sigma_schedule(40))
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
      samples = edm.heun(
        lambda x, s: mean + std**2 / (std**2 + s**2) * (x - mean),
        noise,
        # The last step is of first order; so small a level hides it.
        edm.sigma_schedule(num_steps, sigma_min=1e-5),
      )
      errors.append(np.abs(samples - exact).max())
  orders = np.log2(np.array(errors[:-1]) / errors[1:])
  assert errors[-1] < 1e-4
  np.testing.assert_allclose(orders, 2, atol=0.1)


def test_guidance_extrapolates_from_the_unconditional_model():
  def denoise(x, sigma, labels):
    return x * sigma[:, None] + labels[:, None]

  x, labels = jnp.array([[1.0], [2.0]]), jnp.array([0, 1])
  out = edm.guided(denoise, 3.0, null_label=5)(x, 0.5, labels)
  # D_cond = [0.5, 2], D_null = [5.5, 6].
  np.testing.assert_allclose(out, [[0.5 + 3 * -5], [2 + 3 * -4]], rtol=1e-6)


def test_guidance_of_zero_makes_no_unconditional_pass():
  seen = []

  def denoise(x, sigma, labels):
    seen.append(np.asarray(labels))
    return x

  x, labels = jnp.ones((2, 1)), jnp.array([0, 1])
  edm.guided(denoise, 0.0, null_label=5)(x, 0.5, labels)
  np.testing.assert_array_equal(seen, [[0, 1]])
