"""What a training writes for TensorBoard."""

import dataclasses
import io
import sys
import types

import jax
import jax.numpy as jnp
import numpy as np
import optax
from PIL import Image
import pytest
from tensorboard.backend.event_processing.event_accumulator import (
  EventAccumulator,
)

from synguide_jax import experiment, logs, methods, models, train
from synguide_jax.data import experiment_data
from synguide_jax.data.feed import Feed
from synguide_jax.methods import supervised, two_stage
from synguide_jax.methods.base import Batch
from synguide_jax.models.base import Architecture
from synguide_jax.program import Program
from tests import tiny

ONE = jax.devices()[:1]


class Gallery(tiny.Recorder):
  """A metric writer that remembers images too."""

  def __init__(self):
    super().__init__()
    self.images = []

  def write_images(self, step, images):
    self.images.append((step, dict(images)))


@pytest.fixture
def dense(monkeypatch):
  """Makes configs of a network that compiles in no time."""
  monkeypatch.setitem(models.MODELS, "dense", Architecture(tiny.Dense))
  names = {"model.name": "dense", "pretrained.random_model": "dense"}
  # What PG compares by default, a Dense does not have.
  names["guidance.feature_layer"] = "embedding"
  names["pretrained.feature_layer"] = "embedding"
  return lambda **overrides: tiny.config(**names, **overrides)


def events(folder):
  """Returns scalars and decoded images, each ``{tag: [(step, value)]}``."""
  found = EventAccumulator(
    str(folder), size_guidance={"images": 0, "tensors": 0}
  ).Reload()
  scalars, pictures = {}, {}
  for tag in found.Tags()["tensors"]:
    for event in found.Tensors(tag):
      tensor = event.tensor_proto
      if tensor.string_val:
        # Width, height, and then the images.
        shown = [
          np.asarray(Image.open(io.BytesIO(x))) for x in tensor.string_val[2:]
        ]
        pictures.setdefault(tag, []).append((event.step, shown))
      else:
        (value,) = tensor.float_val or np.frombuffer(
          tensor.tensor_content, np.float32
        )
        scalars.setdefault(tag, []).append((event.step, value))
  return scalars, pictures


def test_tensorboard_gets_scalars_and_examples(tmp_path, dense):
  config = dense(**{"optimizer.schedule": "cosine"})
  results = experiment.train(config, tmp_path, {}, show_progress=False)
  scalars, pictures = events(tmp_path)
  assert [step for step, _ in scalars["progress"]] == [2, 4, 6]
  for name in (
    "loss",
    "real_loss",
    "synthetic_loss",
    "real_accuracy",
    "synthetic_accuracy",
    "real_pg",
    "synthetic_pg",
    "gradient_cosine",
    "conflict_rate",
  ):
    wanted = [
      (record["step"], pytest.approx(np.mean(record["train"][name])))
      for record in results["history"]
    ]
    assert scalars[f"train/{name}"] == wanted
  # Of steps 1, 3 and 5 out of 6, counted from 0.
  rates = [0.5e-3 * (1 + np.cos(np.pi * step / 6)) for step in (1, 3, 5)]
  np.testing.assert_allclose(
    [rate for _, rate in scalars["learning_rate"]], rates, rtol=1e-5
  )
  # Two runs of 16 images a step.
  for name in ("steps_per_sec", "images_per_sec", "seconds_left"):
    assert [step for step, _ in scalars[name]] == [2, 4, 6]
  speeds = np.array([scalars["images_per_sec"], scalars["steps_per_sec"]])
  np.testing.assert_allclose(speeds[0, :, 1], 32 * speeds[1, :, 1], rtol=1e-5)
  assert scalars["seconds_left"][-1] == (6, 0)
  assert scalars["seconds_left"][0][1] > 0
  assert pictures.keys() == {"examples/train/real", "examples/train/synthetic"}
  for ((step, (picture,)),) in pictures.values():
    assert step == 0
    assert picture.shape[2] == 3
    assert picture.shape[1] > 8 * 96


def test_examples_are_written_once(tmp_path, dense):
  config = dense(method="adp", checkpoint_every=1)
  before, after = Gallery(), Gallery()

  class Stop(Exception):
    pass

  def stop(step):
    if step == 6:
      raise Stop

  with pytest.raises(Stop):
    train.train_and_evaluate(config, tmp_path, before, [stop], devices=ONE)
  train.train_and_evaluate(config, tmp_path, after, devices=ONE)
  shown = [(step, set(images)) for step, images in before.images]
  second = round(0.75 * 6)
  assert shown == [
    (0, {"examples/pretrain/synthetic"}),
    (second, {"examples/adapt/real"}),
  ]
  assert not after.images


