"""Every method through the trainer: stages, devices, interruptions, NaN."""

import jax
import numpy as np
import pytest

from synguide_jax import methods
from synguide_jax.data import experiment_data
from synguide_jax.data.feed import Feed
from synguide_jax.errors import DivergedError
from synguide_jax.program import Program
from synguide_jax.train import load_trained, train_and_evaluate
from tests import tiny

# Options of the methods under test, by a name of the case.
CASES = {
  **{
    name: {"method": name}
    for name in methods.METHODS
    if name not in ("diffusion", "weighted")
  },
  "weighted": {"method": "weighted"},
  "replacement": {
    "method": "weighted",
    "weighted.replacement_probability": 0.5,
  },
  "zero_shot": {
    "method": "guided",
    "guidance.rg": False,
    "guidance.pg_real": False,
    "data.shots": 0,
  },
  "pg_behind": {"method": "guided", "guidance.project_pg": False},
  "dann_source": {
    "method": "dann",
    "dann.labels": "source",
    "dann.batch_norm": "separate",
  },
  "adda_alternating": {
    "method": "adda",
    "adda.updates": "alternating",
    "adda.features": "embedding",
  },
}
TWO_STAGES = ("adp", "adda", "dada", "ltda", "adda_alternating")
STEPS = 8


def config_of(case, **overrides):
  """Six steps and two, of stages where there are two of them."""
  return tiny.config(
    **{
      "num_steps": STEPS,
      "dann.hidden": (16,),
      "adda.hidden": (16,),
      "asg.head_width": 16,
      "csg.head_width": 16,
      # Plain descent: Adam's division would hide a gradient's scale.
      "optimizer.name": "sgd",
      "optimizer.learning_rate": 0.02,
      **CASES[case],
      **overrides,
    }
  )


def walk(config, devices):
  """Trains without the trainer; returns metrics of every step and weights."""
  runs = tuple(range(config.num_runs))
  data = experiment_data.load(config.data, seed=0, runs=runs)
  program = Program(config, data, runs, devices)
  feed = Feed(
    data.members, data.labels, seed=0, runs=runs, weights=data.weights
  )
  carry, frozen = program.init()
  metrics = []
  for number, _ in enumerate(program.method.stages):
    carry, _ = program.enter(number, carry, frozen)
    step = program.step(number, frozen)
    for count, drawn in enumerate(program.batches(feed, number, 0)):
      carry = step(program.reset_metrics(carry), drawn, count)
      metrics.append(jax.device_get(carry["metrics"]))
    assert step.num_compilations() == 1
  return metrics, jax.device_get(carry["state"].params)


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_eight_devices_give_what_one_gives(case):
  config = config_of(case)
  metrics, params = walk(config, jax.devices())
  alone, params_alone = walk(config, jax.devices()[:1])
  assert len(metrics) == len(alone) == STEPS
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4),
    (metrics, params),
    (alone, params_alone),
  )


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_killed_in_either_stage_and_resumed(case, tmp_path):
  config = config_of(case, eval_every=3, checkpoint_every=2)
  whole = train_and_evaluate(config, tmp_path / "whole", tiny.Recorder())
  stages = [record["stage"] for record in whole["history"]]
  assert len(set(stages)) == (2 if case in TWO_STAGES else 1)

  class Stop(Exception):
    pass

  for stop_at in (3, 7):

    def stop(step, stop_at=stop_at):
      if step == stop_at:
        raise Stop

    with pytest.raises(Stop):
      train_and_evaluate(
        config, tmp_path / "parts", tiny.Recorder(), hooks=[stop]
      )
  resumed = train_and_evaluate(config, tmp_path / "parts", tiny.Recorder())
  assert resumed["test"] == whole["test"]
  for record, other in zip(resumed["history"], whole["history"], strict=True):
    assert record == other
  (program, state), (_, other) = (
    load_trained(config, tmp_path / folder) for folder in ("parts", "whole")
  )
  jax.tree.map(np.testing.assert_array_equal, state, other)
  # What is exported is what was tested.
  if model := program.method.model:
    first = jax.tree.map(lambda leaf: leaf[0], jax.device_get(state))
    images = np.random.default_rng(0).random((4, 8, 8, 1), np.float32)
    exported = {"params": first.params, "batch_stats": first.batch_stats}
    np.testing.assert_allclose(
      model.apply(exported, images, train=False).logits,
      program.method.predict(first, None, images),
      rtol=1e-5,
    )


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_a_nan_names_method_stage_run_and_step(case, tmp_path):
  config = config_of(case, num_runs=1)
  # A step of it, and activations are infinite in float32.
  config.optimizer.learning_rate = 3e38
  message = (
    f"method '{config.method}', stage '\\w+': the loss became NaN or infinite "
    "in run 0 at step [2-8];"
  )
  with pytest.raises(DivergedError, match=message):
    train_and_evaluate(config, tmp_path, tiny.Recorder())
