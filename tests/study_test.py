"""The analysis of a synthetic set, end to end in little."""

import json
from pathlib import Path
import subprocess
import sys
import types

import numpy as np
import pytest

from synguide_jax import config, study
from synguide_jax.errors import UserError
from synguide_jax.study import base
from tests import compiling

ROOT = Path(study.__file__).parents[2]


def test_names_of_sets_are_short_and_different():
  specs = [
    "generate:configs/generators/digits.py:narrow",
    "folder:some/where/cats.zip",
    "folder:else/where/cats.zip",
    "prepared:/a/b/2.0.0",
    "npz:samples/noisy.npz",
    "npz:real.npz",
    "generate:configs/generators/cifar10.py",
    "digits",
  ]
  names = base.names_of(specs)
  assert names[0] == "digits_narrow"
  assert names[1:3] == ["cats_2", "cats_3"]
  assert names[3].startswith("b_2")
  # Not that of the real images.
  assert names[4:] == ["noisy", "real_6", "cifar10", "digits"]


def test_a_study_needs_a_synthetic_set():
  found = config.load("configs/digits_lowshot.py:smoke")
  found.data.synthetic = ""
  with pytest.raises(UserError, match="data.synthetic is empty"):
    base.open_sources(found, {})


def test_images_of_an_earlier_study_are_removed(tmp_path):
  made = base.Study("", None, tmp_path, (), {})
  made.remove_images()
  part = types.SimpleNamespace(
    source="cats",
    index=np.arange(3),
    pixels=types.SimpleNamespace(
      read=lambda numbers: np.zeros((len(numbers), 8, 8, 1), np.uint8)
    ),
  )
  files = made.save(part, [0, 2])
  assert files == ["images/cats_000000.png", "images/cats_000002.png"]
  (tmp_path / "images" / "cats.png").touch()
  made.remove_images()
  assert [path.name for path in (tmp_path / "images").iterdir()] == ["cats.png"]


@pytest.mark.slow
def test_analyze_writes_a_page(tmp_path):
  # As large as the generator's, so that they share compiled programs.
  images = np.random.default_rng(0).integers(0, 256, (200, 8, 8), np.uint8)
  np.savez(tmp_path / "noise.npz", images=images, labels=np.arange(200) % 10)
  names = ["digits_smoke", "noise"]
  specs = ("generate:configs/generators/digits.py:smoke", "npz:noise.npz")
  command = [
    *(sys.executable, "-m", "synguide_jax.analyze", "--workdir=analysis"),
    "--config=configs/digits_lowshot.py:smoke",
    f"--config.data.synthetic={specs}",
    # All of it but the exchange rate, which is many such cells.
    "--parts=observations,fidelity,span",
  ]
  environment = {
    "PATH": "",
    "PYTHONPATH": str(ROOT),
    "SYNGUIDE_CACHE": str(tmp_path / "cache"),
    "XLA_FLAGS": compiling.CHEAPLY,
    "JAX_COMPILATION_CACHE_DIR": str(tmp_path / "jax_cache"),
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "0",
  }

  done = subprocess.run(
    command, env=environment, capture_output=True, text=True, cwd=tmp_path
  )
  assert done.returncode == 0, done.stderr
  folder = tmp_path / "analysis"
  found = json.loads((folder / "analysis.json").read_text())
  assert found["accuracy"]["trained_on"] == ["real", *names]
  sets = [(s["source"], s["part"]) for s in found["accuracy"]["sets"]]
  assert sets == [
    *(("real", "training"), ("real", "test")),
    *((name, part) for name in names for part in ("training", "held out")),
  ]
  # The classifiers of real images and of either set, and that of the first set
  # with PG; without PG it is trained once.
  assert len(list((folder / "cells").iterdir())) == 4
  assert "finished before" in done.stdout
  # 16 of 20 images a class.
  counts = [s["images"] for s in found["accuracy"]["sets"]]
  assert counts[2:] == [160, 40, 160, 40]
  assert set(found["fidelity"]) == {*names, "held-out real"}
  assert set(found["verdict"]) == set(names)
  pairs = 900 * 899 // 2
  assert sum(found["span"]["frozen"]) == pairs
  assert sum(found["span"]["networks"]["guided"]) == pairs
  assert list((folder / "figures").glob("events.out.tfevents.*"))
  page = (folder / "report.html").read_text()
  assert page.lower().startswith("<!doctype html>")
  for name in names:
    assert found["fidelity"][name]["images"] == 200
    assert found["copies"][name]["samples"]["count"] == 200
    assert name in page
    for sentence in found["verdict"][name]["sentences"]:
      assert sentence in done.stdout
