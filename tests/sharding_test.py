"""Meshes, processes and their numbers: the same training on all of them."""

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

from synguide_jax import config as config_lib
from synguide_jax import workdir
from synguide_jax.train import load_trained, train_and_evaluate
from tests import compiling, tiny

ROOT = Path(__file__).resolve().parent.parent
STEPS = 20
RTOL = 1e-5

# Read by every process. With batch normalisation, so that statistics are of a
# whole batch; plain descent, since Adam's division would hide a gradient's
# scale; every step is evaluated and written down.
CONFIG = """
from synguide_jax import models
from synguide_jax.models.base import Architecture
from tests import tiny

models.MODELS["tiny"] = Architecture(tiny.Dense, {"normalised": True})

def get_config(arg=None):
  config = tiny.config(**{
    "method": arg or "guided",
    "num_runs": 8,
    "num_steps": 20,
    "eval_every": 1,
    "checkpoint_every": 5,
    "model.name": "tiny",
    "pretrained.random_model": "tiny",
    "guidance.feature_layer": "embedding",
    "pretrained.feature_layer": "embedding",
    "dann.hidden": (16,),
    "optimizer.name": "sgd",
    "optimizer.learning_rate": 0.02,
    "data.duplicates": "drop",
  })
  return config

def get_sweep(arg=None):
  # Batches and runs split between processes, in memory and streamed.
  return [
    {"method": "guided", "mesh.runs": 1, "data.feed": "stream"},
    {"method": "dann", "mesh.runs": 2},
    {"method": "ltda", "mesh.runs": 4},
    {"method": "real", "num_runs": 3},
  ]
"""
METHODS = ("guided", "dann", "ltda")


@pytest.fixture(scope="module")
def file(tmp_path_factory):
  path = tmp_path_factory.mktemp("config") / "tiny.py"
  path.write_text(CONFIG)
  return path


@pytest.fixture(scope="module")
def losses_of(file, tmp_path_factory):
  """Trains in this process; returns every step's losses, ``[STEPS, runs]``."""
  found = {}

  def train(method, num_devices, **overrides):
    key = method, num_devices, *overrides.items()
    if key not in found:
      config = config_lib.load(f"{file}:{method}")
      config = config_lib.override(config, overrides)
      results = train_and_evaluate(
        config,
        tmp_path_factory.mktemp("work"),
        tiny.Recorder(),
        devices=jax.devices()[:num_devices],
      )
      found[key] = results
    return losses(found[key]), found[key]["mesh"]

  return train


def losses(results):
  history = results["history"]
  assert [record["step"] for record in history] == list(range(1, STEPS + 1))
  return np.array([record["train"]["loss"] for record in history])


@pytest.mark.slow
@pytest.mark.parametrize("shape", [(8, 1), (4, 2), (1, 8)])
@pytest.mark.parametrize("method", METHODS)
def test_every_mesh_gives_the_losses_of_one_device(method, shape, losses_of):
  expected, _ = losses_of(method, 1)
  found, mesh = losses_of(method, 8, **{"mesh.runs": shape[0]})
  assert tuple(mesh.values()) == shape
  np.testing.assert_allclose(found, expected, rtol=RTOL)


@pytest.mark.slow
@pytest.mark.parametrize("split", ["optimizer", "frozen"])
def test_split_instead_of_copied_is_the_same(split, losses_of):
  expected, _ = losses_of("guided", 1)
  overrides = {"mesh.runs": 2, "mesh.split": (split,)}
  found, _ = losses_of("guided", 8, **overrides)
  np.testing.assert_allclose(found, expected, rtol=RTOL)


def launch(command, processes, devices, *flags):
  """Starts a command as several processes, in the current folder."""
  return subprocess.Popen(
    [ROOT / "launch" / "local_multiprocess.sh", command, *flags],
    env={
      **os.environ,
      "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
      "PYTHONPATH": str(ROOT),
      "XLA_FLAGS": compiling.CHEAPLY,
      "PROCESSES": str(processes),
      "DEVICES": str(devices),
    },
    stdout=subprocess.PIPE,
    stderr=subprocess.STDOUT,
    text=True,
  )


@pytest.mark.slow
@pytest.mark.parametrize("processes,devices", [(2, 2), (4, 1)])
def test_processes_give_the_losses_of_one(
  processes, devices, file, losses_of, tmp_path
):
  process = launch("sweep", processes, devices, f"--config={file}")
  output, _ = process.communicate()
  assert process.returncode == 0, output
  for method, run_axis in (("guided", 1), ("dann", 2), ("ltda", 4)):
    (folder,) = (tmp_path / "runs" / file.stem).glob(f"{method}*")
    results = json.loads((folder / "results.json").read_text())
    mesh = {"run": run_axis, "data": 4 // run_axis}
    assert results["mesh"] == mesh
    expected, _ = losses_of(method, 1)
    np.testing.assert_allclose(losses(results), expected, rtol=RTOL)
    # Written once.
    names = [path.name for path in folder.iterdir()]
    assert len([name for name in names if name.startswith("events")]) == 1
    assert not [name for name in names if name.endswith(".partial")]
    # And one process reads what several have written.
    config = workdir.config(folder)
    config.mesh.runs = 0
    _, state = load_trained(config, folder, devices=jax.devices()[:1])
    assert {len(leaf) for leaf in jax.tree.leaves(state.params)} == {8}
  # Three runs, and a copy of the first in the fourth place.
  (folder,) = (tmp_path / "runs" / file.stem).glob("real*")
  results = json.loads((folder / "results.json").read_text())
  assert results["mesh"] == {"run": 4, "data": 1}
  expected, _ = losses_of("real", 1, num_runs=3)
  np.testing.assert_allclose(losses(results), expected, rtol=RTOL)


@pytest.mark.slow
def test_one_process_is_asked_to_stop_and_all_do(file, losses_of, tmp_path):
  expected, _ = losses_of("guided", 1)
  command = ("main", 2, 2, f"--config={file}", f"--workdir={tmp_path}")
  process = launch(*command)
  while not list(tmp_path.glob("checkpoints/5/*")):
    assert process.poll() is None, process.stdout.read()
    time.sleep(0.05)
  children = subprocess.check_output(
    ["pgrep", "-P", str(process.pid), "-f", "synguide_jax.main"], text=True
  ).split()
  assert len(children) == 2
  os.kill(int(children[1]), signal.SIGTERM)
  output, _ = process.communicate()
  assert process.returncode == 75, output
  assert "The same command continues." in output
  process = launch(*command)
  output, _ = process.communicate()
  assert process.returncode == 0, output
  assert "step  5/20" not in output
  results = json.loads((tmp_path / "results.json").read_text())
  np.testing.assert_allclose(losses(results), expected, rtol=RTOL)
