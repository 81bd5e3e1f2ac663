"""Arithmetic of networks, counted from their products and convolutions."""

from collections.abc import Iterator
import math
import time
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp

from benchmarks.training import FEATURE_LAYER, Shape
from synguide_jax import models
from synguide_jax.models import layers


def lax_conv2d(images, kernel, *, strides, padding, groups=1):
  """What `layers.conv2d` is on GPU and TPU, on every platform."""
  return jax.lax.conv_general_dilated(
    images,
    kernel,
    strides,
    padding,
    dimension_numbers=("NHWC", "HWIO", "NHWC"),
    feature_group_count=groups,
  )


def on_lax_convolutions() -> Any:
  """A context in which networks are traced with lax convolutions."""
  return mock.patch.object(layers, "conv2d", lax_conv2d)


def _equations(jaxpr: Any) -> Iterator[Any]:
  for equation in jaxpr.eqns:
    yield equation
    for value in equation.params.values():
      for inner in value if isinstance(value, tuple | list) else (value,):
        inner = getattr(inner, "jaxpr", inner)
        if hasattr(inner, "eqns"):
          yield from _equations(inner)


def _of_product(equation: Any) -> int:
  (contracted, _), _ = equation.params["dimension_numbers"]
  shape = equation.invars[0].aval.shape
  length = math.prod(shape[axis] for axis in contracted)
  return 2 * length * math.prod(equation.outvars[0].aval.shape)


def _of_convolution(equation: Any) -> int:
  params, kernel = equation.params, equation.invars[1].aval.shape
  length = math.prod(kernel) // kernel[params["dimension_numbers"].rhs_spec[0]]
  # Zeros between the inputs, where the gradient of a stride puts them, are
  # nothing to compute with.
  outputs = math.prod(equation.outvars[0].aval.shape)
  return 2 * length * outputs // math.prod(params["lhs_dilation"])


_COUNTED = {
  "dot_general": _of_product,
  "conv_general_dilated": _of_convolution,
}


def count(function: Any, *arguments: Any) -> int:
  """Counts a function's FLOPs in products and convolutions.

  A loop's body counts once.

  Args:
    function: Called as it is traced.
    *arguments: Its arguments, or their shapes and types.

  Returns:
    Two for each multiplication with its addition.
  """
  with on_lax_convolutions():
    # A new function, or what was traced before would be found again.
    traced = jax.make_jaxpr(lambda *args: function(*args))(*arguments)
  return sum(
    _COUNTED[equation.primitive.name](equation)
    for equation in _equations(traced.jaxpr)
    if equation.primitive.name in _COUNTED
  )


def of_step(shape: Shape) -> tuple[int, int]:
  """Counts a plain step, and what PG adds to it.

  Args:
    shape: What the step is of.

  Returns:
    FLOPs of M_u's forward and backward pass, and of M_p's forward pass to its
    feature layer.
  """
  model = models.create(
    shape.network, num_classes=shape.num_classes, channels=shape.channels
  )
  images = jax.ShapeDtypeStruct(
    (shape.batch, shape.side, shape.side, shape.channels), jnp.float32
  )
  variables = jax.eval_shape(model.init, jax.random.key(0), images)

  def loss(params, rest, images):
    output = model.apply(rest | {"params": params}, images, train=True)
    return output.logits.sum()

  def features(variables, images):
    output = model.apply(variables, images, train=False, upto=FEATURE_LAYER)
    return output.features[FEATURE_LAYER]

  rest = {k: v for k, v in variables.items() if k != "params"}
  trained = count(jax.grad(loss), variables["params"], rest, images)
  return trained, count(features, variables, images)


def matmul_rate(dtype: str, seconds: float = 1.0) -> float:
  """Measures products of large square matrices, in FLOP/s; the best of five."""
  side = 2048 if jax.default_backend() == "cpu" else 8192
  matrix = jax.random.normal(jax.random.key(0), (side, side), jnp.dtype(dtype))
  product = jax.jit(lambda x, y: x @ y)
  jax.block_until_ready(product(matrix, matrix))
  best, start = 0.0, time.perf_counter()
  turns = 1 if jax.default_backend() == "cpu" else 50
  for number in range(5):
    if number and time.perf_counter() - start > seconds:
      break
    began = time.perf_counter()
    for _ in range(turns):
      result = product(matrix, matrix)
    jax.block_until_ready(result)
    took = time.perf_counter() - began
    best = max(best, turns * 2 * side**3 / took)
  return best
