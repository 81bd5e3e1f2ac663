"""Who trains, who validates, who tests: index arithmetic on integer arrays."""

from collections.abc import Callable, Iterable, Sequence
import csv
import io
import re
import warnings

from etils import epath
import numpy as np
from sklearn.model_selection import (
  StratifiedGroupKFold,
  StratifiedKFold,
  train_test_split,
)

from synguide_jax.errors import UserError

# Keeps these draws apart from those of the feed.
_SHOTS = 1
_AT_MOST = 3


def split_off(
  labels: np.ndarray,
  members: np.ndarray,
  count: int,
  *,
  seed: int,
  field: str,
  groups: np.ndarray | None = None,
  class_names: Sequence[str] | None = None,
) -> tuple[np.ndarray, np.ndarray]:
  """Splits ``count`` images off, stratified by class.

  With groups, the members are cut into equal parts that keep groups whole, and
  the part is split off whose share of every class, a small one's as much as a
  large one's, is nearest to what was asked for. So about ``count`` images are
  split off: the nearest of a half, a third, a quarter and so on.

  Args:
    labels: Label of every image, ``[N]``.
    members: Indices to split, int32 ``[M]``.
    count: Images to split off, in total; 0 splits nothing off.
    seed: Seed of the split; not that of a run.
    field: Name of the config field that asks for it, for errors.
    groups: Group of every image, int ``[N]``; none is on both sides.
    class_names: Names of the classes in label order, for errors.

  Returns:
    Indices that stay and indices split off, both sorted.

  Raises:
    UserError: if there are too few images or groups, in total or of a class.
  """
  if count == 0:
    return members, members[:0]
  if groups is not None:
    return _split_off_groups(
      labels, members, count, groups, seed, field, class_names
    )
  try:
    stay, off = train_test_split(
      members, test_size=count, random_state=seed, stratify=labels[members]
    )
  except ValueError as error:
    raise UserError(
      f"{field}={count}: cannot split that many off {len(members)} images, "
      f"stratified by class: {error}"
    ) from error
  return np.sort(stay), np.sort(off)


def _split_off_groups(
  labels: np.ndarray,
  members: np.ndarray,
  count: int,
  groups: np.ndarray,
  seed: int,
  field: str,
  class_names: Sequence[str] | None,
) -> tuple[np.ndarray, np.ndarray]:
  total = len(members)
  present, of_all = np.unique(labels[members], return_counts=True)
  # Folds are at most a half: of a larger share, the rest is made.
  smaller = min(count, total - count)
  num_parts = round(total / smaller) if smaller > 0 else 0
  num_groups = len(np.unique(groups[members]))
  if not 2 <= num_parts <= min(num_groups, of_all.max()):
    raise UserError(
      f"{field}={count}: cannot split that many off {total} images in "
      f"{num_groups} groups without splitting a group; ask for a number nearer "
      "to their half."
    )

  def unfit(part):
    shares = (labels[part][:, None] == present).sum(0) / of_all
    lacking = np.isin(shares, (0, 1)).sum()
    return lacking, np.abs(shares - smaller / total).sum()

  part = min(_group_parts(labels, members, groups, num_parts, seed), key=unfit)
  other = np.setdiff1d(members, part)
  stay, off = (other, part) if smaller == count else (part, other)
  for side, there, more in (
    ("split off", off, "more"),
    ("left", stay, "fewer"),
  ):
    for label in np.setdiff1d(present, labels[there]):
      raise UserError(
        f"{field}={count}: no image of class {_name(label, class_names)} would "
        f"be {side}, as groups (data.groups) are kept whole; ask for {more} "
        "images, try another data.split_seed or leave the class out "
        "(data.classes)."
      )
  return stay, off


def _group_parts(
  labels: np.ndarray,
  members: np.ndarray,
  groups: np.ndarray,
  count: int,
  seed: int,
) -> list[np.ndarray]:
  """Cuts members into parts, sorted each, that share no group."""
  cutter = StratifiedGroupKFold(count, shuffle=True, random_state=seed)
  order = np.sort(members)
  with warnings.catch_warnings():
    # A class with fewer images than parts is the caller's to judge: it may
    # need one part only.
    warnings.simplefilter("ignore", UserWarning)
    parts = list(cutter.split(order, labels[order], groups[order]))
  return [order[index] for _, index in parts]


def folds(
  labels: np.ndarray,
  members: np.ndarray,
  count: int,
  *,
  seed: int,
  groups: np.ndarray | None = None,
  class_names: Sequence[str] | None = None,
) -> list[np.ndarray]:
  """Cuts images into the parts of a cross-validation, stratified by class.

  Args:
    labels: Label of every image, ``[N]``.
    members: Indices to cut, int32 ``[M]``.
    count: Number of parts, at least 2.
    seed: Seed of the cut; not that of a run.
    groups: Group of every image, int ``[N]``; none is in two parts.
    class_names: Names of the classes in label order, for errors.

  Returns:
    ``count`` disjoint sorted index arrays, together all members, each with
    images of every class.

  Raises:
    UserError: if ``count`` is below 2, or a class would be missing in a part.
  """
  if count < 2:
    raise UserError(
      f"data.folds={count}: give 2 or more parts, or 0 for no cross-validation."
    )
  order = np.sort(members)
  present = np.unique(labels[order])
  unit = "images" if groups is None else "groups (data.groups)"
  for label in present:
    of_class = order[labels[order] == label]
    size = len(of_class if groups is None else np.unique(groups[of_class]))
    if size < count:
      raise UserError(
        f"data.folds={count}, but class {_name(label, class_names)} has only "
        f"{size} {unit}; ask for at most {size} folds or leave the class out "
        "(data.classes)."
      )
  if groups is None:
    cutter = StratifiedKFold(count, shuffle=True, random_state=seed)
    return [order[index] for _, index in cutter.split(order, labels[order])]
  parts = _group_parts(labels, order, groups, count, seed)
  for part in parts:
    for label in np.setdiff1d(present, labels[part]):
      raise UserError(
        f"data.folds={count}: a fold would have no image of class "
        f"{_name(label, class_names)}, as groups (data.groups) are kept whole; "
        "ask for fewer folds or try another data.split_seed."
      )
  return parts


