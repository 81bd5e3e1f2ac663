"""Steps lowered for accelerators that are not there, as jax.export does."""

import re

import jax
import pytest

from synguide_jax import models
from synguide_jax.data import experiment_data
from synguide_jax.program import Program
from tests import tiny

# Of tiny.RESNET: the stem, two in each block, and a shortcut.
CONVOLUTIONS = 6
# A batch and M_u: forward, gradients of kernels, and of what is not the image.
OF_TRAINED = 3 * CONVOLUTIONS - 1


def operations(text, *names):
  """How often each operation occurs."""
  return [len(re.findall(rf"stablehlo\.{name}\b", text)) for name in names]


@pytest.mark.parametrize("runs_mode", ["vmap", "map"])
def test_the_guided_step_lowers_for_accelerators(runs_mode, monkeypatch):
  monkeypatch.setitem(models.MODELS, "tiny", tiny.RESNET)
  config = tiny.config(
    **{
      # Two runs and a quarter of their batches on a device.
      "num_runs": 4,
      "mesh.runs": 2,
      "runs_mode": runs_mode,
      "model.name": "tiny",
      "guidance.feature_layer": "stage2",
      "pretrained.random_model": "tiny",
      "pretrained.feature_layer": "stage2",
    }
  )
  runs = tuple(range(config.num_runs))
  data = experiment_data.load(config.data, seed=0, runs=runs)
  traced = Program(config, data, runs, jax.devices()).traced_step()
  texts = {
    platform: traced.lower(lowering_platforms=(platform,)).as_text()
    for platform in ("cpu", "cuda", "tpu")
  }
  # Each batch through M_u, both at once through M_p; products on the CPU alone.
  convolutions = 2 * OF_TRAINED + CONVOLUTIONS
  found = {
    platform: operations(text, "convolution", "dot_general")
    for platform, text in texts.items()
  }
  other = found["tpu"][1]
  assert found == {
    "cpu": [0, other + convolutions],
    "cuda": [convolutions, other],
    "tpu": [convolutions, other],
  }
  loops = 0 if runs_mode == "vmap" else 1
  for platform in ("cuda", "tpu"):
    text = texts[platform]
    # All devices share the program; runs in turn are its only loop.
    assert "mhlo.num_partitions = 8" in text
    assert operations(text, "while") == [loops]
    # Nothing that the compiler does not know, or that waits for the host.
    assert operations(text, "custom_call", "send", "recv", "infeed") == [0] * 4
