"""A generator's set is made once, and the same after any interruption."""

import json
import os
from pathlib import Path
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest
from sklearn.svm import SVC

from synguide_jax import cache, config, generators
from synguide_jax.data import experiment_data, prepared, records, sources
from synguide_jax.errors import UserError
from synguide_jax.models import pretrained
from synguide_jax.train import train_and_evaluate
from tests import tiny

FILE = "configs/generators/digits.py:smoke"


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
  monkeypatch.setenv("SYNGUIDE_CACHE", str(tmp_path / "cache"))


def _train(config, workdir, made):
  workdir.mkdir(parents=True, exist_ok=True)
  return train_and_evaluate(
    config, workdir, tiny.Recorder(), inputs=made, devices=jax.devices()[:1]
  )


def _make(**overrides):
  changed = config.override(config.load(FILE), overrides)
  return generators.make_set(FILE, changed, _train)


def _images(folder):
  """The images' hashes and labels, in order."""
  index = records.of_prepared(folder)["train"].index
  return index.hashes, index.labels


def test_a_set_says_where_it_comes_from_and_is_found_again(capsys):
  folder = _make()
  said = capsys.readouterr().out
  assert "2 steps of training and 40 images to make: about" in said
  assert "near copies" in said and f"{folder}/contact_sheet.png" in said
  provenance = prepared.read_provenance(folder)
  assert provenance["training_steps"] == 2
  assert provenance["seed"] == 0 and provenance["guidance"] == 3.0
  assert provenance["config"]["diffusion"]["rho"] == 7.0
  assert provenance["num_images"] == {"train": 40}
  assert len(provenance["weights_checksum"]) == 64
  # The groups are not needed any more.
  left = [path.name for path in (cache.cache_dir() / "work").iterdir()]
  assert not [name for name in left if name.startswith("generated")]
  assert _make() == folder
  assert capsys.readouterr().out == ""


def test_sampling_knobs_share_a_generator(capsys):
  folders = [
    _make(),
    _make(**{"sample.guidance": 0.0}),
    _make(**{"sample.truncation": 0.5}),
    _make(**{"sample.seed": 1}),
    _make(**{"sample.modes": 3, "sample.dropped_modes": 1}),
    _make(**{"data.shots": 20}),
  ]
  sums = [prepared.read_provenance(f)["weights_checksum"] for f in folders]
  assert len(set(sums[:5])) == 1 and sums[5] != sums[0]
  said = capsys.readouterr().out
  assert said.count("  0 steps of training and 40 images") == 4
  images = [_images(folder)[0].tobytes() for folder in folders]
  assert len(set(images)) == len(folders)


def _network():
  """Weights of a network that names its classes, without training."""
  from synguide_jax import models

  model = models.create("small_cnn", num_classes=2, channels=1)
  variables = model.init(jax.random.key(3), np.zeros((1, 8, 8, 1), np.float32))
  pretrained.save_pretrained(
    Path("network"), model, variables, (8, 8, 1), ("0", "1")
  )


def test_a_classifier_labels_and_filters(tmp_path, monkeypatch, capsys):
  monkeypatch.chdir(tmp_path)
  _network()
  raw = _make()
  capsys.readouterr()
  kept = _make(**{"filter.classifier": "network", "filter.agree": True})
  assert "dropped: confidence" in capsys.readouterr().out
  report = prepared.read_provenance(kept)
  before, after = _images(raw)[0], _images(kept)[0]
  assert 0 < len(after) < len(before) and set(after) < set(before)
  assert report["labeling"]["rules"]["agree"]
  assert report["source"]["training_steps"] == 2
  relabelled = _make(**{"filter.classifier": "network", "filter.relabel": True})
  hashes, labels = _images(relabelled)
  np.testing.assert_array_equal(hashes, before)
  # What agreed keeps its label, all else has the other one.
  agreed = np.isin(before, after)
  own = _images(raw)[1]
  np.testing.assert_array_equal(labels, np.where(agreed, own, 1 - own))


