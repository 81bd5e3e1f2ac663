"""Tests of synguide_jax.data.sources."""

import io
import os
from pathlib import Path
import struct
import subprocess
import sys
import textwrap
import zlib

import numpy as np
from PIL import Image
import pytest

import synguide_jax
from synguide_jax.data import digits, prepared, sources
from synguide_jax.errors import UserError

_RNG = np.random.default_rng(0)
_CIFAR10 = "airplane automobile bird cat deer dog frog horse ship truck".split()


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
  """One cache for this file: preparing a set costs seconds."""
  folder = tmp_path_factory.mktemp("cache")
  with pytest.MonkeyPatch.context() as patch:
    patch.setenv("SYNGUIDE_CACHE", str(folder))
    yield folder


def _pixels(height=8, width=8, channels=3):
  return _RNG.integers(0, 256, (height, width, channels), np.uint8)


def _save(path, image=None, **options):
  path.parent.mkdir(parents=True, exist_ok=True)
  if not isinstance(image, Image.Image):
    image = Image.fromarray(_pixels() if image is None else image)
  image.save(path, **options)


def _folder(root, **arguments):
  arguments = {"image_size": 8, "channels": 3} | arguments
  return sources.load(f"folder:{root}", **arguments)


def _one(tmp_path, image, suffix="png", channels=3, **options):
  """What one saved image looks like, and what was done to it."""
  _save(tmp_path / "a" / f"1.{suffix}", image, **options)
  loaded = _folder(tmp_path, channels=channels)["train"]
  return loaded.images[0], loaded.provenance["converted"]


def test_digits(cache):
  loaded = sources.load("digits", image_size=8, channels=1)
  assert list(loaded) == ["train"]
  images, labels = zip(*digits.examples(), strict=True)
  np.testing.assert_array_equal(loaded["train"].images, np.stack(images))
  np.testing.assert_array_equal(loaded["train"].labels, labels)
  assert loaded["train"].class_names == digits.CLASS_NAMES
  assert loaded["train"].provenance["spec"] == "digits"
  assert loaded["train"].provenance["converted"] == {}

  (folder,) = (cache / "tfds" / digits.NAME).glob("*/1.0.0")
  again = sources.load(f"prepared:{folder}", image_size=16, channels=3)["train"]
  assert again.images.shape == (1797, 16, 16, 3)
  counts = {"grey to colour": 1797, "resized": 1797}
  assert again.provenance["converted"] == counts
  np.testing.assert_array_equal(again.images[..., 0], again.images[..., 2])
  first = Image.fromarray(images[0][..., 0]).resize((16, 16), Image.BICUBIC)
  np.testing.assert_array_equal(again.images[0, ..., 1], np.asarray(first))


@pytest.mark.parametrize(
  ("spec", "message"),
  [
    ("imagenet", "Unknown set 'imagenet'; known forms: digits, letters, .*"),
    ("digits:1", "Unknown set 'digits:1'"),
    ("folder:", "Unknown set 'folder:'; .*folder:<path>"),
    ("/data/cats", "Unknown set"),
    ("folder:/nowhere", "/nowhere does not exist"),
    ("prepared:/nowhere", "no complete prepared set"),
  ],
)
def test_unknown_specs(spec, message):
  with pytest.raises(UserError, match=message):
    sources.load(spec, image_size=8, channels=3)


def test_wrong_formats():
  with pytest.raises(UserError, match="image_size must be at least 1, got 0"):
    sources.load("digits", image_size=0, channels=1)
  with pytest.raises(UserError, match="channels must be 1 or 3, got 4"):
    sources.load("digits", image_size=8, channels=4)


# Image folders.


def test_folder_of_classes(tmp_path, monkeypatch):
  pixels = {}
  for name in ("cat/10.png", "cat/9.PNG", "Dog/1.bmp", "cat/9b.png"):
    pixels[name] = _pixels()
    _save(tmp_path / "pets" / name, pixels[name])
  _save(tmp_path / "pets" / "cat" / ".hidden.png")
  _save(tmp_path / "pets" / ".cache" / "1.png")
  (tmp_path / "pets" / "cat" / "notes.txt").write_text("mine")
  (tmp_path / "pets" / "readme.md").write_text("hello")
  monkeypatch.setenv("HOME", str(tmp_path))

  loaded = _folder("~/pets")
  assert list(loaded) == ["train"]
  train = loaded["train"]
  assert train.class_names == ("Dog", "cat")
  np.testing.assert_array_equal(train.labels, [0, 1, 1, 1])
  order = ("Dog/1.bmp", "cat/9.PNG", "cat/9b.png", "cat/10.png")
  np.testing.assert_array_equal(train.images, [pixels[name] for name in order])
  assert train.provenance["other_files"] == 1
  assert train.provenance["converted"] == {}


