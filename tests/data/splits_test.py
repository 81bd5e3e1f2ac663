"""Splits are stratified, disjoint and fixed by their own seed."""

import numpy as np
import pytest

from synguide_jax.data import splits
from synguide_jax.errors import UserError

LABELS = np.repeat(np.arange(5), 40)
ALL = np.arange(200, dtype=np.int32)
NAMES = ("a", "b", "c", "d", "e")
VIEWS = np.arange(200) // 4  # ten objects a class, four views each


def test_split_is_a_stratified_partition():
  stay, off = splits.split_off(LABELS, ALL, 50, seed=1, field="data.test")
  np.testing.assert_array_equal(np.sort(np.concatenate([stay, off])), ALL)
  np.testing.assert_array_equal(np.bincount(LABELS[off]), [10] * 5)


def test_split_depends_on_its_seed_only():
  one, two, three = (
    splits.split_off(LABELS, ALL, 50, seed=s, field="x")[1] for s in (1, 1, 2)
  )
  np.testing.assert_array_equal(one, two)
  assert not np.array_equal(one, three)


def test_nothing_is_split_off_by_zero():
  stay, off = splits.split_off(LABELS, ALL, 0, seed=1, field="x")
  np.testing.assert_array_equal(stay, ALL)
  assert len(off) == 0


def test_too_large_a_split_names_the_field():
  with pytest.raises(UserError, match="data.test=500"):
    splits.split_off(LABELS, ALL, 500, seed=1, field="data.test")


@pytest.mark.parametrize("count", [40, 50, 67, 100, 133, 160])
def test_groups_stay_on_one_side_of_a_stratified_split(count):
  stay, off = splits.split_off(
    LABELS, ALL, count, seed=1, field="x", groups=VIEWS
  )
  np.testing.assert_array_equal(np.sort(np.concatenate([stay, off])), ALL)
  assert not set(VIEWS[stay]) & set(VIEWS[off])
  assert abs(len(off) - count) <= 10
  assert np.ptp(np.bincount(LABELS[off], minlength=5)) <= 4  # one group


def unequal():
  """Six very unequal classes in groups of six, 14 of which span two."""
  labels = np.repeat(np.arange(6), (952, 115, 103, 85, 57, 32))
  groups = np.arange(len(labels)) // 6
  rng = np.random.default_rng(0)
  for joined in range(14):  # an image of a rarer class joins a free group
    groups[rng.choice(np.flatnonzero(labels > 0))] = joined
  order = rng.permutation(len(labels))
  return labels[order], groups[order]


@pytest.mark.parametrize("seed", range(3))
def test_few_groups_of_unequal_classes_are_split_by_class(seed):
  labels, groups = unequal()
  members = np.arange(len(labels), dtype=np.int32)
  kw = dict(seed=seed, field="x", groups=groups)
  rest, test = splits.split_off(labels, members, 400, **kw)
  pool, validation = splits.split_off(labels, rest, 150, **kw)
  for one, two in ((test, rest), (pool, validation)):
    assert not set(groups[one]) & set(groups[two])
  # A third and then a sixth of the rest, give or take three groups.
  assert abs(len(test) - 448) <= 18 and abs(len(validation) - 150) <= 18
  counts = np.bincount(labels)
  np.testing.assert_allclose(
    np.bincount(labels[test]) / counts, 1 / 3, atol=0.1
  )
  assert np.bincount(labels[validation]).min() >= 1
  again = splits.split_off(labels, members, 400, **kw)
  np.testing.assert_array_equal(again[1], test)
  other = splits.split_off(labels, members, 400, **{**kw, "seed": seed + 10})
  assert not np.array_equal(other[1], test)


def test_grouped_splits_do_not_depend_on_the_order_of_members():
  one, two = (
    splits.split_off(LABELS, m, 50, seed=1, field="x", groups=VIEWS)
    for m in (ALL, ALL[::-1])
  )
  np.testing.assert_array_equal(one[1], two[1])


def test_a_class_in_one_group_cannot_be_on_both_sides():
  groups = np.where(LABELS == 3, 1000, VIEWS)
  kw = dict(seed=1, field="data.test", groups=groups)
  with pytest.raises(UserError, match="class 'd' would be .*another data.spl"):
    splits.split_off(LABELS, ALL, 50, class_names=NAMES, **kw)
  with pytest.raises(UserError, match="data.test=150: .* class 3 would be "):
    splits.split_off(LABELS, ALL, 150, **kw)


@pytest.mark.parametrize("count", [-1, 1, 200, 300])
def test_groups_do_not_allow_any_count(count):
  with pytest.raises(UserError, match=f"data.test={count}: .* in 50 groups"):
    splits.split_off(
      LABELS, ALL, count, seed=1, field="data.test", groups=VIEWS
    )


@pytest.mark.parametrize("groups", [None, VIEWS])
def test_folds_are_a_stratified_partition(groups):
  members = ALL[:160]  # without the last class
  parts = splits.folds(LABELS, members, 5, seed=1, groups=groups)
  assert len(parts) == 5
  np.testing.assert_array_equal(np.sort(np.concatenate(parts)), members)
  for part in parts:
    np.testing.assert_array_equal(part, np.sort(part))
    assert part.dtype == np.int32
    np.testing.assert_array_equal(np.bincount(LABELS[part]), [8] * 4)
  again, other = (
    splits.folds(LABELS, members, 5, seed=s, groups=groups) for s in (1, 2)
  )
  np.testing.assert_array_equal(again[0], parts[0])
  assert not np.array_equal(other[0], parts[0])


