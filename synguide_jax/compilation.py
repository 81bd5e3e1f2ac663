"""How programs are traced and compiled."""

from collections.abc import Callable
import os
from typing import Any

import jax
import jax.extend


def jit(function: Callable, mesh: jax.sharding.Mesh, **options: Any) -> Any:
  """jax.jit, with LLVM's second instead of its third level on the CPU.

  The third unrolls the loops of the random number generator: compilation takes
  up to four times as long, and what it makes is no faster. A level that
  XLA_FLAGS names is left alone.
  """
  flag = "xla_backend_optimization_level"
  on_cpu = mesh.devices.flat[0].platform == "cpu"
  if on_cpu and flag not in os.environ.get("XLA_FLAGS", ""):
    options["compiler_options"] = {flag: 2}
  return jax.jit(function, **options)


class Once:
  """A function that is traced once, and then evaluated from its jaxpr.

  Networks of fifty layers and their gradients take ten seconds of Python; here
  they are asked for what they return, and then become part of a program.

  Args:
    function: To trace.
    *arguments: Arrays, or their shapes and types.

  Attributes:
    out: What it returns, as shapes and types.
  """

  def __init__(self, function: Callable, *arguments: Any):
    abstract = jax.tree.map(
      lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), arguments
    )
    traced = jax.jit(function).trace(*abstract)
    self.out = traced.out_info
    self._flat = jax.extend.core.jaxpr_as_fun(traced.jaxpr)

  def __call__(self, *arguments: Any) -> Any:
    """Evaluates it for arrays of the shapes and types it was traced for."""
    flat = self._flat(*jax.tree.leaves(arguments))
    return jax.tree.unflatten(jax.tree.structure(self.out), flat)


def with_sharding(tree: Any, sharding: jax.sharding.Sharding) -> Any:
  """Returns abstract arrays that all have one sharding."""
  return with_shardings(tree, jax.tree.map(lambda _: sharding, tree))


def with_shardings(tree: Any, shardings: Any) -> Any:
  """Returns abstract arrays, each with the sharding at its place."""
  return jax.tree.map(
    lambda x, sharding: jax.ShapeDtypeStruct(
      x.shape, x.dtype, sharding=sharding
    ),
    tree,
    shardings,
  )
