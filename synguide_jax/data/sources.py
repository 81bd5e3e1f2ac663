"""Where images come from: ``open_set(spec)`` gives the splits of a set.

Whatever a spec names, it is read from array_record; what is not stored so is
prepared first. A new kind of source is a function with the decorator
``_scheme``.
"""

import ast
from collections.abc import Callable, Iterable, Mapping, Sequence
import dataclasses
import os
from pathlib import Path
import re
from typing import Any

import tqdm

from synguide_jax.cache import fingerprint
from synguide_jax.data import (
  digits,
  dumps,
  files,
  layouts,
  letters,
  prepared,
  records,
  tfds_sets,
)
from synguide_jax.data.records import Records
from synguide_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class ImageSet:
  """The splits of a set of images.

  Attributes:
    spec: What names it.
    splits: Its images by split.
    provenance: Where they come from and what was done to them; plain data.
  """

  spec: str
  splits: Mapping[str, Records]
  provenance: Mapping[str, Any]

  @property
  def class_names(self) -> tuple[str, ...]:
    """The name of each class."""
    return next(iter(self.splits.values())).class_names


_Opener = Callable[[str, str, bool], ImageSet]
_SCHEMES: dict[str, tuple[str, _Opener]] = {}


def _scheme(form: str) -> Callable[[_Opener], _Opener]:
  """Registers what opens specs that look like ``form``."""

  def register(opener):
    _SCHEMES[form.partition(":")[0]] = form, opener
    return opener

  return register


def open_set(spec: str, *, skip_damaged: bool = False) -> ImageSet:
  """Opens a set, after preparing it if that was not done before.

  Args:
    spec: One of
      ``"digits"``: scikit-learn's 1,797 digits, 8x8, grey;
      ``"letters"``: 12,000 rendered letters, 8x8, grey;
      ``"tfds:<name>[/config][:version]"``: a tfds image classification set,
      downloaded and prepared if it is not in ``$TFDS_DATA_DIR``;
      ``"folder:<path>"``: a folder or archive of images, see
      :func:`synguide_jax.data.layouts.folder`;
      ``"npz:<path>"``: a dump of arrays, see
      :func:`synguide_jax.data.dumps.npz`;
      ``"stylegan:<path>"``: see :func:`synguide_jax.data.layouts.stylegan`;
      ``"prepared:<path>"``: a folder that a command of ours wrote.
    skip_damaged: Leave files out that cannot be read, counting them in
      ``provenance["skipped"]``, instead of raising.

  Returns:
    The :class:`ImageSet`. The split of images without splits is ``"train"``.

  Raises:
    UserError: the spec is unknown, or what it names is missing, damaged or
      empty.
  """
  scheme, _, rest = spec.partition(":")
  form, opener = _SCHEMES.get(scheme, (None, None))
  if opener is None or bool(rest) != (":" in form):
    forms = ", ".join(form for form, _ in _SCHEMES.values())
    raise UserError(f"Unknown set {spec!r}; known forms: {forms}.")
  return opener(spec, rest, skip_damaged)


def parse_weights(
  specs: str | Iterable[str],
) -> list[tuple[str, float | None]]:
  """Splits ``"spec@weight"`` strings, of which there may be one or several.

  Args:
    specs: A spec, with or without a weight; several of them; or the text of
      such a tuple, which is what a config's string field makes of one.

  Returns:
    (spec, weight) pairs, the weights positive, or None throughout.

  Raises:
    UserError: some have weights and others have not, or one is not positive.
  """
  if isinstance(specs, str) and specs.startswith(("(", "[")):
    try:
      specs = ast.literal_eval(specs)
    except (ValueError, SyntaxError) as error:
      raise UserError(f"data.synthetic={specs!r} is no tuple of specs.") from (
        error
      )
  pairs = []
  for text in [specs] if isinstance(specs, str) else specs:
    spec, _, weight = str(text).rpartition("@")
    try:
      pairs.append((spec, float(weight)) if spec else (str(text), None))
    except ValueError:  # A path with an @ in it.
      pairs.append((str(text), None))
  weights = [weight for _, weight in pairs]
  if any(w is not None and not 0 < w < float("inf") for w in weights) or (
    None in weights and set(weights) != {None}
  ):
    raise UserError(
      f"data.synthetic={specs!r}: give every source a positive weight, as "
      "spec@weight, or none."
    )
  return [pair for pair in pairs if pair[0]]


