r"""A class-conditional diffusion model: the built-in generator.

Training, preconditioning and sampling follow Karras et al., 2022 (EDM), the
guidance Ho & Salimans, 2022. With data :math:`y` in [-1, 1] and noise level
:math:`\sigma`, a denoiser :math:`D(y + \sigma n; \sigma, c)` predicts
:math:`y`; it makes the score, and the score drives the ordinary differential
equation

.. math::
  \frac{dx}{d\sigma} = \frac{x - D(x; \sigma, c)}{\sigma}

from noise at :math:`\sigma_{\max}` to an image at 0. Nothing but
:data:`NETWORKS` knows what kind of network is behind :math:`D`.

The model is a method like any other (:func:`make`), so the trainer trains it;
:func:`generate` then yields a labelled set, one image at a time::

  params = ema_params(state)  # of one run: no leading run axis
  for image, label in generate(config, params, info):
    ...

References:
  Karras et al., `Elucidating the Design Space of Diffusion-Based Generative
  Models <https://arxiv.org/abs/2206.00364>`_, 2022

  Ho & Salimans, `Classifier-Free Diffusion Guidance
  <https://arxiv.org/abs/2207.12598>`_, 2022
"""

from collections.abc import Callable, Iterator, Mapping
import functools
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import optax

from synguide_jax.data.feed import Stream
from synguide_jax.errors import UserError
from synguide_jax.methods import optimizers
from synguide_jax.methods.base import Batch, Info, Method, Metrics, Stage
from synguide_jax.state import TrainState

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
    ValueError: If ``num_steps`` is less than 2.

  References:
    Karras et al., 2022, Eq. 5.
  """
  if num_steps < 2:
    raise UserError(
      f"The sampler needs num_steps of at least 2, got {num_steps}; 18 is "
      "usual."
    )
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


def drop_labels(
  key: jax.Array, labels: jax.Array, rate: float, null_label: int
) -> jax.Array:
  """Replaces each label by ``null_label`` with probability ``rate``."""
  dropped = jax.random.bernoulli(key, rate, labels.shape)
  return jnp.where(dropped, null_label, labels)


class ResidualMLP(nn.Module):
  """A residual network of dense layers, for images of a few hundred pixels.

  Noise level and class are embedded, and scale and shift the normalised
  activations of every block. Blocks and output start at zero, so that the
  untrained denoiser is ``c_skip * x``.

  Like every network in :data:`NETWORKS` it is called with images that
  ``c_in`` has scaled ``[N, H, W, C]``, ``c_noise`` ``[N]``, labels ``[N]``
  (``num_classes`` is the null label) and the keyword ``train``; it draws
  dropout from the ``"dropout"`` stream and returns ``[N, H, W, C]``.

  Attributes:
    num_classes: Number of classes, the null class not counted.
    width: Features of every hidden layer.
    blocks: Residual blocks, of two dense layers each.
    dropout: Share of the activations dropped inside a block, in training.
  """

  num_classes: int
  width: int = 256
  blocks: int = 4
  dropout: float = 0.0

  @nn.compact
  def __call__(
    self,
    images: jax.Array,
    c_noise: jax.Array,
    labels: jax.Array,
    *,
    train: bool = False,
  ) -> jax.Array:
    # c_noise lies in about [-1.6, 1.1]: waves from a tenth of that range up.
    frequencies = 2.0 ** jnp.linspace(-3, 2, 16)
    angles = 2 * jnp.pi * c_noise[:, None] * frequencies
    waves = jnp.concatenate([jnp.cos(angles), jnp.sin(angles)], axis=-1)
    emb = nn.Dense(self.width, name="noise_embedding")(waves)
    emb += nn.Embed(self.num_classes + 1, self.width, name="class_embedding")(
      labels
    )
    emb = nn.silu(nn.Dense(self.width, name="embedding")(nn.silu(emb)))

    x = nn.Dense(self.width, name="input")(images.reshape(images.shape[0], -1))
    for i in range(self.blocks):
      scale, shift = jnp.split(
        nn.Dense(2 * self.width, name=f"modulation_{i}")(emb), 2, axis=-1
      )
      h = nn.LayerNorm(use_bias=False, use_scale=False)(x)
      h = nn.silu(h * (1 + scale) + shift)
      h = nn.silu(nn.Dense(self.width, name=f"hidden_{i}")(h))
      h = nn.Dropout(self.dropout, deterministic=not train)(h)
      x += nn.Dense(
        self.width, kernel_init=nn.initializers.zeros, name=f"residual_{i}"
      )(h)
    x = nn.silu(nn.LayerNorm(name="output_norm")(x))
    pixels = int(np.prod(images.shape[1:]))
    x = nn.Dense(pixels, kernel_init=nn.initializers.zeros, name="output")(x)
    return x.reshape(images.shape)


# config.model.name -> network(num_classes=..., **other fields of config.model).
NETWORKS: Mapping[str, Callable[..., nn.Module]] = {
  "residual_mlp": ResidualMLP,
}


def make_network(config: ml_collections.ConfigDict, info: Info) -> nn.Module:
  """Builds the network of ``config.model`` for the classes of ``info``."""
  fields = dict(config.model)
  name = fields.pop("name")
  if name not in NETWORKS:
    raise UserError(
      f"Unknown config.model.name {name!r} for a diffusion model; known: "
      f"{', '.join(sorted(NETWORKS))}."
    )
  return NETWORKS[name](num_classes=info.num_classes, **fields)


def denoiser(
  network: nn.Module,
  params: Any,
  *,
  sigma_data: float = 0.5,
  train: bool = False,
  dropout_key: jax.Array | None = None,
) -> Denoiser:
  """Wraps a network in its preconditioning.

  Args:
    network: A module called as :class:`ResidualMLP` is.
    params: Its parameters.
    sigma_data: Standard deviation of the data.
    train: Whether dropout is on.
    dropout_key: Key for the dropout, needed with ``train``.

  Returns:
    The denoiser.
  """
  rngs = None if dropout_key is None else {"dropout": dropout_key}

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


class Ema(NamedTuple):
  """An exponential moving average of the parameters.

  Attributes:
    params: The average.
    count: Updates so far, int32 scalar.
  """

  params: Any
  count: jax.Array


def update_ema(ema: Ema, params: Any, decay: float) -> Ema:
  r"""Moves the average towards ``params``.

  The decay is :math:`\min(decay, (1 + t) / (10 + t))` at update :math:`t`: a
  short training averages over about its last tenth, where a constant decay
  would still be full of the initial parameters.
  """
  t = ema.count.astype(jnp.float32)
  rate = 1 - jnp.minimum(decay, (1 + t) / (10 + t))
  average = optax.incremental_update(params, ema.params, rate)
  return Ema(average, ema.count + 1)


def ema_params(state: TrainState) -> Any:
  """Returns the averaged parameters, with which images are generated."""
  return state.ema.params


def make(config: ml_collections.ConfigDict, info: Info) -> Method:
  """Makes the method that trains the generator; it classifies nothing.

  Args:
    config: Reads ``num_steps``, ``batch_size``, ``model``, ``optimizer``,
      ``diffusion`` and ``ema``; see configs/generators/digits.py.
    info: Classes and image shape.

  Returns:
    A method of one stage, which learns from the real images only. The state's
    ``ema`` is an :class:`Ema`.
  """
  if config.num_steps < 1:
    raise UserError(
      f"config.num_steps must be at least 1, got {config.num_steps}: a "
      "diffusion model's training has no epochs."
    )
  network = make_network(config, info)
  optimizer = optimizers.create(config.optimizer, config.num_steps)
  null_label = info.num_classes
  settings = config.diffusion.to_dict()
  sigma_data = settings["sigma_data"]
  ema_decay = config.ema

  def init(key: jax.Array, images: jax.Array) -> tuple[TrainState, Any]:
    number = images.shape[0]
    params = network.init(
      key, images, jnp.zeros(number), jnp.zeros(number, jnp.int32)
    )["params"]
    # A copy, since a buffer that is twice in the state cannot be donated.
    ema = Ema(jax.tree.map(jnp.copy, params), jnp.zeros((), jnp.int32))
    return TrainState(params, {}, optimizer.init(params), ema=ema), None

  def step(
    state: TrainState,
    frozen: Any,
    batches: Mapping[str, Batch],
    key: jax.Array,
    progress: jax.Array,
  ) -> tuple[TrainState, Metrics]:
    del frozen, progress
    sigma_key, noise_key, label_key, dropout_key = jax.random.split(key, 4)
    images = 2 * batches["real"].images - 1
    labels = drop_labels(
      label_key, batches["real"].labels, settings["label_dropout"], null_label
    )
    sigma = training_sigma(
      sigma_key, labels.shape, settings["p_mean"], settings["p_std"]
    )
    noise = jax.random.normal(noise_key, images.shape)

    def loss_fn(params: Any) -> jax.Array:
      denoise = denoiser(
        network,
        params,
        sigma_data=sigma_data,
        train=True,
        dropout_key=dropout_key,
      )
      return denoising_loss(denoise, images, labels, sigma, noise, sigma_data)

    loss, grads = jax.value_and_grad(loss_fn)(state.params)
    updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    state = state.replace(
      params=params,
      opt_state=opt_state,
      ema=update_ema(state.ema, params, ema_decay),
    )
    return state, {"loss": loss}

  stage = Stage(
    "train",
    num_steps=config.num_steps,
    streams={"real": Stream("real", config.batch_size)},
    step=step,
  )
  return Method(stages=(stage,), init=init, predict=None)


@functools.partial(
  jax.jit,
  static_argnames=("network", "shape", "guidance", "sigmas", "sigma_data"),
)
def _sample_batch(
  params, labels, key, indices, *, network, shape, guidance, sigmas, sigma_data
):
  keys = jax.vmap(jax.random.fold_in, (None, 0))(key, indices)
  noise = jax.vmap(lambda key: jax.random.normal(key, shape))(keys)
  denoise = guided(
    denoiser(network, params, sigma_data=sigma_data),
    guidance,
    null_label=network.num_classes,
  )
  images = heun(lambda x, sigma: denoise(x, sigma, labels), noise, sigmas)
  return jnp.round(jnp.clip((images + 1) / 2, 0, 1) * 255).astype(jnp.uint8)


def sample(
  network: nn.Module,
  params: Any,
  labels: np.typing.ArrayLike,
  *,
  indices: np.typing.ArrayLike,
  image_shape: tuple[int, int, int],
  seed: int = 0,
  num_steps: int = 18,
  guidance: float = 0.0,
  batch_size: int = 256,
  sigma_min: float = 0.002,
  sigma_max: float = 80.0,
  rho: float = 7.0,
  sigma_data: float = 0.5,
) -> np.ndarray:
  """Generates images; each depends on its label, the seed and its index only.

  The noise of an image comes from the seed and the image's own index, and all
  batches have one shape (the last is padded) and go through one compiled
  program. So on one machine an image is the same bit for bit, whichever others
  are asked for with it. Another ``batch_size`` may change rounding.

  Args:
    network: A module called as :class:`ResidualMLP` is.
    params: Its parameters, without a run axis: see :func:`ema_params`.
    labels: Class indices, ``[N]``.
    indices: Number of each image, ``[N]``, in [0, 2**32).
    image_shape: ``(H, W, C)``.
    seed: Seed of the noise.
    num_steps: Steps of the sampler, at least 2; a step costs two passes
      through the network, four with guidance.
    guidance: Weight of :func:`guided`.
    batch_size: Images in the device's memory at a time.
    sigma_min: See :func:`sigma_schedule`.
    sigma_max: See :func:`sigma_schedule`.
    rho: See :func:`sigma_schedule`.
    sigma_data: Standard deviation of the data in training.

  Returns:
    Images, uint8 ``[N, H, W, C]``.

  Raises:
    ValueError: If ``labels`` and ``indices`` differ in shape, or a label is
      not one of the network's classes.
  """
  labels = np.asarray(labels, np.int32)
  indices = np.asarray(indices, np.uint32)
  if labels.ndim != 1 or labels.shape != indices.shape:
    raise UserError(
      "labels and indices must be vectors of one length, got shapes "
      f"{labels.shape} and {indices.shape}."
    )
  # Beyond these, an embedding would silently give NaN or another class.
  if labels.size and not 0 <= labels.min() <= labels.max() < (
    network.num_classes
  ):
    raise UserError(
      f"labels must be in [0, {network.num_classes}), got values from "
      f"{labels.min()} to {labels.max()}."
    )
  if batch_size < 1:
    raise UserError(f"batch_size must be at least 1, got {batch_size}.")
  sigmas = sigma_schedule(num_steps, sigma_min, sigma_max, rho)
  padding = (0, -len(labels) % batch_size)
  batches = [
    _sample_batch(
      params,
      batch_labels,
      jax.random.key(seed),
      batch_indices,
      network=network,
      shape=tuple(image_shape),
      guidance=float(guidance),
      sigmas=tuple(sigmas.tolist()),
      sigma_data=sigma_data,
    )
    for batch_labels, batch_indices in zip(
      np.pad(labels, padding).reshape(-1, batch_size),
      np.pad(indices, padding).reshape(-1, batch_size),
      strict=True,
    )
  ]
  if not batches:
    return np.zeros((0, *image_shape), np.uint8)
  return np.concatenate([np.asarray(b) for b in batches])[: len(labels)]


def generate(
  config: ml_collections.ConfigDict, params: Any, info: Info
) -> Iterator[tuple[np.ndarray, int]]:
  """Yields a labelled set, as ``config.sample`` describes it.

  The ``n``-th image of class ``c`` has the index ``n * num_classes + c``. So
  it is the same in both orders, and a larger ``per_class`` adds images without
  changing the first ones.

  Args:
    config: Reads ``model``, ``diffusion`` and ``sample``: ``per_class``,
      ``order`` (``"interleaved"``: one image of each class in turn, so that
      any prefix is balanced; ``"by_class"``), ``seed``, ``guidance``,
      ``num_steps`` and ``batch_size``.
    params: Parameters of one run, see :func:`ema_params`.
    info: The classes and image shape of the training.

  Yields:
    An image, uint8 ``[H, W, C]``, and its label; ``batch_size`` images are in
    memory at a time.
  """
  fields = config.sample
  per_class, num_classes = fields.per_class, info.num_classes
  if per_class < 1:
    raise UserError(
      f"config.sample.per_class must be at least 1, got {per_class}."
    )
  if fields.guidance and not config.diffusion.label_dropout:
    raise UserError(
      f"config.sample.guidance is {fields.guidance}, but with "
      "config.diffusion.label_dropout of 0 the unconditional model was never "
      "trained: set guidance to 0, or train with label_dropout 0.1."
    )
  indices = np.arange(per_class * num_classes)
  if fields.order == "by_class":
    indices = indices.reshape(per_class, num_classes).T.ravel()
  elif fields.order != "interleaved":
    raise UserError(
      f"Unknown config.sample.order {fields.order!r}; known: interleaved, "
      "by_class."
    )
  settings = {
    name: config.diffusion[name]
    for name in ("sigma_min", "sigma_max", "rho", "sigma_data")
  }
  network = make_network(config, info)
  params = jax.device_put(params)  # Once, not for every batch.
  for start in range(0, len(indices), fields.batch_size):
    chunk = indices[start : start + fields.batch_size]
    labels = chunk % num_classes
    images = sample(
      network,
      params,
      labels,
      indices=chunk,
      image_shape=info.image_shape,
      seed=fields.seed,
      num_steps=fields.num_steps,
      guidance=fields.guidance,
      batch_size=fields.batch_size,
      **settings,
    )
    for image, label in zip(images, labels, strict=True):
      yield image, int(label)
