"""Every method through the trainer: stages, devices, interruptions, NaN."""

import jax
import numpy as np
import pytest

from synguide_jax import methods, models
from synguide_jax.checkpoint import Checkpointer
from synguide_jax.data import experiment_data
from synguide_jax.data.feed import Feed
from synguide_jax.errors import DivergedError, UserError
from synguide_jax.models.pretrained import save_pretrained
from synguide_jax.program import Program
from synguide_jax.train import load_trained, train_and_evaluate
from tests import tiny

# Statistics frozen and M_p's own head, as published.
CHECKPOINT = "of a saved network"
# Options of the methods under test, by a name of the case.
CASES = {
  **{name: {"method": name} for name in methods.METHODS},
  "replacement": {
    "method": "weighted",
    "weighted.replacement_probability": 0.5,
  },
  "csg_checkpoint": {"method": "csg", "model.init": CHECKPOINT},
}
TWO_STAGES = ("adp", "adda", "dada", "ltda")
STEPS = 8


@pytest.fixture(autouse=True)
def small_network(monkeypatch):
  """One with batch normalisation."""
  monkeypatch.setitem(models.MODELS, "tiny", tiny.RESNET)


@pytest.fixture
def config_of(tmp_path):
  """Makes configs of six steps and two, where there are two stages."""

  def make(case, **overrides):
    config = tiny.config(
      **{
        "num_steps": STEPS,
        "model.name": "tiny",
        "pretrained.random_model": "tiny",
        "guidance.feature_layer": "stage2",
        "pretrained.feature_layer": "stage2",
        "dann.hidden": (16,),
        "adda.hidden": (16,),
        "asg.head_width": 16,
        "csg.head_width": 16,
        # After two steps it begins anew.
        "csg.queue_size": 24,
        # Plain descent: Adam's division would hide a gradient's scale.
        "optimizer.name": "sgd",
        "optimizer.learning_rate": 0.02,
        **CASES[case],
        **overrides,
      }
    )
    if config.model.init == CHECKPOINT:
      config.model.init = config.pretrained.weights = saved(tmp_path)
    return config

  return make


def saved(folder):
  """Saves a network for other classes."""
  image = np.zeros((1, 8, 8, 1), np.float32)
  model = models.create("tiny", num_classes=4, channels=1)
  variables = jax.jit(model.init)(jax.random.key(0), image)
  save_pretrained(folder / "net", model, variables, image.shape[1:], "abcd")
  return str(folder / "net")


def walk(config, devices):
  """Trains without the trainer; returns metrics of every step and the state."""
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
  return metrics, jax.device_get(carry["state"])


@pytest.mark.slow
@pytest.mark.parametrize(
  "case",
  # Of methods and switches that share a step, one; tests/sharding_test.py has
  # others, on several meshes.
  [
    "aug",
    "linear_probe",
    "adp",
    "adda",
    "dada",
    "csg_checkpoint",
    "replacement",
  ],
)
def test_eight_devices_give_what_one_gives(case, config_of):
  config = config_of(case)
  assert len(jax.devices()) == 8
  several = walk(config, jax.devices())
  alone = walk(config, jax.devices()[:1])
  assert len(several[0]) == len(alone[0]) == STEPS
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5),
    several,
    alone,
  )


def newest(config, folder):
  """Restores the newest checkpoint: all arrays, and the position."""
  runs = tuple(range(config.num_runs))
  data = experiment_data.load(config.data, seed=0, runs=runs)
  program = Program(config, data, runs)
  with Checkpointer(folder / "checkpoints", 1) as checkpoints:
    arrays, record = checkpoints.restore(
      lambda record: program.abstract(record["stage"])
    )
  return jax.device_get(arrays), (record["stage"], record["step"])


# "aug" stands for those that carry what it does.
@pytest.mark.slow
@pytest.mark.parametrize(
  "case",
  ["linear_probe", "adp", "adda", "ltda", "csg"],
)
def test_killed_in_either_stage_and_resumed(case, config_of, tmp_path):
  config = config_of(case, eval_every=3, checkpoint_every=1)
  whole, parts = tmp_path / "whole", tmp_path / "parts"
  expected = train_and_evaluate(config, whole, tiny.Recorder())
  stages = [record["stage"] for record in expected["history"]]
  two = case in TWO_STAGES
  assert len(set(stages)) == (2 if two else 1)

  class Stop(Exception):
    pass

  for stop_at in (3, 8):

    def stop(step, stop_at=stop_at):
      if step == stop_at:
        raise Stop

    with pytest.raises(Stop):
      train_and_evaluate(config, parts, tiny.Recorder(), hooks=[stop])
    done = stop_at - 1
    assert newest(config, parts)[1] == (
      (1, done - 6) if two and done > 6 else (0, done)
    )
  resumed = train_and_evaluate(config, parts, tiny.Recorder())
  assert resumed["test"] == expected["test"]
  assert resumed["history"] == expected["history"]
  jax.tree.map(
    np.testing.assert_array_equal,
    *(newest(config, folder)[0] for folder in (whole, parts)),
  )
  # What is exported is what was tested.
  program, state = load_trained(config, parts)
  if model := program.method.model:
    first = jax.tree.map(lambda leaf: leaf[0], jax.device_get(state))
    images = np.random.default_rng(0).random((4, 8, 8, 1), np.float32)
    exported = {"params": first.params, "batch_stats": first.batch_stats}
    np.testing.assert_allclose(
      model.apply(exported, images, train=False).logits,
      program.method.predict(first, None, images),
      rtol=1e-5,
    )
  else:
    with pytest.raises(UserError, match=f"set {config.method}.head='linear'"):
      methods.check_is_network(config)


@pytest.mark.slow
@pytest.mark.parametrize("case", ["real", "adp", "ltda", "guided"])
def test_a_nan_names_method_stage_run_and_step(case, config_of, tmp_path):
  config = config_of(case)
  # A step of it, and activations are infinite in float32.
  much, stage, step = 3e38, "train", "[23]"
  if case in TWO_STAGES:
    config.two_stage.second_rate = much / config.optimizer.learning_rate
    stage, step = "adapt", "[78]"
  else:
    config.optimizer.learning_rate = much
  message = (
    f"method '{config.method}', stage '{stage}': the loss became NaN or "
    f"infinite in run 0 at step {step}, run 1 at step {step};"
  )
  with pytest.raises(DivergedError, match=message):
    train_and_evaluate(config, tmp_path / "work", tiny.Recorder())
