"""Which file is in which split and class, and what is wrong with the rest."""

import json

import pytest

from synguide_jax.data import files, layouts
from synguide_jax.errors import UserError
from tests import pictures

_BOTH = ["folder", "zip"]


@pytest.fixture
def make(tmp_path):
  """Returns what lists files; without content, they hold their own name."""
  opened = []

  def listed(names, kind="folder", folder=tmp_path):
    contents = names if isinstance(names, dict) else dict.fromkeys(names)
    for name, content in contents.items():
      content = name if content is None else content
      if isinstance(content, str):
        content = content.encode()
      contents = contents | {name: content}
    if kind == "folder":
      path = pictures.write(folder / "pets", contents)
    else:
      path = pictures.pack(folder / f"pets.{kind}", contents)
    opened.append(files.open_files(str(path)))
    return opened[-1]

  yield listed
  for tree in opened:
    tree.close()


def _names(listing):
  """Names and class names by split, after a look at what is read."""
  for items in listing.splits.values():
    assert [item.read() for item in items] == [i.name.encode() for i in items]
  return {
    split: [
      (i.name, listing.class_names[i.label] if i.label >= 0 else None)
      for i in items
    ]
    for split, items in listing.splits.items()
  }


def _refused(layout, tree, message):
  with pytest.raises(UserError, match=message) as error:
    layout(tree)
  assert tree.root in str(error.value)


def test_enumerate_names():
  assert layouts.enumerate_names(()) == "none"
  assert layouts.enumerate_names(("b", "a")) == "'b', 'a'"
  assert layouts.enumerate_names({"b10", "b9", "a"}) == "'a', 'b9', 'b10'"
  many = layouts.enumerate_names([f"c{i}" for i in range(200)])
  assert many.endswith("'c19', ... (200 in all)")


# Class folders.


def test_folder_of_classes(make):
  images = ["cat/10.png", "cat/9.PNG", "Dog/1.bmp", "cat/9b.jpeg", "cat/a.webp"]
  tree = make([*images, "cat/notes.txt", "readme.md"])
  listing = layouts.folder(tree)
  assert listing.class_names == ("Dog", "cat")
  assert listing.other_files == 2
  order = [
    "Dog/1.bmp",
    *(f"cat/{n}" for n in "9.PNG 9b.jpeg 10.png a.webp".split()),
  ]
  assert _names(listing) == {"train": [(n, n[:3].strip("/")) for n in order]}


def test_classes_are_in_natural_order(make):
  tree = make([f"{name}/x.png" for name in ("10", "9", "09", "1")])
  assert layouts.folder(tree).class_names == ("1", "09", "9", "10")


@pytest.mark.parametrize("wrapping", ["", "pets-1.0/"])
@pytest.mark.parametrize("kind", _BOTH)
def test_wrapping_folder(make, kind, wrapping):
  names = [f"{wrapping}{n}.png" for n in ("cat/1", "dog/1", "dog/2")]
  listing = layouts.folder(make(names, kind))
  assert listing.class_names == ("cat", "dog")
  assert [name for name, _ in _names(listing)["train"]] == names


@pytest.mark.parametrize("wrapping", ["", "pets-1.0/"])
def test_folder_of_splits(make, wrapping):
  sizes = {"train": 3, "val": 2, "test": 1}
  names = [
    f"{wrapping}{split}/{name}/{i}.png"
    for split, count in sizes.items()
    for name in ("cat", "dog")
    for i in range(count)
  ]
  listing = layouts.folder(make(names))
  found = _names(listing)
  lengths = {split: len(items) for split, items in found.items()}
  assert lengths == {"train": 6, "validation": 4, "test": 2}
  test = [(f"{wrapping}test/{name}/0.png", name) for name in ("cat", "dog")]
  assert found["test"] == test


def test_a_class_may_be_called_train(make):
  names = ["bus/1.png", "train/1.png", "train/2.png"]
  listing = layouts.folder(make(names))
  assert listing.class_names == ("bus", "train")
  expected = [(name, name.split("/")[0]) for name in names]
  assert _names(listing) == {"train": expected}


def test_a_class_alone_may_be_called_train(make):
  listing = layouts.folder(make(["train/1.png"]))
  assert _names(listing) == {"train": [("train/1.png", "train")]}


def test_one_class(make):
  listing = layouts.folder(make(["cat/1.png", "cat/2.png"]))
  assert listing.class_names == ("cat",) and len(listing.splits["train"]) == 2


