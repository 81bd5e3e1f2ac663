"""How long a diffusion model's training and sampling will take, before both."""

import time
from typing import Any

import jax
import jax.numpy as jnp

from synguide_jax.data.experiment_data import ExperimentData
from synguide_jax.methods.base import Info
from synguide_jax.synthesis.diffusion import make_network
from synguide_jax.synthesis.sampling import GROUP


def seconds(
  config: Any, data: ExperimentData, num_images: int
) -> tuple[float, float]:
  """Estimates the time of training and of sampling on the devices at hand.

  A group of images goes through the network, of zeros, on one device; that is
  measured. A step of training costs three times as much an image, for the
  gradients. Compilation, the optimiser and whatever else there is are left out.

  Args:
    config: The generator's config.
    data: Its data.
    num_images: Images to sample.

  Returns:
    Seconds of training, and of sampling.
  """
  size = config.data.image_size
  shape = (size, size, config.data.channels)
  info = Info(data.class_names, shape, data.class_counts())
  of_image = _pass(make_network(config, info), shape) / GROUP
  passes = 2 * config.sample.num_steps - 1
  if config.sample.guidance:
    passes *= 2
  learning = 3 * of_image * config.batch_size * config.num_steps
  making = of_image * passes * num_images
  if jax.default_backend() == "cpu":  # whose devices share its cores
    return learning / jax.process_count(), making
  return learning / jax.device_count(), making / jax.local_device_count()


def _pass(network: Any, shape: tuple[int, int, int]) -> float:
  """Measures the seconds of a group's pass through the network."""
  images, number = jnp.zeros((GROUP, *shape)), jnp.zeros(GROUP)
  label = jnp.zeros(GROUP, jnp.int32)
  variables = jax.tree.map(
    lambda leaf: jnp.zeros(leaf.shape, leaf.dtype),
    jax.eval_shape(network.init, jax.random.key(0), images, number, label),
  )
  apply = jax.jit(network.apply)
  times = []
  for _ in range(4):  # The first one compiles.
    begin = time.perf_counter()
    jax.block_until_ready(apply(variables, images, number, label))
    times.append(time.perf_counter() - begin)
  return min(times)
