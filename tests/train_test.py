"""The trainer: resumed bit for bit, runs independent, every image counted."""

import copy
import dataclasses
import json
import os
import signal
import subprocess
import sys
import textwrap

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from synguide_jax import methods, train
from synguide_jax.data import digits
from synguide_jax.errors import DivergedError, Preempted, UserError
from synguide_jax.methods import supervised
from tests import compiling, pictures, tiny

ONE = jax.devices()[:1]


def run(config, workdir, **kwargs):
  kwargs.setdefault("devices", ONE)
  return train.train_and_evaluate(config, workdir, tiny.Recorder(), **kwargs)


def trained(config, workdir):
  _, state = train.load_trained(config, workdir, devices=ONE)
  return jax.device_get(state)


def without_times(results):
  results = copy.deepcopy(results)
  del results["seconds"]
  return results


def assert_equal(a, b):
  jax.tree.map(np.testing.assert_array_equal, a, b)


KILLED = """
  import os, pathlib, signal, sys, time
  import jax
  from synguide_jax import train
  from tests import tiny

  def kill(step):
    if step == int(sys.argv[2]):
      # Saving is asynchronous: wait for the checkpoint of the step before.
      newest = pathlib.Path(sys.argv[1], "checkpoints", str(step - 1))
      while step > 1 and not newest.exists():
        time.sleep(0.01)
      os.kill(os.getpid(), signal.SIGKILL)

  config = tiny.config(**{"data.feed": sys.argv[3], "data.num_workers": 1})
  train.train_and_evaluate(
    config, sys.argv[1], tiny.Recorder(), [kill], devices=jax.devices()[:1]
  )
"""


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
  workdir = tmp_path_factory.mktemp("uninterrupted")
  return run(tiny.config(), workdir), trained(tiny.config(), workdir)


@pytest.mark.parametrize(
  "step,feed",
  [(1, "resident"), pytest.param(5, "stream", marks=pytest.mark.slow)],
)
def test_killed_and_resumed_equals_uninterrupted(
  uninterrupted, tmp_path, pytestconfig, step, feed
):
  # At 1 there is no checkpoint yet; at 5 there is one in the middle.
  code = textwrap.dedent(KILLED)
  process = subprocess.run(
    [sys.executable, "-c", code, tmp_path / "w", str(step), feed],
    env={**os.environ, "PYTHONPATH": str(pytestconfig.rootpath)},
    capture_output=True,
    text=True,
  )
  assert process.returncode == -signal.SIGKILL, process.stderr
  assert not (tmp_path / "w" / "results.json").exists()
  steps = []
  config = tiny.config(**{"data.feed": feed, "data.num_workers": 1})
  results = run(config, tmp_path / "w", hooks=[steps.append])
  assert steps == list(range(1 if step == 1 else 5, 7))
  # Streamed images are those that were in memory.
  expected = without_times(uninterrupted[0])
  for found in (results, expected):
    assert found["data"].pop("feed") in (feed, "resident")
    assert found.pop("config")["method"] == "guided"
  assert without_times(results) == expected
  assert_equal(trained(config, tmp_path / "w"), uninterrupted[1])


def test_a_damaged_checkpoint_falls_back_to_the_one_before(
  uninterrupted, tmp_path, caplog
):
  class Stop(Exception):
    pass

  def stop(step):
    if step == 6:
      raise Stop

  with pytest.raises(Stop):
    run(tiny.config(), tmp_path, hooks=[stop])
  newest = tmp_path / "checkpoints" / "4"
  for file in newest.rglob("*"):
    if file.is_file():
      file.write_bytes(b"")
  steps = []
  results = run(tiny.config(), tmp_path, hooks=[steps.append])
  assert steps == [3, 4, 5, 6]
  assert "step 4 is damaged" in caplog.text
  assert without_times(results) == without_times(uninterrupted[0])


def test_only_damaged_checkpoints_are_an_error(tmp_path):
  class Stop(Exception):
    pass

  def stop(step):
    if step == 3:
      raise Stop

  with pytest.raises(Stop):
    run(tiny.config(), tmp_path, hooks=[stop])
  for file in (tmp_path / "checkpoints" / "2").rglob("*"):
    if file.is_file():
      file.write_bytes(b"")
  with pytest.raises(UserError, match="Delete the folder"):
    run(tiny.config(), tmp_path)