def test_classes_are_in_natural_order(tmp_path):
  for name in ("10", "9", "09", "1"):
    _save(tmp_path / name / "x.png")
  assert _folder(tmp_path)["train"].class_names == ("1", "09", "9", "10")


def test_folder_of_splits(tmp_path):
  for split, count in (("train", 3), ("val", 2), ("test", 1)):
    for i in range(count):
      _save(tmp_path / split / "cat" / f"{i}.png")
      _save(tmp_path / split / "dog" / f"{i}.png")
  loaded = _folder(tmp_path)
  lengths = {split: len(images.labels) for split, images in loaded.items()}
  assert lengths == {"train": 6, "validation": 4, "test": 2}
  assert loaded["test"].class_names == ("cat", "dog")

  _save(tmp_path / "test" / "fox" / "0.png")
  with pytest.raises(UserError, match="same classes, but .* differ in 'fox'"):
    _folder(tmp_path)
  _save(tmp_path / "validation" / "cat" / "0.png")
  with pytest.raises(UserError, match="both val and validation"):
    _folder(tmp_path)


def test_a_class_may_be_called_train(tmp_path):
  _save(tmp_path / "train" / "1.png")
  _save(tmp_path / "test" / "1.png")
  assert _folder(tmp_path)["train"].class_names == ("test", "train")


@pytest.mark.parametrize("name", ["pets.zip", "pets.tar.gz", "pets.TGZ"])
def test_archives(tmp_path, name):
  (tmp_path / name).write_bytes(b"")
  with pytest.raises(UserError, match=f"{name} is an archive; unpack it"):
    _folder(tmp_path / name)


def test_empty_folders(tmp_path):
  with pytest.raises(UserError, match="has no class folders"):
    _folder(tmp_path)
  _save(tmp_path / "cat" / "1.png")
  (tmp_path / "dog").mkdir()
  (tmp_path / "dog" / "1.gif").write_bytes(b"")
  with pytest.raises(UserError, match=r"dog has no image \(looked for .png"):
    _folder(tmp_path)
  with pytest.raises(UserError, match="1.png is not a folder"):
    _folder(tmp_path / "cat" / "1.png")


def _png(width, height, bits, colour_type, data):
  chunks = (
    b"IHDR"
    + struct.pack(">IIBBBBB", width, height, bits, colour_type, 0, 0, 0),
    b"IDAT" + zlib.compress(data),
    b"IEND",
  )
  file = b"\x89PNG\r\n\x1a\n"
  for chunk in chunks:
    crc = struct.pack(">I", zlib.crc32(chunk))
    file += struct.pack(">I", len(chunk) - 4) + chunk + crc
  return file


def _truncated():
  file = io.BytesIO()
  Image.fromarray(_pixels(64, 64)).save(file, "jpeg")
  return file.getvalue()[:-500]


_DAMAGED = {
  "bomb.png": (_png(20_000, 20_000, 8, 2, b""), "decompression bomb"),
  "text.png": (b"hello", "not an image"),
  "truncated.jpg": (_truncated(), "truncated"),
  "void.webp": (b"", "not an image"),
}


@pytest.mark.parametrize("name", _DAMAGED)
def test_damaged_file(tmp_path, name):
  content, message = _DAMAGED[name]
  _save(tmp_path / "cat" / "1.png")
  (tmp_path / "cat" / name).write_bytes(content)
  with pytest.raises(
    UserError, match=f"1 of 2 files cannot be read .*: cat/{name} .*{message}"
  ):
    _folder(tmp_path)


def test_a_smaller_bomb_is_refused_too(tmp_path, monkeypatch):
  # Pillow only warns up to twice the limit.
  _save(tmp_path / "cat" / "1.png")
  monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 40)
  with pytest.raises(UserError, match="1 of 1 files .*decompression bomb"):
    _folder(tmp_path)


