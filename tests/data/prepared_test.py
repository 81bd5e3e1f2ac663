"""Sets of our own are stored once, all of them or nothing."""

import errno
import json
import math
import time

import numpy as np
import pytest

from synguide_jax.data import decode, prepared, records
from synguide_jax.errors import UserError
from tests import pictures

_IMAGES = np.random.default_rng(0).integers(0, 256, (30, 5, 7, 3), np.uint8)
_LABELS = np.random.default_rng(1).integers(0, 3, 30)
_CLASSES = ("cat", "dog", "owl")


def _examples():
  return zip(_IMAGES, _LABELS.tolist(), strict=True)


def _prepare(**changes):
  arguments = {
    "name": "synguide_test",
    "fingerprint": "0123456789ab",
    "make_examples": _examples,
    "class_names": _CLASSES,
    "provenance": {"origin": "test"},
  }
  return prepared.prepare(**(arguments | changes))


def _read(folder, split="train"):
  return np.stack(pictures.decoded(records.of_prepared(folder)[split]))


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
  monkeypatch.setenv("SYNGUIDE_CACHE", str(tmp_path / "cache"))
  return tmp_path / "cache"


def test_reads_what_was_prepared(cache, capfd):
  assert not prepared.is_prepared("synguide_test", "0123456789ab")
  folder = _prepare()
  assert prepared.is_prepared("synguide_test", "0123456789ab")
  assert not prepared.is_prepared("synguide_test", "0123456789ac")
  assert folder == cache / "tfds" / "synguide_test" / "0123456789ab" / "2.0.0"
  (split, stored), *others = records.of_prepared(folder).items()
  assert (split, others) == ("train", [])
  assert stored.class_names == _CLASSES and len(stored) == 30
  np.testing.assert_array_equal(np.stack(pictures.decoded(stored)), _IMAGES)
  index = stored.index
  np.testing.assert_array_equal(index.labels, _LABELS)
  assert index.names.tolist() == [f"{i:06}" for i in range(30)]
  assert set(index.widths) == {7} and set(index.heights) == {5}
  assert np.isnan(index.confidences).all()

  provenance = prepared.read_provenance(folder)
  assert provenance["origin"] == "test"
  assert provenance["num_images"] == {"train": 30}
  assert provenance["versions"]["numpy"] == np.__version__
  assert provenance["converted"] == {} and provenance["constant"] == 0

  # Nothing is done twice, and nothing is printed by tfds.
  assert _prepare(make_examples=None) == folder
  out, err = capfd.readouterr()
  assert out == ""
  assert "Generating" not in err and "WARNING:absl:Using" not in err


def test_checksum_is_of_images_and_labels():
  def checksum(fingerprint, images=_IMAGES, labels=_LABELS):
    folder = _prepare(
      fingerprint=fingerprint,
      make_examples=lambda: zip(images, labels.tolist(), strict=True),
    )
    return prepared.read_provenance(folder)["image_checksum"]

  other_pixel, other_label = _IMAGES.copy(), _LABELS.copy()
  other_pixel[17, 2, 3, 1] ^= 1
  other_label[17] ^= 1
  found = [
    checksum("a"),
    checksum("b"),
    checksum("c", images=other_pixel),
    checksum("d", labels=other_label),
  ]
  assert found[0] == found[1] and len(set(found)) == 3


def test_files_splits_names_and_confidences():
  # The last is followed by zeros, as some cameras leave them.
  contents = [
    pictures.encode(),
    pictures.encode(suffix="jpg"),
    pictures.encode(suffix="jpg") + bytes(100),
  ]
  make = {
    "train": [
      prepared.Example(contents[0], 2, "a/1.png", 0.5),
      prepared.Example(lambda: contents[1], -1, "b/2.jpg"),
    ],
    "test": [prepared.Example(contents[2], 0, "c/3.jpg")],
  }
  folder = _prepare(make_examples=lambda: make)
  found = records.of_prepared(folder)
  assert set(found) == {"train", "test"}
  assert found["train"].encoded([0, 1]) == contents[:2]
  assert found["test"].encoded([0]) == contents[2:]
  index = found["train"].index
  assert index.names.tolist() == ["a/1.png", "b/2.jpg"]
  assert index.labels.tolist() == [2, -1]
  assert index.confidences[0] == 0.5 and math.isnan(index.confidences[1])
  assert index.formats.tolist() == ["PNG", "JPEG"]
  counts = prepared.read_provenance(folder)["num_images"]
  assert counts == {"train": 2, "test": 1}


