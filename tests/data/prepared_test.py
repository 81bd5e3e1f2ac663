"""Tests of synguide_jax.data.prepared."""

import errno
import hashlib
import json
import os
from pathlib import Path
import subprocess
import sys
import textwrap
import time

import numpy as np
import pytest

import synguide_jax
from synguide_jax.cache import cache_dir, fingerprint
from synguide_jax.data import prepared
from synguide_jax.errors import UserError

_IMAGES = np.random.default_rng(0).integers(0, 256, (30, 5, 7, 3), np.uint8)
_LABELS = np.random.default_rng(1).integers(0, 3, 30).astype(np.int32)
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


def _python(code: str, *args: str) -> subprocess.Popen:
  root = Path(synguide_jax.__file__).parents[1]
  return subprocess.Popen(
    [sys.executable, "-W", "error", "-c", textwrap.dedent(code), *args],
    env=os.environ | {"PYTHONPATH": str(root)},
    stdout=subprocess.PIPE,
    text=True,
  )


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
  monkeypatch.setenv("SYNGUIDE_CACHE", str(tmp_path / "cache"))
  return tmp_path / "cache"


def test_cache_dir(cache, monkeypatch):
  assert cache_dir() == cache
  monkeypatch.setenv("HOME", "/home/ada")
  monkeypatch.setenv("SYNGUIDE_CACHE", "~/sets")
  assert cache_dir() == Path("/home/ada/sets")
  monkeypatch.delenv("SYNGUIDE_CACHE")
  assert cache_dir() == Path("/home/ada/.cache/synguide_jax")


def test_fingerprint():
  config = {"b": (1, 2.5), "a": {"x": None}}
  expected = hashlib.sha256(b'{"a":{"x":null},"b":[1,2.5]}').hexdigest()[:12]
  assert fingerprint(config) == expected
  assert fingerprint(json.loads(json.dumps(config))) == expected
  assert fingerprint({"b": (1, 2.6), "a": {"x": None}}) != expected
  with pytest.raises(TypeError):
    fingerprint({"a": object()})


def test_reads_what_was_prepared(cache, capfd):
  assert not prepared.is_prepared("synguide_test", "0123456789ab")
  folder = _prepare()
  assert prepared.is_prepared("synguide_test", "0123456789ab")
  assert not prepared.is_prepared("synguide_test", "0123456789ac")
  assert folder == cache / "tfds" / "synguide_test" / "0123456789ab" / "1.0.0"
  (split, images), *others = prepared.read(folder).items()
  assert (split, others) == ("train", [])
  np.testing.assert_array_equal(images.images, _IMAGES)
  np.testing.assert_array_equal(images.labels, _LABELS)
  assert images.images.dtype == np.uint8 and images.labels.dtype == np.int32
  assert images.class_names == _CLASSES

  checksum = hashlib.sha256()
  for image, label in _examples():
    checksum.update(image.tobytes() + label.to_bytes(4, "little"))
  provenance = json.loads((folder / "provenance.json").read_text())
  assert provenance["origin"] == "test"
  assert provenance["num_images"] == 30
  assert provenance["image_checksum"] == checksum.hexdigest()
  assert provenance["versions"]["numpy"] == np.__version__
  assert provenance.items() <= images.provenance.items()

  # Nothing is done twice, and nothing is printed by tfds.
  assert _prepare(make_examples=None) == folder
  out, err = capfd.readouterr()
  assert out == ""
  assert "Generating" not in err and "WARNING:absl:Using" not in err


def test_reading_does_not_import_tensorflow():
  folder = _prepare()
  process = _python(
    """
    import sys
    from synguide_jax.data import prepared
    images = prepared.read(sys.argv[1])["train"].images
    assert images.shape == (30, 5, 7, 3)
    print("tensorflow" in sys.modules)
    """,
    str(folder),
  )
  assert process.communicate()[0] == "False\n"


def test_grey_images_and_many_of_them_keep_their_order():
  images = np.arange(3000, dtype=np.int64).view(np.uint8).reshape(-1, 4, 2, 1)
  folder = _prepare(make_examples=lambda: ((i, 1) for i in images))
  read = prepared.read(folder)["train"]
  np.testing.assert_array_equal(read.images, images)