def join_weights(pairs: Iterable[tuple[str, float | None]]) -> str:
  """The opposite of `parse_weights`, as one string."""
  texts = tuple(s if w is None else f"{s}@{w}" for s, w in pairs)
  return texts[0] if len(texts) == 1 else str(texts) if texts else ""


@_scheme("digits")
def _open_digits(spec: str, _: str, skip_damaged: bool) -> ImageSet:
  del skip_damaged
  return _prepared_set(spec, digits.prepare())


@_scheme("letters")
def _open_letters(spec: str, _: str, skip_damaged: bool) -> ImageSet:
  del skip_damaged
  return _prepared_set(spec, letters.prepare())


@_scheme("tfds:<name>[/config][:version]")
def _open_tfds(spec: str, name: str, skip_damaged: bool) -> ImageSet:
  del skip_damaged
  folder = tfds_sets.find_or_prepare(name)
  splits = {s: r for s, r in records.of_tfds(folder).items() if len(r)}
  return ImageSet(spec, splits, {"spec": spec, "origin": str(folder)})


@_scheme("folder:<path>")
def _open_folder(spec: str, path: str, skip_damaged: bool) -> ImageSet:
  return _listed_set(spec, path, skip_damaged, files.open_files, layouts.folder)


@_scheme("npz:<path>")
def _open_npz(spec: str, path: str, skip_damaged: bool) -> ImageSet:
  return _listed_set(spec, path, skip_damaged, files.open_file, dumps.npz)


@_scheme("stylegan:<path>")
def _open_stylegan(spec: str, path: str, skip_damaged: bool) -> ImageSet:
  return _listed_set(
    spec, path, skip_damaged, files.open_files, layouts.stylegan
  )


@_scheme("prepared:<path>")
def _open_prepared(spec: str, path: str, skip_damaged: bool) -> ImageSet:
  del skip_damaged
  if files.is_remote(path):
    raise UserError(
      f"{spec}: a prepared set must be in a local folder; copy it to one first."
    )
  return _prepared_set(spec, Path(files.expand(path)))


def _prepared_set(spec: str, folder: Path) -> ImageSet:
  provenance = prepared.read_provenance(folder)
  splits = records.of_prepared(folder)
  return ImageSet(spec, splits, provenance | {"spec": spec})


def _listed_set(
  spec: str,
  path: str,
  skip_damaged: bool,
  opened: Callable[[str], files.Files],
  layout: Callable[[files.Files], layouts.Listing],
) -> ImageSet:
  """Prepares files unless a set with their content is there already."""
  origin = files.expand(path)
  try:
    content = files.checksum(opened, path)
    mark = fingerprint({"content": content, "skip_damaged": skip_damaged})
    stem = f"{spec.partition(':')[0]}_{os.path.basename(origin)}"
    name = re.sub(r"\W+", "_", stem.partition(".")[0].lower(), flags=re.ASCII)
    name = name[:40]
    folder = prepared.folder_of(name, mark)
    if not prepared.is_complete(folder):

      def unchanged():
        if files.checksum(opened, path) != content:
          raise UserError(f"{origin} changed while it was prepared; try again.")

      with opened(path) as tree:
        listing = layout(tree)
        _prepare(spec, name, mark, origin, listing, skip_damaged, unchanged)
  except UserError as error:
    text = str(error)
    raise UserError(
      text if text.startswith(spec) else f"{spec}: {text}"
    ) from error
  found = _prepared_set(spec, folder)
  # The same files may have been prepared from another place.
  return dataclasses.replace(
    found, provenance=found.provenance | {"origin": origin}
  )


def _prepare(
  spec: str,
  name: str,
  mark: str,
  origin: str,
  listing: layouts.Listing,
  skip_damaged: bool,
  check: Callable[[], None],
) -> None:
  def examples(items: Sequence[layouts.Item]):
    return (
      prepared.Example(item.read, item.label, item.name) for item in items
    )

  total = sum(map(len, listing.splits.values()))
  # Seen on terminals only.
  with tqdm.tqdm(
    total=total, desc=f"Preparing {spec}", unit=" images", disable=None
  ) as progress:
    prepared.prepare(
      name,
      mark,
      lambda: {split: examples(i) for split, i in listing.splits.items()},
      listing.class_names,
      provenance={
        "spec": spec,
        "origin": origin,
        "other_files": listing.other_files,
        "unlisted": listing.unlisted,
      },
      drop_constant=True,
      skip_damaged=skip_damaged,
      on_image=progress.update,
      check=check,
    )
