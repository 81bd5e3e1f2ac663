"""Image files, archives, sets and processes to test reading with."""

import io
import os
from pathlib import Path
import stat
import struct
import subprocess
import sys
import tarfile
import textwrap
import types
import zipfile
import zlib

from etils import epath
import numpy as np
from PIL import Image

import synguide_jax
from synguide_jax.data import tfds_sets

CIFAR10 = "airplane automobile bird cat deer dog frog horse ship truck".split()

_RNG = np.random.default_rng(0)


def pixels(height=8, width=8, channels=3):
  """Noise, other each time."""
  return _RNG.integers(0, 256, (height, width, channels), np.uint8)


def encode(image=None, suffix="png", **options):
  """The content of an image file."""
  if not isinstance(image, Image.Image):
    image = Image.fromarray(pixels() if image is None else image)
  file = io.BytesIO()
  image.save(file, {"jpg": "jpeg"}.get(suffix, suffix), **options)
  return file.getvalue()


def png(width, height, bits, colour_type, data):
  """A PNG file that Pillow would not write."""
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


def write(root, contents):
  """Writes files, given by name."""
  for name, content in contents.items():
    path = Path(root, name)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
  return Path(root)


def pack(path, contents):
  """Writes a zip or tar file; a name that ends in / is a folder."""
  if path.suffix == ".zip":
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
      for name, content in contents.items():
        archive.writestr(name, content)
    return path
  mode = {".gz": "w:gz", ".tgz": "w:gz", ".bz2": "w:bz2", ".xz": "w:xz"}.get(
    path.suffix, "w"
  )
  with tarfile.open(path, mode) as archive:
    for name, content in contents.items():
      info = tarfile.TarInfo(name)
      if name.endswith("/"):
        info.type = tarfile.DIRTYPE
      info.size = len(content)
      archive.addfile(info, io.BytesIO(content))
  return path


class _BucketPath:
  """What a remote path is to epath, served from a local folder."""

  root: Path

  def __init__(self, path):
    self._uri = str(path)
    self._local = self.root / self._uri.removeprefix("bucket://")
    self.name = self._local.name
    for method in (
      *("exists", "is_dir", "mkdir", "open", "read_bytes", "read_text"),
      *("unlink", "write_bytes"),
    ):
      setattr(self, method, getattr(self._local, method))

  def __fspath__(self):
    return self._uri

  __str__ = __fspath__

  def joinpath(self, *names):
    return _BucketPath("/".join((self._uri, *names)))

  __truediv__ = joinpath

  def with_name(self, name):
    return _BucketPath(f"{self._uri.rpartition('/')[0]}/{name}")

  def replace(self, other):
    self._local.replace(other._local)

  def resolve(self):
    # Orbax has ways of its own to write to a bucket.
    return epath.Path(self._local)

  def glob(self, pattern):
    return (self / path.name for path in self._local.glob(pattern))

  def iterdir(self):
    return (self / name for name in os.listdir(self._local))

  def stat(self):
    found = self._local.stat()
    return types.SimpleNamespace(
      is_directory=stat.S_ISDIR(found.st_mode),
      length=found.st_size,
      mtime=found.st_mtime,
    )


epath.register_path_cls(["bucket://"])(_BucketPath)


def bucket(folder):
  """Makes a folder what bucket:// names."""
  folder.mkdir()
  _BucketPath.root = folder
  return folder


def decoded(records):
  """The images of a split as they are stored, each [H, W, C]."""
  images = []
  for encoded in records.encoded(range(len(records))):
    with Image.open(io.BytesIO(encoded)) as im:
      images.append(np.atleast_3d(np.asarray(im)))
  return images


def store(data_dir, name, splits, file_format="array_record"):
  """Writes a set as tfds would, with the features of CIFAR-10.

  Args:
    data_dir: Of tfds.
    name: Of the set.
    splits: Images, or the content of files, and labels by split.
    file_format: Of the files.
  """
  tfds_sets.import_tensorflow(name)
  import tensorflow_datasets as tfds

  def examples(split, images, labels):
    for i, (image, label) in enumerate(zip(images, labels, strict=True)):
      yield i, {"id": f"{split}_{i:05d}", "image": image, "label": label}

  features = tfds.features.FeaturesDict(
    {
      "id": tfds.features.Text(),
      "image": tfds.features.Image(shape=(32, 32, 3)),
      "label": tfds.features.ClassLabel(names=CIFAR10),
    }
  )
  tfds.disable_progress_bar()
  builder = tfds.dataset_builders.AdhocBuilder(
    name=name,
    version="3.0.2",
    features=features,
    split_datasets={
      split: examples(split, *of_split) for split, of_split in splits.items()
    },
    data_dir=data_dir,
    file_format=file_format,
    disable_shuffling=True,
  )
  builder.download_and_prepare()
  return Path(builder.data_dir)


def python(code, *args):
  """Starts a process that runs code and shares the cache folder."""
  root = Path(synguide_jax.__file__).parents[1]
  return subprocess.Popen(
    [sys.executable, "-W", "error", "-c", textwrap.dedent(code), *args],
    env=os.environ | {"PYTHONPATH": str(root)},
    stdout=subprocess.PIPE,
    text=True,
  )
