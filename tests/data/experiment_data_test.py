"""Who sees which image: from a config's data section to indices."""

import dataclasses
import shutil

import numpy as np
from PIL import Image
import pytest

from synguide_jax.data import experiment_data
from synguide_jax.errors import UserError
from tests import tiny

_RNG = np.random.default_rng(0)
CLASSES = ("cat", "dog", "owl")


def _data(**changes):
  """The data section of a config: 8 px RGB, everything else by default."""
  defaults = {
    "channels": 3,
    "synthetic": "",
    "validation": 0,
    "test": 0,
    "shots": -1,
    "padding": 0,
  }
  fields = {f"data.{k}": v for k, v in (defaults | changes).items()}
  return tiny.config(**fields).data


def _load(runs=(0, 1), seed=0, **changes):
  return experiment_data.load(_data(**changes), seed=seed, runs=runs)


def _image(grey=False):
  shape = (8, 8) if grey else (8, 8, 3)
  return _RNG.integers(0, 256, shape, np.uint8)


def _folder(root, counts, suffix="png", grey=False, size=None):
  """Writes a folder of random images, ``counts`` of each class."""
  for name, count in counts.items():
    (root / name).mkdir(parents=True, exist_ok=True)
    for i in range(count):
      image = Image.fromarray(_image(grey))
      image = image.resize((size, size)) if size else image
      image.save(root / name / f"{i}.{suffix}")
  return f"folder:{root}"


@pytest.fixture(scope="module")
def real(tmp_path_factory):
  """12 cats, 9 dogs and 6 owls, without splits."""
  root = tmp_path_factory.mktemp("real")
  return _folder(root, dict(zip(CLASSES, (12, 9, 6), strict=True)))


@pytest.fixture(scope="module")
def synthetic(tmp_path_factory):
  root = tmp_path_factory.mktemp("synthetic")
  return _folder(root, dict.fromkeys(CLASSES, 5))


def _counts(data, index):
  return np.bincount(data.labels[index], minlength=3).tolist()


def test_splits_and_shots(real, synthetic):
  data = _load(
    real=real, synthetic=synthetic, test=9, validation=6, shots=2, runs=(0, 3)
  )
  assert data.class_names == CLASSES
  assert _counts(data, data.indices["test"]) == [4, 3, 2]
  assert _counts(data, data.indices["validation"]) == [3, 2, 1]
  roles = [data.indices[r] for r in ("pool", "validation", "test")]
  np.testing.assert_array_equal(np.sort(np.concatenate(roles)), np.arange(27))
  np.testing.assert_array_equal(data.indices["synthetic"], np.arange(27, 42))
  assert data.real.tolist() == [True] * 27 + [False] * 15
  for shots in data.members["real"]:
    assert _counts(data, shots) == [2, 2, 2]
    assert set(shots) <= set(data.indices["pool"])
  assert data.describe() == {
    "pool": 12,
    "test": 9,
    "validation": 6,
    "synthetic": 15,
    "real_a_run": 6,
  }
  # A run has the same shots alone.
  alone = _load(
    real=real, synthetic=synthetic, test=9, validation=6, shots=2, runs=(3,)
  )
  np.testing.assert_array_equal(
    alone.members["real"][0], data.members["real"][1]
  )
  assert data.weights is None and data.tested_by is None
  assert data.warnings == ()
  assert data.pixels.shape == (42, 8, 8, 3)


def test_official_splits(tmp_path):
  for split, count in (("train", 5), ("val", 2), ("test", 3)):
    _folder(tmp_path / split, {"cat": count, "dog": count})
  data = _load(real=f"folder:{tmp_path}")
  assert data.describe()["pool"] == 10
  assert data.describe()["validation"] == 4
  assert data.describe()["test"] == 6
  # Their pixels are those of their files.
  pixels = data.pixels.read(data.indices["test"])
  with Image.open(tmp_path / "test" / "dog" / "2.png") as image:
    np.testing.assert_array_equal(pixels[-1], np.asarray(image))
  # As of ImageNet: what is called validation is tested on.
  data = _load(real=f"folder:{tmp_path}", test_split="validation")
  assert data.describe()["test"] == 4
  assert data.describe()["validation"] == 0
  with pytest.raises(UserError, match="'tset': .* only the splits 'test', 't"):
    _load(real=f"folder:{tmp_path}", test_split="tset")
  with pytest.raises(UserError, match="data.test_split='train': those images"):
    _load(real=f"folder:{tmp_path}", test_split="train")
  # A number takes images from the training split instead.
  data = _load(real=f"folder:{tmp_path}", validation=2)
  assert data.describe()["validation"] == 2
  assert data.describe()["pool"] == 8


