"""The benchmarks compute what they compare, and run without PyTorch."""

import dataclasses
import itertools
import json
import math
from pathlib import Path

from absl import flags
from absl.testing import flagsaver
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import (
  end_to_end,
  flops,
  run,
  step,
  tables,
  timed_main,
  training,
)
from synguide_jax import models, real_guidance
from synguide_jax.models.namings import namings, to_tensors
from tests import compiling, tiny

NAME = "tiny_resnet"
SHAPE = training.Shape(NAME, side=8, batch=16, num_classes=3, num_images=40)
STEPS = 2


def tensors(variables):
  """Weights of one run as torchvision names and lays them out."""
  import torch

  naming = namings(models.create(NAME, num_classes=3))["torchvision"]
  of_run = jax.tree.map(lambda x: np.asarray(x)[0], variables)
  found = to_tensors(of_run, naming)
  return {name: torch.tensor(np.asarray(x)) for name, x in found.items()}


def vector(state_dict):
  """All weights and statistics."""
  import torch

  return torch.cat(
    [
      x.flatten().clone()
      for name, x in sorted(state_dict.items())
      if "num_batches" not in name
    ]
  )


@pytest.mark.parity
# What PyTorch warns of is not ours.
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("variant", ["plain", "RG", "PG+RG"])
def test_the_peer_takes_the_same_steps(variant, monkeypatch):
  pytest.importorskip(
    "torch", reason="PyTorch is not installed; see the parity extra"
  )
  from benchmarks import torch_networks, torch_peer

  layer = 2
  # PyTorch's strided 1x1 convolutions of fewer channels write where they must
  # not, channels last on a CPU: oneDNN's issue 6035.
  options = tiny.RESNET.options | {"width": 16}
  architecture = dataclasses.replace(tiny.RESNET, options=options)
  monkeypatch.setitem(models.MODELS, NAME, architecture)
  data = training.random_data(SHAPE)
  config = training.make_config(
    SHAPE,
    variant,
    {
      **dict.fromkeys(
        ("pretrained.feature_layer", "guidance.feature_layer"), f"stage{layer}"
      ),
      "optimizer.learning_rate": 1e-3,
      # So that it would be missed.
      "guidance.pg_weight": 1000.0,
      "steps_per_dispatch": 1,
    },
  )
  ours = training.Training(config, data)
  networks = {}
  state = ours.carry["state"]
  variables = {"params": state.params, "batch_stats": state.batch_stats}
  for role, weights in (("M_u", variables), ("M_p", ours.frozen)):
    if weights is not None:
      network = torch_networks.create(NAME, SHAPE.num_classes)
      network.load_state_dict(tensors(weights))
      networks[role] = network
  peer = torch_peer.Peer(
    networks["M_u"],
    networks.get("M_p"),
    data.pixels.read(),
    data.labels.astype(np.int64),
    torch_peer.Options(
      pg="PG" in variant,
      rg="RG" in variant,
      layer=layer,
      pg_weight=1000.0,
      rate=1e-3,
      mode="",
    ),
    "cpu",
  )
  start = vector(networks["M_u"].state_dict())
  for steps in itertools.islice(ours.batches(), STEPS):
    drawn = steps.drawn
    index = [np.asarray(drawn[name].index[0]) for name in sorted(drawn)]
    peer.step(np.concatenate(index).astype(np.int64))
  peer.wait()
  ours.advance(STEPS)
  state = ours.carry["state"]
  trained = {"params": state.params, "batch_stats": state.batch_stats}
  theirs = vector(networks["M_u"].state_dict())
  # Of the way gone; where a gradient is zero up to rounding, a step of Adam is
  # not.
  error = (vector(tensors(trained)) - theirs).norm() / (theirs - start).norm()
  assert error < 1e-3


