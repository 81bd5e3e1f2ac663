"""What classifiers say of files, in the order of their names."""

import csv
import io
import json
import types

import numpy as np
from PIL import Image
import pytest

from synguide_jax.analysis import predictions
from synguide_jax.analysis.predictions import Answer, Ensemble
from synguide_jax.data import decode, files
from synguide_jax.errors import UserError
from synguide_jax.models.pretrained import Pretrained
from synguide_jax.synthesis.classifier import Classifier
from tests import pictures

NAMES = ("cat", "dog, big", "owl")
# Read at ten pixels, seen at the eight in the middle.
READ, SEEN = 10, 8


class _Linear:
  """Stands in for a model: logits that NumPy computes as well."""

  def apply(self, variables, images, *, train):
    assert not train
    flat = images.reshape(len(images), -1)
    return types.SimpleNamespace(logits=flat @ variables["kernel"])


def _ensemble(kernels, temperatures=None):
  members = tuple(
    Classifier(
      Pretrained(_Linear(), {"kernel": kernel}, (SEEN, SEEN, 3)),
      *(NAMES, READ, {"workdir": "work", "run": run}),
    )
    for run, kernel in enumerate(kernels)
  )
  return Ensemble(members, temperatures)


def _kernels(count):
  rng = np.random.default_rng(1)
  return rng.normal(size=(count, SEEN * SEEN * 3, 3)).astype(np.float32) / 4


def _softmax(logits):
  p = np.exp(logits - logits.max(-1, keepdims=True))
  return p / p.sum(-1, keepdims=True)


