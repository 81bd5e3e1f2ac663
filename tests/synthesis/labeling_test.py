"""Tests of synguide_jax.synthesis.labeling."""

import dataclasses
import json
from pathlib import Path
import types

import filelock
import numpy as np
import pytest

from synguide_jax.data import digits, experiment_data, records, sources
from synguide_jax.errors import UserError
from synguide_jax.models.pretrained import Pretrained
from synguide_jax.synthesis import labeling
from synguide_jax.synthesis.classifier import Classifier
from synguide_jax.synthesis.labeling import label, Report, Rules
from tests import pictures, tiny

_NUM = 120


class _Linear:
  """Stands in for a model."""

  def apply(self, variables, images, *, train):
    flat = images.reshape(len(images), -1)
    params = variables["params"]
    return types.SimpleNamespace(
      logits=flat @ params["kernel"] + params["bias"]
    )


@pytest.fixture(scope="module")
def images():
  """Noisy digits, uint8 [N, 8, 8, 1], and their labels."""
  found, labels = zip(*digits.examples(), strict=True)
  noise = np.random.default_rng(0).normal(0, 60, (_NUM, 8, 8, 1))
  noisy = np.clip(np.stack(found[:_NUM]) + noise, 0, 255).astype(np.uint8)
  return noisy, np.asarray(labels[:_NUM])


@pytest.fixture(scope="module")
def weights():
  """Of a linear classifier, the log likelihood of class means."""
  found, labels = map(np.asarray, zip(*digits.examples(), strict=True))
  flat = found.reshape(len(found), -1) / 255
  means = np.stack([flat[labels == c].mean(0) for c in range(10)])
  return {"kernel": 3 * means.T, "bias": -1.5 * (means**2).sum(1)}


@pytest.fixture(scope="module")
def classifier(weights):
  params = {name: w.astype(np.float32) for name, w in weights.items()}
  network = Pretrained(_Linear(), {"params": params}, (8, 8, 1))
  return Classifier(network, digits.CLASS_NAMES, 8, {"workdir": "here"})


@pytest.fixture(scope="module")
def expected(images, weights):
  """Most probable classes, their probabilities, and all log probabilities."""
  logits = images[0].reshape(_NUM, -1) / 255 @ weights["kernel"]
  logits += weights["bias"]
  log_probs = logits - np.log(np.exp(logits).sum(1, keepdims=True))
  return log_probs.argmax(1), np.exp(log_probs.max(1)), log_probs


@pytest.fixture(scope="module")
def sets(images, tmp_path_factory):
  """The digits as a user has them, without labels, and with."""
  folder = tmp_path_factory.mktemp("npz")
  np.savez(folder / "bare.npz", images=images[0])
  np.savez(folder / "labelled.npz", images=images[0], labels=images[1])
  return types.SimpleNamespace(
    bare=sources.open_set(f"npz:{folder}/bare.npz"),
    labelled=sources.open_set(f"npz:{folder}/labelled.npz"),
  )


def _data(**changes):
  return tiny.config(**{f"data.{k}": v for k, v in changes.items()}).data


def _beside(folder="."):
  """What is in a folder, but for the locks that stay there."""
  names = (path.name for path in Path(folder).iterdir())
  return sorted(name for name in names if not name.endswith(".lock"))


def _index(output):
  return sources.open_set(f"prepared:{output}").splits["train"].index


def test_an_unlabelled_set(sets, classifier, images, expected):
  predicted, confidences, _ = expected
  kept = np.flatnonzero(confidences > 0.8)
  # Otherwise the rest of this test would say little.
  assert 20 < len(kept) < 100
  assert (predicted == images[1]).mean() > 0.8

  output = Path("sets/out")
  report = label(sets.bare, classifier, output, Rules())
  assert report.new
  for c, row in enumerate(report.classes):
    sure = confidences[kept][predicted[kept] == c]
    assert row["class"] == str(c)
    assert row["images"] == (predicted == c).sum()
    assert row["kept"] == len(sure)
    assert row["confidence"] == row["images"] - row["kept"]
    assert row["mean_confidence"] == pytest.approx(sure.mean(), rel=1e-4)
  assert report.total("kept") == len(kept)

  found = sources.open_set("prepared:sets/out")
  assert found.class_names == digits.CLASS_NAMES
  (stored,) = found.splits.values()
  before = sets.bare.splits["train"]
  assert stored.encoded(range(len(kept))) == before.encoded(kept)
  index = stored.index
  np.testing.assert_array_equal(index.labels, predicted[kept])
  np.testing.assert_array_equal(index.names, before.index.names[kept])
  np.testing.assert_array_equal(index.hashes, before.index.hashes[kept])
  np.testing.assert_allclose(index.confidences, confidences[kept], rtol=1e-4)
  # In the set itself, too, for those who read it with tfds.
  source = records.builder(output).as_data_source(split="train")
  for number in (0, len(kept) - 1):
    assert source[number]["label"] == index.labels[number]
    assert source[number]["confidence"] == index.confidences[number]
  assert _beside("sets") == ["out"]