@pytest.mark.parametrize(
  ("names", "message"),
  [
    (["notes.txt"], "has no image .looked for .png, .jpg"),
    (["cat/1.png", "dog/1.gif"], "no image in .* of train: 'dog' .looked for"),
    (
      ["a/cat/1.png", "b/cat/1.png"],
      "a/cat/1.png lies too deep; .* <class>/<im",
    ),
    (["cat/1.png", "dog/1.png", "2.png"], "1 in all, such as 2.png; put them"),
    (["p/cat/1.png", "p/2.png", "p/3.png"], "2 in all, such as p/2.png"),
    (
      ["train/cat/1.png", "test/dog/1.png"],
      "same classes, but train and test differ in 'cat', 'dog'",
    ),
    (
      ["val/cat/1.png", "validation/cat/1.png"],
      "has both val and validation",
    ),
    (
      ["train/1.png", "test/1.png"],
      "no class folders in 'test', 'train'; .* <split>/<class>/<image>, or",
    ),
    (["p/train/1.png", "p/val/1.png"], "no class .* 'p/train', 'p/val'; "),
    (["train/cat/1.png", "test/1.png"], "no class folders in 'test'; "),
    (
      ["train/cat/1.png", "test/cat/1.png", "train/1.png"],
      "such as train/1.png",
    ),
  ],
)
def test_folders_that_are_refused(make, names, message):
  _refused(layouts.folder, make(names), message)


def test_images_without_labels(make):
  tree = make(["10.png", "9.jpg", "prompts.txt"])
  listing = layouts.folder(tree)
  assert listing.class_names == () and listing.other_files == 1
  assert _names(listing) == {"train": [("9.jpg", None), ("10.png", None)]}


# Tables of labels.


@pytest.mark.parametrize("kind", _BOTH)
@pytest.mark.parametrize("wrapping", ["", "pets-1.0/"])
@pytest.mark.parametrize(
  ("table", "text"),
  [
    ("metadata.jsonl", '{"file_name": "a.png", "label": 10}\n\n'
     '{"file_name": "x/b.png", "label": 9}\n'),
    ("labels.csv", "\ufefffile,label\r\na.png,10\r\nx/b.png,9\r\n"),
    ("Labels.CSV", 'label, filename\n"10", "a.png"\n9, x/b.png\n'),
  ],
)  # fmt: skip
def test_tables(make, kind, wrapping, table, text):
  names = {f"{wrapping}a.png": None, f"{wrapping}x/b.png": None}
  others = {f"{wrapping}c.png": None, f"{wrapping}{table}": text}
  listing = layouts.folder(make(names | others, kind))
  assert listing.class_names == ("9", "10")
  assert listing.other_files == listing.unlisted == 1
  labelled = zip(names, ("10", "9"), strict=True)
  assert _names(listing) == {"train": list(labelled)}


def test_quoted_commas(make):
  text = 'file,label,note\n"a,1.png","cat, black","x\ny"\nb.png,dog\n'
  tree = make({"a,1.png": None, "b.png": None, "t.csv": text})
  expected = [("a,1.png", "cat, black"), ("b.png", "dog")]
  assert _names(layouts.folder(tree)) == {"train": expected}


def test_column_of_splits(make):
  text = "file,label,split\na.png,cat,train\nb.png,cat,val\nc.png,dog,\n"
  names = dict.fromkeys(("a.png", "b.png", "c.png"))
  listing = layouts.folder(make(names | {"t.csv": text}))
  assert _names(listing) == {
    "train": [("a.png", "cat"), ("c.png", "dog")],
    "validation": [("b.png", "cat")],
  }


@pytest.mark.parametrize("wrapping", ["", "pets-1.0/"])
def test_a_table_in_each_split(make, wrapping):
  contents = {
    f"{wrapping}train/a.png": None,
    f"{wrapping}train/metadata.jsonl": '{"file_name": "a.png", "label": "cat"}',
    f"{wrapping}test/a.png": None,
    f"{wrapping}test/labels.csv": "file,label\na.png,dog\n",
  }
  listing = layouts.folder(make(contents))
  assert listing.class_names == ("cat", "dog")
  assert _names(listing) == {
    "train": [(f"{wrapping}train/a.png", "cat")],
    "test": [(f"{wrapping}test/a.png", "dog")],
  }


def test_line_separators_within_json(make):
  line = json.dumps({"file_name": "a.png", "label": "x\u2028y"})
  text = line.encode().decode("unicode_escape")
  tree = make({"a.png": None, "metadata.jsonl": text})
  assert layouts.folder(tree).class_names == ("x\u2028y",)


def test_a_table_of_something_else(make):
  contents = {"cat/1.png": None, "scores.csv": "epoch,fid\n1,2.0\n"}
  assert layouts.folder(make(contents)).class_names == ("cat",)