def test_class_subsets(real, synthetic):
  data = _load(real=real, synthetic=synthetic, classes=("owl", "cat"))
  assert data.class_names == ("owl", "cat")
  assert data.class_counts() == {"real": (6, 12), "synthetic": (5, 5)}
  everything = _load(real=real, synthetic=synthetic)
  owls = everything.pixels.read(np.flatnonzero(everything.labels == 2))
  np.testing.assert_array_equal(
    data.pixels.read(np.flatnonzero(data.labels == 0)), owls
  )
  # By index, the n-th is the n-th of all real classes.
  by_index = _load(
    real=real,
    synthetic=synthetic,
    classes=("owl", "cat"),
    match_classes="index",
  )
  np.testing.assert_array_equal(by_index.labels, data.labels)
  with pytest.raises(UserError, match="data.classes: .* no class 'fox'; it ha"):
    _load(real=real, classes=("fox",))


def test_classes_are_matched(real, tmp_path):
  spec = _folder(tmp_path, {"hibou": 2, "chat": 3, "dog": 4})
  with pytest.raises(UserError, match="Only in .*: 'cat', 'owl'; only in"):
    _load(real=real, synthetic=spec)
  mapping = ("hibou=owl", "chat=cat")
  data = _load(real=real, synthetic=spec, class_mapping=mapping)
  assert data.class_counts()["synthetic"] == (3, 4, 2)
  few = _load(
    real=real, synthetic=spec, class_mapping=mapping, classes=("owl", "cat")
  )
  assert few.class_counts()["synthetic"] == (2, 3)
  # In the order of names: chat, dog, hibou.
  data = _load(real=real, synthetic=spec, match_classes="index")
  assert data.class_counts()["synthetic"] == (3, 4, 2)


def test_several_sources_with_weights(real, synthetic, tmp_path):
  other = _folder(tmp_path, {"cat": 1, "dog": 1, "owl": 1})
  union = _load(real=real, synthetic=str((synthetic, other)))
  assert union.class_counts()["synthetic"] == (6, 6, 6)
  assert union.weights is None
  data = _load(real=real, synthetic=f"('{synthetic}@1', '{other}@3')")
  weights = data.weights
  assert (weights[data.real] == 1).all()
  of_source = np.split(weights[~data.real], [15])
  # 18 images in shares of 1 and 3.
  np.testing.assert_allclose(of_source[0], 18 / 4 / 15)
  np.testing.assert_allclose(of_source[1], 18 * 3 / 4 / 3)
  assert [p["spec"] for p in data.provenance["synthetic"]] == [synthetic, other]
  with pytest.raises(UserError, match="every source a positive weight"):
    _load(real=real, synthetic=f"('{synthetic}@1', '{other}')")


def test_unlabelled_images_are_for_the_labeler(real, tmp_path):
  np.savez(tmp_path / "samples.npz", images=[_image()])
  with pytest.raises(UserError, match="no labels. .*synguide_jax.label --so"):
    _load(real=real, synthetic=f"npz:{tmp_path}/samples.npz")
  with pytest.raises(UserError, match="data.real='npz:.*' has no labels"):
    _load(real=f"npz:{tmp_path}/samples.npz")


def test_groups_stay_together(tmp_path):
  counts = {"cat": 40, "dog": 40}
  spec = _folder(tmp_path, counts)
  # Images 10 to 19 are views of one cat, and of one dog.
  groups = r"pattern:(\w+)/(\d?)\d\.png"
  data = _load(real=spec, test=20, validation=20, groups=groups)
  group_of = np.repeat(np.arange(8), 10)
  seen = [
    set(group_of[data.indices[r]]) for r in ("pool", "validation", "test")
  ]
  assert all(seen) and not set.intersection(*map(set, seen[:2]))
  assert not (seen[0] | seen[1]) & seen[2]


