import numpy as np
from PIL import Image
import pytest

from synguide_jax.errors import UserError
from synguide_jax.synthesis.contact_sheet import (
  contact_sheet,
  contact_sheets,
  SHOWN,
)


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
  contact_sheet(images, labels, ["a", "b", "c"], path, columns=3, scale=5)
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
  contact_sheet(images, np.zeros(1, int), ["a"], path, columns=1)
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
    (np.zeros((1, 8, 8, 1), np.uint8), [0], {"rows": 0}, r"rows \(0\)"),
  ],
)
def test_wrong_arguments(tmp_path, images, labels, options, message):
  path = tmp_path / "sheet.png"
  with pytest.raises(ValueError, match=message):
    contact_sheet(images, np.array(labels), ["a"], path, **options)
  assert not path.exists()


def test_a_class_may_have_several_rows(tmp_path):
  # Class 0 has five images, more than fit; class 1 three.
  values = np.array([10, 20, 30, 40, 50, 60, 70, 80], np.uint8)
  images = np.broadcast_to(values[:, None, None, None], (8, 20, 30, 3))
  labels = np.array([0, 0, 0, 0, 0, 1, 1, 1])
  path = tmp_path / "sheet.png"
  contact_sheet(images, labels, ["a", "b"], path, columns=2, scale=1, rows=2)
  sheet = _read(path)
  assert sheet.shape[0] == 2 + 4 * 22
  tiles = [
    [sheet[2 + 22 * row + 10, 32 * column - 17, 0] for column in (-1, 0)]
    for row in range(4)
  ]
  assert tiles == [[10, 20], [30, 40], [60, 70], [80, 255]]


def test_sheets_of_all_classes(tmp_path):
  # Number n of a class is n + 1 everywhere: 103, 11 and no images.
  labels = np.array([0] * 103 + [1] * 11)
  values = np.concatenate([np.arange(1, 104), np.arange(1, 12)])
  images = np.broadcast_to(
    values[:, None, None, None].astype(np.uint8), (114, 48, 48, 1)
  )
  names = ["a cat/dog?", "\u00fc.b", "none"]
  paths = contact_sheets(images, labels, names, tmp_path)
  assert [str(path.relative_to(tmp_path)) for path in paths] == [
    "contact_sheet.png",
    "contact_sheets/00_a_cat_dog_.png",
    "contact_sheets/01_\u00fc_b.png",
    "contact_sheets/02_none.png",
  ]
  # Nothing else, not even what is half written.
  assert {p for p in tmp_path.rglob("*") if p.is_file()} == set(paths)

  def shown(path, columns):
    """Values of the tiles; 0 for an empty place."""
    sheet = _read(path)
    rows = (sheet.shape[0] - 2) // 50
    across = sheet[27::50][:rows, ::-1][:, 25::50][:, :columns][:, ::-1, 0]
    return np.where(across == 255, 0, across).tolist()

  ten = np.arange(1, 101).reshape(10, 10).tolist()
  assert shown(paths[1], 10) == ten
  assert shown(paths[2], 10) == [ten[0], [11] + [0] * 9]
  assert shown(paths[3], 10) == [[0] * 10]
  overview = shown(paths[0], 20)
  assert overview == [[*range(1, 21)], [*range(1, 12)] + [0] * 9, [0] * 20]

  # The images that are needed suffice.
  few = np.concatenate([np.flatnonzero(labels == c)[:SHOWN] for c in (1, 0)])
  assert len(few) == 111
  before = [path.read_bytes() for path in paths]
  assert contact_sheets(images[few], labels[few], names, tmp_path) == paths
  assert [path.read_bytes() for path in paths] == before


def test_file_names_are_short_and_in_order(tmp_path):
  names = ["x"] * 100 + ["\u00fc" * 130]  # which take 260 bytes
  image = np.zeros((1, 48, 48, 1), np.uint8)
  paths = contact_sheets(image, np.zeros(1, int), names, tmp_path)[1:]
  assert len(set(paths)) == 101 and sorted(paths) == paths
  assert all(path.is_file() for path in paths)


def test_wrong_sets_leave_no_sheets(tmp_path):
  image = np.zeros((1, 8, 8, 1), np.uint8)
  with pytest.raises(UserError, match=r"in \[0, 1\)"):
    contact_sheets(image, np.array([1]), ["a"], tmp_path)
  with pytest.raises(UserError, match="class_names are none"):
    contact_sheets(image[:0], np.zeros(0, int), [], tmp_path)
  assert not list(tmp_path.iterdir())