@pytest.mark.parametrize(
  ("table", "text", "message"),
  [
    ("t.csv", "file,label\nb.png,cat", "row 1 of t.csv names b.png, .* not th"),
    (
      "t.csv",
      "file,label\nt.csv,cat",
      "names t.csv, which is no image .known: .png, .jpg",
    ),
    (
      "t.csv",
      "file,label\na.png,cat\na.png,dog",
      "row 2 of t.csv names a.png a",
    ),
    ("t.csv", "file,label\na.png,", "row 1 of t.csv lacks a file or a label"),
    ("t.csv", "file,label\n,cat", "row 1 of t.csv lacks"),
    ("t.csv", "file,label\na.png", "row 1 of t.csv lacks"),
    (
      "t.csv",
      "file,label,split\na.png,cat,dev",
      "has split 'dev'; known: train",
    ),
    ("t.csv", b"file,label\na.png,k\xe4tzchen", "t.csv is not UTF-8"),
    ("metadata.jsonl", "{", "line 1 of metadata.jsonl is no JSON object"),
    ("metadata.jsonl", '\n"a.png"', "line 2 of metadata.jsonl is no JSON obj"),
    (
      "metadata.jsonl",
      '{"file_name": "a.png", "text": "a cat"}',
      "metadata.jsonl must have .* got 'file_name', 'text'",
    ),
  ],
)
def test_tables_that_are_refused(make, table, text, message):
  tree = make({"a.png": None, table: text})
  _refused(layouts.folder, tree, message)


def test_several_tables(make, tmp_path):
  table = "file,label\na.png,cat\n"
  contents = {"a.png": None, "1.csv": table, "2.csv": table}
  tree = make(contents)
  _refused(layouts.folder, tree, "several tables of labels, '1.csv', '2.csv'")
  contents = {"a.png": None, "1.csv": table, "test/1.csv": table}
  tree = make(contents, folder=tmp_path / "both")
  _refused(layouts.folder, tree, "several tables of labels, '1.csv', 'test/1.c")


# StyleGAN.


def _dataset(labels):
  return json.dumps({"labels": labels})


@pytest.mark.parametrize("kind", _BOTH)
@pytest.mark.parametrize("wrapping", ["", "afhq/"])
def test_stylegan(make, kind, wrapping):
  names = ["00000/img00000001.png", "00000/img00000002.png"]
  table = _dataset([[names[1], 0], [names[0], 2]])
  contents = dict.fromkeys(f"{wrapping}{name}" for name in names)
  contents[f"{wrapping}dataset.json"] = table
  listing = layouts.stylegan(make(contents, kind))
  assert listing.class_names == ("0", "1", "2") and listing.other_files == 1
  expected = [(f"{wrapping}{n}", c) for n, c in zip(names, "20", strict=True)]
  assert _names(listing) == {"train": expected}


def test_stylegan_without_labels(make, tmp_path):
  contents = {"a/1.png": None, "dataset.json": _dataset(None)}
  listing = layouts.stylegan(make(contents))
  assert listing.class_names == ()
  assert _names(listing) == {"train": [("a/1.png", None)]}

  names = ["seed0010.png", "seed0009.png", "out/seed0011.png", "log.txt"]
  listing = layouts.stylegan(make(names, folder=tmp_path / "seeds"))
  assert listing.class_names == () and listing.other_files == 1
  order = ["out/seed0011.png", "seed0009.png", "seed0010.png"]
  assert _names(listing) == {"train": [(name, None) for name in order]}


@pytest.mark.parametrize(
  ("contents", "message"),
  [
    (
      {"1.png": None},
      "neither a dataset.json nor images seedNNNN.png only, but",
    ),
    ({"log.txt": None}, "neither a dataset.json nor images seedNNNN.png only."),
    ({"dataset.json": _dataset([])}, "has no image"),
    ({"dataset.json": _dataset(None)}, "has no image"),
    ({"1.png": None, "dataset.json": "{"}, "no 'labels' of the form"),
    ({"1.png": None, "dataset.json": "{}"}, "no 'labels' .*KeyError"),
    ({"1.png": None, "dataset.json": "[1]"}, "no 'labels' of the form"),
    ({"1.png": None, "dataset.json": _dataset([1])}, "no 'labels' of the form"),
    ({"1.png": None, "dataset.json": b"\xff"}, "dataset.json is not UTF-8"),
    ({"1.png": None, "dataset.json": _dataset([])}, "has no label for '1.png'"),
    (
      {"1.png": None, "dataset.json": _dataset([["1.png", 0], ["2.png", 1]])},
      "names '2.png', which is not there",
    ),
  ],
)
def test_stylegan_dumps_that_are_refused(make, contents, message):
  _refused(layouts.stylegan, make(contents), message)


@pytest.mark.parametrize("label", [-1, 1.0, "cat", True, None, [1, 0]])
def test_stylegan_labels_that_are_no_class(make, label):
  contents = {"1.png": None, "dataset.json": _dataset([["1.png", label]])}
  _refused(
    layouts.stylegan,
    make(contents),
    "gives 1.png the label .*, which is no class index",
  )