def test_many_damaged_files(tmp_path):
  for i in range(8):
    (tmp_path / "cat").mkdir(exist_ok=True)
    (tmp_path / "cat" / f"{i}.png").write_bytes(b"hello")
    _save(tmp_path / "dog" / f"{i}.png", np.full((8, 8, 3), i, np.uint8))
  with pytest.raises(UserError, match="8 of 16 files .*cat/0.*cat/4") as error:
    _folder(tmp_path)
  assert "cat/5" not in str(error.value)
  loaded = _folder(tmp_path, skip_damaged=True)["train"]
  np.testing.assert_array_equal(loaded.images[:, 0, 0, 0], np.arange(8))
  assert (loaded.labels == 1).all()
  assert loaded.provenance["skipped"] == 8


def test_transparency_is_put_on_white(tmp_path):
  pixels = np.zeros((8, 8, 4), np.uint8)
  pixels[0, :, 3] = 255
  pixels[1] = (255, 0, 0, 51)
  image, converted = _one(tmp_path, pixels)
  assert converted == {"transparency": 1}
  np.testing.assert_array_equal(image[0], np.zeros((8, 3)))
  np.testing.assert_array_equal(image[1], np.tile([255, 204, 204], (8, 1)))
  np.testing.assert_array_equal(image[2:], np.full((6, 8, 3), 255))


def test_grey_with_transparency(tmp_path):
  pixels = np.zeros((8, 8, 2), np.uint8)
  pixels[:4, :, 1] = 255
  image, converted = _one(tmp_path, pixels, channels=1)
  assert converted == {"transparency": 1}
  assert image[3, 0] == 0 and image[4, 0] == 255


def test_palette(tmp_path):
  colours = np.array([[255, 0, 0], [0, 255, 0], [0, 0, 255]], np.uint8)
  pixels = colours[_RNG.integers(3, size=(8, 8))]
  palette = Image.fromarray(pixels).quantize(3)
  image, converted = _one(tmp_path, palette)
  assert converted == {"palette": 1}
  np.testing.assert_array_equal(image, pixels)


def test_palette_with_transparency(tmp_path):
  image = Image.new("P", (8, 8), 1)
  image.putpalette([9, 9, 9, 50, 60, 70])
  image.paste(0, (0, 0, 8, 4))
  image, converted = _one(tmp_path, image, transparency=0)
  assert converted == {"palette": 1, "transparency": 1}
  assert image[0, 0].tolist() == [255, 255, 255]
  assert image[7, 7].tolist() == [50, 60, 70]


def test_16_bit_grey(tmp_path):
  wide = np.arange(64, dtype=np.uint16).reshape(8, 8) * 1040
  image, converted = _one(tmp_path, wide, channels=1)
  assert converted == {"16-bit to 8-bit": 1}
  np.testing.assert_array_equal(image[..., 0], np.round(wide / 257))


def test_16_bit_colour(tmp_path):
  # Pillow cannot write such a file.
  wide = _RNG.integers(0, 65536, (8, 8, 3)).astype(">u2")
  rows = b"".join(b"\0" + row.tobytes() for row in wide)
  (tmp_path / "a").mkdir()
  (tmp_path / "a" / "1.png").write_bytes(_png(8, 8, 16, 2, rows))
  loaded = _folder(tmp_path)["train"]
  assert loaded.provenance["converted"] == {"16-bit to 8-bit": 1}
  np.testing.assert_array_equal(loaded.images[0], wide >> 8)


def test_cmyk(tmp_path):
  cmyk = Image.new("CMYK", (8, 8), (0, 255, 255, 0))
  image, converted = _one(tmp_path, cmyk, "jpg", quality=100)
  assert converted == {"CMYK": 1}
  assert np.abs(image.astype(int) - [255, 0, 0]).max() <= 3


def test_exif_rotation(tmp_path):
  exif = Image.Exif()
  exif[0x0112] = 6  # the camera was turned; rotate by 90 degrees clockwise
  pixels = np.zeros((8, 8, 3), np.uint8)
  pixels[:, :4] = 255  # bright on the left, so on top after rotation
  image, converted = _one(tmp_path, pixels, "jpg", exif=exif, quality=100)
  assert converted == {"EXIF rotation": 1}
  assert image[:3].min() > 250 and image[5:].max() < 5


@pytest.mark.parametrize("suffix", ["png", "webp", "bmp"])
def test_grey_and_colour(tmp_path, suffix):
  options = {"lossless": True} if suffix == "webp" else {}
  pixels = _pixels()
  image, converted = _one(tmp_path, pixels, suffix, channels=1, **options)
  assert converted == {"colour to grey": 1}
  luma = pixels @ [0.299, 0.587, 0.114]
  assert np.abs(image[..., 0] - luma).max() <= 1


