"""Where images come from: ``load(spec)`` gives sets of one size and kind.

A new kind of source is a function with the decorator ``_scheme``. It lists its
images as (name, file, label) and hands the list to ``_image_set``.
"""

from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
import dataclasses
import io
import os
from pathlib import Path
import re
from typing import Any
import warnings

import numpy as np
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from synguide_jax.data import digits, letters, prepared
from synguide_jax.data.prepared import ImageSet
from synguide_jax.errors import UserError

__all__ = ["ImageSet", "load", "match_classes"]

_EXTENSIONS = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
_ARCHIVES = (".zip", ".tar", ".tgz", ".tar.gz", ".tar.bz2", ".tar.xz")
# Folder name -> split.
_SPLITS = {
  "train": "train",
  "validation": "validation",
  "val": "validation",
  "test": "test",
}
_CHUNK = 64  # images that a thread decodes at a time


@dataclasses.dataclass(frozen=True)
class _Format:
  """What the images are to become."""

  spec: str
  image_size: int
  channels: int
  skip_damaged: bool


_Loader = Callable[[str, _Format], dict[str, ImageSet]]
_SCHEMES: dict[str, tuple[str, _Loader]] = {}


def _scheme(form: str) -> Callable[[_Loader], _Loader]:
  """Registers the loader of specs that look like ``form``."""

  def register(loader):
    _SCHEMES[form.partition(":")[0]] = form, loader
    return loader

  return register


def load(
  spec: str, *, image_size: int, channels: int, skip_damaged: bool = False
) -> dict[str, ImageSet]:
  """Loads all splits of a set of labelled images.

  Images of another size are resized (bicubic, antialiased) so that their
  shorter side fits, and cropped to their central square. Transparent images are
  put on white. ``provenance["converted"]`` counts what was done.

  Args:
    spec: One of
      ``"digits"``: scikit-learn's 1,797 digits, 8x8, grey;
      ``"letters"``: 12,000 rendered letters, 8x8, grey;
      ``"tfds:<name>[/config][:version]"``: a tfds image classification set,
      downloaded and prepared if it is not in ``$TFDS_DATA_DIR``;
      ``"folder:<path>"``: ``<class>/<image>`` or ``<split>/<class>/<image>``,
      the splits being train, validation (or val) and test;
      ``"prepared:<path>"``: a folder that ``prepared.prepare`` returned.
    image_size: Height and width of the images, pixels.
    channels: 1 (grey) or 3 (RGB).
    skip_damaged: Leave files out that cannot be read, counting them in
      ``provenance["skipped"]``, instead of raising.

  Returns:
    The sets by split. The split of an image folder without splits is
    ``"train"``.

  Raises:
    UserError: the spec is unknown, or what it names is missing, damaged or
      empty.
  """
  scheme, _, rest = spec.partition(":")
  form, loader = _SCHEMES.get(scheme, (None, None))
  if loader is None or bool(rest) != (":" in form):
    forms = ", ".join(form for form, _ in _SCHEMES.values())
    raise UserError(f"Unknown set {spec!r}; known forms: {forms}.")
  if image_size < 1:
    raise UserError(f"image_size must be at least 1, got {image_size}.")
  if channels not in (1, 3):
    raise UserError(f"channels must be 1 or 3, got {channels}.")
  return loader(rest, _Format(spec, image_size, channels, skip_damaged))


def match_classes(
  real: ImageSet,
  synthetic: ImageSet,
  *,
  real_name: str = "real",
  synthetic_name: str = "synthetic",
) -> ImageSet:
  """Returns ``synthetic`` with the labels and class order of ``real``.

  Classes are matched by name.

  Raises:
    UserError: the two sets do not have the same classes.
  """
  missing = set(real.class_names) - set(synthetic.class_names)
  unknown = set(synthetic.class_names) - set(real.class_names)
  if missing or unknown:
    raise UserError(
      "The real and the synthetic set must have classes of the same names. "
      f"{real_name}: {_enumerate(real.class_names)}. "
      f"{synthetic_name}: {_enumerate(synthetic.class_names)}. "
      f"Only in {real_name}: {_enumerate(missing)}; "
      f"only in {synthetic_name}: {_enumerate(unknown)}."
    )
  order = [real.class_names.index(name) for name in synthetic.class_names]
  return dataclasses.replace(
    synthetic,
    labels=np.asarray(order, np.int32)[synthetic.labels],
    class_names=real.class_names,
  )


