"""A small diffusion model of three patterns, for tests."""

import jax
import jax.numpy as jnp
import numpy as np

from synguide_jax import config as config_lib
from synguide_jax.methods.base import Batch, Info
from synguide_jax.synthesis import diffusion

INFO = Info(("a", "b", "c"), (4, 4, 1), {"real": (8, 8, 8)})


def config(**overrides):
  """The digits generator's smoke variant, with overrides by field."""
  found = config_lib.load("configs/generators/digits.py:smoke")
  found.batch_size = 12
  found.sample.num_steps = 4
  found.sample.guidance = 0.0
  found.data.image_size = 4
  return config_lib.override(found, overrides)


def batch(seed=0, size=12):
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


def random_params(of_config, seed=0):
  """Parameters without the zeros, and the time, of the initialisation."""
  network = diffusion.make_network(of_config, INFO)
  params = jax.eval_shape(
    network.init,
    jax.random.key(seed),
    jnp.zeros((1, *INFO.image_shape)),
    jnp.zeros(1),
    jnp.zeros(1, jnp.int32),
  )["params"]
  leaves, tree = jax.tree.flatten(params)
  rng = np.random.default_rng(seed)
  leaves = [jnp.asarray(rng.normal(0, 0.2, x.shape), x.dtype) for x in leaves]
  return jax.tree.unflatten(tree, leaves)


def random_state(method, of_config, seed=0):
  """A state of the method with random parameters."""
  state, _ = jax.eval_shape(
    method.init, jax.random.key(0), jnp.zeros((1, *INFO.image_shape))
  )
  state = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), state)
  params = random_params(of_config, seed)
  return state.replace(params=params, ema=state.ema._replace(params=params))
