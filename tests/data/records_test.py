"""Stored images are read by number; their index is made once."""

import dataclasses
import json
import pickle
import shutil

import numpy as np
import pytest

from synguide_jax.data import prepared, records
from synguide_jax.errors import UserError
from tests import pictures

_CONTENTS = [
  pictures.encode(pictures.pixels(12, 10)),
  pictures.encode(pictures.pixels(9, 9)[..., 0]),
  pictures.encode(pictures.pixels(32, 32), "jpg", quality=50) + bytes(64),
]


@pytest.fixture(scope="module")
def own(tmp_path_factory):
  """A set of our own: the folder of one version."""
  folder = tmp_path_factory.mktemp("own") / "made" / "abc" / "2.0.0"
  examples = [
    prepared.Example(content, label, f"{label}/{i}.png", confidence=i / 4)
    for i, (content, label) in enumerate(zip(_CONTENTS, (1, 0, 1), strict=True))
  ]
  prepared.write(folder, examples, ["cat", "dog"], provenance={})
  return folder


@pytest.fixture(scope="module")
def theirs(tmp_path_factory):
  """A set that tfds wrote, with two images, one and one that is damaged."""
  images = [pictures.pixels(32, 32) for _ in range(2)]
  splits = {
    "train": (images, [7, 3]),
    "test": (images[:1], [-1]),
    "bad": ([_CONTENTS[2], b"hello"], [0, 1]),
  }
  folder = pictures.store(tmp_path_factory.mktemp("tfds"), "my_set", splits)
  return folder, images


@pytest.fixture
def cache(tmp_path, monkeypatch):
  monkeypatch.setenv("SYNGUIDE_CACHE", str(tmp_path / "cache"))
  return tmp_path / "cache"


def test_files_by_number(own):
  stored = records.of_prepared(own)["train"]
  assert len(stored) == 3 and stored.class_names == ("cat", "dog")
  assert stored.encoded([0, 1, 2]) == _CONTENTS
  rows = np.array([2, 0, 2, 2])
  assert stored.encoded(rows) == [_CONTENTS[row] for row in rows]
  assert stored.encoded([]) == []


def test_index(own):
  index = records.of_prepared(own)["train"].index
  assert len(index) == 3
  assert index.names.tolist() == ["1/0.png", "0/1.png", "1/2.png"]
  assert index.labels.tolist() == [1, 0, 1] and index.labels.dtype == np.int32
  assert index.formats.tolist() == ["PNG", "PNG", "JPEG"]
  assert index.widths.tolist() == [10, 9, 32]
  assert index.heights.tolist() == [12, 9, 32]
  assert index.grey.tolist() == [False, True, False]
  assert index.quantization[2] > 10 and not index.quantization[:2].any()
  assert index.confidences.tolist() == [0, 0.25, 0.5]
  assert index.hashes.dtype == np.uint64 and len(set(index.hashes)) == 3


def test_an_index_that_is_missing_is_made(own, tmp_path):
  copy = tmp_path / "made" / "abc" / "2.0.0"
  shutil.copytree(own, copy)
  stored = records.of_prepared(own)["train"].index
  (copy / "train.index.npz").unlink()
  made = records.of_prepared(copy)["train"].index
  for field in dataclasses.fields(records.Index):
    if field.name != "confidences":
      np.testing.assert_array_equal(
        getattr(made, field.name), getattr(stored, field.name)
      )
  assert (copy / "train.index.npz").exists()


def test_empty_index(tmp_path):
  index = records.IndexWriter().index()
  index.save(tmp_path / "empty.npz")
  assert len(records.Index.load(tmp_path / "empty.npz")) == 0
  assert [p.name for p in tmp_path.iterdir()] == ["empty.npz"]


def test_pickled_records_are_small_and_read_the_same(own):
  stored = records.of_prepared(own)["train"]
  assert stored.encoded([1]) == [_CONTENTS[1]]
  copy = pickle.dumps(stored)
  assert len(copy) < 1000
  assert pickle.loads(copy).encoded([1]) == [_CONTENTS[1]]


