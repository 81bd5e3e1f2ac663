"""Networks: one face, exact convolutions, nothing computed in vain."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from synguide_jax import models
from synguide_jax.errors import UserError
from synguide_jax.models import layers, pretrained

KEY = jax.random.key(0)


def init(model, images, key=KEY):
  return jax.jit(model.init)(key, images)


@pytest.mark.parametrize(
  "kernel,stride", [(1, 1), (1, 2), (3, 1), (3, 2), (7, 2)]
)
def test_convolution_equals_lax(kernel, stride):
  images = jax.random.normal(KEY, (2, 9, 11, 5))
  weights = jax.random.normal(jax.random.key(1), (kernel, kernel, 5, 4))
  padding = ((kernel // 2,) * 2,) * 2

  def ours(x, w):
    return layers.conv2d(x, w, strides=(stride, stride), padding=padding)

  def theirs(x, w):
    numbers = ("NHWC", "HWIO", "NHWC")
    return jax.lax.conv_general_dilated(
      x,
      w,
      (stride, stride),
      padding,
      dimension_numbers=numbers,
      precision="highest",
    )

  ours, theirs = jax.jit(ours), jax.jit(theirs)
  np.testing.assert_allclose(
    ours(images, weights), theirs(images, weights), rtol=1e-5, atol=1e-4
  )
  for argument in (0, 1):
    grads = [
      jax.grad(lambda *a, f=f: (f(*a) ** 2).sum(), argument)(images, weights)
      for f in (ours, theirs)
    ]
    np.testing.assert_allclose(*grads, rtol=1e-4, atol=1e-2)


def test_convolution_is_a_convolution_elsewhere():
  def conv(x, w):
    return layers.conv2d(x, w, padding=((1, 1), (1, 1)))

  shapes = (jnp.zeros((1, 8, 8, 3)), jnp.zeros((3, 3, 3, 4)))
  for platform, found in (("cpu", False), ("cuda", True), ("tpu", True)):
    exported = jax.export.export(jax.jit(conv), platforms=[platform])(*shapes)
    assert ("stablehlo.convolution" in exported.mlir_module()) == found


@pytest.mark.parametrize(
  "name,size,shapes",
  [
    ("small_cnn", 8, [(8, 8, 16), (4, 4, 32), (2, 2, 64)]),
    (
      "cifar_resnet18",
      32,
      [(32, 32, 64), (16, 16, 128), (8, 8, 256), (4, 4, 512)],
    ),
  ],
)
def test_features_are_the_stages_maps(name, size, shapes):
  model = models.create(name, num_classes=7)
  images = jnp.zeros((2, size, size, 3))
  variables = jax.eval_shape(model.init, KEY, images)
  output = jax.eval_shape(
    lambda v, x: model.apply(v, x, train=False), variables, images
  )
  assert output.logits.shape == (2, 7)
  assert tuple(output.features) == model.stages
  assert [f.shape[1:] for f in output.features.values()] == shapes


def test_resnet18_has_the_parameters_of_the_original():
  # torchvision's count of kuangliu's ResNet18 for ten classes.
  model = models.create("cifar_resnet18", num_classes=10)
  params = jax.eval_shape(model.init, KEY, jnp.zeros((1, 32, 32, 3)))["params"]
  assert sum(p.size for p in jax.tree.leaves(params)) == 11_173_962


def test_upto_computes_nothing_behind_the_stage():
  model = models.create("small_cnn", num_classes=3)
  images = jax.random.uniform(KEY, (2, 8, 8, 1))
  variables = init(model, images)

  def features(variables, images):
    output = model.apply(variables, images, train=False, upto="stage1")
    assert output.logits is None
    return output.features["stage1"]

  @jax.jit
  def whole(variables, images):
    output = model.apply(variables, images, train=False)
    return output.features["stage1"], output.logits

  np.testing.assert_allclose(
    jax.jit(features)(variables, images),
    whole(variables, images)[0],
    rtol=1e-6,
  )
  grad = jax.jit(jax.grad(lambda v: features(v, images).sum()))
  grads = grad(variables)["params"]
  touched = {name for name in grads if np.any(grads[name].get("kernel", 0))}
  assert touched == {"Conv_0"}
  cost = [
    jax.jit(f).lower(variables, images).compile().cost_analysis()["flops"]
    for f in (features, whole)
  ]
  assert cost[0] < 0.7 * cost[1]


def test_batch_norm_updates_its_statistics_in_training_only():
  model = models.create("cifar_resnet18", num_classes=3, width=8)
  images = jax.random.uniform(KEY, (4, 16, 16, 3))
  variables = init(model, images)

  @functools.partial(jax.jit, static_argnames="train")
  def statistics(variables, images, train):
    return model.apply(variables, images, train=train).batch_stats

  kept = statistics(variables, images, train=False)
  jax.tree.map(np.testing.assert_array_equal, kept, variables["batch_stats"])
  moved = statistics(variables, images, train=True)
  stem = layers.conv2d(
    model.preprocessing(images),
    variables["params"]["Conv_0"]["kernel"],
    padding=((1, 1), (1, 1)),
  )
  np.testing.assert_allclose(
    moved["stem_norm"]["mean"], 0.1 * stem.mean((0, 1, 2)), atol=1e-6
  )


def test_pool_averages_positions():
  features = jnp.arange(24.0).reshape(1, 2, 3, 4)
  np.testing.assert_allclose(models.pool(features), [[10, 11, 12, 13]])


def test_preprocessing_resizes_and_normalises():
  prepare = models.Preprocessing(mean=(0.25,), std=(0.5,), size=4)
  images = prepare(jnp.full((2, 2, 2, 1), 0.75))
  np.testing.assert_allclose(images, np.ones((2, 4, 4, 1)), rtol=1e-6)


def test_saved_weights_are_loaded_bit_for_bit(tmp_path):
  model = models.create(
    "cifar_resnet18",
    num_classes=3,
    width=8,
    preprocessing=models.Preprocessing(mean=(0.1, 0.2, 0.3), size=16),
  )
  variables = init(model, jnp.zeros((1, 16, 16, 3)))
  pretrained.save_pretrained(tmp_path / "net", model, variables, (16, 16, 3))
  loaded = pretrained.load_pretrained(tmp_path / "net")
  assert loaded.model == model
  jax.tree.map(np.testing.assert_array_equal, loaded.variables, variables)


def test_a_new_head_replaces_the_old_one_only(tmp_path):
  images = jnp.zeros((1, 8, 8, 1))
  old = init(models.create("small_cnn", num_classes=3), images)
  new = init(
    models.create("small_cnn", num_classes=5), images, jax.random.key(1)
  )
  merged = pretrained.replace_head(old, new)
  for name, value in merged["params"].items():
    source = new if name == "head" else old
    jax.tree.map(np.testing.assert_array_equal, value, source["params"][name])
  wide = models.create("small_cnn", num_classes=5, widths=(8, 16, 24))
  with pytest.raises(UserError, match="params/Conv_0/kernel"):
    pretrained.replace_head(old, jax.eval_shape(wide.init, KEY, images))


def test_bad_names_and_files_are_named(tmp_path):
  with pytest.raises(UserError, match="'resnet'.*small_cnn"):
    models.create("resnet", num_classes=2)
  with pytest.raises(UserError, match="depth"):
    models.create("small_cnn", num_classes=2, depth=3)
  with pytest.raises(UserError, match="'stage9'.*stage1, stage2, stage3"):
    models.create("small_cnn", num_classes=2).stage("stage9")
  with pytest.raises(UserError, match="nowhere"):
    pretrained.load_pretrained(tmp_path / "nowhere")
  model = models.create("small_cnn", num_classes=2)
  other = models.create("small_cnn", num_classes=3)
  variables = init(other, jnp.zeros((1, 8, 8, 1)))
  pretrained.save_pretrained(tmp_path / "other", model, variables, (8, 8, 1))
  with pytest.raises(UserError, match="params/head/bias"):
    pretrained.load_pretrained(tmp_path / "other")
  (tmp_path / "config.json").write_text('{"model_type": "resnet"}')
  (tmp_path / "model.safetensors").write_bytes(b"12345678")
  with pytest.raises(UserError, match="model.safetensors"):
    pretrained.load_pretrained(tmp_path)
