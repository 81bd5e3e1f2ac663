"""Steps with a real and a synthetic batch, as ``config.two_streams`` says."""

from collections.abc import Callable, Mapping
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from synguide_jax.data.feed import SAMPLERS
from synguide_jax.errors import check_known, UserError
from synguide_jax.methods import networks
from synguide_jax.methods.base import Batch, Info, Stream
from synguide_jax.models import Output

# In the order of the forward passes.
NAMES = ("real", "synthetic")

# (params, batch_stats, batches, key) -> (outputs by name, batch_stats).
Forward = Callable[
  [Any, Any, Mapping[str, Batch], jax.Array], tuple[dict[str, Output], Any]
]


def streams(config: Any, info: Info) -> dict[str, Stream]:
  """Returns the real and the synthetic stream, which share a batch.

  Raises:
    UserError: for a share that is no whole number of images, or where one of
      the sets is missing.
  """
  section = config.two_streams
  share, sampler = section.real_share, section.real_sampler
  check_known("two_streams.real_sampler", sampler, SAMPLERS)
  size = round(share * config.batch_size)
  if size != share * config.batch_size or not 0 < size < config.batch_size:
    raise UserError(
      f"batch_size={config.batch_size} times two_streams.real_share={share} "
      f"must be a whole number of images, and leave some: method "
      f"{config.method!r} splits a batch between real and synthetic ones."
    )
  found = {
    "real": Stream("real", size, sampler),
    "synthetic": Stream("synthetic", config.batch_size - size),
  }
  return networks.check_streams(config, info, found)


def updates_statistics(config: Any) -> Callable[[str], bool]:
  """Returns which streams update the running statistics.

  Raises:
    UserError: for an unknown ``two_streams.running_statistics``.
  """
  kept = config.two_streams.running_statistics
  check_known("two_streams.running_statistics", kept, ("both", "real"))
  return lambda name: kept == "both" or name == "real"


def is_joint(config: Any, field: str = "two_streams.batch_norm") -> bool:
  """Whether both batches share their statistics, as a field says.

  Raises:
    UserError: for an unknown value, or if the statistics of both together are
      to be kept of one.
  """
  section, _, name = field.partition(".")
  mode = config[section][name]
  check_known(field, mode, ("separate", "joint"))
  if mode == "joint" and not updates_statistics(config)("synthetic"):
    raise UserError(
      f"{field}='joint' has the statistics of all images; set it to "
      "'separate', or two_streams.running_statistics='both'."
    )
  return mode == "joint"


def passes(
  trained: networks.Trained,
  config: Any,
  field: str = "two_streams.batch_norm",
) -> tuple[Forward, ...]:
  """Makes the forward passes of a step, in training mode.

  Args:
    trained: The network.
    config: The whole config.
    field: What says how batch normalisation sees the two batches:
      ``"separate"``, each in a pass of its own, or ``"joint"``, in one.
  """
  updates = updates_statistics(config)

  def alone(name, params, batch_stats, batches, key):
    output = trained.apply(params, batch_stats, batches[name].images, key)
    return {name: output}, output.batch_stats if updates(name) else batch_stats

  def joint(params, batch_stats, batches, key):
    images = [batches[name].images for name in NAMES]
    output = trained.apply(params, batch_stats, jnp.concatenate(images), key)
    first = len(images[0])
    parts = {"real": slice(None, first), "synthetic": slice(first, None)}
    outputs = {
      name: output.replace(
        logits=output.logits[part],
        features={k: v[part] for k, v in output.features.items()},
      )
      for name, part in parts.items()
    }
    return outputs, output.batch_stats

  if is_joint(config, field):
    return (joint,)
  return tuple(functools.partial(alone, name) for name in NAMES)


def forward(
  trained: networks.Trained,
  config: Any,
  field: str = "two_streams.batch_norm",
) -> Forward:
  """Makes one function of all :func:`passes`, one after the other."""
  every = passes(trained, config, field)

  def run(params, batch_stats, batches, key):
    outputs = {}
    keys = jax.random.split(key, len(every))
    for of_pass, one in zip(keys, every, strict=True):
      found, batch_stats = one(params, batch_stats, batches, of_pass)
      outputs |= found
    return outputs, batch_stats

  return run


def gradients(
  objectives: Callable[[Any], tuple[dict[str, jax.Array], Any]], params: Any
) -> tuple[dict[str, jax.Array], dict[str, Any], Any]:
  """Differentiates several objectives of one forward pass.

  Args:
    objectives: ``params -> (scalars by name, aux)``.
    params: Parameters, a pytree.

  Returns:
    The scalars, the gradient of each, and ``aux``.
  """
  values, pull_back, aux = jax.vjp(objectives, params, has_aux=True)
  grads = {}
  for name in values:
    chosen = {n: jnp.full_like(v, n == name) for n, v in values.items()}
    (grads[name],) = pull_back(chosen)
  return values, grads, aux


def at_once(
  function: Callable[[jax.Array], jax.Array], batches: Mapping[str, jax.Array]
) -> dict[str, jax.Array]:
  """Applies a function that maps each row by itself to several batches.

  Their rows are interleaved: where batches are sharded, each device keeps its
  own, since their number of devices divides all sizes.

  Args:
    function: ``[N, ...] -> [N, ...]``, each row from the one at its place.
    batches: Arrays by name, alike but for their first dimension.

  Returns:
    ``function`` of each, by name.
  """
  if not batches:
    return {}
  groups = math.gcd(*map(len, batches.values()))
  parts = [x.reshape(groups, -1, *x.shape[1:]) for x in batches.values()]
  ends = np.cumsum([part.shape[1] for part in parts])
  rows = jnp.concatenate(parts, 1)
  found = function(rows.reshape(-1, *rows.shape[2:]))
  found = found.reshape(groups, -1, *found.shape[1:])
  return {
    name: part.reshape(-1, *part.shape[2:])
    for name, part in zip(batches, jnp.split(found, ends[:-1], 1), strict=True)
  }
