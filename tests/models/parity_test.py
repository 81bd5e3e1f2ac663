"""The same numbers as in PyTorch, from files in the hub's layout.

Weights are random, and so are running statistics, which would hide errors if
they were 0 and 1. Run with `pip install -e ".[parity]"`.
"""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

from synguide_jax import models
from synguide_jax.models import export, layers, pretrained

torch = pytest.importorskip(
  "torch", reason="PyTorch is not installed; see the parity extra"
)
transformers = pytest.importorskip(
  "transformers", reason="transformers is not installed; see the parity extra"
)
from safetensors.torch import save_file  # noqa: E402

from benchmarks import torch_networks  # noqa: E402

# What PyTorch and transformers warn of is not ours.
pytestmark = [pytest.mark.parity, pytest.mark.filterwarnings("ignore")]
PLAIN = models.Preprocessing(mean=(0.0,), std=(1.0,))
NUM_CLASSES = 7


def images_of(side, seed=0):
  shape = (1, side, side, 3)
  return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def in_torch(images):
  return torch.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2)))


def ours(checkpoint, images):
  """Logits and features of images that are already prepared."""
  model = pretrained.with_options(checkpoint.model, preprocessing=PLAIN)

  @jax.jit
  def run(variables, images):
    output = model.apply(variables, images, train=False)
    return output.logits, output.features

  return run(checkpoint.variables, images)


def assert_equal(actual, expected):
  """Relative to the largest value, since logits may be near zero."""
  expected = np.asarray(expected)
  assert actual.shape == expected.shape
  error = np.abs(np.asarray(actual) - expected).max() / np.abs(expected).max()
  assert error < 1e-4


def _resnet(kind, depths):
  sizes = [64, 128, 256, 512] if kind == "basic" else [256, 512, 1024, 2048]
  config = transformers.ResNetConfig(
    layer_type=kind, depths=depths, hidden_sizes=sizes, num_labels=NUM_CLASSES
  )
  return transformers.ResNetForImageClassification(config)


def _mobilenet(tf_padding):
  config = transformers.MobileNetV2Config(
    tf_padding=tf_padding, num_labels=NUM_CLASSES
  )
  return transformers.MobileNetV2ForImageClassification(config)


def _efficientnet():
  config = transformers.EfficientNetConfig(
    width_coefficient=1.0,
    depth_coefficient=1.0,
    hidden_dim=1280,
    num_labels=NUM_CLASSES,
  )
  return transformers.EfficientNetForImageClassification(config)


def _vit():
  config = transformers.ViTConfig(num_labels=NUM_CLASSES)
  return transformers.ViTForImageClassification(config)


# Smaller than the published ones, whose files have the same layout.
_SMALL = {
  **{"hidden_size": 48, "num_hidden_layers": 4, "num_attention_heads": 3},
}


def _dinov2(head):
  config = transformers.Dinov2Config(
    **_SMALL, image_size=518, num_labels=NUM_CLASSES
  )
  if not head:
    return transformers.Dinov2Model(config)
  return transformers.Dinov2ForImageClassification(config)


def _clip(kind):
  tower = {
    **{**_SMALL, "intermediate_size": 96, "patch_size": 16},
    "projection_dim": 20,
  }
  if kind == "whole":
    text = {**_SMALL, "intermediate_size": 96, "vocab_size": 50}
    return transformers.CLIPModel(
      transformers.CLIPConfig(
        vision_config=tower, text_config=text, projection_dim=20
      )
    )
  config = transformers.CLIPVisionConfig(**tower)
  if kind == "projection":
    return transformers.CLIPVisionModelWithProjection(config)
  return transformers.CLIPVisionModel(config)


