"""Images of a trained diffusion model, each a function of its own number.

Images are made in groups of one size, a group on one device: so an image is the
same bit for bit, whichever others are asked for with it and however many
devices there are. Another kind of device, or another version of JAX, rounds
differently.
"""

from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
import numpy as np

from synguide_jax import mesh as mesh_lib
from synguide_jax.errors import UserError
from synguide_jax.methods.base import Info
from synguide_jax.synthesis import edm
from synguide_jax.synthesis.diffusion import make_network

# Images of a group.
GROUP = 64

# (labels int32 [N], indices uint32 [N]) -> images uint8 [N, H, W, C].
Generator = Callable[[np.ndarray, np.ndarray], np.ndarray]


class Sampler:
  """A trained denoiser as a :data:`Generator`.

  The noise of an image comes from ``config.sample.seed`` and the image's index,
  and with its label that is all it depends on.

  Args:
    config: Reads ``model``, ``diffusion`` and ``sample``; see
      `config.generator_defaults`.
    params: Parameters of one run, without a run axis: see
      :func:`synguide_jax.synthesis.diffusion.ema_params`.
    info: The classes and image shape of the training.
    devices: Devices to use; by default those of this process.

  Attributes:
    batch_size: Images that all devices make at a time: a group each.

  Raises:
    UserError: if the config is wrong.

  Example::

    sampler = Sampler(config, ema_params(state), info)
    images = sampler([0, 1, 1], [0, 1, 11])
  """

  def __init__(
    self,
    config: Any,
    params: Any,
    info: Info,
    devices: Sequence[jax.Device] | None = None,
  ):
    check(config)
    self._num_classes, self._shape = info.num_classes, info.image_shape
    devices = devices if devices is not None else jax.local_devices()
    mesh = mesh_lib.create(1, devices)
    self.batch_size = GROUP * mesh.size
    self._sharding = mesh_lib.over_images(mesh)
    self._params = jax.device_put(params, mesh_lib.replicated(mesh))
    self._key = jax.random.key(config.sample.seed)
    group = _group_sampler(make_network(config, info), config, self._shape)
    whole, share = PartitionSpec(), PartitionSpec(mesh_lib.DATA)
    self._sample = jax.jit(
      jax.shard_map(
        group,
        mesh=mesh,
        in_specs=(whole, whole, share, share),
        out_specs=share,
      )
    )

  def __call__(
    self, labels: np.typing.ArrayLike, indices: np.typing.ArrayLike
  ) -> np.ndarray:
    """Makes images.

    Args:
      labels: Class indices, ``[N]``.
      indices: Number of each image, ``[N]``, in [0, 2**32).

    Returns:
      Images, uint8 ``[N, H, W, C]``.

    Raises:
      UserError: if ``labels`` and ``indices`` differ in shape, a label is not
        one of the network's classes, or an image is not finite.
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
      self._num_classes
    ):
      raise UserError(
        f"labels must be in [0, {self._num_classes}), got values from "
        f"{labels.min()} to {labels.max()}."
      )
    padding = (0, -len(labels) % self.batch_size)
    made = [
      self._sample(
        self._params,
        self._key,
        jax.device_put(of_labels, self._sharding),
        jax.device_put(of_indices, self._sharding),
      )
      for of_labels, of_indices in zip(
        np.pad(labels, padding).reshape(-1, self.batch_size),
        np.pad(indices, padding).reshape(-1, self.batch_size),
        strict=True,
      )
    ]
    if not made:
      return np.zeros((0, *self._shape), np.uint8)
    images, finite = (np.concatenate(x) for x in zip(*made, strict=True))
    if wrong := int((~finite[: len(labels)]).sum()):
      raise UserError(
        f"{wrong} of {len(labels)} images are not finite: the generator is "
        "broken, or config.sample and config.diffusion do not fit its training."
      )
    return images[: len(labels)]


def check(config: Any) -> None:
  """Raises UserError for what of a config would only fail in sampling."""
  sample, diffusion = config.sample, config.diffusion
  rules = {
    "sample.num_steps": (sample.num_steps, 2, "at least 2; 18 is usual"),
    "sample.guidance": (sample.guidance, 0, "at least 0, for none"),
    "sample.truncation": (
      sample.truncation,
      0,
      "at least 0, standard deviations of the noise; 0 is for none",
    ),
  }
  for field, (value, lowest, wanted) in rules.items():
    if value < lowest:
      raise UserError(f"config.{field}={value} must be {wanted}.")
  if not 0 < diffusion.sigma_min < diffusion.sigma_max:
    raise UserError(
      f"config.diffusion.sigma_min={diffusion.sigma_min} must be above 0 and "
      f"below sigma_max={diffusion.sigma_max}; 0.002 and 80 are usual."
    )
  if diffusion.rho <= 0:
    raise UserError(
      f"config.diffusion.rho={diffusion.rho} must be positive; 7 is usual."
    )
  if diffusion.label_dropout == 1:
    raise UserError(
      "config.diffusion.label_dropout=1.0 trains a generator that knows no "
      "class; 0.1 is usual."
    )
  if sample.guidance and not diffusion.label_dropout:
    raise UserError(
      f"config.sample.guidance is {sample.guidance}, but with "
      "config.diffusion.label_dropout of 0 the unconditional model was never "
      "trained: set guidance to 0, or train with label_dropout 0.1."
    )


def _group_sampler(
  network: nn.Module, config: Any, shape: tuple[int, int, int]
) -> Callable[..., tuple[jax.Array, jax.Array]]:
  """Makes the function of a group.

  It is ``(params, key, labels [N], indices [N]) -> (images, finite)``: uint8
  ``[N, H, W, C]``, and whether each was finite before, bool ``[N]``.
  """
  fields, diffusion = config.sample, config.diffusion
  sigmas = edm.sigma_schedule(
    fields.num_steps, diffusion.sigma_min, diffusion.sigma_max, diffusion.rho
  )
  limit = fields.truncation

  def noise_of(key: jax.Array) -> jax.Array:
    if limit:
      return jax.random.truncated_normal(key, -limit, limit, shape)
    return jax.random.normal(key, shape)

  def sample(params, key, labels, indices):
    keys = jax.vmap(jax.random.fold_in, (None, 0))(key, indices)
    denoise = edm.guided(
      edm.denoiser(network, params, sigma_data=diffusion.sigma_data),
      fields.guidance,
      null_label=network.num_classes,
    )
    images = edm.heun(
      lambda x, sigma: denoise(x, sigma, labels),
      jax.vmap(noise_of)(keys),
      sigmas,
    )
    finite = jnp.isfinite(images).all(axis=(1, 2, 3))
    images = jnp.round(jnp.clip((images + 1) / 2, 0, 1) * 255)
    return images.astype(jnp.uint8), finite

  return sample