def test_a_finished_workdir_is_not_trained_again(uninterrupted, tmp_path):
  results = uninterrupted[0]
  (tmp_path / "results.json").write_text(json.dumps(results))
  steps = []
  again = run(tiny.config(), tmp_path, hooks=[steps.append])
  assert again == results
  assert not steps


def test_a_workdir_of_another_config_is_refused(tmp_path):
  (tmp_path / "config.json").write_text(
    json.dumps(tiny.config(batch_size=32).to_dict())
  )
  (tmp_path / "checkpoints").mkdir()
  with pytest.raises(UserError, match="batch_size: 32 there, 16 now"):
    run(tiny.config(), tmp_path)


@pytest.mark.parametrize(
  "mode", ["map", pytest.param("vmap", marks=pytest.mark.slow)]
)
def test_a_run_is_the_same_alone_and_in_company(tmp_path, mode):
  together = tiny.config(runs_mode=mode, select="last")
  alone = tiny.config(runs_mode=mode, select="last", num_runs=1, first_run=1)
  losses = [
    run(config, tmp_path / name)["history"][-1]["train"]["loss"][-1]
    for name, config in (("together", together), ("alone", alone))
  ]
  states = [
    jax.tree.map(lambda leaf: leaf[-1], trained(config, tmp_path / name))
    for name, config in (("together", together), ("alone", alone))
  ]
  if mode == "map":
    assert_equal(*states)
    assert losses[0] == losses[1]
  else:
    # Under vmap, products are batched and sums rounded differently.
    np.testing.assert_allclose(*losses, rtol=1e-4)
    jax.tree.map(
      lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4),
      *states,
    )


@pytest.mark.slow
def test_five_runs_fill_eight_devices(tmp_path):
  # Three of them with copies of the first run, which count for nothing.
  config = tiny.config(method="real", num_runs=5, num_steps=2)
  eight = run(config, tmp_path / "eight", devices=jax.devices())
  one = run(config, tmp_path / "one")
  assert eight["mesh"] == {"run": 8, "data": 1}
  assert eight["test"]["accuracy"]["n"] == 5
  for found, expected in zip(eight["history"], one["history"], strict=True):
    np.testing.assert_allclose(
      found["train"]["loss"], expected["train"]["loss"], rtol=1e-5
    )
  # What eight devices have written, two read, and the other way round.
  two = jax.devices()[:2]
  for name, devices in (("eight", two), ("one", jax.devices())):
    _, state = train.load_trained(config, tmp_path / name, devices=devices)
    assert_equal(state, trained(config, tmp_path / name))
    assert len(state.params["Conv_0"]["kernel"]) == 5


def test_how_runs_are_trained_is_settled_by_the_first_session(tmp_path):
  config = tiny.config(method="real", num_steps=1)
  assert config.runs_mode == "auto"
  run(config, tmp_path / "first")
  file = tmp_path / "first" / "config.json"
  assert json.loads(file.read_text())["runs_mode"] == "map"
  # As if begun on an accelerator.
  begun = {**json.loads(file.read_text()), "runs_mode": "vmap"}
  (tmp_path / "second").mkdir()
  (tmp_path / "second" / "config.json").write_text(json.dumps(begun))
  (tmp_path / "second" / "checkpoints").mkdir()
  results = run(config, tmp_path / "second")
  assert results["config"]["runs_mode"] == "vmap"
  config.runs_mode = "map"
  with pytest.raises(UserError, match="runs_mode: 'vmap' there, 'map' now"):
    run(config, tmp_path / "second")


def test_steps_that_are_dispatched_together(uninterrupted, tmp_path):
  # Evaluations and checkpoints every two steps cut what is dispatched short.
  together = tiny.config(steps_per_dispatch=4, checkpoint_every=3)
  steps = []
  results = run(together, tmp_path / "whole", hooks=[steps.append])
  assert steps == [1, 2, 3, 4, 6]
  expected = uninterrupted[0]
  assert results["history"] == expected["history"]
  assert results["test"] == expected["test"]
  assert_equal(trained(together, tmp_path / "whole"), uninterrupted[1])

  # SIGTERM waits for those that were dispatched, and their state is saved.
  together = tiny.config(steps_per_dispatch=4, eval_every=6, checkpoint_every=6)
  workdir, steps = tmp_path / "cut", []

  def terminate(step):
    steps.append(step)
    if step == 5:
      os.kill(os.getpid(), signal.SIGTERM)

  with pytest.raises(Preempted, match="after step 5 of 6"):
    run(together, workdir, hooks=[terminate])
  results = run(together, workdir, hooks=[steps.append])
  assert steps == [1, 5, 6]
  (last,) = results["history"]
  assert last["validation"] == expected["history"][-1]["validation"]