def test_cross_validation(real, synthetic):
  data = _load(real=real, synthetic=synthetic, folds=3, runs=(0, 1, 2, 3))
  pool = data.indices["pool"]
  np.testing.assert_array_equal(data.indices["test"], pool)
  assert data.tested_by.shape == (4, 27)
  # Every image is tested once in three runs; the fourth begins again.
  np.testing.assert_array_equal(data.tested_by[:3].sum(0), 1)
  np.testing.assert_array_equal(data.tested_by[3], data.tested_by[0])
  for tested, members in zip(data.tested_by, data.members["real"], strict=True):
    assert not set(pool[tested]) & set(members)
    assert len(members) + tested.sum() == 27
    assert _counts(data, pool[tested]) == [4, 3, 2]
  with pytest.raises(UserError, match="data.folds=3 tests on the training im"):
    _load(real=real, folds=3, test=5)


def _with_copies(real, tmp_path, count):
  """Synthetic images, ``count`` of which are copies of real cats."""
  spec = _folder(tmp_path, dict.fromkeys(CLASSES, 3))
  root = real.removeprefix("folder:")
  for i in range(count):
    with Image.open(f"{root}/cat/{i}.png") as image:
      image.save(tmp_path / "cat" / f"copy{i}.png", compress_level=1)
  return spec


def test_duplicates(real, tmp_path, tmp_path_factory):
  spec = _with_copies(real, tmp_path, 12)
  options = dict(real=real, synthetic=spec, test=9)
  data = _load(**options)
  assert data.provenance["duplicates"] == {
    "validation": 0,
    "pool": 0,
    "synthetic": 4,
  }
  note = "4 validation or test images are also among the synthetic images."
  assert data.warnings == (note,)
  assert len(data.indices["synthetic"]) == 21
  with pytest.raises(UserError, match="4 validation or test images are also"):
    _load(**options, duplicates="error")
  dropped = _load(**options, duplicates="drop")
  assert len(dropped.members["synthetic"][0]) == 17
  (warning,) = dropped.warnings
  assert warning == f"Left out 4 synthetic images: {note}"
  held_out = dropped.hashes[dropped.indices["test"]]
  assert not np.isin(
    dropped.hashes[dropped.indices["synthetic"]], held_out
  ).any()
  # With folds, every real image is tested on once.
  folds = _load(real=real, synthetic=spec, folds=3, duplicates="drop")
  assert len(folds.indices["synthetic"]) == 9
  with pytest.raises(UserError, match="data.duplicates='hide' is unknown"):
    _load(**options, duplicates="hide")
  # Sources keep their shares.
  root = tmp_path_factory.mktemp("other")
  other = _folder(root, dict.fromkeys(CLASSES, 1))
  both = f"('{spec}@1', '{other}@1')"
  mixed = _load(real=real, synthetic=both, test=9, duplicates="drop")
  drawn = mixed.weights[mixed.members["synthetic"][0]]
  np.testing.assert_allclose(drawn[:17].sum(), drawn[17:].sum())


def test_a_source_of_copies_alone(real):
  with pytest.raises(UserError, match="has no image left to train on"):
    _load(real=real, synthetic=real, folds=3, duplicates="drop")


def test_copies_among_the_real_images(real, tmp_path):
  spec = _folder(tmp_path, {"cat": 12, "dog": 12})
  for i in range(4):
    shutil.copy(tmp_path / "cat" / "0.png", tmp_path / "cat" / f"again{i}.png")
  # One cat five times: some of them are tested on, the others trained on.
  (warning,) = _load(real=spec, folds=4).warnings
  assert warning == "4 real images are copies of others."
  with pytest.raises(UserError, match="4 real images are copies of others"):
    _load(real=spec, folds=4, duplicates="error")
  data = _load(real=spec, folds=4, duplicates="drop", runs=(0, 1, 2, 3))
  assert data.warnings == ("Left out 4 real images: copies of others.",)
  assert len(data.indices["pool"]) == 24
  hashes = data.hashes
  for tested, members in zip(data.tested_by, data.members["real"], strict=True):
    assert not np.isin(
      hashes[data.indices["test"][tested]], hashes[members]
    ).any()
  # The same without folds: whatever side they fall on, none is on two.
  data = _load(real=spec, test=8, validation=8, duplicates="drop")
  roles = [hashes[data.indices[r]] for r in ("pool", "validation", "test")]
  assert not np.isin(roles[0], np.concatenate(roles[1:])).any()
  assert not np.isin(roles[1], roles[2]).any()


