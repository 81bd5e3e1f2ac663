"""Layers: the numbers of lax, flax and PyTorch, and lowered as promised."""

import functools

import flax.linen as nn
import jax
from jax import export
import jax.numpy as jnp
import numpy as np
import pytest

from synguide_jax.models import layers

KEY = jax.random.key(0)


def lax_conv2d(images, kernel, *, strides=(1, 1), padding, groups=1):
  return jax.lax.conv_general_dilated(
    images,
    kernel,
    strides,
    padding,
    dimension_numbers=("NHWC", "HWIO", "NHWC"),
    feature_group_count=groups,
    precision="highest",
  )


def draw(*shapes):
  keys = jax.random.split(KEY, len(shapes))
  return [
    jax.random.normal(k, s) / np.sqrt(np.prod(s[:-1]) if n else 1)
    for n, (k, s) in enumerate(zip(keys, shapes, strict=True))
  ]


def assert_close(actual, desired, tolerance=1e-5):
  def check(a, d):
    np.testing.assert_allclose(a, d, rtol=0, atol=tolerance * np.abs(d).max())

  jax.tree.map(check, actual, desired)


def halves(size):
  return ((size // 2, size // 2),) * 2


CONVOLUTIONS = {
  # Kernel [kh, kw, C / groups, D], strides, padding, groups.
  "1x1": ((1, 1, 6, 4), (1, 1), halves(1), 1),
  "1x1 strided": ((1, 1, 6, 4), (2, 2), halves(1), 1),
  "3x3, rows added": ((3, 3, 6, 4), (1, 1), halves(3), 1),
  "3x3, rows concatenated": ((3, 3, 2, 16), (1, 1), halves(3), 1),
  "3x3 strided": ((3, 3, 6, 4), (2, 2), halves(3), 1),
  "3x3, strided columns": ((3, 3, 6, 4), (1, 2), halves(3), 1),
  "5x5": ((5, 5, 6, 4), (1, 1), halves(5), 1),
  "7x7 strided": ((7, 7, 3, 4), (2, 2), halves(7), 1),
  "3x5, asymmetric": ((3, 5, 6, 4), (1, 1), ((0, 2), (3, 1)), 1),
  "3x3 strided, same": ((3, 3, 6, 4), (2, 2), ((0, 1), (0, 1)), 1),
  "groups": ((3, 3, 3, 4), (1, 1), halves(3), 2),
  "groups of 1x1": ((1, 1, 3, 4), (1, 1), halves(1), 2),
  "depthwise": ((3, 3, 1, 6), (1, 1), halves(3), 6),
  "depthwise strided": ((3, 2, 1, 6), (2, 2), ((1, 2), (2, 1)), 6),
  "depthwise, doubled": ((3, 3, 1, 12), (1, 1), halves(3), 6),
  "patches": ((4, 4, 3, 5), (4, 4), halves(1), 1),
  "patches of groups": ((2, 3, 3, 4), (2, 3), halves(1), 2),
}


@pytest.fixture(params=CONVOLUTIONS, name="convolution")
def fixture_convolution(request):
  """Ours, lax's, and arguments for either."""
  kernel, strides, padding, groups = CONVOLUTIONS[request.param]
  options = dict(strides=strides, padding=padding, groups=groups)
  return (
    functools.partial(layers.conv2d, **options),
    functools.partial(lax_conv2d, **options),
    draw((2, 9, 11, kernel[2] * groups), kernel),
  )


def test_convolutions_of_a_shape_are_traced_once(monkeypatch):
  traced, original = [], jax.lax.conv_general_dilated

  def watched(*args, **options):
    traced.append(args[1].shape)
    return original(*args, **options)

  monkeypatch.setattr(jax.lax, "conv_general_dilated", watched)

  def loss(kernels, images):
    for kernel in kernels:
      images = jnp.sin(layers.conv2d(images, kernel, padding=halves(3)))
    return images.sum()

  # A shape of no other test, whose traces would be found.
  images, *kernels = draw((2, 13, 12, 3), *[(3, 3, 3, 3)] * 3)
  gradient = jax.grad(loss)
  jax.make_jaxpr(gradient)(kernels, images)
  runs = jax.tree.map(lambda x: jnp.stack([x, x]), (kernels, images))
  jax.make_jaxpr(jax.vmap(gradient))(*runs)
  assert traced == [(3, 3, 3, 3)]


def test_convolution_equals_lax(convolution):
  *functions, (images, kernel) = convolution

  def all_orders(function, images, kernel):
    def loss(images, kernel):
      return jnp.sin(function(images, kernel)).sum()

    def squared_gradient(images, kernel):
      grads = jax.grad(loss, (0, 1))(images, kernel)
      return sum((g**2).sum() for g in grads)

    return (
      function(images, kernel),
      jax.grad(loss, (0, 1))(images, kernel),
      jax.grad(squared_gradient, (0, 1))(images, kernel),
      jax.jvp(function, (images, kernel), (images, kernel)),
    )

  ours, theirs = (
    jax.jit(functools.partial(all_orders, f))(images, kernel) for f in functions
  )
  assert_close(ours, theirs)


def test_runs_are_trained_at_once_without_convolutions(convolution):
  ours, theirs, (images, kernel) = convolution
  images, kernel = (jnp.stack([x, -2 * x, x + 1]) for x in (images, kernel))

  def grads(images, kernel, conv=ours):
    return jax.grad(lambda *a: (conv(*a) ** 2).sum(), (0, 1))(images, kernel)

  at_once = jax.jit(jax.vmap(grads)).lower(images, kernel).compile()
  assert " convolution(" not in at_once.as_text()
  of_lax = jax.jit(jax.vmap(functools.partial(grads, conv=theirs)))
  of_lax = of_lax.lower(images, kernel).as_text()
  assert "stablehlo.convolution" in of_lax
  one = jax.jit(grads)
  one_by_one = [one(*a) for a in zip(images, kernel, strict=True)]
  stacked = jax.tree.map(lambda *x: jnp.stack(x), *one_by_one)
  assert_close(at_once(images, kernel), stacked)


def test_convolution_is_a_convolution_elsewhere(convolution):
  ours, _, arguments = convolution
  for platform, found in (("cpu", False), ("cuda", True), ("tpu", True)):
    exported = export.export(jax.jit(ours), platforms=[platform])(*arguments)
    assert ("stablehlo.convolution" in exported.mlir_module()) == found


def test_convolution_is_exported_for_any_batch(convolution):
  ours, _, (images, kernel) = convolution
  (batch,) = export.symbolic_shape("b")
  shape = jax.ShapeDtypeStruct((batch, *images.shape[1:]), images.dtype)
  exported = export.export(jax.jit(ours))(shape, kernel)
  five = jnp.concatenate([images, images, images[:1]])
  assert_close(exported.call(five, kernel), ours(five, kernel))


def test_convolution_in_bfloat16(convolution):
  ours, theirs, arguments = convolution
  low = jax.jit(ours)(*(x.astype(jnp.bfloat16) for x in arguments))
  assert low.dtype == jnp.bfloat16
  assert_close(low.astype(jnp.float32), theirs(*arguments), 2e-2)


def test_patches_are_a_reshape():
  conv = functools.partial(layers.conv2d, strides=(14, 14))
  shapes = (jnp.zeros((2, 28, 30, 3)), jnp.zeros((14, 14, 3, 8)))
  text = export.export(jax.jit(conv), platforms=["cpu"])(*shapes).mlir_module()
  assert "concatenate" not in text and "pad" not in text


def test_running_variance_is_unbiased():
  images = draw((4, 5, 6, 3))[0]
  norm = layers.BatchNorm(train=True, momentum=0.8)
  variables = norm.init(KEY, images)
  assert not np.any(variables["batch_stats"]["mean"])
  _, updated = norm.apply(variables, images, mutable=["batch_stats"])
  var = np.var(images.reshape(-1, 3), axis=0, ddof=1)
  np.testing.assert_allclose(
    updated["batch_stats"]["var"], 0.8 + 0.2 * var, rtol=1e-5
  )


@pytest.mark.parametrize(
  "window,strides,padding",
  [
    ((3, 3), (2, 2), halves(3)),
    ((2, 2), (2, 2), halves(1)),
    ((3, 2), (1, 2), ((0, 2), (1, 0))),
  ],
)
def test_max_pool_is_flaxs(window, strides, padding):
  # Whole numbers, and zeros of a ReLU: most windows have several maxima.
  images = nn.relu(jnp.round(draw((3, 9, 11, 4))[0]))

  def both(function):
    pooled, vjp = jax.vjp(
      lambda x: function(x, window, strides=strides, padding=padding), images
    )
    return pooled, vjp(1 + jnp.arange(pooled.size).reshape(pooled.shape) % 7.0)

  ours, theirs = (
    jax.jit(both, static_argnums=0)(f) for f in (layers.max_pool, nn.max_pool)
  )
  jax.tree.map(np.testing.assert_array_equal, ours, theirs)


def test_max_pool_keeps_what_is_not_a_number():
  images = jnp.zeros((1, 4, 4, 1)).at[0, 1, 2].set(jnp.nan)
  pooled = layers.max_pool(images, (2, 2), strides=(2, 2))
  np.testing.assert_array_equal(
    jnp.isnan(pooled[0, ..., 0]), [[False, True], [False, False]]
  )


def test_a_sharded_batch_is_treated_as_a_whole():
  """Convolution, normalisation and pooling over eight devices."""
  images, kernel = draw((16, 6, 6, 3), (3, 3, 3, 4))
  norm = layers.BatchNorm(train=True)
  variables = norm.init(KEY, jnp.zeros((1, 1, 1, 4)))

  def loss(kernel, images):
    maps = layers.conv2d(images, kernel, padding=halves(3))
    maps, updated = norm.apply(variables, maps, mutable=["batch_stats"])
    pooled = layers.max_pool(nn.relu(maps), (2, 2), strides=(2, 2))
    return (pooled**2).sum(), updated

  step = jax.jit(jax.grad(loss, has_aux=True))
  mesh = jax.make_mesh(
    (8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,)
  )
  over_images = jax.NamedSharding(mesh, jax.P("data"))
  sharded = step(kernel, jax.device_put(images, over_images))
  assert_close(sharded, step(kernel, images))