def _name(label: int, class_names: Sequence[str] | None) -> str:
  return str(label) if class_names is None else repr(class_names[label])


def read_groups(spec: str, names: Sequence[str]) -> np.ndarray:
  """Reads which images belong together, such as views of one object.

  Args:
    spec: ``"pattern:<regex>"``, searched in each name: images whose matches
      agree (in the regex's groups, if it has some) are a group; or
      ``"csv:<path>"``, a file with the columns file and group that lists every
      image, and perhaps others.
    names: Name of every image: its path below the set's root, such as
      ``"blowhole/exp1_num_108719.jpg"``.

  Returns:
    Number of every image's group, int32 ``[N]``, in order of appearance.

  Raises:
    UserError: for a spec of another form, a wrong regex, a file that cannot be
      read, or images without a group.
  """
  form, _, argument = spec.partition(":")
  if form not in _GROUP_READERS or not argument:
    raise UserError(
      f'data.groups={spec!r}: give "pattern:<regex>", "csv:<path>", or "" for '
      "none."
    )
  try:
    group_of = _GROUP_READERS[form](argument)
  except ValueError as error:
    raise UserError(f"data.groups={spec!r}: {error}") from error
  keys = [group_of(name) for name in names]
  without = [name for name, key in zip(names, keys, strict=True) if key is None]
  if without:
    more = ", ..." if len(without) > 5 else ""
    raise UserError(
      f"data.groups={spec!r} gives no group to {len(without)} of {len(names)} "
      f"images: {', '.join(without[:5])}{more}. Every image needs one."
    )
  return _number(keys)


def _number(keys: Iterable[object]) -> np.ndarray:
  numbers: dict[object, int] = {}
  return np.array([numbers.setdefault(k, len(numbers)) for k in keys], np.int32)


def _groups_of_pattern(regex: str) -> Callable[[str], object]:
  try:
    pattern = re.compile(regex)
  except re.error as error:
    raise ValueError(f"not a regular expression: {error}.") from error

  def group_of(name):
    match = pattern.search(name)
    found = match and (match.groups() or (match.group(),))
    return found if found and any(found) else None

  return group_of


def _groups_of_csv(path: str) -> Callable[[str], object]:
  try:
    # Spreadsheets put a byte order mark first.
    text = epath.Path(path).expanduser().read_bytes().decode("utf-8-sig")
  except Exception as error:  # gs:// has errors of its own, of no common type
    raise ValueError(f"cannot read the file: {error}") from error
  reader = csv.DictReader(io.StringIO(text))
  columns = reader.fieldnames or []
  if not {"file", "group"} <= set(columns):
    raise ValueError(
      "the first line must name the columns file and group, not "
      f"{', '.join(columns) or 'nothing'}."
    )
  group_of: dict[str, str] = {}
  for row in reader:
    if not row["group"]:  # as if not listed
      continue
    if group_of.setdefault(row["file"], row["group"]) != row["group"]:
      raise ValueError(f"{row['file']} is listed in two groups; keep one.")
  return group_of.get


_GROUP_READERS = {"pattern": _groups_of_pattern, "csv": _groups_of_csv}


def at_most(
  labels: np.ndarray, pool: np.ndarray, per_class: int, *, seed: int
) -> np.ndarray:
  """Draws images, the same number of every class that has so many.

  Args:
    labels: Label of every image.
    pool: Indices to draw from.
    per_class: Images a class; of a class with fewer, all.
    seed: Seed of the draw; not that of a run.

  Returns:
    Sorted indices.
  """
  rng = np.random.Generator(
    np.random.Philox(np.random.SeedSequence((_AT_MOST, seed)))
  )
  shuffled = rng.permutation(pool)
  drawn = [
    shuffled[labels[shuffled] == c][:per_class] for c in np.unique(labels[pool])
  ]
  return np.sort(np.concatenate([pool[:0], *drawn]))


def draw_shots(
  labels: np.ndarray,
  pool: np.ndarray,
  shots: int | None,
  class_names: Sequence[str],
  *,
  seed: int,
  run: int,
) -> np.ndarray:
  """Draws a run's real training images, the same number of every class.

  Args:
    labels: Label of every image.
    pool: Indices to draw from.
    shots: Images a class; 0 takes none (zero-shot), -1 or None
      the whole pool.
    class_names: Names of the classes, in label order.
    seed: Seed of the experiment.
    run: Number of the run; methods share the shots of equal seed and run.

  Returns:
    Sorted indices.

  Raises:
    UserError: if ``shots`` is below -1, or a class has fewer images.
  """
  if shots is None or shots == -1:
    return pool
  if shots < 0:
    raise UserError(
      f"data.shots={shots}: give a number of images a class, or -1 for all."
    )
  counts = np.bincount(labels[pool], minlength=len(class_names))
  if counts.min() < shots:
    name = class_names[int(counts.argmin())]
    raise UserError(
      f"data.shots={shots}, but class {name!r} has only {counts.min()} "
      "training images."
    )
  rng = np.random.Generator(
    np.random.Philox(np.random.SeedSequence((_SHOTS, seed, run)))
  )
  drawn = [
    rng.choice(pool[labels[pool] == c], shots, replace=False)
    for c in range(len(class_names))
  ]
  return np.sort(np.concatenate(drawn))