def _expected(encoded, kernels, temperatures):
  """As sets store an image and training reads it."""
  stored = decode.canonical(encoded).encoded
  pixels = decode.decode(stored, READ, 3)[1:9, 1:9].reshape(-1) / 255
  logits = pixels @ np.asarray(kernels, np.float64)
  return _softmax(logits / np.reshape(temperatures, (-1, 1))).mean(0)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  image = pictures.encode(pictures.pixels(20, 30))
  grey = (pictures.pixels(12, 12, 1)[..., 0].astype(np.uint16) * 257) + 3
  frames = [Image.fromarray(pictures.pixels(12, 12)) for _ in range(3)]
  exif = Image.Exif()
  exif[0x0112] = 6
  return pictures.write(
    tmp_path_factory.mktemp("images"),
    {
      "img10.png": image,
      "img2.png": pictures.encode(),
      "below/16 bit.PNG": pictures.encode(Image.fromarray(grey)),
      "below/cmyk": pictures.encode(
        Image.fromarray(pictures.pixels(9, 9, 4), "CMYK"), "jpg"
      ),
      "below/deeper/moving.gif": pictures.encode(
        frames[0], "gif", save_all=True, append_images=frames[1:]
      ),
      "turned.jpg": pictures.encode(pictures.pixels(9, 12), "jpg", exif=exif),
      "palette.png": pictures.encode(frames[0].quantize(8)),
      "broken.png": image[: len(image) // 2],
      "empty.jpg": b"",
      "read me.txt": b"These are not all images.",
      ".hidden": b"",
    },
  )


BROKEN = {"broken.png", "empty.jpg", "read me.txt"}


# Fewer than the eight devices, a part of the images, and more than there are.
@pytest.mark.parametrize("batch_size", [1, 3, 64])
@pytest.mark.parametrize("members", [1, 3])
def test_files_are_classified_as_in_training(folder, batch_size, members):
  kernels = _kernels(members)
  temperatures = (0.5, 1.0, 3.0)[:members]
  images = predictions.open_images(str(folder))
  answers = list(
    predictions.classify(
      _ensemble(kernels, temperatures), images, batch_size=batch_size
    )
  )
  assert [answer.name for answer in answers] == sorted(
    images.names, key=files.natural
  )
  assert len(answers) == 10
  for name, probabilities, problem in answers:
    if name in BROKEN:
      assert probabilities is None and problem
      continue
    assert problem == ""
    expected = _expected(images.read(name), kernels, temperatures)
    np.testing.assert_allclose(probabilities, expected, rtol=1e-4)
  problems = {answer.name: answer.problem for answer in answers}
  assert problems["read me.txt"] == problems["empty.jpg"] == "not an image"


@pytest.mark.parametrize("count", [1, 8, 11])
def test_devices_need_not_divide_the_images(count):
  images = np.stack([pictures.pixels(READ, READ) for _ in range(16)])
  ensemble = _ensemble(_kernels(2))
  found = ensemble.ask(images[:count])
  assert found.shape == (count, len(NAMES))
  np.testing.assert_allclose(found, ensemble.ask(images)[:count], rtol=1e-5)


def test_more_batches_than_are_decoded_ahead(tmp_path):
  contents = {f"{n}.png": pictures.encode() for n in range(300)}
  contents |= {f"{n}.txt": b"text" for n in range(0, 300, 7)}
  images = predictions.open_images(str(pictures.write(tmp_path, contents)))
  kernels = _kernels(1)
  answers = predictions.classify(_ensemble(kernels), images, batch_size=8)
  found = {answer.name: answer.probabilities for answer in answers}
  assert list(found) == images.names
  for n in (0, 7, 150, 299):
    expected = _expected(contents[f"{n}.png"], kernels, [1.0])
    np.testing.assert_allclose(found[f"{n}.png"], expected, rtol=1e-4)
  assert sum(p is None for p in found.values()) == 43


def test_files_alone_in_archives_and_none(folder, tmp_path):
  kernels = _kernels(1)
  content = (folder / "img2.png").read_bytes()
  packed = pictures.pack(tmp_path / "two.zip", {"a/1": content, "2": b"text"})
  for path, names in (
    (folder / "img2.png", ["img2.png"]),
    (packed, ["2", "a/1"]),
  ):
    with predictions.open_images(str(path)) as images:
      answers = list(predictions.classify(_ensemble(kernels), images))
    assert [answer.name for answer in answers] == names
    np.testing.assert_allclose(
      answers[-1].probabilities, _expected(content, kernels, [1.0]), rtol=1e-4
    )
  (tmp_path / "empty").mkdir()
  with pytest.raises(UserError, match="empty has no files"):
    predictions.open_images(str(tmp_path / "empty"))
  with pytest.raises(UserError, match="nowhere does not exist"):
    predictions.open_images(str(tmp_path / "nowhere"))


def test_probabilities_that_are_not_finite_are_an_error(folder):
  images = predictions.open_images(str(folder / "img2.png"))
  ensemble = _ensemble([_kernels(1)[0] * np.nan])
  with pytest.raises(UserError, match="img2.png are not finite"):
    list(predictions.classify(ensemble, images))


ANSWERS = [
  Answer("a, b.png", np.array([0.25, 0.625, 0.125], np.float32)),
  Answer("bad.txt", None, "not an image"),
  Answer("ü/c.png", np.array([0.7, 0.2, 0.1], np.float32)),
]


@pytest.mark.parametrize("every_class", [False, True])
@pytest.mark.parametrize("form", predictions.FORMATS)
def test_what_is_written(form, every_class):
  file = io.StringIO()
  count, unusable = predictions.write(
    ANSWERS, file, NAMES, form=form, every_class=every_class
  )
  assert (count, unusable) == (2, [ANSWERS[1]])
  wanted = [("a, b.png", "dog, big", 0.625), ("ü/c.png", "cat", 0.7)]
  lines = file.getvalue().splitlines()
  if form == "csv":
    header, *rows = csv.reader(lines)
    assert header[:3] == ["image", "class", "probability"]
    of_class = [f"probability of {name}" for name in NAMES]
    assert header[3:] == (of_class if every_class else [])
    assert [(a, b, float(c)) for a, b, c, *_ in rows] == wanted
    every = [[float(p) for p in row[3:]] for row in rows]
  else:
    rows = [json.loads(line) for line in lines]
    assert [tuple(row.values())[:3] for row in rows] == wanted
    every = [list(row.get("probabilities", {}).values()) for row in rows]
  for row, answer in zip(every, ANSWERS[::2], strict=True):
    np.testing.assert_allclose(
      row, answer.probabilities if every_class else [], rtol=1e-7
    )


def test_a_file_appears_whole_or_not_at_all(tmp_path, capsys):
  path = tmp_path / "made" / "x.csv"
  with pytest.raises(KeyError), predictions.opened(str(path)) as file:
    file.write("half")
    raise KeyError
  assert not list(path.parent.iterdir())
  with predictions.opened(str(path)) as file:
    file.write("whole")
  assert [p.name for p in path.parent.iterdir()] == ["x.csv"]
  assert path.read_text() == "whole"
  with pytest.raises(UserError, match="Cannot write .*y.csv: File exists"):
    with predictions.opened(str(path / "y.csv")):
      pass
  with predictions.opened("") as file:
    file.write("shown")
  assert capsys.readouterr().out == "shown"
  assert predictions.format_of("a.JSONL") == "jsonl"
  assert predictions.format_of("") == "csv"
  with pytest.raises(UserError, match="output=a.txt.*'txt' is unk.*csv, jsonl"):
    predictions.format_of("a.txt")


def test_temperatures_are_those_of_the_runs(tmp_path):
  config = {"data": {"store_size": READ, "image_size": SEEN}}
  (tmp_path / "config.json").write_text(json.dumps(config))
  networks = [m.network for m in _ensemble(_kernels(2)).members]
  results = {"runs": [4, 5, 6], "data": {"class_names": list(NAMES)}}
  old = predictions.from_workdir(tmp_path, results, [4, 6], networks)
  assert old.temperatures is None
  assert old.class_names == NAMES
  said = predictions.remarks(old, 2, [ANSWERS[1]])
  assert said[0] == "2 of 3 files classified by run 4, 6"
  assert said[1].startswith("probabilities are not calibrated: ")
  assert said[2:] == ["1 of 3 could not be used:", "  bad.txt: not an image"]
  results["calibration"] = {"temperature": {"runs": [1.5, None, 0.5]}}
  new = predictions.from_workdir(tmp_path, results, [4, 6], networks)
  assert new.temperatures == (1.5, 0.5)
  assert [m.origin["run"] for m in new.members] == [4, 6]
  assert predictions.remarks(new, 0, []) == [
    "0 of 0 files classified by run 4, 6"
  ]
