"""Networks: one face, the originals' sizes, nothing computed in vain."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from synguide_jax import models
from synguide_jax.errors import UserError
from synguide_jax.models import layers

KEY = jax.random.key(0)


def init(model, images, key=KEY):
  return jax.jit(model.init)(key, images)


def run(model, images, **options):
  """Shapes of variables and output; nothing is computed."""
  variables = jax.eval_shape(model.init, KEY, images)
  output = jax.eval_shape(
    lambda v, x: model.apply(v, x, **{"train": False, **options}),
    *(variables, images),
  )
  return variables, output


# Name -> (classes, side of the images, parameters, shapes of the stages' maps
# and of the embedding). The counts are those of the originals in PyTorch.
NETWORKS = {
  "small_cnn": (10, 8, 24_346, [(8, 8, 16), (4, 4, 32), (2, 2, 64), (64,)]),
  "resnet18": (
    *(1000, 224, 11_689_512),
    [(56, 56, 64), (28, 28, 128), (14, 14, 256), (7, 7, 512), (512,)],
  ),
  "resnet34": (
    *(1000, 224, 21_797_672),
    [(56, 56, 64), (28, 28, 128), (14, 14, 256), (7, 7, 512), (512,)],
  ),
  "resnet50": (
    *(1000, 224, 25_557_032),
    [(56, 56, 256), (28, 28, 512), (14, 14, 1024), (7, 7, 2048), (2048,)],
  ),
  "resnet101": (
    *(1000, 224, 44_549_160),
    [(56, 56, 256), (28, 28, 512), (14, 14, 1024), (7, 7, 2048), (2048,)],
  ),
  "cifar_resnet18": (
    *(10, 32, 11_173_962),
    [(32, 32, 64), (16, 16, 128), (8, 8, 256), (4, 4, 512), (512,)],
  ),
  "cifar_resnet50": (
    *(10, 32, 23_520_842),
    [(32, 32, 256), (16, 16, 512), (8, 8, 1024), (4, 4, 2048), (2048,)],
  ),
  # 269,722 with shortcuts of zeros, and two of 1x1 with their norms.
  "cifar_resnet20": (
    *(10, 32, 272_474),
    [(32, 32, 16), (16, 16, 32), (8, 8, 64), (64,)],
  ),
  "cifar_resnet_narrow50": (
    *(10, 32, 776_794),
    [(32, 32, 64), (16, 16, 128), (8, 8, 256), (256,)],
  ),
  "wide_resnet28_10": (
    *(10, 32, 36_479_194),
    [(32, 32, 160), (16, 16, 320), (8, 8, 640), (640,)],
  ),
  "mobilenet_v2": (
    *(1000, 224, 3_504_872),
    [(56, 56, 24), (28, 28, 32), (14, 14, 96), (7, 7, 320), (1280,)],
  ),
  "efficientnet_b0": (
    *(1000, 224, 5_288_548),
    [(56, 56, 24), (28, 28, 40), (14, 14, 112), (7, 7, 320), (1280,)],
  ),
  "vit_small_patch16": (1000, 224, 22_050_664, [(197, 384)] * 4 + [(384,)]),
  "vit_base_patch16": (1000, 224, 86_567_656, [(197, 768)] * 4 + [(768,)]),
  "dinov2_vit_small_patch14": (
    *(0, 224, 22_056_192),
    [(257, 384)] * 4 + [(768,)],
  ),
  "dinov2_vit_base_patch14": (
    *(0, 224, 86_579_712),
    [(257, 768)] * 4 + [(1536,)],
  ),
  "clip_vit_base_patch16": (
    *(0, 224, 86_192_640),
    [(197, 768)] * 4 + [(512,)],
  ),
}


def test_every_network_is_tested():
  assert NETWORKS.keys() == models.MODELS.keys()


@pytest.mark.parametrize("name", NETWORKS)
def test_networks_have_the_originals_sizes(name):
  num_classes, side, count, shapes = NETWORKS[name]
  model = models.create(name, num_classes=num_classes)
  variables, output = run(model, jnp.zeros((2, side, side, 3)))
  sizes = [leaf.size for leaf in jax.tree.leaves(variables["params"])]
  assert sum(sizes) == count
  assert [output.features[stage].shape for stage in model.stages] == [
    (2, *shape) for shape in shapes
  ]
  if num_classes:
    assert output.logits.shape == (2, num_classes)
  else:
    assert output.logits is None


# One of every class of networks, and options that make it quick to trace.
KINDS = [
  ("small_cnn", {}),
  ("resnet18", {}),
  ("wide_resnet28_10", {"depth": 10, "widen": 1}),
  ("mobilenet_v2", {"width": 0.25}),
  ("efficientnet_b0", {"width": 0.25}),
  ("dinov2_vit_small_patch14", {"depth": 4}),
  ("clip_vit_base_patch16", {"depth": 4}),
]


@pytest.mark.parametrize("name,options", KINDS)
def test_networks_stop_at_the_stage_asked_for(name, options):
  model = models.create(name, num_classes=3, **options)
  images = jnp.zeros((2, 32, 32, 3))
  for number, stage in enumerate(model.stages, start=1):
    _, output = run(model, images, upto=stage)
    assert output.logits is None
    assert output.features.keys() == set(model.stages[:number])


@pytest.mark.parametrize("name,options", KINDS)
def test_networks_compute_in_bfloat16_and_keep_float32(name, options):
  model = models.create(
    name, num_classes=3, channels=1, dtype="bfloat16", **options
  )
  images = jnp.zeros((2, 32, 32, 1))
  variables, output = run(model, images, train=True, rng=KEY)
  assert {x.dtype for x in jax.tree.leaves(variables)} == {jnp.dtype("float32")}
  assert {x.dtype for x in jax.tree.leaves(output.batch_stats)} <= {
    jnp.dtype("float32")
  }
  embedding = output.features.pop("embedding")
  assert {x.dtype for x in output.features.values()} == {jnp.dtype("bfloat16")}
  assert output.logits.dtype == embedding.dtype == jnp.float32


def test_bfloat16_is_near_float32():
  images = jax.random.uniform(KEY, (4, 32, 32, 3))
  logits = []
  for dtype in ("float32", "bfloat16"):
    model = models.create(
      "cifar_resnet18", num_classes=5, width=8, blocks=(1, 1), dtype=dtype
    )
    variables = init(model, images)
    apply = jax.jit(functools.partial(model.apply, train=True))
    logits.append(np.asarray(apply(variables, images).logits))
  assert 0 < np.abs(logits[0] - logits[1]).max() < 0.05 * np.ptp(logits[0])


def test_upto_computes_nothing_behind_the_stage():
  model = models.create("small_cnn", num_classes=3, channels=1)
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
  model = models.create("cifar_resnet18", num_classes=3, width=8, blocks=(1,))
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
    variables["params"]["stem_conv"]["kernel"],
    padding=((1, 1), (1, 1)),
  )
  np.testing.assert_allclose(
    moved["stem_norm"]["mean"], 0.1 * stem.mean((0, 1, 2)), atol=1e-6
  )


@pytest.mark.parametrize("name,options", [KINDS[2], KINDS[4]])
def test_dropout_is_drawn_from_the_key(name, options):
  model = models.create(name, num_classes=5, **options)
  images = jax.random.uniform(KEY, (4, 32, 32, 3))
  variables = init(model, images)

  @jax.jit
  @jax.vmap
  def logits(rng):
    return model.apply(variables, images, train=True, rng=rng).logits

  first, same, other = logits(jax.random.split(KEY)[jnp.array([0, 0, 1])])
  np.testing.assert_array_equal(first, same)
  assert np.all(np.any(first != other, axis=-1))


def test_pool_averages_positions():
  features = jnp.arange(24.0).reshape(1, 2, 3, 4)
  np.testing.assert_allclose(models.pool(features), [[10, 11, 12, 13]])
  np.testing.assert_array_equal(models.pool(features[:, 0, 0]), [[0, 1, 2, 3]])


def test_preprocessing_resizes_and_normalises():
  prepare = models.Preprocessing(mean=(0.25,), std=(0.5,), size=4)
  images = prepare(jnp.full((2, 2, 2, 1), 0.75))
  np.testing.assert_allclose(images, np.ones((2, 4, 4, 1)), rtol=1e-6)
  # Mean and deviation are those of the channels as the network sees them.
  prepare = models.Preprocessing((0.0,), (1.0, 2.0, 4.0), channel_order="BGR")
  images = prepare(jnp.asarray([[[[4.0, 2.0, 1.0]]]]))
  np.testing.assert_allclose(images, [[[[1.0, 1.0, 1.0]]]])


def test_bad_names_and_images_are_named():
  with pytest.raises(UserError, match="'resnet'.*small_cnn"):
    models.create("resnet", num_classes=2)
  with pytest.raises(UserError, match="strength"):
    models.create("small_cnn", num_classes=2, strength=3)
  with pytest.raises(UserError, match="float16"):
    models.create("small_cnn", num_classes=2, dtype="float16")
  with pytest.raises(UserError, match="3 values of mean, but .* 1 channels"):
    models.create(
      "small_cnn",
      num_classes=2,
      channels=1,
      preprocessing=models.Preprocessing(mean=(0.1, 0.2, 0.3)),
    )
  with pytest.raises(UserError, match="channels=4 must be 1 or 3"):
    models.create("small_cnn", num_classes=2, channels=4)
  with pytest.raises(UserError, match="'stage4'.*stage1, stage2, embedding"):
    model = models.create("small_cnn", num_classes=2, widths=(8, 16))
    run(model, jnp.zeros((1, 8, 8, 3)), upto="stage4")
  with pytest.raises(UserError, match="'full'.*torch, same, keras"):
    model = models.create("mobilenet_v2", num_classes=2, padding="full")
    run(model, jnp.zeros((1, 32, 32, 3)))
  with pytest.raises(UserError, match="'stage9'.*stage1, stage2, stage3"):
    models.create("small_cnn", num_classes=2).stage("stage9")
  model = models.create("efficientnet_b0", num_classes=2, padding="keras")
  with pytest.raises(UserError, match="too small for this network: 1x1 px"):
    run(model, jnp.zeros((1, 8, 8, 3)))
  model = models.create("vit_small_patch16", num_classes=2)
  with pytest.raises(UserError, match="3 channels; these have 1"):
    run(model, jnp.zeros((1, 32, 32, 1)))
  with pytest.raises(UserError, match="8x40 px are smaller.*16x16"):
    run(model, jnp.zeros((1, 8, 40, 3)))