@pytest.mark.parity
@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_the_peer_projects_as_real_guidance(sign):
  torch = pytest.importorskip("torch", reason="PyTorch is not installed")
  from benchmarks import torch_peer

  rng = np.random.default_rng(0)
  real = [rng.normal(size=s).astype(np.float32) for s in ((3, 4), (5,))]
  synthetic = [sign * x + rng.normal(size=x.shape) for x in real]
  synthetic = [x.astype(np.float32) for x in synthetic]
  tx = real_guidance()
  expected, _ = tx.update(synthetic, tx.init(real), real_grads=real)
  found = torch_peer.combine(
    *([torch.tensor(x) for x in of] for of in (real, synthetic))
  )
  for a, b in zip(found, expected, strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


def test_flops_of_a_convolution_and_its_gradients():
  images, kernel = jnp.zeros((2, 8, 8, 3)), jnp.zeros((3, 3, 3, 5))

  def total(images, kernel):
    padding = ((1, 1), (1, 1))
    conv = flops.layers.conv2d(images, kernel, strides=(2, 2), padding=padding)
    return conv.sum()

  forward = 2 * (2 * 4 * 4 * 5) * (3 * 3 * 3)
  assert flops.count(total, images, kernel) == forward
  # Both gradients take as much; zeros beyond the edge count.
  both = flops.count(jax.grad(total, (0, 1)), images, kernel)
  assert both == pytest.approx(3 * forward, rel=0.2)


def test_flops_of_networks():
  # 555,422,720 multiplications a 32 px image, as published for ResNet-18; its
  # first layer needs no gradient of the image.
  trained, frozen = flops.of_step(training.Shape("cifar_resnet18", 32, 2))
  forward = 2 * 2 * 555_422_720
  assert trained == pytest.approx(3 * forward, rel=0.01)
  assert 0.6 * forward < frozen < forward


CONFIG = "plain_digits.py"
SUITES = {
  "step": [
    *("--cells=small_cnn:8:8", "--turn_seconds=0.01", "--augment"),
    "--variants=plain,PG+RG",
  ],
  "data": [
    *("--data_network=small_cnn", "--data_batch=8", "--resident=16"),
    *("--photos=64", "--stream_steps=2", "--workers=0,1", "--memory_steps=2,4"),
  ],
  "analysis": ["--files=8", "--read=8", "--batch_size=8"],
  "memory": [
    *("--pg_rows=8,16", "--pg_channels=4", "--growth_step=small_cnn:8:8"),
    *("--growth_images=20,40", "--growth_runs=1,2", "--growth_classes=2,3"),
  ],
  "runs": [
    *(f"--runs_config={CONFIG}", "--runs=1", "--modes=vmap"),
    *("--steps=1", "--rounds=1"),
  ],
  "end_to_end": [
    *(f"--digits_config={CONFIG}", "--trainings=digits", "--rounds=1"),
  ],
}
# What starts commands has them train something that needs nothing made.
CONFIG_FILE = """
from synguide_jax import config as config_lib

def get_config(arg=None):
  config = config_lib.load("configs/digits_lowshot.py:smoke")
  config.method, config.num_runs = "real", 1
  config.data.synthetic = config.pretrained.weights = ""
  config.evaluate_on = ("test",)
  return config
"""


@pytest.mark.parametrize(
  "suite",
  [
    # The others start several commands, or train four to six times.
    pytest.param(
      name,
      marks=[pytest.mark.slow] * (name not in ("step", "analysis")),
    )
    for name in SUITES
  ],
)
def test_suites_run_without_pytorch(suite, tmp_path, monkeypatch, capsys):
  monkeypatch.setattr(step, "has_torch", lambda: False)
  Path(CONFIG).write_text(CONFIG_FILE)
  # Commands get one device, for which they compile faster than for eight.
  monkeypatch.setenv("XLA_FLAGS", compiling.CHEAPLY)
  with flagsaver.flagsaver():
    output = f"--output={tmp_path}"
    flags.FLAGS(
      ["run", f"--suite={suite}", "--rounds=2", output] + SUITES[suite]
    )
    run.main()
  printed = capsys.readouterr().out
  found = json.loads((tmp_path / f"{suite}.json").read_text())
  assert found["environment"]["versions"]["jax"] == jax.__version__
  for table in found["suites"][suite]:
    assert table["title"] in printed and table["rows"]
    for row in table["rows"]:
      for cell in row.values():
        values = cell if isinstance(cell, list) else [cell]
        assert all(math.isfinite(x) for x in values if isinstance(x, float))
  if suite == "step":
    speed, overhead = found["suites"]["step"]
    ours, theirs = speed["rows"][:2]
    assert len(ours["images/s"]) == 2
    assert theirs["images/s"] == "not installed"
    assert [row["step"] for row in overhead["rows"]] == ["PG+RG"]


def test_a_clock_counts_what_lasts_within_as_its_own(monkeypatch):
  now = iter([0.0, 1.0, 4.0, 10.0, 20.0])
  monkeypatch.setattr(timed_main.time, "monotonic", lambda: next(now))
  clock = timed_main.Clock()
  with clock.spent_on("evaluate"), clock.spent_on("import"):
    pass
  clock.mark("last", step=7)
  expected = {"at": 20.0, "import": 3.0, "evaluate": 7.0, "step": 7}
  # Began at 0 and 1, ended at 4 and 10.
  assert clock.marks["last"] == expected


def test_parts_of_a_training_add_up():
  marks = {
    "begun": {"at": 101.0},
    "data": {"at": 110.0, "import": 4.0, "evaluate": 1.0},
    "first": {"at": 125.0, "import": 5.0, "evaluate": 1.0, "decode": 2.0}
    | {"input": 0.5, "step": 10},
    "last": {"at": 165.0, "import": 6.0, "evaluate": 8.0, "decode": 2.0}
    | {"input": 3.7, "save": 0.0, "step": 110},
    "evaluated": {"at": 170.0, "evaluate": 12.0, "peak_mib": 900.0},
  }
  found = end_to_end.measures(100.0, marks, 171.0)
  assert found == {
    "imports, s": 6.0,
    "inputs and data, s": 5.0,
    "images decoded, s": 2.0,
    "compilation and first step, s": 12.0,
    "so first step done after, s": 25.0,
    "other steps, s": 32.0,
    "validation and checkpoints, s": 8.0,
    "last validation and checkpoint, final evaluation, s": 5.0,
    "end of the process, s": 1.0,
    "total, s": 71.0,
    "steps": 110,
    "peak memory, MiB": 900.0,
    "a step, ms": 320.0,
    "waiting for input, %": pytest.approx(10.0),
  }


def test_numbers_are_shown_with_three_digits():
  assert tables.text([1234.5, 1000.0, 2000.0]) == "1,234 [1,000, 2,000]"
  assert tables.text([0.01234, 0.5]) == "0.256 [0.012, 0.500]"
  assert tables.text(7) == "7"
  assert tables.text(None) == ""
