"""Whatever a spec names is opened alike, or refused in one sentence."""

import json
import os
import shutil

import numpy as np
import pytest

from synguide_jax.data import digits, prepared, sources
from synguide_jax.data.pixels import Pixels
from synguide_jax.errors import UserError
from tests import pictures

_IMAGES = {
  f"{name}/{i}.png": pictures.pixels()
  for name in ("cat", "dog")
  for i in (2, 10)
}
_CONTENTS = {name: pictures.encode(image) for name, image in _IMAGES.items()}


@pytest.fixture(scope="module")
def module_cache(tmp_path_factory):
  return tmp_path_factory.mktemp("cache")


@pytest.fixture(autouse=True)
def cache(module_cache, monkeypatch):
  """One cache for this file, but for nothing of other tests."""
  monkeypatch.setenv("SYNGUIDE_CACHE", str(module_cache))
  return module_cache


@pytest.fixture
def own_cache(tmp_path, monkeypatch):
  """A cache for one test."""
  monkeypatch.setenv("SYNGUIDE_CACHE", str(tmp_path / "cache"))
  return tmp_path / "cache"


def _read(records, size=8, channels=3):
  rows = np.arange(len(records))
  return Pixels([(records, rows)], size, channels).read()


def _train(spec, **options):
  return sources.open_set(str(spec), **options).splits["train"]


def _num_sets(cache):
  return len(list(cache.glob("tfds/*/*/*/provenance.json")))


# Specs.


def test_digits():
  found = sources.open_set("digits")
  assert list(found.splits) == ["train"]
  assert found.class_names == digits.CLASS_NAMES
  images, labels = zip(*digits.examples(), strict=True)
  train = found.splits["train"]
  np.testing.assert_array_equal(_read(train, channels=1), np.stack(images))
  np.testing.assert_array_equal(train.index.labels, labels)
  assert found.spec == found.provenance["spec"] == "digits"

  again = sources.open_set(f"prepared:{train.folder}")
  assert again.provenance["spec"] == f"prepared:{train.folder}"
  hashes = again.splits["train"].index.hashes
  np.testing.assert_array_equal(hashes, train.index.hashes)


@pytest.mark.parametrize(
  ("spec", "message"),
  [
    ("imagenet", "Unknown set 'imagenet'; known forms: digits, letters, .*"),
    ("digits:1", "Unknown set 'digits:1'"),
    ("folder:", "Unknown set 'folder:'; .*folder:<path>"),
    ("/data/cats", "Unknown set"),
    ("folder:/nowhere", "^folder:/nowhere: /nowhere does not exist.$"),
    ("npz:/nowhere.npz", "^npz:/nowhere.npz: /nowhere.npz does not exist.$"),
    ("stylegan:/nowhere", "^stylegan:/nowhere: /nowhere does not exist.$"),
    ("prepared:/nowhere", "no complete prepared set"),
    ("prepared:gs://b/s", "^prepared:gs://b/s: .* in a local folder; copy it"),
  ],
)
def test_unknown_specs(spec, message):
  with pytest.raises(UserError, match=message):
    sources.open_set(spec)


@pytest.mark.parametrize(
  ("specs", "pairs"),
  [
    ("", []),
    ("digits", [("digits", None)]),
    ("digits@2", [("digits", 2.0)]),
    (("a@1", "b@0.5"), [("a", 1.0), ("b", 0.5)]),
    ("('a@1', 'b@0.5')", [("a", 1.0), ("b", 0.5)]),
    ("folder:/me@home/x", [("folder:/me@home/x", None)]),
    ("folder:/me@home/x@3", [("folder:/me@home/x", 3.0)]),
  ],
)
def test_weights(specs, pairs):
  assert sources.parse_weights(specs) == pairs
  assert sources.parse_weights(sources.join_weights(pairs)) == pairs


@pytest.mark.parametrize(
  "specs", [("a@1", "b"), "a@0", "a@-1", "a@nan", "a@inf", "('a', "]
)
def test_wrong_weights(specs):
  with pytest.raises(UserError, match="data.synthetic="):
    sources.parse_weights(specs)


# Files of images.


@pytest.mark.parametrize("kind", ["folder", "zip", "tar", "tar.gz"])
@pytest.mark.parametrize("where", ["local", "remote"])
@pytest.mark.parametrize("wrapping", ["", "pets-1.0/"])
def test_the_same_set_from_folder_and_archive(
  tmp_path, own_cache, kind, where, wrapping
):
  root = pictures.bucket(tmp_path / "bucket")
  contents = {wrapping + name: found for name, found in _CONTENTS.items()}
  if kind == "folder":
    path = pictures.write(root / "pets", contents)
  else:
    path = pictures.pack(root / f"pets.{kind}", contents)
  if where == "remote":
    path = f"bucket://{path.name}"
  found = sources.open_set(f"folder:{path}")
  train = found.splits["train"]
  assert list(found.splits) == ["train"]
  assert found.class_names == ("cat", "dog")
  assert train.index.labels.tolist() == [0, 0, 1, 1]
  assert train.index.names.tolist() == [wrapping + name for name in _CONTENTS]
  assert train.encoded(range(4)) == list(_CONTENTS.values())
  np.testing.assert_array_equal(_read(train), list(_IMAGES.values()))
  assert found.provenance["origin"] == str(path)