@_scheme("digits")
def _load_digits(_: str, form: _Format) -> dict[str, ImageSet]:
  return _load_prepared(str(digits.prepare()), form)


@_scheme("letters")
def _load_letters(_: str, form: _Format) -> dict[str, ImageSet]:
  return _load_prepared(str(letters.prepare()), form)


@_scheme("prepared:<path>")
def _load_prepared(path: str, form: _Format) -> dict[str, ImageSet]:
  folder = Path(path).expanduser()
  return _load_records(folder, form, prepared.read_provenance(folder))


@_scheme("tfds:<name>[/config][:version]")
def _load_tfds(name: str, form: _Format) -> dict[str, ImageSet]:
  folder = prepared.tfds_folder(name)
  return _load_records(folder, form, {"origin": str(folder)})


def _load_records(
  folder: Path, form: _Format, provenance: dict[str, Any]
) -> dict[str, ImageSet]:
  sets = {}
  for split, records in prepared.open_records(folder).items():
    # tfds marks images without a label so (the unlabelled split of STL-10, the
    # test split of ImageNet); there is nothing to learn from such a split.
    if len(records) and records[:1][0][2] == -1:
      continue
    sets[split] = _image_set(records, records.class_names, form, provenance)
  if not sets:
    raise UserError(f"{form.spec}: no split of {folder} has labels.")
  return sets


@_scheme("folder:<path>")
def _load_folder(path: str, form: _Format) -> dict[str, ImageSet]:
  root = Path(path).expanduser()
  if not root.is_dir():
    if not root.exists():
      problem = f"{root} does not exist"
    elif root.name.lower().endswith(_ARCHIVES):
      problem = f"{root} is an archive; unpack it and name the folder"
    else:
      problem = f"{root} is not a folder"
    raise UserError(f"{form.spec}: {problem}.")
  folders = _subfolders(root)
  if not folders:
    raise UserError(
      f"{form.spec}: {root} has no class folders. Images are expected as "
      "<class>/<image> or <split>/<class>/<image>."
    )
  splits = {"train": root}
  # A class may be called "train", too; it holds no folders then.
  if all(f.name in _SPLITS and _subfolders(f) for f in folders):
    splits = {_SPLITS[f.name]: f for f in folders}
    if len(splits) < len(folders):
      raise UserError(f"{form.spec}: has both val and validation.")
  class_names = {
    split: tuple(f.name for f in _subfolders(folder))
    for split, folder in splits.items()
  }
  first, *others = class_names
  for split in others:
    if class_names[split] != class_names[first]:
      differing = set(class_names[split]) ^ set(class_names[first])
      raise UserError(
        f"{form.spec}: its splits must have the same classes, but {split} and "
        f"{first} differ in {_enumerate(differing)}."
      )
  sets = {}
  for split, folder in splits.items():
    items, ignored = [], 0
    for label, class_folder in enumerate(_subfolders(folder)):
      files = [f for f in _entries(class_folder) if f.is_file()]
      images = [f for f in files if f.suffix.lower() in _EXTENSIONS]
      if not images:
        raise UserError(
          f"{form.spec}: the class folder {class_folder} has no image (looked "
          f"for {', '.join(_EXTENSIONS)})."
        )
      items += [(str(f.relative_to(root)), f, label) for f in images]
      ignored += len(files) - len(images)
    sets[split] = _image_set(
      items,
      class_names[split],
      form,
      {"origin": str(root), "other_files": ignored},
    )
  return sets


def _entries(folder: Path) -> list[Path]:
  """What is in the folder and not hidden, img2 before img10."""

  def key(path):
    parts = re.split(r"(\d+)", path.name)
    # Every second part is a number. The name itself tells "1" from "01".
    return [int(p) if i % 2 else p for i, p in enumerate(parts)], path.name

  return sorted(
    (p for p in folder.iterdir() if not p.name.startswith(".")), key=key
  )


def _subfolders(folder: Path) -> list[Path]:
  return [p for p in _entries(folder) if p.is_dir()]


def _enumerate(names: Collection[str]) -> str:
  """Lists some names, in order, and how many there are if these are not all."""
  names = sorted(names) if isinstance(names, set) else list(names)
  if not names:
    return "none"
  more = f", ... ({len(names)} in all)" if len(names) > 20 else ""
  return ", ".join(map(repr, names[:20])) + more