def test_how_steps_are_dispatched_is_settled_by_the_first_session(tmp_path):
  config = tiny.config(method="real", num_steps=1, steps_per_dispatch=0)
  results = run(config, tmp_path)
  assert results["config"]["steps_per_dispatch"] == 16
  written = json.loads((tmp_path / "config.json").read_text())
  assert written["steps_per_dispatch"] == 16
  config.data.feed = "stream"
  with pytest.raises(UserError, match="data.feed"):
    run(config, tmp_path)


def test_a_remote_workdir(uninterrupted, tmp_path):
  pictures.bucket(tmp_path / "bucket")

  class Stop(Exception):
    pass

  def stop(step):
    if step == 5:
      raise Stop

  with pytest.raises(Stop):
    run(tiny.config(), "bucket://runs/it", hooks=[stop])
  (tmp_path / "bucket/runs/it/.results.json.1.partial").touch()
  results = run(tiny.config(), "bucket://runs/it")
  assert not list((tmp_path / "bucket/runs/it").glob(".*"))
  assert without_times(results) == without_times(uninterrupted[0])
  assert_equal(trained(tiny.config(), "bucket://runs/it"), uninterrupted[1])
  assert run(tiny.config(), "bucket://runs/it") == results
  with pytest.raises(UserError, match="^bucket://runs/it belongs to another"):
    run(tiny.config(batch_size=32), "bucket://runs/it")


def test_every_run_has_its_own_shots_and_weights(uninterrupted):
  _, state = uninterrupted
  kernel = state.params["Conv_0"]["kernel"]
  assert not np.array_equal(kernel[0], kernel[1])


def test_test_images_are_evaluated_once_and_history_is_complete(uninterrupted):
  results, _ = uninterrupted
  assert [record["step"] for record in results["history"]] == [2, 4, 6]
  assert all("test" not in record for record in results["history"])
  assert results["data"]["images"] == {
    "pool": 1707,
    "test": 50,
    "validation": 40,
    "synthetic": 1797,
    "real_a_run": 30,
  }
  for name in ("validation", "test", "synthetic"):
    summary = results[name]["accuracy"]
    assert summary["n"] == 2
    np.testing.assert_allclose(summary["mean"], np.mean(summary["runs"]))
    np.testing.assert_allclose(
      summary["std"], np.std(summary["runs"], ddof=1), atol=1e-12
    )


def test_the_best_weights_on_validation_are_kept(tmp_path):
  # Far too large a rate: the first evaluation is better than later ones.
  config = tiny.config(
    method="real",
    num_steps=20,
    **{"optimizer.learning_rate": 0.05, "data.shots": 20},
  )
  results = run(config, tmp_path)
  accuracies = np.array(
    [r["validation"]["accuracy"] for r in results["history"]]
  )
  steps = [r["step"] for r in results["history"]]
  np.testing.assert_allclose(
    results["validation"]["accuracy"]["runs"], accuracies.max(0)
  )
  assert results["best_step"] == [
    steps[column.argmax()] for column in accuracies.T
  ]


def test_the_writer_gets_means_over_runs(tmp_path):
  writer = tiny.Recorder()
  results = train.train_and_evaluate(
    tiny.config(), tmp_path, writer, devices=ONE
  )
  for (step, scalars), record in zip(
    writer.scalars, results["history"], strict=True
  ):
    assert step == record["step"]
    np.testing.assert_allclose(scalars["progress"], step / 6)
    for group in ("train", "validation"):
      for name, values in record[group].items():
        np.testing.assert_allclose(
          scalars[f"{group}/{name}"], np.mean(values), rtol=1e-6
        )
  assert {
    "train/loss",
    "train/real_pg",
    "train/synthetic_pg",
    "train/gradient_cosine",
    "train/conflict_rate",
    "validation/accuracy",
  } <= scalars.keys()


class OneRunDiverges:
  """Method "real", but the loss of run 1 is NaN from its third step on."""

  @staticmethod
  def make(config, info):
    method = supervised.make(config, info)
    (stage,) = method.stages
    run_key = jax.random.fold_in(jax.random.key(config.seed), 1)
    poisoned = jax.random.split(run_key, 3)[0]

    def init(key, images):
      state, frozen = method.init(key, images)
      same = jax.random.key_data(key) == jax.random.key_data(poisoned)
      return state.replace(extra=same.all()), frozen

    def step(state, frozen, batches, key, progress):
      new, metrics = stage.step(state, frozen, batches, key, progress)
      bad = state.extra & (progress >= 2 / stage.num_steps)
      metrics["loss"] = jnp.where(bad, jnp.nan, metrics["loss"])
      return new, metrics

    stages = (dataclasses.replace(stage, step=step),)
    return dataclasses.replace(method, stages=stages, init=init)


