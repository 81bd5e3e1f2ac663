"""The command, as somebody types it, on what a small training left."""

import csv
import io
import json
import os
from pathlib import Path
import subprocess
import sys

import jax
import numpy as np
from PIL import Image
import pytest

from synguide_jax import experiment, train, workdir
from synguide_jax.data import digits
from synguide_jax.errors import UserError
from tests import compiling, pictures, tiny

ROOT = Path(__file__).resolve().parent.parent


def _predict(*flags):
  return subprocess.run(
    [sys.executable, "-m", "synguide_jax.predict", *flags],
    env={**os.environ, "XLA_FLAGS": compiling.CHEAPLY, "PYTHONPATH": str(ROOT)},
    capture_output=True,
    text=True,
  )


@pytest.fixture(scope="module")
def work(tmp_path_factory):
  folder = tmp_path_factory.mktemp("work")
  config = tiny.config(method="real", num_steps=2, **{"data.shots": 20})
  train.train_and_evaluate(
    config, folder, tiny.Recorder(), devices=jax.devices()[:1]
  )
  return folder


def test_its_test_images_are_as_right_as_it_was(work, tmp_path):
  with np.load(work / "splits.npz") as splits:
    rows, labels = splits["test"], splits["labels"]
  images = [image for image, _ in digits.examples()]
  contents = {
    f"{row}.png": pictures.encode(images[row][..., 0]) for row in rows
  }
  folder = pictures.write(tmp_path / "images", contents)
  flags = (f"--workdir={work}", f"--images={folder}")
  results = json.loads((work / "results.json").read_text())
  losses = results["calibration"]["test"]["after"]["nll"]["runs"]
  done = _predict(*flags, "--run=1", "--all", "--output=out/x.jsonl")
  assert (done.returncode, done.stdout) == (0, ""), done.stderr
  assert done.stderr == "50 of 50 files classified by run 1\n"
  records = map(json.loads, Path("out/x.jsonl").read_text().splitlines())
  names = results["data"]["class_names"]
  right, loss = [], []
  for record in records:
    label = names[labels[int(record["image"].removesuffix(".png"))]]
    right.append(record["class"] == label)
    loss.append(-np.log(record["probabilities"][label]))
    assert record["probability"] == max(record["probabilities"].values())
  assert np.mean(right) == pytest.approx(results["test"]["accuracy"]["runs"][1])
  assert np.mean(loss) == pytest.approx(losses[1], rel=1e-4)


def test_what_is_no_image_is_listed(work, tmp_path):
  grey = (pictures.pixels(8, 8, 1)[..., 0].astype(np.uint16) * 257) + 3
  frames = [Image.fromarray(pictures.pixels()) for _ in range(3)]
  cmyk = Image.fromarray(pictures.pixels(8, 8, 4), "CMYK")
  contents = {
    "16bit.png": pictures.encode(Image.fromarray(grey)),
    "a/cmyk.jpg": pictures.encode(cmyk, "jpg"),
    "a/moving.gif": pictures.encode(
      frames[0], "gif", save_all=True, append_images=frames[1:]
    ),
    "broken.png": pictures.encode(pictures.pixels(64, 64))[:3000],
    "read me.txt": b"These are digits.",
  }
  folder = pictures.write(tmp_path / "images", contents)
  # As an earlier version left it.
  old = pictures.write(
    tmp_path / "old",
    {n: (work / n).read_bytes() for n in ("config.json", "results.json")},
  )
  results = json.loads((old / "results.json").read_text())
  del results["calibration"]
  (old / "results.json").write_text(json.dumps(results))
  (old / "checkpoints").symlink_to(work / "checkpoints")
  done = _predict(f"--workdir={old}", f"--images={folder}")
  assert done.returncode == 0, done.stderr
  rows = list(csv.DictReader(io.StringIO(done.stdout)))
  assert [row["image"] for row in rows] == [
    *("16bit.png", "a/cmyk.jpg", "a/moving.gif")
  ]
  assert all(0.1 <= float(row["probability"]) <= 1 for row in rows)
  first, uncalibrated, listed, *files = done.stderr.splitlines()
  assert first == "3 of 5 files classified by run 0, 1"
  assert uncalibrated.startswith("probabilities are not calibrated: ")
  assert listed == "2 of 5 could not be used:"
  broken, text = files
  assert broken.startswith("  broken.png: ")
  assert text == "  read me.txt: not an image"


def test_all_runs_that_did_not_diverge_are_asked(work):
  ensemble = experiment.open_ensemble(work)
  results = workdir.results(work)
  fitted = results["calibration"]["temperature"]["runs"]
  assert ensemble.temperatures == tuple(fitted)
  (second,) = experiment.open_ensemble(work, 1).members
  assert second.checksum() == ensemble.members[1].checksum()
  assert second.checksum() != ensemble.members[0].checksum()
  with pytest.raises(UserError, match=r"has no run 7, only \[0, 1\]"):
    experiment.open_ensemble(work, 7)
  with pytest.raises(UserError, match="is not finished"):
    experiment.open_ensemble(work / "checkpoints")