def test_no_more_synthetic_images_than_asked_for(real, tmp_path):
  spec = _folder(tmp_path, {"cat": 9, "dog": 7, "owl": 2})
  data = _load(real=real, synthetic=spec, synthetic_per_class=5)
  assert data.class_counts()["synthetic"] == (5, 5, 2)
  again = _load(real=real, synthetic=spec, synthetic_per_class=5, seed=1)
  index = data.indices["synthetic"]
  np.testing.assert_array_equal(again.indices["synthetic"], index)
  other = _load(real=real, synthetic=spec, synthetic_per_class=5, split_seed=1)
  assert not np.array_equal(other.indices["synthetic"], index)


def test_a_fifth_where_there_is_no_split(real, tmp_path):
  data = _load(real=real, test=-1, validation=-1)
  # 27 / 5, and of the 22 that are left another fifth.
  assert data.describe()["test"] == 5 and data.describe()["validation"] == 4
  for split in ("train", "test"):
    _folder(tmp_path / split, {"cat": 10, "dog": 10})
  data = _load(real=f"folder:{tmp_path}", test=-1, validation=-1)
  assert data.describe()["test"] == 20 and data.describe()["validation"] == 4
  data = _load(real=real, test=-1, folds=3)
  assert data.describe()["test"] == 27 == data.describe()["pool"]


def test_groups_that_official_splits_tear_apart(tmp_path):
  for split in ("train", "test"):
    _folder(tmp_path / split, {"cat": 10, "dog": 10})
  data = _load(real=f"folder:{tmp_path}", groups=r"pattern:(\w+/\d)\.png")
  (warning,) = data.warnings
  assert "20 groups are in the training images and in the set's own" in warning


def test_grey_and_colour_do_not_mix(real, tmp_path):
  grey = _folder(tmp_path, dict.fromkeys(CLASSES, 2), grey=True)
  with pytest.raises(UserError, match="do not mix .*6 grey of 6.*channels=3"):
    _load(real=real, synthetic=grey)
  data = _load(real=real, synthetic=grey, convert_channels=True)
  pixels = data.pixels.read(data.indices["synthetic"])
  np.testing.assert_array_equal(pixels[..., 0], pixels[..., 2])
  # Grey throughout may be seen by a network for colour.
  assert _load(real=grey, channels=3).pixels.shape == (6, 8, 8, 3)
  with pytest.raises(UserError, match="0 grey of 27; data.channels=1"):
    _load(real=real, channels=1)


def test_files_that_give_the_answer_away(real, tmp_path):
  counts = dict.fromkeys(CLASSES, 12)
  jpeg = _folder(tmp_path / "jpeg", counts, suffix="jpg")
  (warning,) = _load(real=real, synthetic=jpeg).warnings
  assert warning.startswith(f"{jpeg}: ")
  assert "JPEG" in warning and "lossless" in warning
  # Formats without loss are all alike.
  np.savez(
    tmp_path / "a.npz",
    images=[_image() for _ in range(30)],
    labels=np.arange(30) % 3,
    class_names=CLASSES,
  )
  assert _load(real=real, synthetic=f"npz:{tmp_path}/a.npz").warnings == ()


def test_an_empty_class(real, tmp_path):
  np.savez(
    tmp_path / "a.npz",
    images=[_image(), _image()],
    labels=[0, 2],
    class_names=CLASSES,
  )
  spec = f"npz:{tmp_path}/a.npz"
  # A labeler may have kept none, or those that balance the real ones.
  assert _load(real=real, synthetic=spec).warnings == (
    f"{spec} has no image of class 'dog'.",
  )
  with pytest.raises(UserError, match="no image of class 'dog' to train on"):
    _load(real=spec)


def test_what_is_kept_in_the_workdir(real, synthetic, tmp_path):
  options = dict(real=real, synthetic=synthetic, test=9, shots=2)
  data, file = _load(**options), tmp_path / "splits.npz"
  data.keep(file)
  with np.load(file) as kept:
    np.testing.assert_array_equal(kept["test"], data.indices["test"])
    np.testing.assert_array_equal(kept["real_1"], data.members["real"][1])
    assert kept["class_names"].tolist() == list(CLASSES)
  _load(**options).keep(file)
  hashes = data.hashes.copy()
  hashes[3] += np.uint64(1)
  for other in (
    _load(**{**options, "shots": 3}),
    _load(**options, seed=1),
    dataclasses.replace(data, hashes=hashes),
  ):
    with pytest.raises(UserError, match="not those that .* was begun with"):
      other.keep(file)