class TwoStages:
  """Four steps on synthetic, then five on real images; entering counts."""

  @staticmethod
  def make(config, info):
    def part(name, **overrides):
      changed = config.copy_and_resolve_references()
      changed.update(method=name, **overrides)
      return supervised.make(changed, info)

    first, second = part("fake", num_steps=4), part("balanced", num_steps=5)

    def init(key, images):
      state, frozen = first.init(key, images)
      return state.replace(extra=jnp.zeros([], jnp.int32)), frozen

    def enter(state, key):
      # A stage may change the structure of the state, too.
      entered = second.init(key, jnp.zeros((1, *info.image_shape)))[0]
      return state.replace(
        opt_state=entered.opt_state,
        ema={"entered": state.extra + 1, "noise": jax.random.normal(key)},
      )

    stages = (
      dataclasses.replace(first.stages[0], name="pretrain"),
      dataclasses.replace(second.stages[0], name="adapt", enter=enter),
    )
    return dataclasses.replace(first, stages=stages, init=init)


# Every method is stopped inside both stages in methods/training_test.py.
@pytest.mark.slow
@pytest.mark.parametrize("stop_at", [4, 8])
def test_two_stages_resume_inside_and_between(stop_at, tmp_path, monkeypatch):
  monkeypatch.setitem(sys.modules, "two_stages", TwoStages)
  monkeypatch.setitem(methods.METHODS, "real", "two_stages")
  # Evaluations, checkpoints and stages have no common period.
  config = tiny.config(method="real", eval_every=2, checkpoint_every=3)
  whole = run(config, tmp_path / "whole")
  assert [(r["stage"], r["step"]) for r in whole["history"]] == [
    ("pretrain", 2),
    ("pretrain", 4),
    ("adapt", 6),
    ("adapt", 8),
    ("adapt", 9),
  ]

  class Stop(Exception):
    pass

  def stop(step):
    if step == stop_at:
      raise Stop

  with pytest.raises(Stop):
    run(config, tmp_path / "parts", hooks=[stop])
  resumed = run(config, tmp_path / "parts")
  assert without_times(resumed) == without_times(whole)
  state = trained(config, tmp_path / "parts")
  assert_equal(state, trained(config, tmp_path / "whole"))
  np.testing.assert_array_equal(state.ema["entered"], [1, 1])


@pytest.fixture
def one_run_diverges(monkeypatch):
  monkeypatch.setitem(sys.modules, "one_run_diverges", OneRunDiverges)
  monkeypatch.setitem(methods.METHODS, "real", "one_run_diverges")


def test_a_diverged_run_is_excluded_and_named(
  one_run_diverges, tmp_path, caplog
):
  results = run(tiny.config(method="real", num_runs=3), tmp_path)
  assert results["diverged"] == {"1": 3}
  accuracy = results["test"]["accuracy"]
  assert accuracy["n"] == 2
  assert accuracy["runs"][1] is None
  kept = [accuracy["runs"][0], accuracy["runs"][2]]
  np.testing.assert_allclose(accuracy["mean"], np.mean(kept))
  assert "run 1 at step 3" in caplog.text
  assert results["history"][-1]["train"]["loss"][1] is None


def test_the_last_step_counts_too(tmp_path):
  # Its loss is finite, the weights it leaves are not.
  config = tiny.config(
    method="real",
    num_steps=1,
    **{"optimizer.name": "sgd", "optimizer.learning_rate": 3e38},
  )
  with pytest.raises(DivergedError, match="run 0 at step 1, run 1 at step 1"):
    run(config, tmp_path)


def test_a_workdir_in_use_is_refused(tmp_path):
  def start_another(step):
    with pytest.raises(UserError, match="in use by another process"):
      run(tiny.config(num_steps=1), tmp_path)

  run(tiny.config(num_steps=1), tmp_path, hooks=[start_another])


def test_a_workdir_that_cannot_be_locked_is_refused(tmp_path):
  (tmp_path / ".lock").mkdir()
  with pytest.raises(UserError, match=f"Cannot write to .*{tmp_path.name}: Is"):
    run(tiny.config(num_steps=1), tmp_path)