def test_anybody_s_set(theirs, cache):
  folder, images = theirs
  found = records.of_tfds(folder)
  assert {s: len(r) for s, r in found.items()} == {
    "train": 2,
    "test": 1,
    "bad": 2,
  }
  train = found["train"]
  assert train.class_names == tuple(pictures.CIFAR10)
  assert train.has_labels() and not found["test"].has_labels()
  np.testing.assert_array_equal(np.stack(pictures.decoded(train)), images)
  assert train.index.labels.tolist() == [7, 3]
  assert train.index.names.tolist() == ["train_00000", "train_00001"]
  assert np.isnan(train.index.confidences).all()


def test_a_name_that_is_not_utf8(theirs, cache, monkeypatch):
  original = records.Records._records

  def renamed(self):
    for record in original(self):
      yield {**record, "id": b"k\xe4tzchen"}

  monkeypatch.setattr(records.Records, "_records", renamed)
  index = records.of_tfds(theirs[0])["train"].index
  assert index.names.tolist() == ["k\ufffdtzchen"] * 2


def test_an_index_is_kept_in_the_cache(theirs, cache, monkeypatch):
  folder, _ = theirs
  index = records.of_tfds(folder)["train"].index
  files = [p for p in cache.rglob("*.npz")]
  assert [p.name for p in files] == ["train.npz"]

  def no_second_time(*_):
    raise AssertionError("the index was made again")

  with monkeypatch.context() as patch:
    patch.setattr(records.Records, "_make_index", no_second_time)
    again = records.of_tfds(folder)["train"].index
    np.testing.assert_array_equal(again.hashes, index.hashes)
  # A set that was prepared again may be another.
  info = folder / "dataset_info.json"
  info.write_text(info.read_text())
  again = records.of_tfds(folder)["train"].index
  np.testing.assert_array_equal(again.hashes, index.hashes)
  assert len(list(cache.rglob("*.npz"))) == 2


def test_damaged_image(theirs, cache):
  folder, _ = theirs
  message = (
    r"my_set.3.0.2, split bad: 1 images cannot be read: bad_00001 \(not an "
    r"image\). Prepare the set again"
  )
  with pytest.raises(UserError, match=message):
    _ = records.of_tfds(folder)["bad"].index
  assert not list(cache.rglob("*.npz"))


def test_an_index_that_cannot_be_written(theirs, tmp_path, monkeypatch):
  (tmp_path / "cache").write_text("a file, so that no folder can be made")
  monkeypatch.setenv("SYNGUIDE_CACHE", str(tmp_path / "cache"))
  with pytest.raises(UserError, match="SYNGUIDE_CACHE"):
    _ = records.of_tfds(theirs[0])["train"].index


def test_what_is_no_set(tmp_path, own):
  with pytest.raises(UserError, match="not a readable tfds set"):
    records.builder(tmp_path)
  copy = tmp_path / "made" / "abc" / "2.0.0"
  shutil.copytree(own, copy)
  described = copy / "features.json"
  original = described.read_text()

  def refused(message, change):
    described.write_text(json.dumps(change(json.loads(original))))
    with pytest.raises(UserError, match=message):
      records.builder(copy)

  def without(features, name):
    del features["featuresDict"]["features"][name]
    return features

  for name, kind in (("label", "ClassLabel"), ("image", "Image")):
    message = f"no feature '{name}' of type {kind}; its features: "
    refused(message, lambda features, name=name: without(features, name))
  wide = original.replace('"uint8"', '"uint16"')
  assert wide != original
  refused("must be uint8, got .*uint16", lambda _: json.loads(wide))
  described.write_text(original)
  info = copy / "dataset_info.json"
  info.write_text(info.read_text().replace('"array_record"', '"tfrecord"'))
  with pytest.raises(UserError, match="not stored as array_record"):
    records.builder(copy)
