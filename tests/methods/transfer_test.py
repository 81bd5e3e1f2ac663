"""Training the pretrained network itself."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from synguide_jax import methods, models
from synguide_jax.errors import UserError
from synguide_jax.methods.base import Batch, Info, Stream
from synguide_jax.models import export, pool, pretrained
from synguide_jax.models.base import Architecture
from synguide_jax.models.layers import classify
from tests import tiny

KEY = jax.random.key(0)
INFO = Info(
  ("a", "b", "c", "d"),
  (8, 8, 3),
  {"real": (3,) * 4, "synthetic": (6,) * 4},
)
RATE = 0.1
IMAGES = np.random.default_rng(0).random((8, 8, 8, 3), np.float32)
BATCH = Batch(IMAGES, np.arange(8) % 4, np.ones(8, bool))


def make(method, **overrides):
  config = tiny.config(
    **{
      "method": method,
      "optimizer.name": "sgd",
      "optimizer.learning_rate": RATE,
      "optimizer.weight_decay": 0.01,
      **overrides,
    }
  )
  return methods.make(config, INFO)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  """A ResNet for three classes of 16 px, in the hub's layout."""
  model = models.create(
    "resnet18",
    num_classes=3,
    width=8,
    blocks=(1, 1, 1, 1),
    preprocessing=models.Preprocessing(size=16),
  )
  shapes = jax.eval_shape(model.init, KEY, jnp.zeros((1, 16, 16, 3)))
  rng = np.random.default_rng(0)
  variables = jax.tree.map(lambda x: rng.random(x.shape, x.dtype), shapes)
  network = pretrained.Pretrained(model, variables, (16, 16, 3))
  folder = tmp_path_factory.mktemp("hub") / "net"
  export.to_transformers(network, folder, ("x", "y", "z"))
  return str(folder)


def test_training_begins_at_m_p_with_a_new_head(folder):
  finetune = make("finetune", **{"pretrained.weights": folder})
  state, frozen = jax.jit(finetune.init)(jax.random.key(1), IMAGES[:1])
  assert frozen is None
  # The network's name and input are the checkpoint's, not config.model's.
  assert finetune.model.name == "resnet18"
  assert finetune.model.preprocessing.size == 16
  checkpoint = pretrained.load_pretrained(folder).variables
  expected = {**checkpoint["params"]}
  old_head, new_head = expected.pop("head"), state.params["head"]
  backbone = {k: v for k, v in state.params.items() if k != "head"}
  jax.tree.map(np.testing.assert_array_equal, backbone, expected)
  jax.tree.map(
    np.testing.assert_array_equal, state.batch_stats, checkpoint["batch_stats"]
  )
  assert old_head["kernel"].shape == (64, 3)
  assert new_head["kernel"].shape == (64, 4)
  assert jnp.std(new_head["kernel"]) > 0


class _Normed(nn.Module):
  """Normalised, pooled pixels under a head with dropout."""

  num_classes: int
  dtype: Any
  stages = ()

  @nn.compact
  def __call__(self, images, *, train, upto=None):
    x = nn.BatchNorm(use_running_average=not train, name="norm")(images)
    return classify(
      {},
      pool(x),
      num_classes=self.num_classes,
      upto=upto,
      dropout=0.5,
      train=train,
    )


def _step(monkeypatch, method, **overrides):
  """Returns a method, and its states before and after a step."""
  monkeypatch.setitem(models.MODELS, "normed", Architecture(_Normed))
  made = make(method, **{"pretrained.random_model": "normed", **overrides})
  (stage,) = made.stages
  state, _ = jax.jit(made.init)(KEY, IMAGES[:1])
  # So that statistics and scales are none of them 0 or 1.
  rng = np.random.default_rng(0)
  params, batch_stats = jax.tree.map(
    lambda x: x + rng.random(x.shape, np.float32),
    (state.params, state.batch_stats),
  )
  before = state.replace(params=params, batch_stats=batch_stats)
  after, _ = jax.jit(stage.step)(before, None, {"mixed": BATCH}, KEY, 0.0)
  return made, before, after


def _changed(before, after):
  """Names of the tensors that a step changed."""
  old, new = (
    {"params": state.params, "batch_stats": state.batch_stats}
    for state in (before, after)
  )
  changed = jax.tree.map(lambda a, b: not np.array_equal(a, b), old, new)
  return {
    jax.tree_util.keystr(path, simple=True, separator="/")
    for path, value in jax.tree_util.tree_leaves_with_path(changed)
    if value
  }


HEAD = {"params/head/kernel", "params/head/bias"}
NORM = {"params/norm/scale", "params/norm/bias"}
STATISTICS = {"batch_stats/norm/mean", "batch_stats/norm/var"}


def test_linear_probe_trains_the_head_on_features_as_they_are(monkeypatch):
  method, before, after = _step(monkeypatch, "linear_probe")
  assert _changed(before, after) == HEAD
  # Logits are of the evaluation mode: running statistics, no dropout.
  logits = jax.jit(method.predict)(before.for_prediction(), None, IMAGES)
  error = jax.nn.softmax(logits) - jax.nn.one_hot(BATCH.labels, 4)
  bias = before.params["head"]["bias"]
  np.testing.assert_allclose(
    after.params["head"]["bias"],
    bias - RATE * (error.mean(0) + 0.01 * bias),
    rtol=1e-5,
  )


@pytest.mark.parametrize(
  "rate, changed", [(1.0, HEAD | NORM | STATISTICS), (0.0, HEAD | STATISTICS)]
)
def test_finetune_trains_all_of_it(monkeypatch, rate, changed):
  overrides = {"transfer.backbone_rate": rate}
  _, before, after = _step(monkeypatch, "finetune", **overrides)
  assert _changed(before, after) == changed


@pytest.mark.parametrize(
  "train_on, steps", [("real", 2), ("synthetic", 3), ("mixed", 5)]
)
def test_epochs_are_of_what_is_trained_on(train_on, steps):
  overrides = {
    "transfer.train_on": train_on,
    "num_steps": 0,
    "num_epochs": 2.0,
  }
  (stage,) = make("linear_probe", **overrides).stages
  # Two passes over 12, 24 or 36 images, 16 a step.
  assert stage.num_steps == steps
  assert stage.streams == {train_on: Stream(train_on, 16)}


@pytest.mark.parametrize("method", ["linear_probe", "finetune"])
@pytest.mark.parametrize(
  "fields, message",
  [
    (
      {"pretrained.weights": ""},
      "trains a pretrained network, but pretrained.weights is empty",
    ),
    (
      {"transfer.train_on": "both"},
      "train_on='both' is unknown; known: real, synthetic, mixed",
    ),
    (
      {"transfer.backbone_rate": -1.0},
      "transfer.backbone_rate=-1.0 must not be negative",
    ),
  ],
)
def test_bad_values_are_named(method, fields, message):
  with pytest.raises(UserError, match=message):
    make(method, **fields)