@pytest.mark.parametrize(
  ("overrides", "message"),
  [
    ({"sample.per_class": 0}, "per_class=0 must be at least 1"),
    ({"diffusion.label_dropout": 0.0}, "never trained"),
    (
      {"method": "aug"},
      "method='aug': a generator's .* diffusion or diffusers",
    ),
    (
      {"filter.classifier": "x", "filter.threshold": 1.5},
      "threshold=1.5 must be a probability",
    ),
    ({"sample.modes": 3}, "dropped_modes=0 must be at least 1"),
    ({"sample.modes": 300, "sample.dropped_modes": 1}, "take no more modes"),
    ({"filter.agree": True}, "filter.classifier is empty"),
    ({"filter.classifier": "nowhere"}, "nowhere is neither a folder nor"),
    ({"data.synthetic": "digits"}, "data.synthetic='digits'"),
    ({"sample.guidance": float("nan")}, "sample.guidance=nan must be finite"),
    ({"sample.seed": -1}, "sample.seed=-1 must be"),
  ],
)
def test_a_wrong_config_is_reported(overrides, message):
  with pytest.raises(UserError, match=message):
    _make(**overrides)


@pytest.mark.slow
@pytest.mark.usefixtures("optimized")
def test_the_digits_are_digits_and_no_copies():
  file = "configs/generators/digits.py"
  folder = generators.make_set(file, config.load(file), _train)
  data = config.load(file).data
  data.synthetic = f"prepared:{folder}"
  found = experiment_data.load(data, seed=0, runs=(0,))
  images = found.pixels.read().reshape(len(found.labels), -1)
  pool, synthetic = found.indices["pool"], found.indices["synthetic"]
  assert len(synthetic) == 2_000
  real = SVC().fit(images[pool], found.labels[pool])
  assert real.score(images[synthetic], found.labels[synthetic]) >= 0.95
  samples = json.loads((folder / "copies.json").read_text())["samples"]
  assert samples["near_copies"] == samples["exact_copies"] == 0
  # As far from the pool as its images are from each other, 0.136.
  assert samples["distance_percentiles"]["50"] > 0.12


def _start():
  """Starts the command; the set takes it seconds."""
  overrides = ("num_steps=40", "checkpoint_every=10", "sample.per_class=400")
  return subprocess.Popen(
    [
      *(sys.executable, "-m", "synguide_jax.synthesize", f"--config={FILE}"),
      *(f"--config.{field}" for field in overrides),
    ],
    env={**os.environ, "PYTHONPATH": str(Path(config.__file__).parents[1])},
  )


@pytest.mark.slow
def test_killed_at_any_moment_it_makes_the_same_set(tmp_path, monkeypatch):
  assert _start().wait() == 0
  (expected,) = (tmp_path / "cache").glob("tfds/generated_digits/*/2.0.0")
  provenance = json.loads((expected / "provenance.json").read_text())

  other = tmp_path / "other"
  monkeypatch.setenv("SYNGUIDE_CACHE", str(other))
  # In training, in sampling, and when the set is written or looked at.
  moments = (
    "work/digits-*/checkpoints/20",
    "work/generated_digits-*/000003.npy",
    "tfds/generated_digits/*/*incomplete*",
    "tfds/generated_digits/*/*/provenance.json",
  )
  killed = 0
  for moment in moments:
    process = _start()
    while process.poll() is None and not list(other.glob(moment)):
      time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.wait()
    killed += process.returncode == -signal.SIGKILL
  assert killed >= 3
  assert _start().wait() == 0
  (found,) = other.glob("tfds/generated_digits/*/2.0.0")
  again = json.loads((found / "provenance.json").read_text())
  assert again == provenance
  for a, b in zip(_images(found), _images(expected), strict=True):
    np.testing.assert_array_equal(a, b)
  sheets = ("contact_sheet.png", "contact_sheets/01_1.png", "copies.json")
  for name in sheets:
    assert (found / name).read_bytes() == (expected / name).read_bytes()
  # Nothing is left of the pieces.
  assert not list(other.glob("work/generated*"))
  assert not list(other.glob("**/*.partial"))
  assert sources.open_set(f"prepared:{found}").splits["train"]