def test_what_is_kept_of_how_it_was_made(sets, classifier):
  rules = Rules(threshold=0.5, per_class=3, seed=4)
  report = label(sets.bare, classifier, Path("out"), rules)
  found = sources.open_set("prepared:out").provenance
  made = found["labeling"]
  assert made["source"] == sets.bare.spec
  assert made["classifier"]["workdir"] == "here"
  assert made["classifier"]["checksum"] == classifier.checksum()
  assert made["rules"]["threshold"] == 0.5
  assert made["rules"]["seed"] == 4
  assert found["num_images"] == {"train": report.total("kept")}
  assert found["classes"] == report.classes
  origin = sets.bare.provenance["image_checksum"]
  assert found["source"]["image_checksum"] == origin


def test_the_output_trains_and_the_source_is_refused(sets, classifier):
  with pytest.raises(UserError, match="no labels.*synguide_jax.label"):
    experiment_data.load(_data(synthetic=sets.bare.spec), seed=0, runs=(0,))
  report = label(sets.bare, classifier, Path("out"), Rules(threshold=0.3))
  data = experiment_data.load(
    _data(synthetic="prepared:out"), seed=0, runs=(0,)
  )
  index = data.indices["synthetic"]
  assert len(index) == report.total("kept")
  np.testing.assert_array_equal(data.labels[index], _index("out").labels)


def test_a_labelled_set_keeps_its_labels(sets, classifier, images, expected):
  predicted, confidences, log_probs = expected
  own = images[1]
  kept = confidences > 0.6
  assert (predicted != own)[kept].any()
  label(sets.labelled, classifier, Path("own"), Rules(threshold=0.6))
  np.testing.assert_array_equal(_index("own").labels, own[kept])

  rules = Rules(threshold=0.6, relabel=True)
  label(sets.labelled, classifier, Path("new"), rules)
  np.testing.assert_array_equal(_index("new").labels, predicted[kept])

  rules = Rules(threshold=0.6, agree=True)
  report = label(sets.labelled, classifier, Path("agreed"), rules)
  agreed = kept & (predicted == own)
  np.testing.assert_array_equal(_index("agreed").labels, own[agreed])
  assert report.total("disagreement") == (kept & (predicted != own)).sum()

  # The loss is of the image's own label, and decides alone.
  losses = -log_probs[np.arange(_NUM), own]
  rules = Rules(min_loss=0.2, max_loss=1.0)
  report = label(sets.labelled, classifier, Path("hard"), rules)
  hard = (losses >= 0.2) & (losses <= 1.0)
  assert 0 < (hard & (confidences > 0.8)).sum() < hard.sum() < _NUM
  np.testing.assert_array_equal(_index("hard").labels, own[hard])
  assert report.total("loss") == _NUM - hard.sum()


def test_classes_are_drawn_at_random(sets, classifier, expected, caplog):
  counts = np.bincount(expected[0], minlength=10)
  number = int(np.sort(counts)[3])
  few = [f"'{c}'" for c in np.flatnonzero(counts < number)]
  assert few
  rules = Rules(threshold=0.0, per_class=number)
  report = label(sets.bare, classifier, Path("out"), rules)
  kept = [row["kept"] for row in report.classes]
  assert kept == np.minimum(counts, number).tolist()
  assert report.total("balancing") == _NUM - sum(kept)
  (message,) = [r.getMessage() for r in caplog.records]
  assert message.endswith(f"are left of class {', '.join(few)}")


