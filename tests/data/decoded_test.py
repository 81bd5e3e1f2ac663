"""Images that were decoded before are not decoded again."""

import os
from pathlib import Path

import filelock
import jax
import numpy as np
import pytest

from synguide_jax import mesh
from synguide_jax.data import decode, decoded, prepared, records
from synguide_jax.data.pixels import Pixels
from synguide_jax.images import Resident

IMAGES = np.random.default_rng(0).integers(0, 256, (6, 9, 9, 3), np.uint8)


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
  """A cache of its own."""
  monkeypatch.setenv("SYNGUIDE_CACHE", str(tmp_path))
  return tmp_path / "decoded"


class Decoded(AssertionError):
  """Something was."""


def refuse(*args, **options):
  raise Decoded


def read(name="a", function=IMAGES.copy, **options):
  options = {"least_bytes": 0, **options}
  return decoded.read(name, IMAGES.shape, function, **options)


def test_the_second_time_nothing_is_decoded(folder):
  np.testing.assert_array_equal(read(), IMAGES)
  (file,) = folder.glob("*.pixels")
  os.utime(file, (0, 0))
  np.testing.assert_array_equal(read(function=refuse), IMAGES)
  assert file.stat().st_mtime > 0
  with pytest.raises(Decoded):
    read("b", refuse)


def test_what_is_small_or_large_is_not_kept(folder):
  size = IMAGES.nbytes + 4  # the checksum
  for limit in ({"least_bytes": size + 1}, {"kept_bytes": size - 1}):
    np.testing.assert_array_equal(read(**limit), IMAGES)
    assert not folder.exists()
  read(least_bytes=size, kept_bytes=size)
  np.testing.assert_array_equal(read(function=refuse), IMAGES)


@pytest.fixture
def warned(monkeypatch):
  """Warnings of the module."""
  found = []
  monkeypatch.setattr(
    decoded.logging, "warning", lambda text, *args: found.append(text % args)
  )
  return found


@pytest.fixture
def read_only(monkeypatch):
  """Files cannot be touched nor replaced, once called."""

  def fail(*args, **options):
    raise PermissionError("not yours")

  def make():
    monkeypatch.setattr(os, "utime", fail)
    monkeypatch.setattr(Path, "replace", fail)

  return make


def test_a_read_only_folder_is_read(read_only, warned):
  read()
  read_only()
  np.testing.assert_array_equal(read(function=refuse), IMAGES)
  assert not warned


@pytest.mark.parametrize("writable", [True, False])
@pytest.mark.parametrize("damage", ["cut", "emptied", "longer", "a", "b", "c"])
def test_damaged_it_is_decoded_again(
  folder, damage, writable, read_only, warned
):
  read()
  (file,) = folder.glob("*.pixels")
  content = bytearray(file.read_bytes())
  # One bit of the first, a middle and the last byte.
  if damage in "abc":
    content[{"a": 0, "b": 700, "c": -1}[damage]] ^= 1
  changed = {"cut": content[:-5], "emptied": b"", "longer": content + b"."}
  file.write_bytes(changed.get(damage, content))
  if not writable:
    read_only()
  with pytest.raises(Decoded):
    read(function=refuse)
  np.testing.assert_array_equal(read(), IMAGES)
  if writable:
    np.testing.assert_array_equal(read(function=refuse), IMAGES)
    assert not warned
  else:
    assert "not yours" in warned[0] and str(folder) in warned[0]


def test_the_longest_unused_go_first(folder):
  for name in "abc":
    read(name)
  for file in folder.glob("*.pixels"):
    os.utime(file, (0, 0))
  read("a")
  read("d", kept_bytes=2 * file.stat().st_size)
  assert sorted(file.stem for file in folder.glob("*.pixels")) == ["a", "d"]


@pytest.mark.parametrize(
  "obstacle,said",
  [
    ("no folder", "File exists"),
    ("no locks", "no locks"),
    ("full", "No space left"),
    ("busy", None),
  ],
)
def test_where_nothing_can_be_written_it_is_decoded(
  folder, obstacle, said, monkeypatch, warned
):
  folder.mkdir()
  lock = filelock.FileLock(folder / ".lock")
  if obstacle == "no folder":
    folder.rmdir()
    folder.write_text("a file in its place")
  elif obstacle == "busy":
    lock.acquire()
  elif obstacle == "no locks":
    # As filelock does where flock is not implemented.
    def acquire(*args, **options):
      raise NotImplementedError("no locks")

    monkeypatch.setattr(filelock.FileLock, "acquire", acquire)
  else:
    usage = decoded.shutil.disk_usage(folder)._replace(free=IMAGES.nbytes)
    monkeypatch.setattr(decoded.shutil, "disk_usage", lambda _: usage)
  np.testing.assert_array_equal(read(), IMAGES)
  lock.release()
  assert not list(folder.glob("*.pixels"))
  # What another process keeps is no news.
  assert len(warned) == bool(said) and (said or "") in "".join(warned)


def test_what_a_killed_process_left_goes(folder):
  folder.mkdir()
  (folder / ".a.pixels.12.partial").write_bytes(b"half")
  read()
  assert [file.name for file in folder.glob("*a.pixels*")] == ["a.pixels"]


def pixels_of(rows, size=1024, channels=3, name="synguide_decoded"):
  """Six images of this size are large enough to be kept."""
  folder = prepared.prepare(
    name,
    "0123456789ab",
    lambda: {"train": [prepared.Example(image, 0) for image in IMAGES]},
    ["a"],
    provenance={},
  )
  found = records.of_prepared(folder)["train"]
  # In two parts, since what part an image is of makes no difference.
  rows = np.asarray(rows)
  return Pixels([(found, rows[:2]), (found, rows[2:])], size, channels)


def test_resident_images_are_kept(monkeypatch):
  devices = mesh.create(1, jax.devices()[:1])
  rows = [5, 0, 3, 1, 2, 4]
  expected = pixels_of(rows).read()
  first = Resident(pixels_of(rows), devices).stored
  np.testing.assert_array_equal(first, expected)
  monkeypatch.setattr(Pixels, "read", refuse)
  # The same images of another set are the same.
  again = Resident(pixels_of(rows, name="synguide_copy"), devices).stored
  np.testing.assert_array_equal(again, expected)


def test_fingerprints_tell_what_is_read_apart(monkeypatch):
  rows = [5, 0, 3]
  other = [
    pixels_of([0, 5, 3]),
    pixels_of([5, 0]),
    pixels_of(rows, size=9),
    pixels_of(rows, channels=1),
  ]
  found = {pixels.fingerprint for pixels in (pixels_of(rows), *other)}
  assert len(found) == 5
  assert pixels_of(rows, name="synguide_copy").fingerprint in found
  monkeypatch.setattr(decode, "version", lambda: ("another",))
  assert pixels_of(rows).fingerprint not in found
