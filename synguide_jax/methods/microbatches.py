r"""Gradients of a batch in parts, one after the other.

The mean of the parts' gradients is the gradient of the batch wherever a loss is
a mean over images: all trees that Real Guidance compares are averaged before it
projects. What sees more than one image sees those of a part: batch
normalisation, whose running statistics are updated by every part, and
Pretrained Guidance, of whose pairs those of different parts are left out.
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from synguide_jax.methods.base import Batch, Metrics

# (params, batch_stats, batches, key, *other) -> (grads, (batch_stats, metrics))
GradientFn = Callable[..., tuple[Any, tuple[Any, Metrics]]]


def accumulate(function: GradientFn, parts: int) -> GradientFn:
  """Makes a function that computes gradients in parts.

  A part has every ``parts``-th image of a batch, so that each device has its
  share of all of them.

  Args:
    function: ``(params, batch_stats, batches, key, *other) -> (grads,
      (batch_stats, metrics))``, ``grads`` being any pytree.
    parts: Number of parts, a divisor of every batch's size. With 1 the function
      is returned as it is.

  Returns:
    The same function with the means of ``grads`` and ``metrics`` over the
    parts, and the last ``batch_stats``.
  """
  if parts == 1:
    return function

  def split(leaf):
    return jnp.moveaxis(leaf.reshape(-1, parts, *leaf.shape[1:]), 1, 0)

  def in_parts(
    params: Any,
    batch_stats: Any,
    batches: Mapping[str, Batch],
    key: jax.Array,
    *other: Any,
  ) -> tuple[Any, tuple[Any, Metrics]]:
    def add(carry, part):
      batch_stats, sums = carry
      grads, (batch_stats, metrics) = function(
        params, batch_stats, *part, *other
      )
      return (batch_stats, jax.tree.map(jnp.add, sums, (grads, metrics))), None

    of_parts = jax.tree.map(split, batches), jax.random.split(key, parts)
    first = jax.tree.map(lambda x: x[0], of_parts)
    grads, (_, metrics) = jax.eval_shape(
      function, params, batch_stats, *first, *other
    )
    zeros = jax.tree.map(
      lambda x: jnp.zeros(x.shape, x.dtype), (grads, metrics)
    )
    (batch_stats, sums), _ = jax.lax.scan(add, (batch_stats, zeros), of_parts)
    grads, metrics = jax.tree.map(lambda x: x / parts, sums)
    return grads, (batch_stats, metrics)

  return in_parts
