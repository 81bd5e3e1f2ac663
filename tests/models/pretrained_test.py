"""Checkpoints: where they may lie, and what may be wrong with them."""

import json
from pathlib import Path
import pickle
import re
import shutil
import sys

from huggingface_hub import constants
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

from benchmarks import linear_probe
from synguide_jax import models
from synguide_jax.errors import UserError
from synguide_jax.models import export, namings, pretrained
from tests import hub_layout, shared

KEY = jax.random.key(0)


def init(model, side=32, key=KEY):
  channels = model.options["channels"]
  return jax.jit(model.init)(key, jnp.zeros((1, side, side, channels)))


@pytest.fixture(scope="module")
def network():
  """A small ResNet as transformers has them."""
  model = models.create(
    "resnet18", num_classes=3, width=8, preprocessing=models.Preprocessing()
  )
  return pretrained.Pretrained(model, init(model), (32, 32, 3))


@pytest.fixture
def folder(network, tmp_path):
  """It as a folder in the hub's layout."""
  folder = tmp_path / "published"
  export.to_transformers(network, folder, ("a", "b", "c"))
  return folder


def edit(path, **fields):
  path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


def edit_tensors(path, change):
  tensors = safetensors.numpy.load_file(path)
  change(tensors)
  safetensors.numpy.save_file(tensors, path, metadata={"format": "pt"})


def assert_trees_equal(actual, expected):
  jax.tree.map(np.testing.assert_array_equal, actual, expected)


def test_own_checkpoints_are_loaded_bit_for_bit(tmp_path):
  model = models.create(
    "cifar_resnet18",
    num_classes=3,
    width=8,
    preprocessing=models.Preprocessing(mean=(0.1, 0.2, 0.3), size=16),
  )
  variables = init(model)
  pretrained.save_pretrained(tmp_path / "net", model, variables, (16, 16, 3))
  loaded = pretrained.load_pretrained(tmp_path / "net")
  assert loaded.model == model
  assert_trees_equal(loaded.variables, variables)


def test_a_folder_of_the_hub_is_loaded_bit_for_bit(network, folder):
  loaded = pretrained.load_pretrained(folder)
  assert loaded.model.name == "resnet18"
  assert loaded.model.options == {**network.model.options, "width": 8}
  assert_trees_equal(loaded.variables, network.variables)
  # Images of the side that it was trained on.
  assert loaded.model.preprocessing.size == 32


def test_float16_is_widened(network, folder):
  def halve(tensors):
    for name, tensor in tensors.items():
      if tensor.dtype == np.float32:
        tensors[name] = tensor.astype(np.float16)

  edit_tensors(folder / "model.safetensors", halve)
  loaded = pretrained.load_pretrained(folder)
  assert {x.dtype for x in jax.tree.leaves(loaded.variables)} == {
    np.dtype(np.float32)
  }
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-6),
    *(loaded.variables, network.variables),
  )


def test_compute_type_and_image_size_are_arguments(folder):
  loaded = pretrained.load_pretrained(folder, dtype="bfloat16", image_size=16)
  output = loaded.model.apply(
    loaded.variables, jnp.zeros((1, 40, 40, 3)), train=False
  )
  assert output.features["stage1"].shape == (1, 4, 4, 8)
  assert output.features["stage1"].dtype == jnp.bfloat16
  assert output.logits.dtype == jnp.float32


def test_a_repository_is_read_from_the_hubs_cache(
  folder, tmp_path, monkeypatch
):
  """In the layout that huggingface_hub leaves, without network."""
  cache = tmp_path / "hub"
  monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
  monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
  contents = {file.name: file.read_bytes() for file in folder.iterdir()}
  hub_layout.store(cache, "someone/net", contents)
  loaded = pretrained.load_pretrained("hf:someone/net")
  expected = pretrained.load_pretrained(folder)
  assert loaded.model == expected.model
  assert_trees_equal(loaded.variables, expected.variables)
  with pytest.raises(UserError, match="someone/other.*hub.*cache"):
    pretrained.load_pretrained("hf:someone/other")


def test_a_resnets_file_alone_is_recognised_by_its_tensors(folder, tmp_path):
  model = models.create(
    "cifar_resnet_narrow50",
    num_classes=4,
    preprocessing=models.MODELS["cifar_resnet_narrow50"].preprocessing,
  )
  network = pretrained.Pretrained(model, init(model), (32, 32, 3))
  export.to_torchvision(network, tmp_path / "net", ("a", "b", "c", "d"))
  loaded = pretrained.load_pretrained(tmp_path / "net" / "model.safetensors")
  assert loaded.model == model
  assert_trees_equal(loaded.variables, network.variables)
  # Nothing but its config says that this one is narrower than the original.
  alone = tmp_path / "alone.safetensors"
  shutil.copy(folder / "model.safetensors", alone)
  with pytest.raises(
    UserError, match="does not hold a resnet18.*another shape"
  ):
    pretrained.load_pretrained(alone)


