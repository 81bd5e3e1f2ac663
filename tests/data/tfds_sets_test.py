"""Sets of tfds are found, or prepared, and read without TensorFlow."""

import os
from pathlib import Path
import shutil

import filelock
import numpy as np
import pytest

from synguide_jax.data import experiment_data, sources, tfds_sets
from synguide_jax.errors import UserError
from tests import pictures, tiny


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
  monkeypatch.setenv("SYNGUIDE_CACHE", str(tmp_path / "cache"))
  return tmp_path / "cache"


@pytest.fixture
def tfds_data_dir(tmp_path, monkeypatch):
  monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "tfds"))
  return tmp_path / "tfds"


def test_sets_are_read_without_tensorflow(tfds_data_dir, tmp_path):
  images = [pictures.pixels(32, 32) for _ in range(12)]
  labels = [(7 * i) % 10 for i in range(12)]
  splits = {"train": (images, labels), "test": (images[:4], labels[:4])}
  pictures.store(tfds_data_dir, "cifar10", splits)
  contents = {f"cat/{i}.png": pictures.encode() for i in range(4)}
  root = pictures.write(tmp_path / "pets", contents)
  sources.open_set(f"folder:{root}")
  code = """
    import sys
    from synguide_jax.data import sources
    heavy = {"tensorflow", "tensorflow_datasets", "array_record", "grain"}
    assert not heavy & set(sys.modules), heavy & set(sys.modules)
    import numpy as np
    from synguide_jax.data.pixels import Pixels
    for name in ("cifar10", "cifar10:3.0.2"):
      found = sources.open_set(f"tfds:{name}")
      assert set(found.splits) == {"train", "test"}
    train, test = found.splits["train"], found.splits["test"]
    rows = np.arange(12)[::-1]
    np.savez(
      sys.argv[1],
      names=found.class_names,
      images=Pixels([(train, rows), (test, rows[-4:])], 32, 3).read(),
      labels=train.index.labels,
      test=Pixels([(test, rows[-4:])], 32, 3).read(),
    )
    assert len(sources.open_set(sys.argv[2]).splits["train"].index) == 4
    assert "tensorflow" not in sys.modules
  """
  file = tfds_data_dir / "read.npz"
  process = pictures.python(code, str(file), f"folder:{root}")
  process.communicate()
  assert process.returncode == 0
  with np.load(file) as read:
    np.testing.assert_array_equal(read["images"][:12], images[::-1])
    np.testing.assert_array_equal(read["images"][12:], images[3::-1])
    np.testing.assert_array_equal(read["labels"], labels)
    assert read["names"].tolist() == pictures.CIFAR10


def test_a_split_without_labels_is_for_the_labeler(tfds_data_dir):
  # As the test split of ImageNet.
  images = [pictures.pixels(32, 32) for _ in range(20)]
  splits = {"train": (images, [*range(10)] * 2), "test": (images, [-1] * 20)}
  folder = pictures.store(tfds_data_dir, "my_set", splits)
  found = sources.open_set("tfds:my_set:3.0.2")
  assert set(found.splits) == {"train", "test"}
  assert not found.splits["test"].has_labels()
  assert found.provenance == {
    "spec": "tfds:my_set:3.0.2",
    "origin": str(folder),
  }
  # It is no test set.
  config = tiny.config(
    **{
      "data.real": "tfds:my_set:3.0.2",
      "data.synthetic": "",
      "data.channels": 3,
      "data.test": 0,
      "data.validation": 0,
      "data.shots": -1,
    }
  )
  data = experiment_data.load(config.data, seed=0, runs=(0,))
  assert data.describe()["test"] == 0 and data.describe()["pool"] == 20


@pytest.fixture(scope="module")
def generated_set():
  """A set that tfds can prepare: it has code, and needs no download."""
  import tensorflow_datasets as tfds

  class SynguideTiny(tfds.core.GeneratorBasedBuilder):
    VERSION = tfds.core.Version("1.2.0")

    def _info(self):
      features = {
        "image": tfds.features.Image(shape=(8, 8, 3)),
        "label": tfds.features.ClassLabel(names=["a", "b"]),
      }
      if self.data_dir_root.name == "broken":
        features["label"] = np.int64
      return tfds.core.DatasetInfo(
        builder=self,
        features=tfds.features.FeaturesDict(features),
        disable_shuffling=True,
      )

    def _split_generators(self, dl_manager):
      return {"train": self._generate_examples()}

    def _generate_examples(self):
      for i in range(6):
        image = np.full((8, 8, 3), i, np.uint8)
        yield i, {"image": image, "label": i % 2}

  return SynguideTiny