def test_colour_of_a_grey_image(tmp_path):
  pixels = _pixels()[..., 0]
  image, converted = _one(tmp_path, pixels)
  assert converted == {"grey to colour": 1}
  np.testing.assert_array_equal(image, np.tile(pixels[..., None], 3))


def test_bilevel(tmp_path):
  pixels = _pixels()[..., 0] > 127
  image, converted = _one(tmp_path, pixels, channels=1)
  assert converted == {}
  np.testing.assert_array_equal(image[..., 0], pixels * 255)


def test_resizing_cuts_the_central_square(tmp_path):
  pixels = np.zeros((20, 40, 3), np.uint8)
  pixels[:, 10:30, 0] = 200  # the central square is red, the rest is black
  pixels[:10, 10:30, 1] = 100
  image, converted = _one(tmp_path, pixels)
  assert converted == {"resized": 1}
  # The filter reaches a little beyond the cut.
  assert (image[:, 2:-2, 0] == 200).all() and image[..., 0].min() > 180
  assert (image[:2, 2:-2, 1] == 100).all() and (image[6:, :, 1] == 0).all()


def test_shrinking_is_antialiased(tmp_path):
  pixels = np.indices((64, 64)).sum(axis=0) % 2 * 255  # a chessboard
  image, _ = _one(tmp_path, pixels.astype(np.uint8), channels=1)
  assert np.abs(image - 127.5).max() < 8


# tfds sets.


@pytest.fixture
def tfds_data_dir(tmp_path, monkeypatch):
  monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "tfds"))
  return tmp_path / "tfds"


def _store(
  data_dir, name, images, labels, file_format="array_record", test=None
):
  """Writes a set as tfds would, with the features of CIFAR-10."""
  prepared._import_tensorflow(name)

  def examples(split, images, labels):
    for i, (image, label) in enumerate(zip(images, labels, strict=True)):
      yield i, {"id": f"{split}_{i:05d}", "image": image, "label": label}

  with prepared._quiet_tfds() as tfds:
    features = tfds.features.FeaturesDict(
      {
        "id": tfds.features.Text(),
        "image": tfds.features.Image(shape=(32, 32, 3)),
        "label": tfds.features.ClassLabel(names=_CIFAR10),
      }
    )
    test_labels = labels[:4] if test is None else test
    tfds.dataset_builders.AdhocBuilder(
      name=name,
      version="3.0.2",
      features=features,
      split_datasets={
        "train": examples("train", images, labels),
        "test": examples("test", images[:4], test_labels),
      },
      data_dir=data_dir,
      file_format=file_format,
      disable_shuffling=True,
    ).download_and_prepare()


def test_tfds_set_is_read_without_tensorflow(tfds_data_dir, cache):
  images = _RNG.integers(0, 256, (12, 32, 32, 3), np.uint8)
  labels = [(7 * i) % 10 for i in range(12)]
  _store(tfds_data_dir, "cifar10", images, labels)
  root = Path(synguide_jax.__file__).parents[1]
  code = """
    import sys
    import numpy as np
    from synguide_jax.data import sources
    for name in ("cifar10", "cifar10:3.0.2"):
      sets = sources.load(f"tfds:{name}", image_size=32, channels=3)
      assert list(sets) == ["test", "train"] or list(sets) == ["train", "test"]
    train, test = sets["train"], sets["test"]
    assert "tensorflow" not in sys.modules
    np.savez(
      sys.argv[1],
      names=train.class_names,
      images=train.images,
      labels=train.labels,
      test=test.images,
    )
  """
  file = tfds_data_dir / "read.npz"
  subprocess.run(
    [sys.executable, "-W", "error", "-c", textwrap.dedent(code), str(file)],
    env=os.environ | {"PYTHONPATH": str(root)},
    check=True,
  )
  with np.load(file) as read:
    np.testing.assert_array_equal(read["images"], images)
    np.testing.assert_array_equal(read["labels"], labels)
    np.testing.assert_array_equal(read["test"], images[:4])
    assert read["names"].tolist() == _CIFAR10