QUARTERS = (1, 2, 3, 4)
# Name -> (PyTorch's model, registered name, which of its hidden states the
# stages are).
PUBLISHED = {
  "resnet18": (
    lambda: _resnet("basic", [2, 2, 2, 2]),
    "resnet18",
    QUARTERS,
  ),
  "resnet34": (lambda: _resnet("basic", [3, 4, 6, 3]), "resnet34", QUARTERS),
  "resnet50": (
    lambda: _resnet("bottleneck", [3, 4, 6, 3]),
    "resnet50",
    QUARTERS,
  ),
  "mobilenet_v2 same": (
    lambda: _mobilenet(True),
    "mobilenet_v2",
    (1, 4, 11, 15),
  ),
  "mobilenet_v2 torch": (
    lambda: _mobilenet(False),
    "mobilenet_v2",
    (1, 4, 11, 15),
  ),
  "efficientnet_b0": (_efficientnet, "efficientnet_b0", (3, 5, 11, 16)),
  "vit_base_patch16": (_vit, "vit_base_patch16", (3, 6, 9, 12)),
  "dinov2": (
    lambda: _dinov2(head=True),
    "dinov2_vit_small_patch14",
    QUARTERS,
  ),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_transformers_checkpoints_give_the_same_numbers(name, tmp_path):
  make, registered, hidden = PUBLISHED[name]
  network = torch_networks.randomise(make())
  network.save_pretrained(tmp_path)
  checkpoint = pretrained.load_pretrained(tmp_path)
  assert checkpoint.model.name == registered
  for side in (224, 193):
    images = images_of(side)
    options = {"interpolate_pos_encoding": True} if "vit" in name else {}
    with torch.no_grad():
      expected = network(in_torch(images), output_hidden_states=True, **options)
    logits, features = ours(checkpoint, images)
    assert_equal(logits, expected.logits)
    *stages, _ = checkpoint.model.stages
    for stage, index in zip(stages, hidden, strict=True):
      state = expected.hidden_states[index].numpy()
      if state.ndim == 4:
        state = state.transpose(0, 2, 3, 1)
      assert_equal(features[stage], state)


@pytest.mark.parametrize("name", PUBLISHED)
def test_exported_again_the_tensors_are_the_same_bit_for_bit(name, tmp_path):
  network = torch_networks.randomise(PUBLISHED[name][0]())
  network.save_pretrained(tmp_path / "theirs")
  checkpoint = pretrained.load_pretrained(tmp_path / "theirs")
  names = [str(label) for label in range(NUM_CLASSES)]
  export.to_transformers(checkpoint, tmp_path / "ours", names)
  theirs, ours = (
    safetensors.numpy.load_file(tmp_path / folder / "model.safetensors")
    for folder in ("theirs", "ours")
  )
  # What masked patches become in DINOv2's own training is not kept.
  theirs.pop("dinov2.embeddings.mask_token", None)
  assert ours.keys() == theirs.keys()
  for tensor, value in theirs.items():
    assert ours[tensor].dtype == value.dtype
    np.testing.assert_array_equal(ours[tensor], value)


@pytest.mark.parametrize("kind", ["whole", "projection", "tower"])
def test_clip_gives_the_same_image_embeddings(kind, tmp_path):
  network = torch_networks.randomise(_clip(kind))
  network.save_pretrained(tmp_path)
  checkpoint = pretrained.load_pretrained(tmp_path)
  assert checkpoint.model.name == "clip_vit_base_patch16"
  for side in (224, 193):
    images = images_of(side)
    options = {"interpolate_pos_encoding": True}
    with torch.no_grad():
      if kind == "whole":
        output = network.get_image_features(in_torch(images), **options)
        expected = getattr(output, "pooler_output", output)
      else:
        output = network(in_torch(images), **options)
        expected = (
          output.image_embeds if kind == "projection" else output.pooler_output
        )
    logits, features = ours(checkpoint, images)
    assert logits is None
    assert_equal(features["embedding"], expected)


def test_dinov2_without_head_gives_the_same_tokens(tmp_path):
  network = torch_networks.randomise(_dinov2(head=False))
  network.save_pretrained(tmp_path)
  checkpoint = pretrained.load_pretrained(tmp_path)
  images = images_of(70)
  with torch.no_grad():
    tokens = network(in_torch(images)).last_hidden_state
  logits, features = ours(checkpoint, images)
  assert logits is None
  expected = torch.cat([tokens[:, 0], tokens[:, 1:].mean(1)], 1)
  assert_equal(features["embedding"], expected)


def test_paddings_differ(tmp_path):
  """Else the comparisons above could not tell them apart."""
  network = torch_networks.randomise(_mobilenet(True))
  network.save_pretrained(tmp_path)
  checkpoint = pretrained.load_pretrained(tmp_path)
  model = pretrained.with_options(checkpoint.model, padding="torch")
  images = images_of(64)
  logits, _ = ours(checkpoint, images)
  other, _ = ours(
    pretrained.Pretrained(model, checkpoint.variables, (64, 64, 3)), images
  )
  assert np.abs(logits - other).max() > 0.01 * np.abs(logits).max()


def _timm(architecture, side=224):
  return {
    "architecture": architecture,
    "num_classes": NUM_CLASSES,
    "pretrained_cfg": {
      "input_size": [3, side, side],
      "interpolation": "bicubic",
      "mean": [0.485, 0.456, 0.406],
      "std": [0.229, 0.224, 0.225],
    },
  }


_MOBILENET_GROUPS = [
  *[(1, 16, 1, 1, 3), (6, 24, 2, 2, 3), (6, 32, 3, 2, 3), (6, 64, 4, 2, 3)],
  *[(6, 96, 3, 1, 3), (6, 160, 3, 2, 3), (6, 320, 1, 1, 3)],
]
_EFFICIENTNET_GROUPS = [
  *[(1, 16, 1, 1, 3), (6, 24, 2, 2, 3), (6, 40, 2, 2, 5), (6, 80, 3, 2, 3)],
  *[(6, 112, 3, 1, 5), (6, 192, 4, 2, 5), (6, 320, 1, 1, 3)],
]


def _inverted(groups, **options):
  return torch_networks.InvertedResiduals(NUM_CLASSES, groups, **options)


def _tf_efficientnet():
  return _inverted(
    _EFFICIENTNET_GROUPS,
    se=True,
    act=torch.nn.functional.silu,
    epsilon=1e-3,
    same=True,
  )


TIMM = {
  "resnet18": lambda: torch_networks.ResNet(NUM_CLASSES, (2, 2, 2, 2), False),
  "resnet50": lambda: torch_networks.ResNet(NUM_CLASSES, (3, 4, 6, 3), True),
  "mobilenetv2_100": lambda: _inverted(
    _MOBILENET_GROUPS, se=False, act=torch.nn.functional.relu6
  ),
  "efficientnet_b0": lambda: _inverted(
    _EFFICIENTNET_GROUPS, se=True, act=torch.nn.functional.silu
  ),
  "tf_efficientnet_b0": _tf_efficientnet,
  "vit_small_patch16_224": lambda: torch_networks.VisionTransformer(
    NUM_CLASSES, width=384, depth=12, heads=6
  ),
}


@pytest.mark.parametrize("architecture", TIMM)
def test_timm_checkpoints_give_the_same_numbers(architecture, tmp_path):
  network = torch_networks.randomise(TIMM[architecture]())
  save_file(network.state_dict(), tmp_path / "model.safetensors")
  (tmp_path / "config.json").write_text(json.dumps(_timm(architecture)))
  checkpoint = pretrained.load_pretrained(tmp_path)
  assert checkpoint.model.preprocessing == models.Preprocessing(
    (0.485, 0.456, 0.406), (0.229, 0.224, 0.225), 224, "cubic"
  )
  for side in (224,) if "vit" in architecture else (64, 75):
    images = images_of(side)
    with torch.no_grad():
      expected = network(in_torch(images))
    assert_equal(ours(checkpoint, images)[0], expected)


def test_timms_dinov2_gives_the_same_class_token(tmp_path):
  network = torch_networks.VisionTransformer(
    0, width=384, depth=12, heads=6, patch=14, side=518, dinov2=True
  )
  torch_networks.randomise(network)
  save_file(network.state_dict(), tmp_path / "model.safetensors")
  config = {**_timm("vit_small_patch14_dinov2", 518), "num_classes": 0}
  (tmp_path / "config.json").write_text(json.dumps(config))
  checkpoint = pretrained.load_pretrained(tmp_path)
  images = images_of(518)
  with torch.no_grad():
    expected = network(in_torch(images))
  logits, features = ours(checkpoint, images)
  assert logits is None
  assert_equal(features["embedding"], expected)


# Registered name -> PyTorch's network; found by the tensors alone.
TORCHVISION = {
  "resnet34": lambda: torch_networks.ResNet(NUM_CLASSES, (3, 4, 6, 3), False),
  "resnet50": lambda: torch_networks.ResNet(NUM_CLASSES, (3, 4, 6, 3), True),
  "cifar_resnet18": lambda: torch_networks.ResNet(
    NUM_CLASSES, (2, 2, 2, 2), False, small_images=True
  ),
  "cifar_resnet_narrow50": lambda: torch_networks.ResNet(
    NUM_CLASSES, (8, 8, 8), True, width=16, small_images=True
  ),
}


@pytest.mark.parametrize("name", TORCHVISION)
def test_torchvision_state_dicts_give_the_same_numbers(name, tmp_path):
  network = torch_networks.randomise(TORCHVISION[name]())
  path = tmp_path / "weights.pth"
  torch.save(network.state_dict(), path)
  checkpoint = pretrained.load_pretrained(path)
  assert checkpoint.model.name == name
  images = images_of(40)
  with torch.no_grad():
    expected = network(in_torch(images))
  assert_equal(ours(checkpoint, images)[0], expected)


def test_batch_norm_trains_as_in_pytorch():
  """Output, gradient and running statistics of three steps."""
  theirs = torch.nn.BatchNorm2d(5)
  torch_networks.randomise(theirs).train()
  norm = layers.BatchNorm(train=True)
  variables = {
    "params": {
      "scale": theirs.weight.detach().numpy(),
      "bias": theirs.bias.detach().numpy(),
    },
    "batch_stats": {
      "mean": theirs.running_mean.numpy().copy(),
      "var": theirs.running_var.numpy().copy(),
    },
  }
  for seed in range(3):
    images = 2 + 3 * np.random.default_rng(seed).normal(size=(2, 3, 4, 5))
    images = images.astype(np.float32)

    def loss(images, params, variables=variables):
      output, updated = norm.apply(
        {**variables, "params": params}, images, mutable=["batch_stats"]
      )
      return (output**3).sum(), (output, updated)

    (grad, param_grads), (output, updated) = jax.grad(loss, (0, 1), True)(
      jnp.asarray(images), variables["params"]
    )
    theirs.zero_grad()
    inputs = in_torch(images).requires_grad_()
    expected = theirs(inputs)
    (expected**3).sum().backward()
    assert_equal(output, expected.detach().permute(0, 2, 3, 1).numpy())
    assert_equal(grad, inputs.grad.permute(0, 2, 3, 1).numpy())
    assert_equal(param_grads["scale"], theirs.weight.grad.numpy())
    assert_equal(param_grads["bias"], theirs.bias.grad.numpy())
    variables = {**variables, **updated}
    for name, value in updated["batch_stats"].items():
      assert_equal(value, getattr(theirs, f"running_{name}").numpy())


def test_position_embeddings_are_resampled_as_in_pytorch():
  from synguide_jax.models import vit

  positions = np.random.default_rng(0).normal(size=(26, 3)).astype(np.float32)
  patches = torch.from_numpy(positions[1:].reshape(1, 5, 5, 3))
  for grid in ((8, 3), (5, 5), (11, 12)):
    expected = torch.nn.functional.interpolate(
      patches.permute(0, 3, 1, 2), grid, mode="bicubic", align_corners=False
    )
    expected = expected.permute(0, 2, 3, 1).reshape(-1, 3).numpy()
    actual = vit.resample_positions(jnp.asarray(positions), grid)
    assert_equal(actual, np.concatenate([positions[:1], expected]))


def test_hub_images_are_prepared_as_by_transformers():
  """Up to rounding to 256 levels, which their processor does in between."""
  config = {
    "image_processor_type": "ViTImageProcessor",
    "size": {"height": 40, "width": 40},
    "resample": 3,
    "image_mean": [0.4, 0.5, 0.6],
    "image_std": [0.2, 0.25, 0.3],
  }
  from synguide_jax.models import processors

  processor = transformers.ViTImageProcessor(
    **{k: v for k, v in config.items() if k != "image_processor_type"}
  )
  prepare = processors.from_transformers(config, "it")
  random = np.random.default_rng(0)
  for side in (16, 90):
    images = random.integers(0, 256, (1, side, side, 3), np.uint8)
    expected = processor(images[0], return_tensors="np")["pixel_values"]
    actual = prepare(jnp.asarray(images / np.float32(255)))
    np.testing.assert_allclose(
      actual, expected.transpose(0, 2, 3, 1), atol=2 / 255 / 0.2
    )