class Seen:
  """Method "balanced" whose metrics tell what images and labels it saw."""

  @staticmethod
  def make(config, info):
    method = supervised.make(config, info)
    (stage,) = method.stages

    def step(state, frozen, batches, key, progress):
      metrics, weights = {"loss": jnp.zeros(())}, jnp.arange(8.0)
      for name, batch in batches.items():
        means = batch.images.mean((1, 2, 3))
        metrics[f"{name}_images"] = means @ weights
        metrics[f"{name}_labels"] = batch.labels @ weights
      return state, metrics

    stages = (dataclasses.replace(stage, step=step),)
    return dataclasses.replace(method, stages=stages)


@pytest.mark.parametrize("devices,feed", [(1, "stream"), (2, "resident")])
def test_examples_are_what_the_first_step_sees(
  devices, feed, dense, monkeypatch
):
  monkeypatch.setitem(sys.modules, "seen", Seen)
  monkeypatch.setitem(methods.METHODS, "balanced", "seen")
  config = dense(
    **{
      "method": "balanced",
      "first_run": 1,
      "data.feed": feed,
      "data.num_workers": 0,
      "data.flip": True,
    }
  )
  runs = (1, 2)
  data = experiment_data.load(config.data, seed=0, runs=runs)
  program = Program(config, data, runs, jax.devices()[:devices])
  of_runs = Feed(data.members, data.labels, seed=0, runs=runs)
  examples = program.examples(of_runs, 0, 100)
  few = program.examples(of_runs, 0, 3)
  carry, frozen = program.init()
  carry, _ = program.enter(0, carry, frozen)
  step = program.step(0, frozen)
  carry = step(carry, next(program.batches(of_runs, 0, 0)), 0)
  metrics = jax.device_get(carry["metrics"])
  for name, batch in examples.items():
    assert batch.real.all() == (name == "real")
    np.testing.assert_allclose(
      batch.images.mean((1, 2, 3)) @ np.arange(8.0),
      metrics[f"{name}_images"][0],
      rtol=1e-5,
    )
    assert batch.labels @ np.arange(8) == metrics[f"{name}_labels"][0]
    np.testing.assert_array_equal(batch.images[:3], few[name].images)
    np.testing.assert_array_equal(batch.labels[:3], few[name].labels)


@pytest.mark.parametrize("reset", [True, False])
def test_rates_of_two_stages_are_those_of_their_optimizers(reset):
  config = tiny.config(
    **{
      "method": "adp",
      "optimizer.name": "sgd",
      "optimizer.momentum": 0.0,
      "optimizer.schedule": "cosine",
      "two_stage.reset_optimizer": reset,
      "two_stage.second_rate": 0.1 if reset else 1.0,
    }
  )
  steps = (3, 4)
  params, state = jnp.zeros(()), None
  txs = two_stage.optimizers_of(config, steps)
  rates = two_stage.rates_of(config, steps)
  for number, (tx, rate) in enumerate(zip(txs, rates, strict=True)):
    if reset or not number:
      state = tx.init(params)
    for step in range(steps[number]):
      update, state = tx.update(jnp.ones(()), state, params)
      np.testing.assert_allclose(-update, rate(step), rtol=1e-5)


def test_every_stage_tells_its_learning_rate():
  told = {}
  for method in set(methods.METHODS) - {"diffusion"}:
    config = tiny.config(**{"method": method, "optimizer.learning_rate": 0.25})
    data = experiment_data.load(config.data, seed=0, runs=(0,))
    info = methods.base.Info(data.class_names, (8, 8, 1), data.class_counts())
    for stage in methods.make(config, info).stages:
      told[method, stage.name] = float(stage.learning_rate(0))
  assert set(told.values()) == {0.25}
  assert ("ltda", "adapt") in told and ("csg", "train") in told