def test_a_file_beside_its_config_is_read_with_it(folder):
  loaded = pretrained.load_pretrained(folder / "model.safetensors")
  assert loaded.model == pretrained.load_pretrained(folder).model


def test_files_alone_that_do_not_tell_their_padding_are_refused(tmp_path):
  model = models.create("mobilenet_v2", num_classes=2, width=0.5)
  shapes = jax.eval_shape(model.init, KEY, jnp.zeros((1, 32, 32, 3)))
  for naming in namings.namings(model).values():
    tensors = {
      name: np.zeros(shape, np.float32)
      for name, shape in namings.tensor_shapes(shapes, naming).items()
    }
    path = tmp_path / f"{naming.library}.safetensors"
    safetensors.numpy.save_file(tensors, path)
    with pytest.raises(UserError, match="no ResNet.*config.json"):
      pretrained.load_pretrained(path)


def test_grey_checkpoints_have_grey_defaults(tmp_path, caplog):
  model = models.create("resnet18", num_classes=2, channels=1, width=8)
  network = pretrained.Pretrained(model, init(model), (32, 32, 1))
  export.to_transformers(network, tmp_path, ("a", "b"))
  (tmp_path / "preprocessor_config.json").unlink()
  loaded = pretrained.load_pretrained(tmp_path).model
  assert loaded.options["channels"] == 1
  np.testing.assert_allclose(loaded.preprocessing.mean, [0.449], atol=1e-6)


def test_a_new_head_replaces_the_old_one_only(network):
  changed = network.with_head(5, jax.random.key(1))
  assert changed.model.options["num_classes"] == 5
  for name, value in changed.variables["params"].items():
    if name == "head":
      assert value["kernel"].shape == (64, 5)
    else:
      assert_trees_equal(value, network.variables["params"][name])


def test_another_network_is_not_given_a_head(network):
  wide = models.create("resnet18", num_classes=5, width=16)
  fresh = jax.eval_shape(wide.init, KEY, jnp.zeros((1, 32, 32, 3)))
  with pytest.raises(UserError, match="stage1_block0/norm1/mean"):
    pretrained.replace_head(network.variables, fresh)


def test_every_tensor_is_accounted_for(folder):
  weights = folder / "model.safetensors"
  head = "classifier.1.weight"
  conv = "resnet.embedder.embedder.convolution.weight"

  def change(tensors):
    tensors["extra.weight"] = tensors.pop(conv)

  edit_tensors(weights, change)
  with pytest.raises(
    UserError, match=rf"missing: {conv}; unexpected: extra\.weight"
  ):
    pretrained.load_pretrained(folder)

  def change(tensors):
    tensors[conv] = tensors.pop("extra.weight")[:, :1].copy()

  edit_tensors(weights, change)
  with pytest.raises(
    UserError, match=rf"{conv} \(8, 1, 7, 7\) instead of \(8, 3, 7, 7\)"
  ):
    pretrained.load_pretrained(folder)

  def change(tensors):
    tensors[head] = np.zeros((9, 64), np.float32)

  edit_tensors(weights, change)
  with pytest.raises(UserError, match="head for 9 classes.*says 3"):
    pretrained.load_pretrained(folder)

  def change(tensors):
    del tensors[head], tensors["classifier.1.bias"]

  edit_tensors(weights, change)
  with pytest.raises(UserError, match="has no head, but .* says it has one"):
    pretrained.load_pretrained(folder)


def test_without_preprocessor_config_the_usual_is_taken_and_said(
  folder, caplog
):
  (folder / "preprocessor_config.json").unlink()
  loaded = pretrained.load_pretrained(folder)
  assert loaded.model.preprocessing == models.MODELS["resnet18"].preprocessing
  assert "does not say how its images were prepared" in caplog.text


@pytest.mark.parametrize(
  "fields,expected",
  [
    # What the published repositories of ResNet, ViT, MobileNetV2, CLIP,
    # EfficientNet and a network of Apple's say.
    (
      {"size": {"shortest_edge": 224}, "crop_pct": 0.875, "resample": 3},
      models.Preprocessing((0.4,), (0.2,), 224, "cubic"),
    ),
    ({"size": 384}, models.Preprocessing((0.4,), (0.2,), 384)),
    (
      {
        "size": {"shortest_edge": 256},
        "do_center_crop": True,
        "crop_size": {"height": 224, "width": 224},
      },
      models.Preprocessing((0.4,), (0.2,), 224),
    ),
    (
      {"size": 260, "include_top": True, "resample": 0},
      models.Preprocessing((0.4,), (0.04,), 260, "nearest"),
    ),
    (
      {"size": 8, "rescale_factor": 1 / 127.5, "rescale_offset": True},
      models.Preprocessing((0.7,), (0.1,), 8),
    ),
    (
      {"size": 8, "do_normalize": False, "do_flip_channel_order": True},
      models.Preprocessing((0.0,), (1.0,), 8, channel_order="BGR"),
    ),
    ({"do_resize": False}, models.Preprocessing((0.4,), (0.2,))),
  ],
)
def test_preprocessor_configs_of_the_hub(folder, fields, expected):
  path = folder / "preprocessor_config.json"
  path.write_text(
    json.dumps({"image_mean": [0.4], "image_std": [0.2], **fields})
  )
  assert pretrained.load_pretrained(folder).model.preprocessing == expected