def test_balance_with_a_real_set(sets, classifier, expected, caplog):
  synthetic = np.bincount(expected[0], minlength=10)
  real = np.array([9, 5, 8, 3, 4, 4, 2, 7, 8, 60])
  total = (real + synthetic).min()
  assert 9 <= total < 60
  labels = np.repeat(np.arange(10), real)
  pixels = np.random.default_rng(0).integers(0, 256, (len(labels), 8, 8), "u1")
  np.savez("real.npz", images=pixels, labels=labels)
  rules = Rules(threshold=0.0, balance_with="npz:real.npz")
  report = label(sets.bare, classifier, Path("out"), rules)
  kept = np.array([row["kept"] for row in report.classes])
  assert (kept + real)[:9].tolist() == [total] * 9
  assert kept[9] == 0
  messages = [record.getMessage() for record in caplog.records]
  assert f"balanced at {total} images a class" in messages[0]
  assert "class '9' has more real images than that" in messages[0]
  assert "no image is left of class '9'" in messages[1]


def test_damaged_files_of_the_set_to_balance_with(sets, classifier):
  rng = np.random.default_rng(0)
  photos = {
    f"photos/{c}/{number}.png": pictures.encode(
      rng.integers(0, 256, (8, 8), np.uint8)
    )
    for c in range(10)
    for number in range(2 + c % 2)
  }
  pictures.write(".", photos | {"photos/0/damaged.png": b"hello"})
  rules = Rules(threshold=0.0, balance_with="folder:photos")
  with pytest.raises(UserError, match="0/damaged.png .*skip_damaged"):
    label(sets.bare, classifier, Path("out"), rules)
  report = label(sets.bare, classifier, Path("out"), rules, skip_damaged=True)
  kept = [row["kept"] + 2 + c % 2 for c, row in enumerate(report.classes)]
  assert len(set(kept)) == 1
  made = sources.open_set("prepared:out").provenance["labeling"]
  assert made["real_images"] == [2 + c % 2 for c in range(10)]


def test_files_are_told_apart_as_before(classifier, tmp_path):
  photos = {}
  for number in range(12):
    image = pictures.pixels(8, 8)
    photos[f"{number}.webp"] = pictures.encode(image, "webp")
    photos[f"{number}.jpg"] = pictures.encode(image, "jpg", quality=75)
  pictures.write(tmp_path / "photos", photos)
  source = sources.open_set(f"folder:{tmp_path}/photos")
  label(source, classifier, Path("out"), Rules(threshold=0.0))
  before, after = source.splits["train"].index, _index("out")
  assert set(after.formats) == {"WEBP", "JPEG"}
  for column in ("formats", "quantization", "widths", "heights", "hashes"):
    np.testing.assert_array_equal(
      getattr(after, column), getattr(before, column)
    )


def test_an_output_is_made_once(sets, classifier, monkeypatch):
  output = Path("out")
  first = label(sets.bare, classifier, output, Rules())
  with monkeypatch.context() as patch:
    patch.setattr(labeling, "predict", None)
    again = label(sets.bare, classifier, output, Rules())
  assert not again.new
  assert again.classes == first.classes
  assert labeling.table(again) == labeling.table(first)

  with pytest.raises(UserError, match=r"rules.threshold \(0.8 there, 0.7 now"):
    label(sets.bare, classifier, output, Rules(threshold=0.7))
  params = classifier.network.variables["params"]
  params = params | {"bias": params["bias"] + np.eye(10, dtype="f4")[0]}
  network = dataclasses.replace(
    classifier.network, variables={"params": params}
  )
  other = dataclasses.replace(classifier, network=network)
  with pytest.raises(UserError, match="settings: classifier.checksum"):
    label(sets.bare, other, output, Rules())
  with pytest.raises(UserError, match="settings: source .*, source_checksum"):
    label(sets.labelled, classifier, output, Rules())


def test_what_a_killed_process_left_is_replaced(sets, classifier):
  left = Path(".out.partial/labeled_out/0123/2.0.0.incomplete")
  left.mkdir(parents=True)
  (left / "file").write_text("half")
  Path("out").mkdir()  # Empty: somebody made it for us.
  label(sets.bare, classifier, Path("out"), Rules())
  assert len(_index("out"))
  assert _beside() == ["out"]

  with (
    filelock.FileLock(".other.lock"),
    pytest.raises(UserError, match="Another process is writing"),
  ):
    label(sets.bare, classifier, Path("other"), Rules())


