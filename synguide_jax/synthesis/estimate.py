"""How long a diffusion model's training and sampling will take, before both."""

from pathlib import Path
import time
from typing import Any

import jax
import jax.numpy as jnp

from synguide_jax.data.experiment_data import ExperimentData
from synguide_jax.methods.base import Info
from synguide_jax.synthesis.diffusion import make_network
from synguide_jax.synthesis.sampling import GROUP


def steps_done(workdir: Path, num_steps: int) -> int:
  """Steps of training that a workdir has behind it, of ``num_steps``."""
  if (workdir / "results.json").exists():
    return num_steps
  folders = (workdir / "checkpoints").glob("*")
  return max((int(f.name) for f in folders if f.name.isdecimal()), default=0)


def seconds(
  config: Any, of_image: float, num_steps: int, num_images: int
) -> tuple[float, float]:
  """Estimates the time of training and of sampling on the devices at hand.

  A step of training costs three passes an image, for the gradients; sampling
  two passes a step but the last, and twice that with guidance. Compilation, the
  optimiser and whatever else there is are left out.

  Args:
    config: The generator's config.
    of_image: Seconds of an image's pass on one device, `seconds_an_image`.
    num_steps: Steps to train.
    num_images: Images to sample.

  Returns:
    Seconds of training, and of sampling.
  """
  passes = 2 * config.sample.num_steps - 1
  if config.sample.guidance:
    passes *= 2
  learning = 3 * of_image * config.batch_size * num_steps
  making = of_image * passes * num_images
  if jax.default_backend() == "cpu":  # whose devices share its cores
    return learning / jax.process_count(), making
  return learning / jax.device_count(), making / jax.local_device_count()


def seconds_an_image(config: Any, data: ExperimentData) -> float:
  """Measures a group's pass through the network, of zeros, on one device."""
  size = config.data.image_size
  shape = (size, size, config.data.channels)
  info = Info(data.class_names, shape, data.class_counts())
  network = make_network(config, info)
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
  return min(times) / GROUP