def test_what_a_file_was_before_it_was_converted():
  photo = pictures.encode(suffix="webp", quality=50)
  before = decode.canonical(photo)
  assert before.facts.format == "WEBP"
  jpeg = decode.canonical(pictures.encode(suffix="jpg")).facts
  pixels = pictures.encode()
  make = [
    prepared.Example(before.encoded, 0, "a.webp", original=before.facts),
    prepared.Example(pixels, 0, "b.png", original=jpeg._replace(width=99)),
    prepared.Example(pixels, 0, "c.png"),
  ]
  index = records.of_prepared(_prepare(make_examples=lambda: make))["train"]
  index = index.index
  assert index.formats.tolist() == ["WEBP", "JPEG", "PNG"]
  quantization = np.float32(jpeg.quantization)
  assert index.quantization.tolist() == [0, quantization, 0]
  # The pixels are those that are stored.
  assert index.hashes[0] == before.facts.hash
  assert index.hashes[1] == index.hashes[2]
  assert index.widths.tolist() == [8, 8, 8]


def test_grey_images_and_many_of_them_keep_their_order():
  images = np.arange(3000, dtype=np.int64).view(np.uint8).reshape(-1, 4, 2, 1)
  folder = _prepare(make_examples=lambda: ((i, 1) for i in images))
  np.testing.assert_array_equal(_read(folder), images)


def test_what_was_done_is_counted():
  clear = np.zeros((4, 4, 4), np.uint8)
  clear[0, :, 3] = 255
  contents = [
    pictures.encode(),
    pictures.encode(clear),
    b"hello",
    pictures.encode(np.zeros((4, 4), np.uint8)),
    np.full((4, 4, 3), 9, np.uint8),
    pictures.encode(clear[::-1]),
  ]
  seen = []
  folder = _prepare(
    make_examples=lambda: ((content, 0) for content in contents),
    drop_constant=True,
    skip_damaged=True,
    on_image=lambda: seen.append(1),
  )
  provenance = prepared.read_provenance(folder)
  assert provenance["converted"] == {"transparency": 2}
  assert provenance["constant"] == 2 and provenance["skipped"] == 1
  assert provenance["num_images"] == {"train": 3} and len(seen) == 6
  names = records.of_prepared(folder)["train"].index.names
  assert names.tolist() == ["000000", "000001", "000005"]


def test_constant_images_are_kept_by_default():
  blank = np.zeros((4, 4, 3), np.uint8)
  folder = _prepare(make_examples=lambda: [(blank, 0)])
  np.testing.assert_array_equal(_read(folder), [blank])


def _gone():
  raise UserError("1.png cannot be read: No such file or directory.")


def _with(image=_IMAGES[0], label=0):
  return lambda: [(_IMAGES[0], 0), (image, label)]


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    ({"name": "my-set"}, "must be an identifier, got 'my-set'"),
    ({"make_examples": lambda: []}, "no image is left of split train"),
    ({"make_examples": _with(_IMAGES[0] / 255)}, "Image 000001 .* got float64"),
    ({"make_examples": _with(_IMAGES[0, 0])}, r"must be uint8 .* \[7, 3\]"),
    ({"make_examples": _with(_IMAGES[0, ..., :2])}, r"got uint8 \[5, 7, 2\]"),
    ({"make_examples": _with(label=3)}, "Image 1 .* label 3, but .* 3 classes"),
    ({"make_examples": _with(label=-2)}, "Image 1 .* label -2"),
    (
      {"make_examples": _with(b"hello")},
      r"1 of 2 files cannot be read as images: 000001 \(not an image\)",
    ),
    ({"make_examples": _with(_gone)}, r"1 of 2 .*000001 \(1.png cannot be"),
    ({"class_names": ("cat", " dog")}, "class name ' dog' is empty, has space"),
    ({"class_names": ("cat", "")}, "class name '' is empty"),
    ({"class_names": ("a\nb", "c")}, "a line break"),
    ({"class_names": ("a", "b", "a")}, "two classes are called 'a'"),
  ],
)
def test_wrong_examples(changes, message, cache):
  with pytest.raises(UserError, match=message):
    _prepare(**changes)
  assert not list(cache.glob("tfds/*/0123456789ab"))
  np.testing.assert_array_equal(_read(_prepare()), _IMAGES)