def test_folds_keep_groups_of_unequal_classes_whole():
  labels, groups = unequal()
  parts = splits.folds(labels, np.arange(len(labels)), 5, seed=0, groups=groups)
  assert sum(len(np.unique(groups[p])) for p in parts) == len(np.unique(groups))
  for part in parts:
    shares = np.bincount(labels[part]) / np.bincount(labels)
    np.testing.assert_allclose(shares, 0.2, atol=0.12)


def test_folds_need_enough_of_every_class():
  with pytest.raises(UserError, match="data.folds=1"):
    splits.folds(LABELS, ALL, 1, seed=0)
  kw = dict(seed=0, class_names=NAMES)
  with pytest.raises(UserError, match="=5, but class 'b' has only 4 images"):
    splits.folds(LABELS, np.delete(ALL, np.arange(44, 80)), 5, **kw)
  with pytest.raises(UserError, match="=11, but class 'a' has only 10 groups"):
    splits.folds(LABELS, ALL, 11, groups=VIEWS, **kw)


def test_folds_name_a_class_that_groups_keep_out_of_one():
  # Each class is in two of three groups, and two groups share a fold.
  labels, groups = np.array([0, 0, 1, 1, 2, 2]), np.array([0, 1, 1, 2, 0, 2])
  with pytest.raises(UserError, match="data.folds=2: .* no image of class '"):
    splits.folds(
      labels, np.arange(6), 2, seed=0, groups=groups, class_names=NAMES
    )


FILES = [
  "blowhole/exp1_num_7.jpg",
  "free/exp2_num_7.jpg",
  "free/exp1_num_9.jpg",
]


@pytest.mark.parametrize(
  ("regex", "expected"),
  [
    (r"num_\d+", [0, 0, 1]),
    (r"num_(\d+)", [0, 0, 1]),
    (r"^(\w+)/.*num_(\d+)", [0, 1, 2]),
    (r"exp(\d)|(never)", [0, 1, 0]),
  ],
)
def test_groups_by_pattern(regex, expected):
  groups = splits.read_groups("pattern:" + regex, FILES)
  assert groups.dtype == np.int32
  np.testing.assert_array_equal(groups, expected)


def test_regex_groups_are_not_run_together():
  groups = splits.read_groups(r"pattern:a(\d+)b(\d+)?", ["a1b11", "a11b1"])
  np.testing.assert_array_equal(groups, [0, 1])


@pytest.mark.parametrize("regex", ["free", "(free)?", "x*"])
def test_images_that_match_nothing_are_named(regex):
  names = [f"cut/{i}" for i in range(7)] + ["free/8"] * (regex != "x*")
  listed = r"cut/0, cut/1, cut/2, cut/3, cut/4, \.\.\.\. Every"
  with pytest.raises(UserError, match=r"to 7 of \d images: " + listed):
    splits.read_groups("pattern:" + regex, names)


def read_csv(folder, text, names=FILES):
  path = folder / "groups.csv"
  path.write_bytes(text.encode() if isinstance(text, str) else text)
  return splits.read_groups(f"csv:{path}", names)


def test_groups_by_csv(tmp_path):
  rows = [f"{name},{group}" for name, group in zip(FILES, "bab", strict=True)]
  for text in (
    "\n".join(["file,group", "elsewhere.jpg,a", *rows[::-1]]),
    "\r\n".join(["\ufefffile,group", *rows, ""]),
    "\n".join(["x,file,group", *("," + row for row in rows)]),
  ):
    groups = read_csv(tmp_path, text)
    assert groups.dtype == np.int32
    np.testing.assert_array_equal(groups, [0, 1, 0])


@pytest.mark.parametrize(
  ("text", "message"),
  [
    ("", "columns file and group, not nothing"),
    ("file;group\n", "columns file and group, not file;group"),
    ("a,b\n", "columns file and group, not a, b"),
    (b"\xff\xfe\x00", "cannot read the file"),
    (f"file,group\n{FILES[0]},1\n{FILES[1]},\n", "to 2 of 3 images: free/exp2"),
    (f"file,group\n{FILES[0]},1\n{FILES[0]},2\n", "listed in two groups"),
  ],
)
def test_wrong_csv(tmp_path, text, message):
  with pytest.raises(UserError, match=message):
    read_csv(tmp_path, text)


@pytest.mark.parametrize(
  ("spec", "message"),
  [
    ("csv:/no/such/file.csv", "cannot read the file: .*No such file"),
    ("csv:", "give"),
    ("pattern:(", "not a regular expression"),
    ("groups.csv", 'give "pattern:<regex>", "csv:<path>"'),
    ("json:groups.json", "data.groups='json:groups.json': give"),
  ],
)
def test_wrong_spec_of_groups(spec, message):
  with pytest.raises(UserError, match=message):
    splits.read_groups(spec, FILES)


def draw(shots, run=0, pool=ALL):
  return splits.draw_shots(LABELS, pool, shots, NAMES, seed=0, run=run)


def test_shots_are_of_every_class_and_of_the_run():
  shots = draw(3)
  np.testing.assert_array_equal(np.bincount(LABELS[shots]), [3] * 5)
  assert len(np.unique(shots)) == 15
  np.testing.assert_array_equal(shots, draw(3))
  assert not np.array_equal(shots, draw(3, run=1))


def test_all_and_no_shots():
  np.testing.assert_array_equal(draw(-1), ALL)
  np.testing.assert_array_equal(draw(None), ALL)
  assert len(draw(0)) == 0


def test_too_few_images_name_the_class():
  with pytest.raises(UserError, match="class 'c' has only 2"):
    draw(3, pool=np.delete(ALL, np.arange(80, 118)))
  with pytest.raises(UserError, match="data.shots=-2"):
    draw(-2)
