"""Networks of the denoiser: their sizes, what they react to, their errors."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from synguide_jax.synthesis import networks

_MLP = networks.ResidualMLP(3, width=16, blocks=2, conditions=2, dropout=0.5)
_UNET = networks.UNet(
  3,
  width=8,
  multipliers=(1, 2),
  blocks=1,
  attention=(4,),
  conditions=2,
  dropout=0.5,
)
both = pytest.mark.parametrize("network", [_MLP, _UNET], ids=["mlp", "unet"])


def _inputs(shape=(8, 8, 1)):
  """Four images, as many noise levels, and each class and the null label."""
  images = jax.random.normal(jax.random.key(0), (4, *shape))
  return images, jnp.array([-1.5, -0.4, 0.2, 1.0]), jnp.arange(4)


def _shapes(network, shape=(8, 8, 1)):
  variables = jax.eval_shape(network.init, jax.random.key(0), *_inputs(shape))
  return variables["params"]


@functools.cache
def _random_params(network):
  """Parameters of about unit gain, without the zeros of the start."""
  leaves, tree = jax.tree.flatten(_shapes(network))
  rng = np.random.default_rng(0)
  stds = [0.3 if x.ndim < 2 else np.prod(x.shape[:-1]) ** -0.5 for x in leaves]
  leaves = [
    jnp.asarray(rng.normal(0, std, x.shape), x.dtype)
    for x, std in zip(leaves, stds, strict=True)
  ]
  return jax.tree.unflatten(tree, leaves)


@functools.partial(jax.jit, static_argnames=("network", "train"))
def _apply(network, params, *inputs, key=None, train=False):
  rngs = None if key is None else {"dropout": key}
  return network.apply({"params": params}, *inputs, train=train, rngs=rngs)


@pytest.mark.parametrize(
  ("network", "shape", "count"),
  [
    (networks.UNet(10), (32, 32, 3), 35_155_715),
    (
      networks.UNet(10, width=32, multipliers=(1, 2), blocks=1),
      (8, 8, 1),
      659_105,
    ),
    (networks.ResidualMLP(10, width=192), (8, 8, 1), 663_616),
  ],
)
def test_number_of_parameters(network, shape, count):
  sizes = [x.size for x in jax.tree.leaves(_shapes(network, shape))]
  assert sum(sizes) == count


@both
def test_parameters_are_float32_and_conditions_add_one_matrix(network):
  for dtype in ("float32", "bfloat16"):
    shapes = _shapes(network.clone(dtype=dtype))
    assert {x.dtype for x in jax.tree.leaves(shapes)} == {jnp.dtype("float32")}
  matrix = shapes.pop("augmentation_embedding")
  width = shapes["embedding"]["bias"].size
  assert jax.tree.map(jnp.shape, matrix) == {"kernel": (2, width)}
  without = _shapes(network.clone(conditions=0))
  assert jax.tree.map(jnp.shape, shapes) == jax.tree.map(jnp.shape, without)


@pytest.mark.parametrize(
  ("network", "shape"),
  [
    (_MLP, (8, 8, 1)),
    (_UNET, (8, 8, 1)),
    (_UNET.clone(dtype="bfloat16"), (16, 8, 3)),
    (_UNET.clone(multipliers=(1, 1, 2, 2), width=4), (32, 32, 3)),
  ],
)
def test_output_is_of_the_shape_of_the_images(network, shape):
  output, _ = jax.eval_shape(
    network.init_with_output, jax.random.key(0), *_inputs(shape)
  )
  assert output.shape == (4, *shape) and output.dtype == jnp.float32


@pytest.mark.parametrize(
  "network", [_MLP, _UNET.clone(blocks=0)], ids=["mlp", "unet"]
)
def test_untrained_output_is_zero(network):
  params = jax.jit(network.init)(jax.random.key(0), *_inputs())["params"]
  output = _apply(network, params, *_inputs(), jnp.ones((4, 2)))
  np.testing.assert_array_equal(output, 0)


@both
def test_every_condition_changes_its_own_image(network):
  apply = functools.partial(_apply, network, _random_params(network))
  images, c_noise, labels = _inputs()
  none = jnp.zeros((4, 2))
  output = apply(images, c_noise, labels, none)
  changed = {
    "image": apply(images.at[1, 3, 5].add(1), c_noise, labels, none),
    "noise": apply(images, c_noise.at[1].add(0.1), labels, none),
    "class": apply(images, c_noise, labels.at[1].set(3), none),
    "augmentation": apply(images, c_noise, labels, none.at[1, 0].set(1)),
  }
  for name, other in changed.items():
    difference = np.abs(other - output).mean((1, 2, 3))
    assert difference[1] > 1e-3, name
    np.testing.assert_allclose(difference[[0, 2, 3]], 0, atol=1e-6)
  not_told = apply(images, c_noise, labels)
  np.testing.assert_allclose(not_told, output, rtol=0, atol=1e-6)


@both
def test_gradient_of_one_pixel_reaches_every_parameter_and_its_image(network):
  inputs = _inputs()

  @jax.jit
  @functools.partial(jax.grad, argnums=(0, 1))
  def gradient(params, images):
    augmentation = jnp.ones((4, 2))
    return network.apply(
      {"params": params}, images, *inputs[1:], augmentation=augmentation
    )[0, 0, 0, 0]

  of_params, of_images = gradient(_random_params(network), inputs[0])
  for path, grad in jax.tree.leaves_with_path(of_params):
    name = jax.tree_util.keystr(path)
    assert np.all(np.isfinite(grad)) and np.any(grad), name
  assert np.all(np.isfinite(of_images)) and np.all(of_images[0])
  assert not np.any(of_images[1:])


@both
def test_bfloat16_is_close_to_float32(network):
  params, inputs = _random_params(network), _inputs()
  exact = _apply(network, params, *inputs)
  low = _apply(network.clone(dtype="bfloat16"), params, *inputs)
  assert np.any(low != exact)
  error = np.sqrt(np.mean((low - exact) ** 2) / np.mean(exact**2))
  assert error < 0.03


@both
def test_dropout_in_training_only(network):
  params = _random_params(network)
  apply = functools.partial(_apply, network, params, *_inputs())
  keys = jax.random.split(jax.random.key(0))
  first, second = (apply(key=key, train=True) for key in keys)
  output = apply()
  for one, other in ((first, second), (first, output)):
    assert np.abs(one - other).mean() > 0.01


def test_attention_at_the_sides_asked_for_and_in_the_middle():
  def blocks(**fields):
    shapes = _shapes(_UNET.clone(**fields))
    return {name for name, block in shapes.items() if "attention" in block}

  middle = {"middle_block0"}
  at_4 = {"down1_block0", "up1_block0", "up1_block1"}
  at_8 = {"down0_block0", "up0_block0", "up0_block1"}
  assert blocks(attention=()) == middle
  assert blocks(attention=(4,)) == middle | at_4
  assert blocks(attention=(16, 8)) == middle | at_8


def test_lists_are_tuples():
  """What JSON makes of the tuples of a config."""
  listed = _UNET.clone(multipliers=[1, 2], attention=[4])
  assert listed == _UNET and hash(listed) == hash(_UNET)


def test_any_width():
  """Neither a multiple of 4 nor of 64, and fewer channels than a group's."""
  for width in (3, 10, 96):
    network = networks.UNet(2, width=width, multipliers=(1, 2), blocks=0)
    assert _shapes(network)["output_norm"]["scale"].shape == (width,)


@pytest.mark.parametrize(
  ("fields", "shape", "message"),
  [
    ({"multipliers": ()}, (8, 8, 1), r"multipliers=\(\) .* at least one"),
    (
      {"multipliers": [1, 1, 1, 1]},
      (28, 28, 1),
      r"config.model.multipliers=\(1, 1, 1, 1\) .* 28x28 .* at most 3\.",
    ),
    ({"multipliers": (1, 2)}, (8, 9, 1), "8x9 pixels .* at most 1"),
    ({"dtype": "float64"}, (8, 8, 1), "config.model.dtype='float64'"),
  ],
)
def test_fields_that_do_not_fit(fields, shape, message):
  with pytest.raises(ValueError, match=message):
    _shapes(_UNET.clone(**fields), shape)


@both
def test_another_number_of_conditions(network):
  with pytest.raises(ValueError, match=r"told 2 numbers .* \(4, 3\)"):
    _apply(network, _random_params(network), *_inputs(), jnp.zeros((4, 3)))