def test_many_damaged_files():
  examples = [(b"hello", 0, f"cat/{i}.png") for i in range(8)]
  examples += [(image, 1) for image in _IMAGES[:8]]
  with pytest.raises(UserError, match="8 of 16 files .*cat/0.*cat/4") as error:
    _prepare(make_examples=lambda: examples)
  assert "cat/5" not in str(error.value) and "..." in str(error.value)
  folder = _prepare(make_examples=lambda: examples, skip_damaged=True)
  np.testing.assert_array_equal(_read(folder), _IMAGES[:8])


def test_full_disk():
  def examples():
    yield from _examples()
    raise OSError(errno.ENOSPC, "No space left on device")

  with pytest.raises(UserError, match="No space left .* SYNGUIDE_CACHE"):
    _prepare(make_examples=examples)


def test_what_the_check_refuses_is_not_there(cache):
  def check():
    raise UserError("it changed")

  with pytest.raises(UserError, match="it changed"):
    _prepare(check=check)
  assert not prepared.is_prepared("synguide_test", "0123456789ab")
  assert not list(cache.glob("tfds/*/0123456789ab"))


def test_write_to_a_folder_of_ones_own(tmp_path):
  folder = tmp_path / "out" / "labelled" / "1.0.0"
  prepared.write(folder, _examples(), _CLASSES, provenance={"seed": 3})
  np.testing.assert_array_equal(_read(folder), _IMAGES)
  assert prepared.read_provenance(folder)["seed"] == 3


def test_a_damaged_index_is_named():
  file = _prepare() / "train.index.npz"
  file.write_bytes(file.read_bytes()[:200])
  with pytest.raises(UserError, match=f"{file} is damaged .* delete"):
    len(records.of_prepared(file.parent)["train"].index)


def test_reading_what_is_no_set(tmp_path):
  with pytest.raises(UserError, match="no complete prepared set: .*provenance"):
    prepared.read_provenance(tmp_path)


# Processes.

_SLOW = """
import sys, time
from pathlib import Path
import numpy as np
from synguide_jax.data import prepared

def examples():
  with open(sys.argv[1], "a") as file:
    print("called", file=file)
  for i in range(8):
    time.sleep(float(sys.argv[2]) if i else 0)
    yield np.full((4, 4, 1), i, np.uint8), i % 2

print(prepared.prepare(
  "synguide_slow", "abc", examples, ["a", "b"], provenance={}
))
"""


def test_two_processes_at_once(tmp_path):
  calls = tmp_path / "calls"
  processes = [pictures.python(_SLOW, str(calls), "0.2") for _ in range(2)]
  outputs = [process.communicate()[0].strip() for process in processes]
  assert [process.returncode for process in processes] == [0, 0]
  assert calls.read_text() == "called\n"
  assert len(set(outputs)) == 1
  folder = prepared.folder_of("synguide_slow", "abc")
  assert outputs[0] == str(folder)
  np.testing.assert_array_equal(_read(folder)[:, 0, 0, 0], np.arange(8))


def test_killed_preparation(tmp_path, cache):
  process = pictures.python(_SLOW, str(tmp_path / "calls"), "600")
  try:
    deadline = time.monotonic() + 60
    while not list(cache.rglob("incomplete.*_2.0.0")):
      assert time.monotonic() < deadline and process.poll() is None
      time.sleep(0.05)
  finally:
    process.kill()  # SIGKILL: it cannot clean up
    process.communicate()
  assert list(cache.rglob("incomplete.*_2.0.0"))
  assert not prepared.is_prepared("synguide_slow", "abc")

  folder = _prepare(name="synguide_slow", fingerprint="abc")
  assert not list(cache.rglob("incomplete.*"))
  np.testing.assert_array_equal(_read(folder), _IMAGES)


def test_killed_before_the_last_file_was_written():
  folder = _prepare()
  assert json.loads((folder / "provenance.json").read_text())
  (folder / "provenance.json").unlink()
  assert not prepared.is_prepared("synguide_test", "0123456789ab")
  _prepare(make_examples=lambda: [(_IMAGES[3], 2)])
  np.testing.assert_array_equal(_read(folder), _IMAGES[3:4])
