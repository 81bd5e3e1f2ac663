"""Tests of synguide_jax.synthesis.classifier."""

import dataclasses
import json
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from synguide_jax import models
from synguide_jax.data import prepared, records
from synguide_jax.errors import UserError
from synguide_jax.models import export
from synguide_jax.models.pretrained import Pretrained, save_pretrained
from synguide_jax.synthesis import classifier as classifier_lib
from synguide_jax.synthesis.classifier import Classifier, from_weights, predict

_NAMES = ("cat", "dog", "owl")
_SHAPE = (8, 8, 3)


class _Linear:
  """Stands in for a model: logits that NumPy computes as well."""

  def apply(self, variables, images, *, train):
    assert not train
    flat = images.reshape(len(images), -1)
    return types.SimpleNamespace(logits=flat @ variables["params"]["kernel"])


def _linear(kernel, side, read_size=None):
  variables = {"params": {"kernel": np.asarray(kernel, np.float32)}}
  network = Pretrained(_Linear(), variables, (side, side, 3))
  names = tuple(f"class {c}" for c in range(np.shape(kernel)[1]))
  return Classifier(network, names, read_size or side, {})


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
  """21 images, 10x10, colour."""
  folder = tmp_path_factory.mktemp("sets") / "synguide_test" / "a" / "1.0.0"
  images = np.random.default_rng(0).integers(0, 256, (21, 10, 10, 3), np.uint8)
  examples = [prepared.Example(image, 0) for image in images]
  prepared.write(folder, examples, ["a"], provenance={})
  return images, records.of_prepared(folder)["train"]


def _log_softmax(logits):
  shifted = logits - logits.max(1, keepdims=True)
  return shifted - np.log(np.exp(shifted).sum(1, keepdims=True))


# More and fewer than there are, and multiples of the eight devices.
@pytest.mark.parametrize("batch_size", [1, 5, 8, 16, 100])
def test_predict(stored, batch_size):
  images, found = stored
  kernel = np.random.default_rng(1).normal(size=(8 * 8 * 3, 4))
  # Read at ten pixels, seen at the eight in the middle.
  centre = images[:, 1:9, 1:9].reshape(21, -1) / 255
  log_probs = _log_softmax(centre @ kernel)
  labels = np.arange(21) % 5 - 1  # Every fifth has none.
  given = np.where(labels < 0, log_probs.argmax(1), labels)
  got = predict(_linear(kernel, 8, 10), found, labels, batch_size=batch_size)
  np.testing.assert_array_equal(got.labels, given)
  np.testing.assert_array_equal(got.predicted, log_probs.argmax(1))
  np.testing.assert_allclose(
    got.confidences, np.exp(log_probs.max(1)), rtol=1e-4
  )
  losses = -log_probs[np.arange(21), given]
  np.testing.assert_allclose(got.losses, losses, rtol=1e-4, atol=1e-5)
  assert {a.dtype.name for a in (got.confidences, got.losses)} == {"float32"}


def test_probabilities_that_are_not_finite_are_an_error(stored):
  _, found = stored
  with pytest.raises(UserError, match="21 of 21 images are not finite"):
    predict(_linear(np.full((300, 2), np.nan), 10), found, np.full(21, -1))


def test_a_checksum_is_of_the_weights():
  kernel = np.random.default_rng(1).normal(size=(12, 2))
  first, same = _linear(kernel, 2), _linear(kernel, 2, 3)
  assert first.checksum() == same.checksum()
  assert first.checksum() != _linear(kernel + 1e-3, 2).checksum()
  assert first.checksum() != _linear(kernel.reshape(6, 4), 2).checksum()


def _network(name, num_classes=3, **options):
  model = models.create(name, num_classes=num_classes, channels=3, **options)
  images = jnp.zeros((1, *_SHAPE))
  shapes = jax.eval_shape(model.init, jax.random.key(0), images)
  rng = np.random.default_rng(0)
  variables = jax.tree.map(
    lambda leaf: rng.random(leaf.shape, np.float32), shapes
  )
  return Pretrained(model, variables, _SHAPE)


def _small_resnet():
  return _network("resnet18", width=8, blocks=(1, 1, 1, 1))


