"""Images that were decoded before are not decoded again."""

import os

import numpy as np
import pytest

from synguide_jax.data import decoded, prepared, records
from synguide_jax.data.pixels import Pixels

IMAGES = np.random.default_rng(0).integers(0, 256, (6, 9, 9, 3), np.uint8)


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
  """A cache of its own."""
  monkeypatch.setenv("SYNGUIDE_CACHE", str(tmp_path))
  return tmp_path / "decoded"


def pixels_of(rows, size=9, name="synguide_decoded"):
  folder = prepared.prepare(
    name,
    "0123456789ab",
    lambda: {"train": [prepared.Example(image, 0) for image in IMAGES]},
    ["a"],
    provenance={},
  )
  found = records.of_prepared(folder)["train"]
  return Pixels([(found, np.asarray(rows))], size, 3)


class Decoded(AssertionError):
  """Something was."""


@pytest.fixture
def refuse(monkeypatch):
  """Lets nothing be decoded, once called."""

  def read(self):
    raise Decoded

  return lambda: monkeypatch.setattr(Pixels, "read", read)


def read(pixels, **options):
  return decoded.read(pixels, **{"least_bytes": 0, **options})


def test_the_second_time_nothing_is_decoded(folder, refuse):
  np.testing.assert_array_equal(read(pixels_of([5, 0, 3])), IMAGES[[5, 0, 3]])
  (file,) = folder.glob("*.npz")
  refuse()
  os.utime(file, (0, 0))
  # The same images of another set are the same.
  again = read(pixels_of([5, 0, 3], name="synguide_copy"))
  np.testing.assert_array_equal(again, IMAGES[[5, 0, 3]])
  assert file.stat().st_mtime > 0
  for other in (pixels_of([0, 5, 3]), pixels_of([5, 0, 3], size=8)):
    with pytest.raises(Decoded):
      read(other)


def test_what_is_small_or_large_is_not_kept(folder):
  pixels = pixels_of(range(6))
  np.testing.assert_array_equal(read(pixels, least_bytes=6 * 243 + 1), IMAGES)
  np.testing.assert_array_equal(read(pixels, kept_bytes=6 * 243 - 1), IMAGES)
  assert not folder.exists()


@pytest.mark.parametrize("damage", ["cut", "emptied", "changed", "of another"])
def test_damaged_it_is_decoded_again(folder, refuse, damage):
  read(pixels_of(range(6)))
  (file,) = folder.glob("*.npz")
  content = file.read_bytes()
  if damage == "of another":
    np.savez(file, labels=np.arange(3))
  else:
    middle = len(content) // 2
    other = bytes([content[middle] ^ 1])
    file.write_bytes(
      {
        "cut": content[:middle],
        "emptied": b"",
        "changed": content[:middle] + other + content[middle + 1 :],
      }[damage]
    )
  np.testing.assert_array_equal(read(pixels_of(range(6))), IMAGES)
  refuse()
  np.testing.assert_array_equal(read(pixels_of(range(6))), IMAGES)


def test_the_longest_unused_go_first(folder, refuse):
  for rows in ([0], [1], [2]):
    read(pixels_of(rows))
  for file in folder.glob("*.npz"):
    os.utime(file, (0, 0))
  size = file.stat().st_size
  read(pixels_of([0]))
  read(pixels_of([3]), kept_bytes=2 * size)
  refuse()
  for rows in ([0], [3]):
    np.testing.assert_array_equal(read(pixels_of(rows)), IMAGES[rows])
  for rows in ([1], [2]):
    with pytest.raises(Decoded):
      read(pixels_of(rows))


def test_where_nothing_can_be_written_it_is_decoded(folder):
  folder.write_text("a file in the place of the folder")
  np.testing.assert_array_equal(read(pixels_of(range(6))), IMAGES)


def test_what_a_killed_process_left_goes(folder):
  folder.mkdir()
  (folder / ".0123456789ab.npz.12.partial").write_bytes(b"half")
  read(pixels_of(range(6)))
  assert len(list(folder.glob("*.npz"))) == 1
  assert not list(folder.glob(".*.partial"))