def test_splits_and_counts(tmp_path):
  clear = pictures.pixels(channels=4)
  contents = {
    "train/cat/1.png": pictures.encode(clear),
    "train/cat/2.jpg": pictures.encode(suffix="jpg"),
    "train/cat/3.png": pictures.encode(np.zeros((8, 8), np.uint8)),
    "train/notes.txt": b"mine",
    "val/cat/1.bmp": pictures.encode(suffix="bmp"),
  }
  root = pictures.write(tmp_path / "pets", contents)
  found = sources.open_set(f"folder:{root}")
  assert set(found.splits) == {"train", "validation"}
  provenance = found.provenance
  assert provenance["num_images"] == {"train": 2, "validation": 1}
  assert provenance["converted"] == {"transparency": 1}
  assert provenance["constant"] == 1 and provenance["other_files"] == 1
  assert found.splits["train"].encoded([1]) == [contents["train/cat/2.jpg"]]


def test_images_without_labels(tmp_path):
  contents = {f"{i}.png": pictures.encode() for i in range(3)}
  train = _train(f"folder:{pictures.write(tmp_path / 'fakes', contents)}")
  assert train.index.labels.tolist() == [-1] * 3 and not train.has_labels()


def test_tables(tmp_path):
  table = b'\xef\xbb\xbffile,label\r\n2.png,"cat, black"\r\n1.png,dog\r\n'
  contents = {f"{i}.png": pictures.encode() for i in (1, 2, 3)}
  root = pictures.write(tmp_path / "pets", contents | {"labels.csv": table})
  found = sources.open_set(f"folder:{root}")
  assert found.class_names == ("cat, black", "dog")
  assert found.splits["train"].index.labels.tolist() == [1, 0]
  assert found.provenance["unlisted"] == found.provenance["other_files"] == 1


def test_stylegan(tmp_path):
  labels = {"labels": [["0/a.png", 1], ["0/b.png", 0]]}
  contents = {
    "0/a.png": pictures.encode(),
    "0/b.png": pictures.encode(),
    "dataset.json": json.dumps(labels).encode(),
  }
  path = pictures.pack(tmp_path / "dump.zip", contents)
  found = sources.open_set(f"stylegan:{path}")
  assert found.class_names == ("0", "1")
  assert found.splits["train"].index.labels.tolist() == [1, 0]


@pytest.mark.parametrize("where", ["local", "remote"])
def test_npz(tmp_path, where):
  root = pictures.bucket(tmp_path / "bucket")
  images = np.stack(list(_IMAGES.values()))
  labels = np.array([1, 0, 1, 1])
  names = np.array(["a", "b"])
  np.savez(root / "dump.npz", images / 127.5 - 1, labels, class_names=names)
  root = root if where == "local" else "bucket:/"
  found = sources.open_set(f"npz:{root}/dump.npz")
  assert found.class_names == ("a", "b")
  train = found.splits["train"]
  np.testing.assert_array_equal(_read(train), images)
  np.testing.assert_array_equal(train.index.labels, labels)
  assert set(train.index.formats) == {"array"}


def test_odd_names(tmp_path):
  name = "2² pets-été.v1 " + "x" * 200
  root = pictures.write(tmp_path / name, _CONTENTS)
  train = _train(f"folder:{root}")
  np.testing.assert_array_equal(_read(train), list(_IMAGES.values()))


def _refused(spec, message):
  with pytest.raises(UserError, match=message) as error:
    sources.open_set(spec)
  assert str(error.value).startswith(spec)
  assert len(str(error.value).splitlines()) == 1


def test_what_is_refused_is_named(tmp_path):
  truncated = pictures.encode(pictures.pixels(64, 64), "jpg")[:-500]
  bomb = pictures.png(20_000, 20_000, 8, 2, b"")
  for content in (truncated, bomb, b"hello", b""):
    contents = _CONTENTS | {"cat/bad.jpg": content}
    root = pictures.write(tmp_path / "pets", contents)
    _refused(f"folder:{root}", "1 of 5 files cannot be read as .*: cat/bad.jpg")
  train = _train(f"folder:{root}", skip_damaged=True)
  assert len(train) == 4 and "cat/bad.jpg" not in train.index.names

  (root / "cat" / "loop").symlink_to(root)
  _refused(f"folder:{root}", "cat/loop is a link to a folder it is in")
  path = pictures.pack(tmp_path / "pets.zip", _CONTENTS | {"../x.png": b""})
  _refused(f"folder:{path}", "'../x.png', a path that leads out")
  path.write_bytes(path.read_bytes()[:-30])
  _refused(f"folder:{path}", "pets.zip is not a readable archive")
  (tmp_path / "dumps").mkdir()
  np.savez(tmp_path / "dumps" / "a.npz", np.array([np.nan]))
  _refused(f"npz:{tmp_path}/dumps/a.npz", r"a.npz: images must be \[N, H, W, C")
  _refused(f"stylegan:{tmp_path}/dumps", "neither a dataset.json nor")
  pictures.write(tmp_path / "space", {" cat/1.png": pictures.encode()})
  _refused(f"folder:{tmp_path}/space", "class name ' cat' is empty, has space")