def test_speed_leaves_out_evaluations(monkeypatch):
  now = [0.0]
  monkeypatch.setattr(logs.time, "monotonic", lambda: now[0])
  stage = types.SimpleNamespace(
    num_steps=9, learning_rate=optax.constant_schedule(0.5)
  )
  program = types.SimpleNamespace(
    method=types.SimpleNamespace(stages=(stage, stage)),
    images_per_step=lambda number: (10, 30)[number],
  )
  writer = tiny.Recorder()
  log = logs.Log(writer, program)
  log.enter(1, 9)
  for done in range(1, 7):
    # The first is compiled for a minute; then two a second.
    now[0] += 60 if done == 1 else 0.5
    log.stepped(1)
    if done % 3 == 0:
      log.measure()
      now[0] += 4  # The evaluation.
      log.write({"step": 9 + done, "train": {"loss": np.array([1, np.nan])}})
  (first, scalars), (second, later) = writer.scalars
  assert (first, second) == (12, 15)
  assert scalars == {
    "progress": 12 / 18,
    "steps_per_sec": 2,
    "images_per_sec": 60,
    "learning_rate": 0.5,
    # Two steps and an evaluation took 5 s.
    "seconds_left": 6 * 2.5,
    "train/loss": 1,
  }
  assert later["steps_per_sec"] == 2
  np.testing.assert_allclose(later["seconds_left"], 3 * (2.5 + 8) / 5)


def test_a_single_step_has_no_speed():
  stage = types.SimpleNamespace(num_steps=1, learning_rate=None)
  method = types.SimpleNamespace(stages=(stage,))
  writer = tiny.Recorder()
  log = logs.Log(writer, types.SimpleNamespace(method=method))
  log.enter(0, 0)
  log.stepped(1)
  log.measure()
  log.write({"step": 1})
  assert writer.scalars == [(1, {"progress": 1})]


def test_a_grid_shows_every_image():
  images = np.random.default_rng(0).integers(0, 256, (10, 8, 8, 1), np.uint8)
  batch = Batch(images / np.float32(255), np.arange(10) % 2, np.ones(10, bool))
  (sheet,) = logs.grid(batch, ["cat", "dog"])
  assert sheet.dtype == np.uint8
  # Of 8 px, shown at 96; ten of them are two rows of eight.
  assert sheet.shape == (4 + 2 * (96 + 20), 4 + 8 * 100, 3)
  for number, image in enumerate(images):
    row, column = divmod(number, 8)
    top, left = 4 + 116 * row, 4 + 100 * column
    tile = sheet[top : top + 96 : 12, left : left + 96 : 12]
    np.testing.assert_array_equal(tile, np.repeat(image, 3, -1))
  captions = [sheet[100:120, 4 + 100 * n : 100 + 100 * n] for n in range(4)]
  np.testing.assert_array_equal(captions[0], captions[2])
  assert (captions[0] != captions[1]).any()


def test_views_are_pictures_of_their_own():
  images = np.random.default_rng(0).random((2, 3, 96, 96, 3), np.float32)
  batch = Batch(images, np.zeros(3, int), np.zeros(3, bool))
  sheets = logs.grid(batch, ["a name too long for the width of an image"])
  assert len(sheets) == 2
  for sheet, view in zip(sheets, images, strict=True):
    np.testing.assert_allclose(sheet[4:100, 4:100] / 255, view[0], atol=2e-3)
    # A caption ends where its image does.
    assert (sheet[:, 100:104] == 255).all()


def test_captions_tell_real_from_synthetic_where_they_are_mixed():
  images, labels = np.zeros((2, 8, 8, 1), np.float32), np.zeros(2, int)

  def captions(real):
    (sheet,) = logs.grid(Batch(images, labels, np.array(real)), ["cat"])
    return sheet[100:, 4:100], sheet[100:, 104:200]

  real, synthetic = captions([True, False])
  assert (real != synthetic).any()
  alone, same = captions([True, True])
  np.testing.assert_array_equal(alone, same)
  np.testing.assert_array_equal(alone, synthetic)


def test_figures_are_written(tmp_path):
  picture = np.random.default_rng(0).integers(0, 256, (20, 30, 3), np.uint8)
  seen = np.dstack([picture, np.full((20, 30), 255, np.uint8)])
  seen[:5, :, 3] = 0
  Image.fromarray(seen).save(tmp_path / "figure.png")
  logs.write_figures(
    tmp_path, {"losses": picture, "report/curves": tmp_path / "figure.png"}
  )
  _, pictures = events(tmp_path)
  ((step, (losses,)),) = pictures["losses"]
  assert step == 0
  np.testing.assert_array_equal(losses, picture)
  ((_, (curves,)),) = pictures["report/curves"]
  # What was transparent is white.
  assert (curves[:5] == 255).all()
  np.testing.assert_array_equal(curves[5:], picture[5:])
  # Another analysis may have others.
  logs.write_figures(tmp_path, {"report/coverage": picture})
  assert set(events(tmp_path)[1]) == {"report/coverage"}
