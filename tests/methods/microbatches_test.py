"""Microbatches: the gradient of the whole batch, both trees before RG."""

import jax
import numpy as np
import pytest

from synguide_jax import methods, models
from synguide_jax.errors import UserError
from synguide_jax.methods.base import Batch, Info
from tests import tiny

INFO = Info(
  ("a", "b", "c"), (8, 8, 1), {"real": (9,) * 3, "synthetic": (9,) * 3}
)


@pytest.fixture(autouse=True)
def dense(monkeypatch):
  """A network without batch normalisation."""
  architecture = models.base.Architecture(tiny.Dense, {})
  monkeypatch.setitem(models.MODELS, "dense", architecture)


def batch(seed, size, real):
  rng = np.random.default_rng(seed)
  return Batch(
    rng.random((size, 8, 8, 1), np.float32),
    rng.integers(0, 3, size).astype(np.int32),
    real if isinstance(real, np.ndarray) else np.full(size, real),
  )


def two_steps(parts, **overrides):
  config = tiny.config(
    microbatches=parts,
    batch_size=16,
    **{
      "model.name": "dense",
      "pretrained.random_model": "dense",
      "guidance.feature_layer": "embedding",
      "pretrained.feature_layer": "embedding",
      "optimizer.name": "sgd",
      "optimizer.learning_rate": 0.1,
      "asg.head_width": 8,
      "dann.hidden": (8,),
      **overrides,
    },
  )
  method = methods.make(config, INFO)
  images = np.zeros((1, 8, 8, 1), np.float32)
  state, frozen = jax.jit(method.init)(jax.random.key(0), images)
  (stage, *_), history = method.stages, []
  step = jax.jit(stage.step)
  for number in range(2):
    batches = {
      name: batch(
        10 * number + place,
        stream.batch_size,
        np.arange(16) % 3 == 0 if name == "mixed" else name == "real",
      )
      for place, (name, stream) in enumerate(stage.streams.items())
    }
    key = jax.random.key(number)
    state, metrics = step(state, frozen, batches, key, np.float32(0.5))
    history.append(metrics)
  return state, history


@pytest.mark.parametrize(
  "overrides",
  [
    {"method": "aug"},
    {"method": "balanced"},
    {"method": "finetune"},
    {"method": "adp"},
    {"method": "dann", "dann.dropout": 0.0},
    {"method": "dann", "dann.dropout": 0.0, "dann.reduction": "sum"},
    {"method": "asg"},
    {"method": "guided", "guidance.pg_weight": 0.0},
    {"method": "a_gem"},
  ],
  ids=lambda overrides: "-".join(map(str, overrides.values())),
)
def test_parts_give_what_the_whole_does(overrides):
  found = []
  for state, history in (two_steps(n, **overrides) for n in (1, 4)):
    for metrics in history:
      # Of the pairs of a part, and here without weight.
      metrics.pop("real_pg", None), metrics.pop("synthetic_pg", None)
    found.append((state.params, state.opt_state, history))
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5, atol=1e-6), *found
  )


def test_the_projection_is_of_the_means():
  # Otherwise some conflict would be resolved within a part, and the mean of
  # the parts' conflicts would be no 0 or 1.
  _, history = two_steps(4, method="a_gem", **{"optimizer.learning_rate": 2.0})
  for metrics in history:
    assert float(metrics["conflict_rate"]) in (0.0, 1.0)


def test_pretrained_guidance_is_of_a_part():
  whole, parts = (
    two_steps(n, method="guided", **{"guidance.pg_weight": 1.0})[1][0]
    for n in (1, 2)
  )
  assert not np.allclose(whole["real_pg"], parts["real_pg"], rtol=1e-3)
  assert parts["real_pg"] > 0


@pytest.mark.parametrize(
  "overrides,message",
  [
    ({"parts": 0}, "microbatches=0"),
    ({"parts": 2, "method": "csg"}, "microbatches=2: method 'csg' .* guided"),
    ({"parts": 2, "guidance.reduction": "sum"}, "guidance.reduction='sum'"),
    ({"parts": 8}, "batch_size=16 is too small for Pretrained Guidance"),
  ],
)
def test_what_cannot_be_done_in_parts_is_refused(overrides, message):
  with pytest.raises(UserError, match=message):
    two_steps(**overrides)