def test_a_damaged_file_in_an_archive_may_be_skipped(tmp_path):
  contents = dict(_CONTENTS)
  path = pictures.pack(tmp_path / "pets.tar", contents)
  path.write_bytes(
    path.read_bytes().replace(contents["dog/2.png"][:8], b"x" * 8, 1)
  )
  _refused(f"folder:{path}", r"1 of 4 .*: cat/2.png \(not an image\)")
  found = sources.open_set(f"folder:{path}", skip_damaged=True)
  assert found.provenance["skipped"] == 1
  names = found.splits["train"].index.names.tolist()
  assert names == ["cat/10.png", "dog/2.png", "dog/10.png"]


# Prepared once.


def test_the_same_content_is_prepared_once(tmp_path, own_cache, monkeypatch):
  here = pictures.write(tmp_path / "here" / "pets", _CONTENTS)
  there = tmp_path / "there" / "pets"
  shutil.copytree(here, there)
  first = sources.open_set(f"folder:{here}")
  assert _num_sets(own_cache) == 1

  def no_second_time(*_, **__):
    raise AssertionError("it was prepared again")

  monkeypatch.setattr(prepared, "write", no_second_time)
  second = sources.open_set(f"folder:{there}")
  assert second.splits["train"].folder == first.splits["train"].folder
  assert second.provenance["origin"] == str(there)
  for path in (here, here / "cat", here / "cat" / "2.png"):
    os.utime(path)
  assert len(_train(f"folder:{here}")) == 4


def test_changes_are_seen(tmp_path, own_cache):
  root = pictures.write(tmp_path / "pets", _CONTENTS)
  spec = f"folder:{root}"
  before = _read(_train(spec))
  bmp = pictures.encode(_IMAGES["cat/2.png"], "bmp")
  (root / "cat" / "2.png").write_bytes(bmp)
  np.testing.assert_array_equal(_read(_train(spec)), before)
  # As many bytes as before.
  other = pictures.encode(255 - _IMAGES["cat/2.png"], "bmp")
  assert len(other) == len(bmp)
  (root / "cat" / "2.png").write_bytes(other)
  after = _read(_train(spec))
  np.testing.assert_array_equal(after[0], 255 - before[0])
  np.testing.assert_array_equal(after[1:], before[1:])

  (root / "dog" / "11.png").write_bytes(_CONTENTS["cat/10.png"])
  assert _train(spec).index.labels.tolist() == [0, 0, 1, 1, 1]
  (root / "cat" / "2.png").unlink()
  assert _train(spec).index.labels.tolist() == [0, 1, 1, 1]
  (root / "dog").rename(root / "fox")
  assert sources.open_set(spec).class_names == ("cat", "fox")
  (root / "owl").mkdir()
  _refused(spec, "no image in the class folders of train: 'owl'")
  assert _num_sets(own_cache) == 6


def _during(monkeypatch, change):
  """Changes a set while it is prepared, after its first file was read."""
  original = prepared.write

  def write(folder, examples, *args, **options):
    def changed(of_split):
      for i, example in enumerate(of_split):
        if i == 1:
          change()
        yield example

    examples = {split: changed(found) for split, found in examples.items()}
    original(folder, examples, *args, **options)

  monkeypatch.setattr(prepared, "write", write)


@pytest.mark.parametrize("kind", ["folder", "zip"])
def test_a_set_that_changes_while_it_is_prepared(
  tmp_path, own_cache, monkeypatch, kind
):
  def make(contents):
    if kind == "folder":
      return pictures.write(tmp_path / "pets", contents)
    return pictures.pack(tmp_path / "pets.zip", contents)

  path = make(_CONTENTS)
  more = _CONTENTS | {"cat/3.png": pictures.encode()}
  with monkeypatch.context() as patch:
    _during(patch, lambda: make(more))
    _refused(
      f"folder:{path}", "pets.* changed while it was prepared; try again"
    )
  assert _num_sets(own_cache) == 0
  assert not list(own_cache.rglob("*array_record*"))
  assert len(_train(f"folder:{path}")) == 5


def test_a_file_that_goes_away_while_a_set_is_prepared(tmp_path, monkeypatch):
  root = pictures.write(tmp_path / "pets", _CONTENTS | {"cat/3.png": b"hello"})
  with monkeypatch.context() as patch:
    _during(patch, lambda: (root / "dog" / "10.png").unlink(missing_ok=True))
    _refused(f"folder:{root}", "dog/10.png .*cannot be read: No such file")
    # Nor is it taken for damaged.
    pictures.write(root, _CONTENTS)
    with pytest.raises(UserError, match="changed while it was prepared"):
      sources.open_set(f"folder:{root}", skip_damaged=True)
