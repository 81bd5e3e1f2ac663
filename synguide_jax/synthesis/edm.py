r"""The formulas of EDM: a denoiser, its loss, and the sampler.

With data :math:`y` in [-1, 1] and noise level :math:`\sigma`, a denoiser
:math:`D(y + \sigma n; \sigma, c)` predicts :math:`y`; it makes the score, and
the score drives the ordinary differential equation

.. math::
  \frac{dx}{d\sigma} = \frac{x - D(x; \sigma, c)}{\sigma}

from noise at :math:`\sigma_{\max}` to an image at 0. Nothing here knows what
kind of network is behind :math:`D`.

References:
  Karras et al., `Elucidating the Design Space of Diffusion-Based Generative
  Models <https://arxiv.org/abs/2206.00364>`_, 2022

  Ho & Salimans, `Classifier-Free Diffusion Guidance
  <https://arxiv.org/abs/2207.12598>`_, 2022
"""

from collections.abc import Callable
import functools
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from synguide_jax.errors import UserError

# (images [N, H, W, C], sigma [] or [N], labels [N]) -> images [N, H, W, C].
Denoiser = Callable[[jax.Array, jax.typing.ArrayLike, jax.Array], jax.Array]


class Preconditioning(NamedTuple):
  """The four functions of sigma around the network; see `preconditioning`."""

  c_skip: jax.Array
  c_out: jax.Array
  c_in: jax.Array
  c_noise: jax.Array


def preconditioning(
  sigma: jax.typing.ArrayLike, sigma_data: float = 0.5
) -> Preconditioning:
  r"""Scales that give the network unit variance in, and unit variance out.

  The denoiser is :math:`D(x; \sigma) = c_{skip} x + c_{out} F(c_{in} x;
  c_{noise})` with

  .. math::
    c_{skip} = \frac{\sigma_d^2}{\sigma^2 + \sigma_d^2}, \quad
    c_{out} = \frac{\sigma \sigma_d}{\sqrt{\sigma^2 + \sigma_d^2}}, \quad
    c_{in} = \frac{1}{\sqrt{\sigma^2 + \sigma_d^2}}, \quad
    c_{noise} = \frac{\ln \sigma}{4}

  Args:
    sigma: Standard deviation of the noise, positive, any shape.
    sigma_data: Standard deviation :math:`\sigma_d` of the data.

  Returns:
    The four scales, each of the shape of ``sigma``.

  References:
    Karras et al., 2022, Table 1.
  """
  sigma = jnp.asarray(sigma)
  norm = jnp.hypot(sigma, sigma_data)
  return Preconditioning(
    c_skip=(sigma_data / norm) ** 2,
    c_out=sigma * sigma_data / norm,
    c_in=1 / norm,
    c_noise=jnp.log(sigma) / 4,
  )


def loss_weight(
  sigma: jax.typing.ArrayLike, sigma_data: float = 0.5
) -> jax.Array:
  r"""Weight of the squared error that makes every noise level count alike.

  .. math::
    \lambda(\sigma) =
      \frac{\sigma^2 + \sigma_d^2}{(\sigma \sigma_d)^2} = \frac{1}{c_{out}^2}

  Args:
    sigma: Standard deviation of the noise, positive, any shape.
    sigma_data: Standard deviation :math:`\sigma_d` of the data.

  Returns:
    The weight, of the shape of ``sigma``.
  """
  return 1 / preconditioning(sigma, sigma_data).c_out ** 2


def training_sigma(
  key: jax.Array, shape: tuple[int, ...], mean: float = -1.2, std: float = 1.2
) -> jax.Array:
  r"""Draws noise levels, :math:`\ln \sigma \sim N(mean, std^2)`."""
  return jnp.exp(mean + std * jax.random.normal(key, shape))


def sigma_schedule(
  num_steps: int,
  sigma_min: float = 0.002,
  sigma_max: float = 80.0,
  rho: float = 7.0,
) -> np.ndarray:
  r"""Noise levels of the sampler, dense where the image is decided.

  .. math::
    \sigma_i = \left( \sigma_{\max}^{1/\rho} + \frac{i}{n - 1} \left(
      \sigma_{\min}^{1/\rho} - \sigma_{\max}^{1/\rho} \right) \right)^\rho,
    \quad \sigma_n = 0

  Args:
    num_steps: Steps :math:`n`, at least 2.
    sigma_min: Level before the last step.
    sigma_max: Level of the pure noise.
    rho: Larger values put more steps near ``sigma_min``.

  Returns:
    Decreasing levels, float64 ``[num_steps + 1]``, the last one 0.

  Raises:
    UserError: if ``num_steps`` is less than 2.

  References:
    Karras et al., 2022, Eq. 5.
  """
  if num_steps < 2:
    raise UserError(f"num_steps={num_steps} must be at least 2; 18 is usual.")
  ends = np.array([sigma_max, sigma_min]) ** (1 / rho)
  return np.append(np.linspace(*ends, num_steps) ** rho, 0.0)


