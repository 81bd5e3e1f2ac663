"""Images are made once, in whatever pieces, and looked at."""

import json

import numpy as np
from PIL import Image
import pytest

from synguide_jax.data import experiment_data, prepared
from synguide_jax.errors import UserError
from synguide_jax.synthesis import generated
from synguide_jax.synthesis.modes import Modes
from synguide_jax.synthesis.sampling import GROUP
from tests.synthesis import small

CLASSES = small.INFO.class_names


class _Generator:
  """Makes images that say their label and index; notes what was asked."""

  def __init__(self):
    self.calls = []

  def __call__(self, labels, indices):
    self.calls.append(indices.tolist())
    images = np.zeros((len(labels), 4, 4, 1), np.uint8)
    images[:, 0, 0, 0], images[:, 0, 1, 0] = labels, indices % 256
    return images


def _first(generator, folder, number, **kwargs):
  found = generated.groups(generator, folder, num_classes=3, **kwargs)
  return [next(found) for _ in range(number)]


def test_groups_are_made_once_in_any_batches(tmp_path):
  generator = _Generator()
  first = _first(generator, tmp_path, 3, batch_size=2 * GROUP)
  assert [len(call) for call in generator.calls] == [2 * GROUP] * 2
  index = np.arange(3 * GROUP)
  images = np.concatenate(first)
  np.testing.assert_array_equal(images[:, 0, 0, 0], index % 3)
  np.testing.assert_array_equal(images[:, 0, 1, 0], index)

  # One is gone, one is damaged, and what a killed process left is removed.
  (tmp_path / "000001.npy").unlink()
  damaged = tmp_path / "000002.npy"
  damaged.write_bytes(damaged.read_bytes()[:100])
  leftover = tmp_path / ".000003.npy.1.partial"
  leftover.touch()
  generator.calls.clear()
  again = _first(generator, tmp_path, 3, batch_size=GROUP)
  np.testing.assert_array_equal(again, first)
  assert [call[0] for call in generator.calls] == [GROUP, 2 * GROUP]
  assert not leftover.exists()


def test_the_last_group_ends_them(tmp_path):
  generator = _Generator()
  found = generated.groups(
    generator, tmp_path, num_classes=3, batch_size=4 * GROUP, last=2
  )
  assert len(list(found)) == 2
  assert [len(call) for call in generator.calls] == [2 * GROUP]


def _examples(folder, per_class, **kwargs):
  config = small.config(**{"sample.per_class": per_class})
  return list(
    generated.examples(config, _Generator(), folder, CLASSES, **kwargs)
  )


def test_more_images_begin_with_the_same(tmp_path):
  few, many = (_examples(tmp_path, number) for number in (20, 50))
  assert [example.label for example in many] == [0, 1, 2] * 50
  assert [example.name for example in few] == [f"{i:06}" for i in range(60)]
  for one, other in zip(few, many, strict=False):
    np.testing.assert_array_equal(one.image, other.image)


def _modes(dropped):
  """Modes of images by their index, which is what 256 is multiplied with."""
  centres = np.zeros((3, 2, 4, 4, 1), np.float32)
  centres[..., 0, 0, 0] = np.arange(3)[:, None]
  centres[:, 1, 0, 1, 0] = 255
  return Modes(centres, dropped)


def test_images_of_dropped_modes_are_replaced(tmp_path):
  # The second mode is that of index % 256 above 127.
  found = _examples(tmp_path, 60, modes=_modes(1))
  counts = np.bincount([example.label for example in found])
  np.testing.assert_array_equal(counts, [60, 60, 60])
  index = np.array([int(example.name) for example in found])
  assert (index % 256 < 128).all() and index.max() > 256


def test_modes_that_leave_nothing_are_reported(tmp_path):
  with pytest.raises(UserError, match="less than a hundredth.*'a', 'b', 'c'"):
    _examples(tmp_path, 60, modes=_modes(2))


def test_contact_sheets_and_copies(tmp_path, monkeypatch):
  monkeypatch.setenv("SYNGUIDE_CACHE", str(tmp_path))
  config = small.config().data
  config.image_size = 8
  data = experiment_data.load(config, seed=0, runs=(0,))
  real = data.members["real"][0][:30]
  # Ten copies, ten images with another pixel, and noise.
  images = data.pixels.read(real)
  images[10:20, 0, 0] ^= 8
  images[20:] = np.random.default_rng(0).integers(0, 256, images[20:].shape)
  folder = prepared.prepare(
    "made",
    "0",
    lambda: zip(images, data.labels[real], strict=True),
    data.class_names,
    provenance={},
  )
  lines = generated.look_at(folder, data)
  assert "10 are exact and 20 near copies" in lines[0]
  report = json.loads((folder / "copies.json").read_text())
  assert report["samples"]["count"] == 30
  names = sorted(path.name for path in (folder / "contact_sheets").iterdir())
  assert names == ["00_0.png", "01_1.png"]
  with Image.open(folder / "contact_sheet.png") as sheet:
    assert sheet.size[1] > 2 * 48