def test_unsupported_fields_are_errors(folder):
  config = folder / "config.json"
  text = config.read_text()
  for fields, message in (
    ({"model_type": "swin"}, "model_type='swin'.*resnet"),
    ({"hidden_act": "gelu"}, "hidden_act='gelu'"),
    ({"downsample_in_bottleneck": True}, "downsample_in_bottleneck"),
    ({"hidden_sizes": [8, 16, 32, 65]}, "hidden_sizes"),
    ({"model_type": None}, "model_type"),
  ):
    edit(config, **fields)
    with pytest.raises(UserError, match=message):
      pretrained.load_pretrained(folder)
    config.write_text(text)
  contents = json.loads(text)
  del contents["depths"]
  config.write_text(json.dumps(contents))
  with pytest.raises(UserError, match="config.json.*depths"):
    pretrained.load_pretrained(folder)
  for fields, message in (
    ({"id2label": 3}, "config.json lacks or garbles"),
    ({"model_type": ["resnet"]}, "config.json lacks or garbles"),
    ({"num_channels": 2}, "channels=2"),
    ({"layer_type": "deep"}, "layer_type='deep'"),
    (
      {"model_type": "clip", "vision_config": {"hidden_act": "x"}},
      "hidden_act",
    ),
  ):
    config.write_text(text)
    edit(config, **fields)
    with pytest.raises(UserError, match=message):
      pretrained.load_pretrained(folder)
  config.write_text(text)
  processor = folder / "preprocessor_config.json"
  good = processor.read_text()
  for fields, message in (
    ({"image_mean": None}, "preprocessor_config.json lacks or garbles"),
    ({"image_mean": ["a"]}, "preprocessor_config.json lacks or garbles"),
    ({"rescale_factor": None}, "preprocessor_config.json lacks or garbles"),
    ({"rescale_factor": 0}, "preprocessor_config.json lacks or garbles"),
    ({"image_std": [0.0]}, "std=.* must not be 0"),
    ({"resample": 5}, "resample=5"),
    ({"size": {"height": 3, "width": 4}}, "size of images"),
    ({"size": -5}, "size=-5"),
    ({"image_mean": [0.1, 0.2]}, "2 values of mean"),
  ):
    processor.write_text(good)
    edit(processor, **fields)
    with pytest.raises(UserError, match=message):
      pretrained.load_pretrained(folder)
  processor.write_text(good)
  with pytest.raises(UserError, match="size=-1"):
    pretrained.load_pretrained(folder, image_size=-1)
  config.write_text(json.dumps({"architecture": "convnext_tiny"}))
  with pytest.raises(UserError, match="architecture='convnext_tiny'"):
    pretrained.load_pretrained(folder)
  config.write_text("{}")
  with pytest.raises(UserError, match="neither model_type"):
    pretrained.load_pretrained(folder)
  config.write_text("[")
  with pytest.raises(UserError, match="config.json cannot be read"):
    pretrained.load_pretrained(folder)