def heun(
  denoise: Callable[[jax.Array, jax.Array], jax.Array],
  noise: jax.Array,
  sigmas: jax.typing.ArrayLike,
) -> jax.Array:
  r"""Solves the probability flow from noise to images with Heun's method.

  Each step takes the slope :math:`d = (x - D(x; \sigma)) / \sigma` at its
  start, and at the point that Euler's method would reach, and moves by their
  mean. The last step, to :math:`\sigma = 0` where there is no slope, is
  Euler's. The error falls with the square of the number of steps.

  Args:
    denoise: ``(images [N, ...], sigma []) -> images [N, ...]``.
    noise: Standard normal noise, ``[N, ...]``.
    sigmas: Decreasing noise levels that end in 0, ``[num_steps + 1]``, such
      as those of :func:`sigma_schedule`.

  Returns:
    Images, of the shape and type of ``noise``.

  References:
    Karras et al., 2022, Algorithm 1.
  """
  sigmas = jnp.asarray(sigmas, noise.dtype)

  def slope(x: jax.Array, sigma: jax.Array) -> jax.Array:
    return (x - denoise(x, sigma)) / sigma

  def step(x: jax.Array, levels: tuple[jax.Array, jax.Array]):
    here, there = levels
    first = slope(x, here)
    second = slope(x + (there - here) * first, there)
    return x + (there - here) * (first + second) / 2, None

  x, _ = jax.lax.scan(step, sigmas[0] * noise, (sigmas[:-2], sigmas[1:-1]))
  return denoise(x, sigmas[-2])  # Euler's step to 0: x - sigma * slope.


def guided(denoise: Denoiser, guidance: float, null_label: int) -> Denoiser:
  r"""Classifier-free guidance.

  .. math::
    D_w(x; \sigma, c) = D(x; \sigma, c)
      + w \left( D(x; \sigma, c) - D(x; \sigma, \emptyset) \right)

  Args:
    denoise: The denoiser :math:`D`.
    guidance: The weight :math:`w`. 0 is the plain conditional model, and then
      the unconditional pass is left out; larger values give images that are
      more typical of their class, and more alike.
    null_label: The label :math:`\emptyset` that stands for "any class".

  Returns:
    The guided denoiser.
  """
  if guidance == 0:
    return denoise

  def guided_denoise(images, sigma, labels):
    # One pass of twice the batch: half the program of two passes.
    sigma = jnp.broadcast_to(sigma, labels.shape)
    both = denoise(
      jnp.concatenate([images, images]),
      jnp.concatenate([sigma, sigma]),
      jnp.concatenate([labels, jnp.full_like(labels, null_label)]),
    )
    conditional, unconditional = jnp.split(both, 2)
    return conditional + guidance * (conditional - unconditional)

  return guided_denoise


def denoiser(
  network: nn.Module,
  params: Any,
  *,
  sigma_data: float = 0.5,
  augmentation: jax.Array | None = None,
  dropout_key: jax.Array | None = None,
) -> Denoiser:
  """Wraps a network in its preconditioning.

  Args:
    network: One of :mod:`synguide_jax.synthesis.networks`.
    params: Its parameters.
    sigma_data: Standard deviation of the data.
    augmentation: What was done to the images, ``[N, conditions]``; None:
      nothing.
    dropout_key: Key for the dropout of training; None: no dropout.

  Returns:
    The denoiser; it computes in float32 around the network.
  """
  train = dropout_key is not None
  rngs = {"dropout": dropout_key} if train else None

  def denoise(images, sigma, labels):
    sigma = jnp.broadcast_to(sigma, labels.shape).astype(images.dtype)
    scales = preconditioning(sigma, sigma_data)
    c_skip, c_out, c_in = (
      jnp.expand_dims(c, range(1, images.ndim)) for c in scales[:3]
    )
    output = network.apply(
      {"params": params},
      c_in * images,
      scales.c_noise,
      labels,
      augmentation,
      train=train,
      rngs=rngs,
    )
    return c_skip * images + c_out * output

  return denoise


def denoising_loss(
  denoise: Denoiser,
  images: jax.Array,
  labels: jax.Array,
  sigma: jax.Array,
  noise: jax.Array,
  sigma_data: float = 0.5,
) -> jax.Array:
  r"""The mean weighted squared error of a denoiser.

  .. math::
    \frac{1}{N P} \sum_{i=1}^{N} \lambda(\sigma_i)
      \left\| D(y_i + \sigma_i n_i; \sigma_i, c_i) - y_i \right\|^2

  with :math:`P` values an image. A network that returns zeros scores about 1
  at every noise level.

  Args:
    denoise: The denoiser.
    images: Images :math:`y` in [-1, 1], ``[N, H, W, C]``.
    labels: Class indices, ``[N]``.
    sigma: Noise levels, ``[N]``.
    noise: Standard normal noise, ``[N, H, W, C]``.
    sigma_data: Standard deviation of the data.

  Returns:
    A scalar.
  """
  per_image = functools.partial(jnp.expand_dims, axis=range(1, images.ndim))
  error = denoise(images + per_image(sigma) * noise, sigma, labels) - images
  return jnp.mean(per_image(loss_weight(sigma, sigma_data)) * error**2)
