import numpy as np
from PIL import Image
import pytest

from synguide_jax.synthesis.contact_sheet import contact_sheet


def _read(path):
  with Image.open(path) as image:
    assert image.format == "PNG"
    return np.asarray(image)


@pytest.mark.parametrize("channels", [1, 3])
def test_rows_are_classes_and_columns_their_images(tmp_path, channels):
  # Flat images whose value is their number; class 1 has one, class 2 none.
  values = np.array([10, 20, 30, 40, 50], np.uint8)
  images = np.broadcast_to(values[:, None, None, None], (5, 4, 6, channels))
  labels = np.array([0, 1, 0, 0, 0])
  path = tmp_path / "sheet.png"
  contact_sheet(images, labels, ["a", "b", "c"], path, per_class=3, scale=5)
  sheet = _read(path)
  height, width, gap = 20, 30, 2
  left = sheet.shape[1] - 3 * (width + gap)
  assert left > 0 and sheet.shape == (
    gap + 3 * (height + gap),
    *sheet.shape[1:],
  )
  expected = [[10, 30, 40], [20, 255, 255], [255, 255, 255]]
  for row, of_class in enumerate(expected):
    for column, value in enumerate(of_class):
      top, start = gap + row * (height + gap), left + column * (width + gap)
      tile = sheet[top : top + height, start : start + width]
      np.testing.assert_array_equal(tile, value)
    # The name is written at the left.
    assert sheet[top : top + height, :left].min() < 100


def test_images_are_enlarged_without_smoothing(tmp_path):
  images = np.random.default_rng(0).integers(0, 256, (1, 8, 8, 3), np.uint8)
  path = tmp_path / "sheet.png"
  contact_sheet(images, np.zeros(1, int), ["a"], path, per_class=1)
  tile = _read(path)[2:50, -50:-2]
  np.testing.assert_array_equal(
    tile, images[0].repeat(6, axis=0).repeat(6, axis=1)
  )


def test_large_images_keep_their_size(tmp_path):
  path = tmp_path / "sheet.png"
  contact_sheet(
    np.zeros((1, 64, 64, 3), np.uint8), np.zeros(1, int), ["a"], path, 1
  )
  assert _read(path).shape[0] == 64 + 4


def test_long_names_fit(tmp_path):
  path, image = tmp_path / "sheet.png", np.zeros((1, 8, 8, 1), np.uint8)
  widths = []
  for name in ("a", "a long name of a class"):
    contact_sheet(image, np.zeros(1, int), [name], path)
    widths.append(_read(path).shape[1])
  assert widths[1] > widths[0] + 50


@pytest.mark.parametrize(
  ("images", "labels", "options", "message"),
  [
    (np.zeros((1, 8, 8, 1)), [0], {}, "uint8 images"),
    (np.zeros((1, 8, 8, 2), np.uint8), [0], {}, "1 or 3"),
    (np.zeros((2, 8, 8, 1), np.uint8), [0], {}, r"labels of shape \[2\]"),
    (np.zeros((1, 8, 8, 1), np.uint8), [1], {}, r"in \[0, 1\)"),
    (np.zeros((1, 8, 8, 1), np.uint8), [0], {"scale": 0}, r"scale \(0\)"),
  ],
)
def test_wrong_arguments(tmp_path, images, labels, options, message):
  path = tmp_path / "sheet.png"
  with pytest.raises(ValueError, match=message):
    contact_sheet(images, np.array(labels), ["a"], path, **options)
  assert not path.exists()
