"""Dumps of arrays are read as they are meant, or refused."""

import io
import tracemalloc

import numpy as np
import pytest

from synguide_jax.data import dumps, files
from synguide_jax.errors import UserError
from tests import pictures

_IMAGES = np.stack([pictures.pixels(5, 7) for _ in range(4)])
_LABELS = np.array([2, 0, 1, 0])


def _npz(root, **arrays):
  np.savez(root / "dump.npz", **arrays)
  return files.open_file(str(root / "dump.npz"))


def _refused(tree, message):
  with pytest.raises(UserError, match=message) as error:
    dumps.npz(tree)
  assert tree.root in str(error.value)


def _arrays(listing):
  assert list(listing.splits) == ["train"]
  items = listing.splits["train"]
  images = np.stack([item.read() for item in items])
  assert images.dtype == np.uint8
  return images, [item.label for item in items]


@pytest.mark.parametrize("name", ["arr_0", "images", "samples"])
@pytest.mark.parametrize(
  "images",
  [
    _IMAGES,
    _IMAGES.transpose(0, 3, 1, 2),
    (_IMAGES / 127.5 - 1).astype(np.float16),
    (_IMAGES / 127.5 - 1).astype(">f8").transpose(0, 3, 1, 2),
  ],
)
def test_npz(tmp_path, name, images):
  read, labels = _arrays(dumps.npz(_npz(tmp_path, **{name: images})))
  if images.dtype == np.float16:  # has 11 bits
    assert np.abs(read.astype(int) - _IMAGES).max() <= 1
  else:
    np.testing.assert_array_equal(read, _IMAGES)
  assert labels == [-1] * 4


def test_other_arrays_are_not_read(tmp_path):
  others = {"arr_1": _LABELS, "latents": np.array([print], object)}
  listing = dumps.npz(_npz(tmp_path, images=_IMAGES, labels=_LABELS, **others))
  read, labels = _arrays(listing)
  np.testing.assert_array_equal(read, _IMAGES)
  assert labels == _LABELS.tolist()


def test_floats_are_converted_one_at_a_time(tmp_path):
  floats = np.zeros((100, 64, 64, 3), np.float32)
  floats[0, 0, 0] = -1
  tree = _npz(tmp_path, images=floats)
  tracemalloc.start()
  try:
    items = dumps.npz(tree).splits["train"]
    assert sum(int(item.read().max()) for item in items) == 12_800
    _, most = tracemalloc.get_traced_memory()
  finally:
    tracemalloc.stop()
  assert most < 1.2 * floats.nbytes


def test_npz_grey(tmp_path):
  for images in (_IMAGES[..., 0], _IMAGES[..., :1], _IMAGES[:, None, ..., 0]):
    read, _ = _arrays(dumps.npz(_npz(tmp_path, images=images)))
    np.testing.assert_array_equal(read, _IMAGES[..., :1])


@pytest.mark.parametrize("name", ["labels", "arr_1"])
@pytest.mark.parametrize(
  "labels",
  [
    _LABELS.astype(np.uint8),
    _LABELS[:, None],
    np.eye(3)[_LABELS],
    np.eye(3, dtype=bool)[_LABELS],
  ],
)
def test_npz_labels(tmp_path, name, labels):
  listing = dumps.npz(_npz(tmp_path, images=_IMAGES, **{name: labels}))
  assert _arrays(listing)[1] == _LABELS.tolist()
  assert listing.class_names == ("0", "1", "2")


def test_a_class_without_images_has_a_column(tmp_path):
  tree = _npz(tmp_path, images=_IMAGES, labels=np.eye(5)[_LABELS])
  assert dumps.npz(tree).class_names == ("0", "1", "2", "3", "4")


@pytest.mark.parametrize("kind", ["U", "S"])
def test_npz_class_names(tmp_path, kind):
  names = np.array(["cat", "dog", "owl", "fox"]).astype(kind)
  tree = _npz(tmp_path, images=_IMAGES, labels=_LABELS, class_names=names)
  assert dumps.npz(tree).class_names == ("cat", "dog", "owl", "fox")


@pytest.mark.parametrize("name", ["images", "labels"])
def test_npz_never_unpickles(tmp_path, name):
  arrays = {"images": _IMAGES, "labels": _LABELS}
  arrays[name] = np.array([print] * 4, object)
  _refused(_npz(tmp_path, **arrays), "plain arrays: Object arrays")


_FLOATS = (_IMAGES / 127.5 - 1).astype(np.float32)


@pytest.mark.parametrize(
  ("arrays", "message"),
  [
    ({"x": _IMAGES}, "no array 'images', 'samples' or 'arr_0', but 'x'"),
    ({"images": _IMAGES[:0]}, "has no image"),
    ({"images": _IMAGES[0, 0]}, r"must be \[N, H, W, C\] .* got \[7, 3\]"),
    ({"images": _IMAGES[..., :2]}, r"1 or 3 channels, got \[4, 5, 7, 2\]"),
    ({"images": _IMAGES.astype(int)}, r"must be uint8, or .*, got int64"),
    ({"images": 3 * _FLOATS}, r"must lie in \[-1, 1\], got -\d.* to \d"),
    ({"images": np.where(_IMAGES > 9, _FLOATS, np.nan)}, "got nan to nan"),
    ({"images": np.where(_IMAGES > 9, _FLOATS, -np.inf)}, "got -inf to"),
    ({"images": _IMAGES / 255}, r"none is negative .* save 2 \* images - 1"),
    ({"labels": _LABELS[:3]}, r"indices \[4\], or one-hot, got int64 \[3\]"),
    ({"labels": _LABELS.astype(float)}, "got float64"),
    ({"labels": np.eye(3)[_LABELS] / 2}, r"got float64 \[4, 3\]"),
    ({"labels": _LABELS - 1}, "must not be negative, got -1"),
    (
      {"labels": _LABELS, "class_names": np.array(["a", "b"])},
      "labels up to 2, but 2 class_names",
    ),
  ],
)
def test_npz_arrays_that_are_refused(tmp_path, arrays, message):
  if not arrays.keys() & {"images", "x"}:
    arrays = {"images": _IMAGES, **arrays}
  _refused(_npz(tmp_path, **arrays), message)


def test_npz_files_that_are_refused(tmp_path):
  file = io.BytesIO()
  np.savez_compressed(file, images=_IMAGES)
  content = file.getvalue()
  for end in (0, 1, 10, len(content) // 2, len(content) - 1):
    (tmp_path / "dump.npz").write_bytes(content[:end])
    tree = files.open_file(str(tmp_path / "dump.npz"))
    _refused(tree, "dump.npz is not a readable .npz file")
  wrong = bytearray(content)
  wrong[len(content) // 2] ^= 0xFF
  (tmp_path / "dump.npz").write_bytes(wrong)
  tree = files.open_file(str(tmp_path / "dump.npz"))
  _refused(tree, "dump.npz is not a readable .npz file")
  np.save(tmp_path / "dump.npy", _IMAGES)
  tree = files.open_file(str(tmp_path / "dump.npy"))
  _refused(tree, "is an .npy file; save it with np.savez")
