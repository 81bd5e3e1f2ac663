"""The paper's low-shot experiment on a machine without network."""

import json
import os
from pathlib import Path
import re
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

import synguide_jax
from synguide_jax import models
from synguide_jax.models import namings
from tests import compiling, hub_layout, pictures

# Runs the command with every use of the network noted, and refused.
_COMMAND = """
import runpy, sys

def refuse(event, args):
  if not event.startswith("socket."):
    return
  if event == "socket.connect" and isinstance(args[1], (str, bytes)):
    return  # A socket of this machine.
  if event.split(".")[1] in (
    "connect", "getaddrinfo", "gethostbyname", "sendto", "sendmsg"
  ):
    with open("network.txt", "a") as file:
      print(event, *args[-5:], file=file)
    raise OSError("there is no network")

sys.addaudithook(refuse)
runpy.run_module("synguide_jax.main", run_name="__main__", alter_sys=True)
"""
_REPOSITORY = "timm/resnet50.tv_in1k"


@pytest.fixture
def environment(tmp_path):
  return {
    **os.environ,
    "PYTHONPATH": str(Path(synguide_jax.__file__).parents[1]),
    "TFDS_DATA_DIR": str(tmp_path / "tfds"),
    "HF_HOME": str(tmp_path / "hf"),
    "HF_HUB_OFFLINE": "0",
    "SYNGUIDE_CACHE": str(tmp_path / "cache"),
    "JAX_COMPILATION_CACHE_DIR": jax.config.jax_compilation_cache_dir,
    # One device is enough.
    "XLA_FLAGS": compiling.CHEAPLY,
  }


def _run(environment, *flags):
  finished = subprocess.run(
    [
      *(sys.executable, "-c", _COMMAND),
      "--config=configs/cifar_lowshot.py",
      *(f"--config.{flag}" for flag in flags),
    ],
    env=environment,
    capture_output=True,
    text=True,
  )
  used = Path("network.txt")
  return finished, used.read_text() if used.exists() else ""


def _store_images(data_dir):
  """CIFAR-10 in little, as tfds keeps it."""
  labels = [*range(10)] * 4
  splits = {
    split: ([pictures.pixels(32, 32) for _ in labels], labels)
    for split in ("train", "test")
  }
  pictures.store(data_dir, "cifar10", splits)


def _store_weights(cache):
  """A random ResNet-50, as timm publishes it."""
  model = models.create("resnet50", num_classes=1000)
  expected = jax.eval_shape(
    model.init, jax.random.key(0), jnp.zeros((1, 32, 32, 3))
  )
  shapes = namings.tensor_shapes(expected, namings.namings(model)["timm"])
  draw = np.random.default_rng(0)
  tensors = {
    name: np.ones(shape, np.float32)
    if name.endswith("running_var")
    else 0.05 * draw.standard_normal(shape, np.float32)
    for name, shape in shapes.items()
  }
  config = {
    "architecture": "resnet50",
    "num_classes": 1000,
    "pretrained_cfg": {
      "input_size": [3, 224, 224],
      "interpolation": "bilinear",
      "mean": [0.485, 0.456, 0.406],
      "std": [0.229, 0.224, 0.225],
    },
  }
  contents = {
    "config.json": json.dumps(config).encode(),
    "model.safetensors": safetensors.numpy.save(tensors),
  }
  hub_layout.store(cache, _REPOSITORY, contents)


@pytest.mark.slow
def test_with_both_folders_no_call_is_made(environment, tmp_path):
  _store_images(tmp_path / "tfds")
  _store_weights(tmp_path / "hf" / "hub")
  # The command's own generator, but for its size.
  synthetic = "generate:configs/generators/cifar10.py:smoke"
  finished, used = _run(
    environment,
    *(f"data.synthetic={synthetic}", "data.validation=10", "data.shots=2"),
    "data.synthetic_per_class=20",
    *("model.image_size=32", "pretrained.image_size=32", "num_runs=1"),
    *("batch_size=8", "num_steps=1", "eval_batch_size=20"),
  )
  assert not finished.returncode, finished.stderr
  assert not used
  assert "test accuracy" in finished.stdout


def test_without_them_both_are_named_at_once(environment, tmp_path):
  finished, used = _run(environment)
  assert finished.returncode == 2
  # Both were looked for.
  for host in ("www.cs.toronto.edu", "huggingface.co"):
    assert f"getaddrinfo {host}" in used
  data, weights = finished.stderr.removeprefix("error: ").splitlines()
  for text in (
    f"data.real: tfds:cifar10 is not .*{tmp_path}/tfds/cifar10/3.0.2, .*https://"
    "www.cs.toronto.edu/ cannot be reached",
    "run this command, or python -m synguide_jax.prepare --source=tfds:cifar10",
    "--config.data.real=folder:<path>",
  ):
    assert re.search(text, data)
  for text in (
    f"model.init and pretrained.weights: hf:{_REPOSITORY} is not in the cache "
    f".*{tmp_path}/hf/hub, .*https://huggingface.co cannot be reached",
    f"run this command, or hf download {_REPOSITORY}, and copy models--timm--",
    "--config.model.init=<path> --config.pretrained.weights=<path>",
  ):
    assert re.search(text, weights)
  assert not list(tmp_path.rglob("checkpoints"))