def test_a_transformers_folder_names_its_classes(tmp_path):
  network = _small_resnet()
  export.to_transformers(network, tmp_path, _NAMES)
  found = from_weights(str(tmp_path))
  assert found.class_names == _NAMES
  assert found.origin == {"weights": str(tmp_path)}
  assert found.read_size == found.network.image_shape[0] == 8
  assert from_weights(str(tmp_path / "model.safetensors")).class_names == _NAMES
  np.testing.assert_array_equal(
    found.network.variables["params"]["head"]["bias"],
    network.variables["params"]["head"]["bias"],
  )
  # Two of ImageNet's classes are called "crane".
  config = json.loads((tmp_path / "config.json").read_text())
  config["id2label"] = {"2": "owl", "0": "crane", "1": "crane"}
  (tmp_path / "config.json").write_text(json.dumps(config))
  names = from_weights(str(tmp_path)).class_names
  assert names == ("crane (0)", "crane (1)", "owl")


def test_a_torchvision_file_of_ours_names_its_classes(tmp_path):
  export.to_torchvision(_network("cifar_resnet18"), tmp_path, _NAMES)
  found = from_weights(str(tmp_path / "model.safetensors"))
  assert found.class_names == _NAMES


def test_a_folder_of_ours_can_be_given_names(tmp_path):
  network = _network("small_cnn")
  arguments = dataclasses.asdict(network) | {"model": network.model}
  save_pretrained(tmp_path, **arguments)
  config = json.loads((tmp_path / "config.json").read_text())
  for names in ({}, {"id2label": {"0": "cat", "1": "dog"}}):
    (tmp_path / "config.json").write_text(json.dumps({**config, **names}))
    with pytest.raises(UserError, match="3 classes and names [02].*id2label"):
      from_weights(str(tmp_path))
  names = {"id2label": dict(enumerate(_NAMES))}
  (tmp_path / "config.json").write_text(json.dumps({**config, **names}))
  assert from_weights(str(tmp_path)).class_names == _NAMES


def test_a_network_without_a_head_is_no_classifier(tmp_path):
  network = _network("small_cnn", num_classes=0)
  arguments = dataclasses.asdict(network) | {"model": network.model}
  save_pretrained(tmp_path, **arguments)
  with pytest.raises(UserError, match="has no head"):
    from_weights(str(tmp_path))


def test_what_is_no_classifier(tmp_path):
  (tmp_path / "work" / "checkpoints").mkdir(parents=True)
  with pytest.raises(UserError, match="work' is a workdir that is not finish"):
    from_weights(str(tmp_path / "work"))
  with pytest.raises(UserError, match="'gs://b/net' is not a local folder"):
    from_weights("gs://b/net")
  for spec in ("random", "train:configs/digits_lowshot.py"):
    with pytest.raises(UserError, match=f"{spec} is neither a folder nor"):
      from_weights(spec)


@pytest.mark.parametrize(("store_size", "read"), [(10, 10), (0, 8)])
def test_images_are_read_as_a_workdir_says(tmp_path, store_size, read):
  config = {"data": {"store_size": store_size, "image_size": 8}}
  (tmp_path / "config.json").write_text(json.dumps(config))
  results = {"data": {"class_names": list(_NAMES)}}
  network = _linear(np.zeros((8 * 8 * 3, 3)), 8).network
  found = classifier_lib.from_workdir(tmp_path, results, 2, network)
  origin = {"workdir": str(tmp_path), "run": 2}
  assert found == Classifier(network, _NAMES, read, origin)


def test_a_hub_repository_names_its_classes(tmp_path, monkeypatch):
  import huggingface_hub

  export.to_transformers(_small_resnet(), tmp_path, _NAMES)
  asked = []

  def snapshot_download(repository, **_):
    return str(tmp_path)

  def hf_hub_download(repository, file, *, revision, local_files_only):
    asked.append((repository, file, revision, local_files_only))
    return str(tmp_path / file)

  monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
  monkeypatch.setattr(huggingface_hub, "hf_hub_download", hf_hub_download)
  found = classifier_lib.from_weights("hf:some/net@v2")
  assert found.class_names == _NAMES
  assert asked == [("some/net", "config.json", "v2", True)]
