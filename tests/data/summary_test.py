"""Tests of synguide_jax.data.summary."""

import dataclasses
from pathlib import Path

import numpy as np

from synguide_jax.data import summary
from synguide_jax.data.records import Index
from synguide_jax.data.sources import ImageSet


@dataclasses.dataclass
class Split:
  """What a summary asks of Records."""

  index: Index
  class_names: tuple[str, ...]
  folder: Path = Path("/cache/tfds/folder_x/1234/2.0.0")


def make_index(labels, first_hash=0, **columns):
  count = len(labels)
  return Index(
    **{
      "names": np.array([f"{first_hash + i}.png" for i in range(count)]),
      "labels": np.array(labels, np.int32),
      "hashes": np.arange(first_hash, first_hash + count, dtype=np.uint64),
      "formats": np.full(count, "PNG"),
      "widths": np.full(count, 20, np.int32),
      "heights": np.full(count, 10, np.int32),
      "grey": np.zeros(count, np.bool_),
      "quantization": np.zeros(count, np.float32),
      "confidences": np.full(count, np.nan, np.float32),
      **columns,
    }
  )


def describe(indices, class_names, **provenance):
  splits = {name: Split(i, class_names) for name, i in indices.items()}
  return summary.describe(ImageSet("folder:x", splits, provenance))


def fact(lines, name):
  """What follows ``name:``; it is said once."""
  (line,) = [x for x in lines if x.startswith(f"  {name}: ")]
  return line.removeprefix(f"  {name}: ")


def test_small_set():
  indices = {
    "train": make_index([0, 0, 1] * 500),
    "test": make_index([1, 1], first_hash=5000),
  }
  lines = describe(
    indices,
    ("cat", "a dog"),
    converted={"palette": 2, "CMYK": 1},
    constant=3,
    skipped=0,
    other_files=4,
    unlisted=7,
  )
  assert lines[0] == "folder:x"
  assert fact(lines, "stored in") == "/cache/tfds/folder_x/1234/2.0.0"
  assert fact(lines, "images") == "1,500 train, 2 test"
  assert fact(lines, "formats") == "1,502 PNG"
  assert fact(lines, "sizes") == "all 20x10 px"
  assert fact(lines, "channels") == "1,502 RGB"
  assert fact(lines, "converted") == "2 palette, 1 CMYK"
  left_out = "3 of a single colour, 7 not in the table of labels"
  assert fact(lines, "left out") == left_out
  assert fact(lines, "other files") == "4"
  assert fact(lines, "exact duplicates") == "none"
  assert [line.split() for line in lines[-3:]] == [
    ["train", "test"],
    ["cat", "1,000", "0"],
    ["a", "dog", "500", "2"],
  ]
  assert len({len(line) for line in lines[-3:]}) == 1


def test_of_anybodys_set_it_is_not_known_what_was_converted():
  lines = describe({"train": make_index([0])}, ("a",))
  assert not [x for x in lines if "converted" in x or "left out" in x]


def test_files_of_several_kinds():
  index = make_index(
    [0] * 4,
    formats=np.array(["PNG", "JPEG", "JPEG", "array"]),
    widths=np.array([9, 40, 40, 100]),
    heights=np.array([9, 30, 30, 50]),
    grey=np.array([True, False, False, False]),
  )
  lines = describe({"train": index}, ("a",))
  assert fact(lines, "formats") == "1 PNG, 2 JPEG, 1 array"
  assert fact(lines, "sizes").startswith(
    "3 different; shorter side 9 / 30 / 50 px"
  )
  assert fact(lines, "channels") == "1 grey, 3 RGB"


def test_duplicates_within_and_across_splits_and_classes():
  # Thrice the same in one class; one in two classes; one in two splits.
  train = make_index(
    [0, 0, 0, 0, 1, 1], hashes=np.array([7, 7, 7, 8, 8, 9], np.uint64)
  )
  test = make_index([1], hashes=np.array([9], np.uint64), first_hash=10)
  lines = describe({"train": train, "test": test}, ("a", "b"))
  assert fact(lines, "exact duplicates") == (
    "4 copies of 3 images (1 in several splits, 1 in several classes): "
    "0.png = 1.png, 3.png = 4.png, 5.png = 10.png"
  )


def test_many_duplicates_are_not_all_named():
  hashes = np.repeat(np.arange(6, dtype=np.uint64), 2)
  lines = describe({"train": make_index([0] * 12, hashes=hashes)}, ("a",))
  found = fact(lines, "exact duplicates")
  assert found.startswith("6 copies of 6 images: 0.png = 1.png, ")
  assert found.count(" = ") == 5 and found.endswith(", ...")


def test_of_many_classes_the_extremes_are_shown_first():
  names = tuple(f"class{i}" for i in range(1000))
  labels = np.concatenate([np.repeat(np.arange(1000), 3), [0] * 9])
  labels = labels[labels != 417]
  lines = describe({"train": make_index(labels)}, names)
  assert fact(lines, "classes").startswith("1,000; ")
  extremes, *table = lines[-1002:]
  assert extremes.split("; fewest: ") == [
    "    train 0 / 3 / 12",
    "class417 0, class1 3, class2 3, class3 3, class4 3",
  ]
  rows = [line.split() for line in table]
  assert rows[:2] == [["train"], ["class0", "12"]]
  assert rows[2:] == [[n, "0" if "417" in n else "3"] for n in names[1:]]


def test_without_labels():
  lines = describe({"train": make_index([-1, -1])}, ("none",))
  assert lines[-1] == "  classes: the images have no labels"