def test_a_split_without_labels_is_left_out(tfds_data_dir, cache):
  images = _RNG.integers(0, 256, (5, 32, 32, 3), np.uint8)
  _store(tfds_data_dir, "my_set", images, range(5), test=[-1] * 4)
  loaded = sources.load("tfds:my_set:3.0.2", image_size=8, channels=1)
  assert list(loaded) == ["train"]
  counts = {"colour to grey": 5, "resized": 5}
  assert loaded["train"].provenance["converted"] == counts


@pytest.fixture(scope="module")
def generated_set():
  """A set that tfds can prepare: it has code, and needs no download."""
  import tensorflow_datasets as tfds

  class SynguideTiny(tfds.core.GeneratorBasedBuilder):
    VERSION = tfds.core.Version("1.2.0")

    def _info(self):
      features = {
        "image": tfds.features.Image(shape=(8, 8, 3)),
        "label": tfds.features.ClassLabel(names=["a", "b"]),
      }
      if self.data_dir_root.name == "broken":
        features["label"] = np.int64
      return tfds.core.DatasetInfo(
        builder=self,
        features=tfds.features.FeaturesDict(features),
        disable_shuffling=True,
      )

    def _split_generators(self, dl_manager):
      return {"train": self._generate_examples()}

    def _generate_examples(self):
      for i in range(6):
        image = np.full((8, 8, 3), i, np.uint8)
        yield i, {"image": image, "label": i % 2}

  return SynguideTiny


def _check_tiny():
  loaded = sources.load("tfds:synguide_tiny", image_size=8, channels=3)
  images = loaded["train"].images
  np.testing.assert_array_equal(images[:, 0, 0, 0], np.arange(6))
  return Path(loaded["train"].provenance["origin"])


def test_tfds_set_is_prepared(tfds_data_dir, generated_set, cache):
  folder = _check_tiny()
  assert folder == tfds_data_dir / "synguide_tiny" / "1.2.0"
  written = folder.stat().st_mtime_ns
  assert _check_tiny() == folder
  assert folder.stat().st_mtime_ns == written


def test_tfrecord_copy_is_prepared_beside_it(
  tfds_data_dir, generated_set, cache
):
  prepared._import_tensorflow("a test")
  generated_set(data_dir=tfds_data_dir).download_and_prepare(
    file_format="tfrecord"
  )
  folder = _check_tiny()
  assert folder == cache / "tfds" / "synguide_tiny" / "1.2.0"
  assert _check_tiny() == folder
  assert not list(tfds_data_dir.rglob("*array_record*"))


def test_tfds_sets_that_cannot_be_used(tmp_path, monkeypatch, generated_set):
  monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "broken"))
  monkeypatch.setenv("SYNGUIDE_CACHE", str(tmp_path / "cache"))
  with pytest.raises(UserError, match="no feature 'label' of type ClassLabel"):
    sources.load("tfds:synguide_tiny", image_size=8, channels=3)
  with pytest.raises(UserError, match="no set 'cifar01', .* names: .*cifar10"):
    sources.load("tfds:cifar01", image_size=8, channels=3)
  with pytest.raises(UserError, match="cannot load 'synguide_tiny:9.9.9'"):
    sources.load("tfds:synguide_tiny:9.9.9", image_size=8, channels=3)


# Classes.


def _labelled(names, labels):
  images = np.zeros((len(labels), 2, 2, 1), np.uint8)
  return sources.ImageSet(images, np.array(labels, np.int32), names)


def test_match_classes():
  real = _labelled(("cat", "dog", "owl"), [0, 1, 2])
  synthetic = _labelled(("owl", "cat", "dog"), [0, 0, 1, 2])
  matched = sources.match_classes(real, synthetic)
  assert matched.class_names == real.class_names
  assert matched.labels.dtype == np.int32
  np.testing.assert_array_equal(matched.labels, [2, 2, 0, 1])
  assert matched.images is synthetic.images


def test_classes_that_do_not_match():
  real = _labelled(("cat", "dog"), [0])
  synthetic = _labelled(("cat", "fox"), [0])
  message = (
    "my_real: 'cat', 'dog'. folder:x: 'cat', 'fox'. "
    "Only in my_real: 'dog'; only in folder:x: 'fox'."
  )
  with pytest.raises(UserError, match=message):
    sources.match_classes(
      real, synthetic, real_name="my_real", synthetic_name="folder:x"
    )
  many = _labelled(tuple(f"c{i}" for i in range(200)), [0])
  with pytest.raises(UserError, match=r"'c19', \.\.\. \(200 in all\)\."):
    sources.match_classes(many, synthetic)