def test_held_out_images_among_the_others_are_reported(tmp_path, caplog):
  # The synthetic images of these tests are all of the real ones.
  run(tiny.config(num_steps=1), tmp_path)
  assert "validation or test images are also among the synthetic" in caplog.text


def test_training_stops_when_no_run_is_left(one_run_diverges, tmp_path):
  config = tiny.config(method="real", num_runs=1, first_run=1)
  with pytest.raises(DivergedError, match="'real'.*run 1 at step 3"):
    run(config, tmp_path)
  assert not (tmp_path / "results.json").exists()


@pytest.mark.parametrize(
  "overrides,message",
  [
    ({"method": "gided"}, "'gided'.*guided"),
    ({"runs_mode": "pmap"}, "'pmap'.*auto, vmap, map"),
    ({"select": "worst"}, "'worst'.*best, last"),
    ({"num_runs": 0}, "num_runs=0"),
    ({"seed": -1}, "seed=-1"),
    ({"evaluate_on": ("tset",)}, "'tset'"),
    ({"eval_every": 0}, "eval_every=0"),
    ({"batch_size": 15}, "batch_size=15 times two_streams.real_share=0.5 must"),
    ({"num_steps": 0, "num_epochs": 0.0}, "num_epochs=0.0"),
    ({"data.real": "digitz"}, "digitz"),
    ({"data.shots": 500}, "data.shots=500"),
    ({"data.synthetic": ""}, "data.synthetic"),
    ({"data.synthetic": "letters"}, "same names"),
    ({"data.image_size": 0}, "image_size"),
    ({"data.store_size": 4}, "data.image_size"),
    ({"data.validation": 0}, "data.validation"),
    ({"model.name": "resnet"}, "'resnet'"),
    ({"model.mean": (0.1, 0.2)}, "model.mean="),
    ({"model.init": "nowhere"}, "nowhere"),
    ({"pretrained.weights": ""}, "pretrained.weights"),
    ({"pretrained.weights": "nowhere"}, "nowhere"),
    ({"pretrained.feature_layer": "stage9"}, "stage9"),
    ({"guidance.feature_layer": "stage9"}, "stage9"),
    ({"guidance.metric": "cosin"}, "cosin"),
    ({"guidance.similarity": "kld"}, "kld"),
    ({"guidance.reduction": "mean"}, "mean"),
    ({"guidance.temperature": 0.0}, "temperature"),
    ({"guidance.real_weight": -1.0}, "real_weight"),
    ({"guidance.pg_weight": -1.0}, "pg_weight"),
    ({"optimizer.name": "lamb"}, "'lamb'.*adam"),
    ({"optimizer.schedule": "linear"}, "'linear'.*cosine"),
    ({"optimizer.learning_rate": -1.0}, "learning_rate"),
    ({"method": "weighted", "weighted.real_weight": 2.0}, "real_weight=2.0"),
  ],
)
def test_a_wrong_config_is_named_before_any_training(
  tmp_path, overrides, message
):
  steps = []
  with pytest.raises(UserError, match=message):
    run(tiny.config(**overrides), tmp_path, hooks=[steps.append])
  assert not steps


def test_zero_shot_needs_no_real_training_images(tmp_path):
  config = tiny.config(
    method="guided",
    select="last",
    **{
      "data.shots": 0,
      "data.validation": 0,
      "guidance.rg": False,
      "guidance.pg_real": False,
    },
  )
  results = run(config, tmp_path)
  assert results["data"]["images"]["real_a_run"] == 0
  assert results["test"]["accuracy"]["n"] == 2
  assert "validation" not in results


def test_training_imports_no_tensorflow(tmp_path, pytestconfig):
  digits.prepare()
  code = """
    import sys
    from synguide_jax import train
    from tests import tiny
    streamed = {"data.feed": "stream", "data.num_workers": 1}
    train.train_and_evaluate(
      tiny.config(num_steps=1, **streamed), sys.argv[1], tiny.Recorder()
    )
    heavy = {"tensorflow", "clu", "matplotlib"} & set(sys.modules)
    assert not heavy, heavy
  """
  subprocess.run(
    [sys.executable, "-c", textwrap.dedent(code), tmp_path / "second"],
    env={
      **os.environ,
      "PYTHONPATH": str(pytestconfig.rootpath),
      "XLA_FLAGS": compiling.CHEAPLY,
    },
    check=True,
  )