def test_damaged_and_hostile_files_are_named(folder, tmp_path):
  weights = folder / "model.safetensors"
  whole = weights.read_bytes()
  weights.write_bytes(whole[: len(whole) // 2])
  with pytest.raises(UserError, match="model.safetensors is not a whole"):
    pretrained.load_pretrained(folder)
  weights.write_bytes(pickle.dumps({"classifier.1.weight": [1.0]}))
  with pytest.raises(UserError, match="model.safetensors is not a whole"):
    pretrained.load_pretrained(folder)
  weights.unlink()
  with pytest.raises(UserError, match="has no model.safetensors"):
    pretrained.load_pretrained(folder)
  with pytest.raises(UserError, match="nowhere"):
    pretrained.load_pretrained(tmp_path / "nowhere")
  other = tmp_path / "other.safetensors"
  safetensors.numpy.save_file({"some.weight": np.zeros(3)}, other)
  with pytest.raises(UserError, match="no ResNet.*some.weight"):
    pretrained.load_pretrained(other)


@pytest.mark.parity
def test_old_and_wrapped_files_of_pytorch_are_read(tmp_path):
  torch = pytest.importorskip("torch", reason="PyTorch is not installed")
  model = models.create("cifar_resnet_narrow50", num_classes=2)
  network = pretrained.Pretrained(model, init(model), (32, 32, 3))
  export.to_torchvision(network, tmp_path, ("a", "b"))
  tensors = safetensors.numpy.load_file(tmp_path / "model.safetensors")
  state = {
    # As torch.nn.DataParallel names them, and old files of torchvision.
    f"module.{name}": torch.nn.Parameter(torch.from_numpy(tensor))
    for name, tensor in tensors.items()
    if tensor.dtype == np.float32
  }
  path = tmp_path / "checkpoint.pth"
  torch.save({"net": state}, path, _use_new_zipfile_serialization=False)
  loaded = pretrained.load_pretrained(path)
  assert_trees_equal(loaded.variables, network.variables)
  torch.save({1: torch.zeros(2), 2: [3]}, path)
  with pytest.raises(UserError, match="checkpoint.pth is not a state dict"):
    pretrained.load_pretrained(path)


class _Hostile:
  def __reduce__(self):
    return (open, ("hacked", "w"))


@pytest.mark.parity
def test_a_pickle_is_never_executed(tmp_path):
  pytest.importorskip("torch", reason="PyTorch is not installed")
  path = tmp_path / "weights.pth"
  path.write_bytes(pickle.dumps({"conv1.weight": _Hostile()}))
  with pytest.raises(UserError, match="weights.pth.*weights_only=True"):
    pretrained.load_pretrained(path)
  assert not (tmp_path / "hacked").exists()


def test_without_pytorch_its_files_cannot_be_read(tmp_path, monkeypatch):
  monkeypatch.setitem(sys.modules, "torch", None)
  path = tmp_path / "weights.pth"
  path.write_bytes(b"")
  with pytest.raises(UserError, match="weights.pth needs PyTorch"):
    pretrained.load_pretrained(path)


def test_own_checkpoints_are_checked(tmp_path):
  model = models.create("small_cnn", num_classes=2, channels=1)
  other = models.create("small_cnn", num_classes=3, channels=1)
  pretrained.save_pretrained(tmp_path, model, init(other, 8), (8, 8, 1))
  with pytest.raises(UserError, match="params/head/bias"):
    pretrained.load_pretrained(tmp_path)
  edit(tmp_path / "config.json", options=None)
  with pytest.raises(UserError, match="config.json lacks or garbles"):
    pretrained.load_pretrained(tmp_path)


@pytest.mark.parametrize("name", models.MODELS)
def test_namings_have_a_name_for_every_tensor(name):
  num_classes = 0 if name.startswith("clip") else 2
  model = models.create(name, num_classes=num_classes)
  expected = jax.eval_shape(model.init, KEY, jnp.zeros((1, 32, 32, 3)))
  count = sum(x.size for x in jax.tree.leaves(expected))
  for naming in namings.namings(model).values():
    shapes = namings.tensor_shapes(expected, naming)
    assert sum(int(np.prod(shape)) for shape in shapes.values()) == count


def test_the_guides_example_runs(tmp_path):
  guide = Path(__file__).parents[2] / "docs" / "networks.md"
  (code,) = re.findall(
    r"^```python\n(.*?)^```$", guide.read_text(), re.M | re.S
  )
  spec = "hf:microsoft/resnet-50"
  assert spec in code
  model = models.create("resnet50", num_classes=3, width=8)
  network = pretrained.Pretrained(model, init(model), (224, 224, 3))
  export.to_transformers(network, tmp_path / "net", ("a", "b", "c"))
  names = {"images": jnp.zeros((1, 32, 32, 3))}
  exec(code.replace(spec, str(tmp_path / "net")), names)
  stage3 = names["output"].features["stage3"]
  # Of the original, which is eight times as wide.
  assert f"# [N, 14, 14, {8 * stage3.shape[-1]}]" in code
  assert stage3.shape[1:3] == (14, 14)


def test_real_mobilenet_v2_features_are_worth_more_than_random_ones():
  """benchmarks/linear_probe.py with 2,000 images and 96 px has 33 points."""
  root = shared.folder()
  checkpoint = pretrained.load_pretrained(
    root / "weights" / "mobilenet_v2_imagenet", image_size=64
  )
  model = checkpoint.model
  assert model.options["num_classes"] == 1001
  assert model.options["padding"] == "same"
  archive = root / "data" / "cifar10_jpeg.zip"
  sets = [
    linear_probe.cifar10_jpeg(archive, split, 30) for split in ("train", "test")
  ]
  published, random = (
    linear_probe.probe(model, variables, *sets)
    for variables in (checkpoint.variables, init(model))
  )
  assert published > random + 0.1