def _image_set(
  items: Sequence[tuple[str, Path | bytes, int]],
  class_names: Sequence[str],
  form: _Format,
  provenance: dict[str, Any],
) -> ImageSet:
  """Decodes and converts images.

  Args:
    items: (name, file or its content, label) of each image; only sliced.
    class_names: The name of each class.
    form: What the images are to become.
    provenance: Where they come from.
  """

  def decode(start):
    decoded = []
    for name, file, label in items[start : start + _CHUNK]:
      try:
        decoded.append((*_decode(file, form), label))
      except Exception as e:  # Pillow raises many types for a damaged file
        if isinstance(e, UnidentifiedImageError):
          e = "not an image"  # its own text repeats the path
        decoded.append((None, f"{name} ({e or type(e).__name__})", label))
    return decoded

  size = form.image_size
  images = np.empty((len(items), size, size, form.channels), np.uint8)
  labels, converted, damaged = [], Counter(), []
  for image, remarks, label in _in_threads(
    decode, range(0, len(items), _CHUNK)
  ):
    if image is None:
      damaged.append(remarks)
      continue
    images[len(labels)] = image
    labels.append(label)
    converted.update(remarks)
  if damaged and not form.skip_damaged:
    more = ", ..." if len(damaged) > 5 else ""
    raise UserError(
      f"{form.spec}: {len(damaged)} of {len(items)} files cannot be read as "
      f"images: {', '.join(damaged[:5])}{more}. Replace or remove them."
    )
  return ImageSet(
    images[: len(labels)],
    np.asarray(labels, np.int32),
    tuple(class_names),
    provenance
    | {"spec": form.spec, "converted": dict(converted)}
    | {"skipped": len(damaged)},
  )


def _in_threads(
  decode: Callable[[int], list[Any]], starts: Sequence[int]
) -> Iterator[Any]:
  """Yields what ``decode`` lists for each start, in order."""
  # Pillow decodes and resizes outside of the interpreter's lock.
  with warnings.catch_warnings(), ThreadPoolExecutor(os.cpu_count()) as pool:
    # Pillow only warns of a bomb up to twice the size that it refuses; the
    # rest is about metadata.
    warnings.simplefilter("ignore")
    warnings.simplefilter("error", Image.DecompressionBombWarning)
    for decoded in pool.map(decode, starts):
      yield from decoded


def _decode(file: Path | bytes, form: _Format) -> tuple[np.ndarray, list[str]]:
  """Returns an image, uint8 [H, W, C], and what was done to it."""
  with Image.open(io.BytesIO(file) if isinstance(file, bytes) else file) as im:
    im, remarks = _convert(im, "L" if form.channels == 1 else "RGB")
  size = form.image_size
  if im.size != (size, size):
    remarks.append("resized")
    side = min(im.size)
    left, top = (im.width - side) / 2, (im.height - side) / 2
    im = im.resize(
      (size, size),
      Image.Resampling.BICUBIC,
      box=(left, top, left + side, top + side),
    )
  return np.asarray(im).reshape(size, size, form.channels), remarks


def _convert(im: Image.Image, mode: str) -> tuple[Image.Image, list[str]]:
  """Returns the image in mode "L" or "RGB", and what was done to it."""
  remarks = []
  # Pillow reduces 16-bit colour itself while loading, leaving no other trace.
  if ";16B" in str(im.tile):
    remarks.append("16-bit to 8-bit")
  im.load()
  if im.getexif().get(ExifTags.Base.Orientation, 1) != 1:
    remarks.append("EXIF rotation")
    im = ImageOps.exif_transpose(im)
  if im.mode.startswith("I"):
    # convert("L") would clip. 65535 / 255 = 257.
    values = np.asarray(im).astype(np.int64)
    values = np.clip((values + 128) // 257, 0, 255)
    im = Image.fromarray(values.astype(np.uint8))
  grey = im.mode in ("1", "L", "LA", "La")
  if im.mode in ("P", "PA"):
    remarks.append("palette")
  if im.mode == "CMYK":
    remarks.append("CMYK")
  if im.has_transparency_data:
    remarks.append("transparency")
    im = im.convert("RGBA")
    im = Image.alpha_composite(Image.new("RGBA", im.size, "white"), im)
  if grey != (mode == "L"):
    remarks.append("grey to colour" if grey else "colour to grey")
  return im.convert(mode), remarks