def _check_tiny():
  found = sources.open_set("tfds:synguide_tiny")
  images = pictures.decoded(found.splits["train"])
  assert [image[0, 0, 0] for image in images] == list(range(6))
  return Path(found.provenance["origin"])


def test_tfds_set_is_prepared(tfds_data_dir, generated_set):
  folder = _check_tiny()
  assert folder == tfds_data_dir / "synguide_tiny" / "1.2.0"
  written = folder.stat().st_mtime_ns
  assert _check_tiny() == folder
  assert folder.stat().st_mtime_ns == written


def test_what_a_killed_preparation_left_is_removed(
  tfds_data_dir, generated_set
):
  folder = tfds_data_dir / "synguide_tiny"
  leftover = folder / "incomplete.0AZ3QX_1.2.0"
  other = folder / "incomplete.0AZ3QX_1.1.0"
  for name in (leftover, other):
    pictures.write(name, {"synguide_tiny-train.array_record": b"half"})
  _check_tiny()
  assert {path.name for path in folder.iterdir()} == {"1.2.0", other.name}


def test_all_spellings_of_a_set_have_one_lock(
  tfds_data_dir, generated_set, monkeypatch
):
  original, locks = filelock.FileLock, set()

  def noted(file):
    if str(file).startswith(os.environ["SYNGUIDE_CACHE"]):
      locks.add(file)
    return original(file)

  with monkeypatch.context() as patch:
    patch.setattr(filelock, "FileLock", noted)
    for name in ("synguide_tiny", "synguide_tiny:1.2.0"):
      tfds_sets.find_or_prepare(name)
      shutil.rmtree(tfds_data_dir)
    assert len(locks) == 1
    monkeypatch.setenv("TFDS_DATA_DIR", f"{tfds_data_dir}2")
    tfds_sets.find_or_prepare("synguide_tiny")
    assert len(locks) == 2


def test_tfrecord_copy_is_prepared_beside_it(
  tfds_data_dir, generated_set, cache
):
  tfds_sets.import_tensorflow("a test")
  generated_set(data_dir=tfds_data_dir).download_and_prepare(
    file_format="tfrecord"
  )
  folder = _check_tiny()
  assert folder == cache / "tfds" / "synguide_tiny" / "1.2.0"
  assert _check_tiny() == folder
  assert not list(tfds_data_dir.rglob("*array_record*"))


def test_tfds_sets_that_cannot_be_used(tmp_path, monkeypatch, generated_set):
  monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "broken"))
  with pytest.raises(UserError, match="no feature 'label' of type ClassLabel"):
    sources.open_set("tfds:synguide_tiny")
  with pytest.raises(UserError, match="no set 'cifar01', .* names: .*cifar10"):
    sources.open_set("tfds:cifar01")
  with pytest.raises(UserError, match="cannot load 'synguide_tiny:9.9.9'"):
    sources.open_set("tfds:synguide_tiny:9.9.9")


def test_without_network_it_is_known_at_once(tfds_data_dir, monkeypatch):
  asked = []
  monkeypatch.setattr(tfds_sets, "is_reachable", asked.append)
  with pytest.raises(
    UserError,
    match=f"tfds:cifar10 is not .* in {tfds_data_dir}/cifar10/3.0.2, .*toronto."
    "*cannot be reached.*prepare --source=tfds:cifar10",
  ):
    tfds_sets.find_or_prepare("cifar10")
  assert asked == ["https://www.cs.toronto.edu/"]
  assert not tfds_data_dir.exists()


def test_what_was_downloaded_before_needs_no_network(
  tfds_data_dir, monkeypatch
):
  archive = tfds_data_dir / "downloads" / "cifar10" / "cifar-10.tar.gz"
  pictures.write(archive.parent, {f"{archive.name}.INFO": b"{}"})
  asked = []
  monkeypatch.setattr(tfds_sets, "is_reachable", asked.append)

  def prepare(self, **how):
    raise OSError(f"into {how['download_dir']}")

  import tensorflow_datasets as tfds

  monkeypatch.setattr(tfds.core.DatasetBuilder, "download_and_prepare", prepare)
  with pytest.raises(UserError, match="could not prepare.*/tfds/downloads"):
    tfds_sets.find_or_prepare("cifar10")
  assert not asked