def _with(image=_IMAGES[0], label=0):
  return lambda: [(_IMAGES[0], 0), (image, label)]


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    ({"name": "my-set"}, "must be an identifier, got 'my-set'"),
    ({"make_examples": lambda: []}, "no image to prepare"),
    ({"make_examples": _with(_IMAGES[0] / 255)}, "Image 1 .* got float64"),
    ({"make_examples": _with(_IMAGES[0, :4])}, r"shape \[5, 7, 3\], got uint8"),
    ({"make_examples": _with(label=3)}, "Image 1 .* label 3, but .* 3 classes"),
    ({"make_examples": _with(label=-1)}, "Image 1 .* label -1"),
  ],
)
def test_wrong_examples(changes, message, cache):
  with pytest.raises(UserError, match=message):
    _prepare(**changes)
  assert not list(cache.rglob("incomplete.*"))
  assert prepared.read(_prepare())["train"].images.shape == (30, 5, 7, 3)


def test_full_disk():
  def examples():
    yield from _examples()
    raise OSError(errno.ENOSPC, "No space left on device")

  with pytest.raises(UserError, match="No space left .* SYNGUIDE_CACHE"):
    _prepare(make_examples=examples)


def test_reading_what_is_no_set(tmp_path):
  with pytest.raises(UserError, match="no complete prepared set"):
    prepared.read(tmp_path)
  with pytest.raises(UserError, match="not a readable tfds set"):
    prepared.open_records(tmp_path)


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


def test_two_processes_at_once(tmp_path, cache):
  calls = tmp_path / "calls"
  processes = [_python(_SLOW, str(calls), "0.2") for _ in range(2)]
  outputs = [process.communicate()[0].strip() for process in processes]
  assert [process.returncode for process in processes] == [0, 0]
  assert calls.read_text() == "called\n"
  assert len(set(outputs)) == 1
  images = prepared.read(outputs[0])["train"].images
  np.testing.assert_array_equal(images[:, 0, 0, 0], np.arange(8))


def test_killed_preparation(tmp_path, cache):
  process = _python(_SLOW, str(tmp_path / "calls"), "600")
  try:
    deadline = time.monotonic() + 60
    while not list(cache.rglob("incomplete.*_1.0.0")):
      assert time.monotonic() < deadline and process.poll() is None
      time.sleep(0.05)
  finally:
    process.kill()
    process.communicate()
  assert list(cache.rglob("incomplete.*_1.0.0"))
  assert not prepared.is_prepared("synguide_slow", "abc")

  folder = _prepare(name="synguide_slow", fingerprint="abc")
  assert not list(cache.rglob("incomplete.*"))
  np.testing.assert_array_equal(prepared.read(folder)["train"].images, _IMAGES)


def test_killed_before_the_last_file_was_written():
  folder = _prepare()
  (folder / "provenance.json").unlink()
  assert not prepared.is_prepared("synguide_test", "0123456789ab")
  _prepare(make_examples=lambda: [(_IMAGES[3], 2)])
  np.testing.assert_array_equal(
    prepared.read(folder)["train"].images, _IMAGES[3:4]
  )


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    ({"images": _IMAGES / 255}, "images must be uint8 .* float64"),
    ({"images": _IMAGES[..., 0]}, r"images must be uint8 .* \[30, 5, 7\]"),
    ({"images": _IMAGES[..., :2]}, "1 or 3 channels, got 2"),
    ({"labels": _LABELS[:3]}, r"labels must be int32 \[30\], got int32 \[3\]"),
    ({"labels": _LABELS.astype(np.int64)}, r"int32 \[30\], got int64"),
    ({"labels": _LABELS + np.int32(1)}, r"0\.\.2 for 3 classes, got 1\.\.3"),
    ({"labels": _LABELS - np.int32(1)}, r"got -1\.\.1"),
    ({"images": _IMAGES[:0], "labels": _LABELS[:0]}, "no image"),
    ({"class_names": ("cat", "dog", "cat")}, "class names must differ"),
  ],
)
def test_image_set_checks(changes, message):
  fields = {"images": _IMAGES, "labels": _LABELS, "class_names": _CLASSES}
  fields["provenance"] = {"spec": "folder:pets"}
  prepared.ImageSet(**fields)
  with pytest.raises(UserError, match=f"folder:pets: .*{message}"):
    prepared.ImageSet(**(fields | changes))