def test_what_another_process_finished_meanwhile_is_used(
  sets, classifier, monkeypatch
):
  alone = labeling._alone
  made = []

  def after_another(output):
    if not made:
      made.append(None)
      made.append(label(sets.bare, classifier, output, Rules()))
    return alone(output)

  monkeypatch.setattr(labeling, "_alone", after_another)
  report = label(sets.bare, classifier, Path("out"), Rules())
  assert made[1].new and not report.new
  assert report.classes == made[1].classes
  assert _beside() == ["out"]


def test_a_failure_leaves_nothing(sets, classifier, monkeypatch):
  def fail(*_):
    raise KeyboardInterrupt

  with monkeypatch.context() as patch:
    patch.setattr(labeling, "_examples", fail)
    with pytest.raises(KeyboardInterrupt):
      label(sets.bare, classifier, Path("out"), Rules())
  assert _beside() == []
  # Nor does it hold the lock.
  assert label(sets.bare, classifier, Path("out"), Rules()).new


def test_classes_of_other_names(sets, classifier, images):
  names = tuple(f"digit {c}" for c in range(10))
  named = dataclasses.replace(classifier, class_names=names)
  with pytest.raises(UserError, match="same names.*digit 0.*class_mapping"):
    label(sets.labelled, named, Path("out"), Rules())
  assert not Path("out").exists()
  by_index = Rules(threshold=0.0, match_classes="index")
  label(sets.labelled, named, Path("out"), by_index)
  np.testing.assert_array_equal(_index("out").labels, images[1])
  assert sources.open_set("prepared:out").class_names == names

  # Whose own labels do not count, need not match.
  rules = Rules(threshold=0.0, relabel=True)
  assert label(sets.labelled, named, Path("new"), rules).total("kept") == _NUM

  swapped = dataclasses.replace(classifier, class_names=("1", "0", *names[2:]))
  mapping = tuple(f"{c}=digit {c}" for c in range(2, 10))
  rules = Rules(threshold=0.0, class_mapping=mapping)
  label(sets.labelled, swapped, Path("mapped"), rules)
  order = np.array([1, 0, *range(2, 10)])
  np.testing.assert_array_equal(_index("mapped").labels, order[images[1]])


def test_what_cannot_be_labelled(sets, classifier, tmp_path):
  def refused(source, message, output="out", **rules):
    with pytest.raises(UserError, match=message):
      label(source, classifier, output, Rules(**rules))

  refused(
    sets.bare,
    "split='test': npz:.* has no such split, but 'train'",
    split="test",
  )
  refused(sets.bare, "threshold=1.5", threshold=1.5)
  refused(sets.bare, "agree=True.* 120 of 120 images", agree=True)
  refused(
    sets.bare,
    "No image .* is left; dropped: 120 by confidence, 0 by .*threshold",
    threshold=0.999999,
  )
  refused(sets.bare, "output='gs://b/out' must be a local", "gs://b/out")
  (tmp_path / "photos").mkdir()
  (tmp_path / "photos" / "1.png").write_text("")
  refused(sets.bare, "photos exists and is no labelled set", "photos")
  refused(sets.bare, "Cannot write output=.*1.png", "photos/1.png/out")
  assert _beside() == ["photos"]


def test_table():
  fates = {"confidence": 900, "disagreement": 3, "loss": 2, "balancing": 1}
  cat = {"class": "cat", "images": 1206, "kept": 300, **fates}
  dog = {"class": "dog", "images": 906, "kept": 0, **fates}
  classes = [cat | {"mean_confidence": 0.9}, dog | {"mean_confidence": None}]
  classes += [{**cat, "class": "owl", "kept": 100, "mean_confidence": 0.7}]
  classes = json.loads(json.dumps(classes))
  lines = labeling.table(Report(Path("out"), classes, new=True))
  assert lines[0].split()[:5] == [
    "class",
    "images",
    "kept",
    "dropped:",
    "confidence",
  ]
  cells = [line.split() for line in lines[1:]]
  assert cells[0] == ["cat", "1,206", "300", "900", "3", "2", "1", "0.900"]
  assert cells[1][-1] == "-"
  assert cells[3] == ["all", "3,318", "400", "2,700", "9", "6", "3", "0.850"]
  assert len({len(line) for line in lines}) == 1
