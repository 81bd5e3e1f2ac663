"""Exported classifiers: what others load gives the same logits."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

from synguide_jax import models
from synguide_jax.errors import UserError
from synguide_jax.models import export, pretrained

KEY = jax.random.key(0)
NAMES = ("cat", "dog", "owl")
PREPROCESSING = models.Preprocessing((0.4, 0.5, 0.6), (0.2, 0.3, 0.4), 32)


def classifier(name, side=32, **options):
  """A network with random weights and running statistics."""
  model = models.create(
    name, num_classes=len(NAMES), preprocessing=PREPROCESSING, **options
  )
  images = jnp.zeros((1, side, side, 3))
  random = np.random.default_rng(0)

  def draw(path, leaf):
    if path[-1].key in ("scale", "var"):
      return random.uniform(0.5, 1.5, leaf.shape).astype(np.float32)
    fan_in = np.prod(leaf.shape[:-1]) if leaf.ndim > 1 else 25
    # So that the signal neither dies nor explodes, and images matter.
    std = (2 / fan_in) ** 0.5
    return (std * random.normal(size=leaf.shape)).astype(np.float32)

  shapes = jax.eval_shape(model.init, KEY, images)
  variables = jax.tree_util.tree_map_with_path(draw, shapes)
  return pretrained.Pretrained(model, variables, (side, side, 3))


CASES = {
  "resnet18": {"width": 8, "blocks": (1, 1, 1, 1)},
  "resnet50": {"width": 8, "blocks": (1, 1, 1, 1)},
  "mobilenet_v2": {"width": 0.35, "padding": "same", "epsilon": 1e-3},
  "efficientnet_b0": {"width": 0.5, "padding": "keras", "epsilon": 1e-3},
  "vit_small_patch16": {"depth": 4, "width": 24, "heads": 2, "mlp_width": 48},
  "dinov2_vit_small_patch14": {
    **{"depth": 4, "width": 24, "heads": 2, "mlp_width": 48},
    "image_size": 56,
  },
}


@pytest.mark.parametrize("name", CASES)
def test_transformers_loads_what_is_written_and_so_do_we(name, tmp_path):
  network = classifier(name, **CASES[name])
  export.to_transformers(network, tmp_path, NAMES)
  loaded = pretrained.load_pretrained(tmp_path)
  assert loaded.model.preprocessing == PREPROCESSING
  assert loaded.model.module == network.model.module
  jax.tree.map(
    np.testing.assert_array_equal, loaded.variables, network.variables
  )
  # And from there the same tensors again.
  export.to_transformers(loaded, tmp_path / "again", NAMES)
  first, again = (
    safetensors.numpy.load_file(folder / "model.safetensors")
    for folder in (tmp_path, tmp_path / "again")
  )
  assert first.keys() == again.keys()
  for tensor in first:
    np.testing.assert_array_equal(first[tensor], again[tensor])


@pytest.mark.parity
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", CASES)
def test_logits_in_pytorch_are_the_same(name, tmp_path):
  torch = pytest.importorskip("torch", reason="PyTorch is not installed")
  transformers = pytest.importorskip(
    "transformers", reason="transformers is not installed"
  )
  network = classifier(name, **CASES[name])
  export.to_transformers(network, tmp_path, NAMES)
  loaded, report = transformers.AutoModelForImageClassification.from_pretrained(
    tmp_path, output_loading_info=True
  )
  assert not any(report.values())
  assert loaded.config.id2label == dict(enumerate(NAMES))
  images = np.random.default_rng(1).integers(0, 256, (3, 32, 32, 3), np.uint8)
  processor = transformers.AutoImageProcessor.from_pretrained(tmp_path)
  prepared = processor(list(images), return_tensors="pt")["pixel_values"]
  options = {"interpolate_pos_encoding": True} if name[:3] == "vit" else {}
  with torch.no_grad():
    expected = loaded.eval()(prepared, **options).logits.numpy()
  actual = jax.jit(lambda v, x: network.model.apply(v, x, train=False).logits)(
    network.variables, images / np.float32(255)
  )
  scale = np.abs(expected).max()
  np.testing.assert_allclose(actual / scale, expected / scale, atol=1e-4)
  # What they have in common says little: so do their differences agree.
  actual, expected = (logits - logits.mean(0) for logits in (actual, expected))
  assert np.abs(expected).max() > 1e-3 * scale
  scale = np.abs(expected).max()
  np.testing.assert_allclose(actual / scale, expected / scale, atol=1e-2)


@pytest.mark.parity
def test_pytorchs_resnet_loads_the_state_dict(tmp_path):
  torch = pytest.importorskip("torch", reason="PyTorch is not installed")
  from safetensors.torch import load_file

  from benchmarks import torch_networks

  network = classifier("cifar_resnet_narrow50", blocks=(1, 2, 1))
  export.to_torchvision(network, tmp_path, NAMES)
  loaded = torch_networks.ResNet(
    3, (1, 2, 1), True, width=16, small_images=True
  )
  loaded.load_state_dict(load_file(tmp_path / "model.safetensors"))
  images = np.random.default_rng(1).random((2, 32, 32, 3), np.float32)
  prepared = np.array(PREPROCESSING(images))
  with torch.no_grad():
    expected = loaded.eval()(
      torch.from_numpy(prepared.transpose(0, 3, 1, 2))
    ).numpy()
  actual = jax.jit(lambda v, x: network.model.apply(v, x, train=False).logits)(
    network.variables, images
  )
  np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-4)
  with safetensors.safe_open(
    tmp_path / "model.safetensors", framework="numpy"
  ) as file:
    assert json.loads(file.metadata()["class_names"]) == list(NAMES)


def test_stablehlo_runs_any_batch_on_any_platform(tmp_path):
  network = classifier("resnet18", width=8, blocks=(1, 1))
  export.to_stablehlo(network, tmp_path, NAMES)
  contents = (tmp_path / "classifier.stablehlo").read_bytes()
  program = jax.export.deserialize(bytearray(contents))
  assert set(program.platforms) == {"cpu", "cuda", "tpu"}
  apply = jax.jit(
    lambda x: network.model.apply(network.variables, x, train=False)
  )
  for batch in (1, 3):
    images = np.random.default_rng(batch).random((batch, 32, 32, 3), np.float32)
    np.testing.assert_allclose(
      program.call(images), apply(images).logits, rtol=1e-4, atol=1e-4
    )
  assert json.loads((tmp_path / "config.json").read_text())["class_names"]


def test_formats_without_the_network_say_so(tmp_path):
  network = classifier("small_cnn")
  assert export.default_formats(network) == ("synguide_jax", "stablehlo")
  with pytest.raises(UserError, match="transformers has no .*small_cnn"):
    export.to_transformers(network, tmp_path / "a", NAMES)
  with pytest.raises(UserError, match="torchvision has no .*small_cnn"):
    export.to_torchvision(network, tmp_path / "b", NAMES)
  # Where transformers lacks a residual connection of the original.
  with pytest.raises(UserError, match="transformers has no .*mobilenet_v2"):
    export.to_transformers(
      classifier("mobilenet_v2", width=0.25), tmp_path / "c", NAMES
    )
  assert not list(tmp_path.iterdir())
  narrow = classifier("cifar_resnet_narrow50", blocks=(1, 1, 1))
  assert export.default_formats(narrow) == ("torchvision", "stablehlo")
  swapped = pretrained.Pretrained(
    pretrained.with_options(
      classifier("resnet18", width=8, blocks=(1,)).model,
      preprocessing=models.Preprocessing(channel_order="BGR"),
    ),
    {},
    (8, 8, 3),
  )
  with pytest.raises(UserError, match="BGR"):
    export.to_transformers(swapped, tmp_path / "c", NAMES)
