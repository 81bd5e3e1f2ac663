"""Programs: one compilation, any mesh, every image evaluated once."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from synguide_jax import images, models
from synguide_jax import mesh as mesh_lib
from synguide_jax.data import experiment_data
from synguide_jax.data.feed import Feed
from synguide_jax.errors import UserError
from synguide_jax.evaluate import Evaluator
from synguide_jax.models.base import Architecture
from synguide_jax.program import Program
from tests import tiny


def together(config, devices, count, ends):
  """Returns sums of metrics and weights after steps dispatched together."""
  runs = tuple(range(config.num_runs))
  data = experiment_data.load(config.data, seed=0, runs=runs)
  program = Program(config, data, runs, devices)
  feed = Feed(data.members, data.labels, seed=0, runs=runs)
  carry, frozen = program.init()
  carry, _ = program.enter(0, carry, frozen)
  step, done = program.step(0, frozen), [0]
  for several in program.batches(feed, 0, 0, ends.__contains__):
    carry = step(carry, several, done[-1])
    done.append(done[-1] + several.count)
    if done[-1] == count:
      break
  assert step.num_compilations() == 1
  return done, jax.device_get(carry)


@pytest.mark.parametrize("count", [1, 8])
def test_steps_dispatched_together_are_the_same(count):
  overrides = {"num_steps": 10, "optimizer.name": "sgd"}
  found = []
  for several in (1, 4):
    config = tiny.config(**overrides, steps_per_dispatch=several)
    found.append(together(config, jax.devices()[:count], 10, {5}))
  assert found[0][0] == list(range(11))
  assert found[1][0] == [0, 1, 5, 9, 10]
  # Bit for bit on one device.
  tolerance = 0 if count == 1 else 1e-5
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(
      a, b, rtol=tolerance, atol=tolerance
    ),
    *(carry for _, carry in found),
  )


def test_networks_are_traced_once(monkeypatch):
  traced = []

  class Watched(tiny.Dense):
    def __call__(self, images, *, train, upto=None):
      traced.append(train)
      return super().__call__(images, train=train, upto=upto)

  monkeypatch.setitem(models.MODELS, "watched", Architecture(Watched))
  config = tiny.config(
    **{"model.name": "watched", "guidance.feature_layer": "embedding"}
  )
  runs = tuple(range(config.num_runs))
  data = experiment_data.load(config.data, seed=0, runs=runs)
  program = Program(config, data, runs, jax.devices()[:1])
  carry, frozen = program.init()
  assert len(traced) == 1
  carry, _ = program.enter(0, carry, frozen)
  # Of the real and of the synthetic batch.
  assert traced[1:] == [True, True]
  feed = Feed(data.members, data.labels, seed=0, runs=runs)
  drawn = next(program.batches(feed, 0, 0))
  program.step(0, frozen)(carry, drawn, 0)
  program.abstract(0)
  assert len(traced) == 3


def steps(config, devices, count):
  """Returns metrics and weights after every step, and compilations."""
  runs = tuple(range(config.num_runs))
  data = experiment_data.load(config.data, seed=0, runs=runs)
  program = Program(config, data, runs, devices)
  assert program.mesh.size == len(devices)
  feed = Feed(data.members, data.labels, seed=0, runs=runs)
  carry, frozen = program.init()
  carry, _ = program.enter(0, carry, frozen)
  step, metrics = program.step(0, frozen), []
  params = [jax.device_get(carry["state"].params)]
  batches = program.batches(feed, 0, 0)
  for number in range(count):
    carry = program.reset_metrics(carry)
    carry = step(carry, next(batches), number)
    metrics.append(jax.device_get(carry["metrics"]))
    params.append(jax.device_get(carry["state"].params))
  return metrics, params, step.num_compilations()


# Other meshes and methods in sharding_test.py.
@pytest.mark.parametrize("overrides", [{"num_runs": 1, "guidance.rg": False}])
def test_sharded_equals_one_device(overrides):
  # Plain descent: Adam's division would hide a gradient's scale.
  config = tiny.config(
    **{
      "num_steps": 10,
      "optimizer.name": "sgd",
      "optimizer.learning_rate": 0.05,
      **overrides,
    }
  )
  metrics, params, compilations = steps(config, jax.devices(), 10)
  assert compilations == 1
  # The other side has its images streamed.
  config.data.feed = "stream"
  config.data.num_workers = 0
  single_metrics, single_params, compilations = steps(
    config, jax.devices()[:1], 10
  )
  assert compilations == 1
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5),
    metrics,
    single_metrics,
  )
  # Of the way gone so far, per run. What is the same up to rounding stays so
  # until the input of a ReLU, which all pixels of a background share, is zero
  # within rounding and falls on different sides (seen: 1e-7, then 1e-3). A
  # wrong reduction would be of order 1, and from the first step on.
  for run in range(config.num_runs):
    start, *ways = (
      np.concatenate([leaf[run].ravel() for leaf in jax.tree.leaves(tree)])
      for tree in single_params
    )
    sharded = [
      np.concatenate([leaf[run].ravel() for leaf in jax.tree.leaves(tree)])
      for tree in params[1:]
    ]
    errors = [
      np.linalg.norm(ours - theirs) / np.linalg.norm(theirs - start)
      for ours, theirs in zip(sharded, ways, strict=True)
    ]
    assert np.median(errors) < 1e-5
    assert max(errors) < 1e-2


@pytest.mark.parametrize(
  "runs,devices,shape",
  [
    (1, 8, (1, 8)),
    (2, 8, (2, 4)),
    (3, 8, (4, 2)),
    (5, 8, (8, 1)),
    (5, 2, (2, 1)),
    (10, 8, (2, 4)),
    (8, 4, (4, 1)),
  ],
)
def test_runs_are_spread_first(runs, devices, shape):
  mesh = mesh_lib.create(runs, jax.devices()[:devices])
  assert tuple(mesh.shape.values()) == shape


def test_a_batch_that_cannot_be_split_is_named():
  with pytest.raises(UserError, match="10 images a step"):
    steps(tiny.config(num_runs=1, batch_size=20), jax.devices(), 1)


class _Numbers:
  """An "image" is its own number."""

  def __init__(self, count):
    self.shape, self.nbytes = (count, 1, 1, 1), count

  def read(self, indices=None, threads=None, empty=None):
    everything = np.arange(self.shape[0], dtype=np.uint8)
    chosen = everything if indices is None else everything[indices]
    return chosen[..., None, None, None]

  read_all = read


@pytest.mark.parametrize("where", [images.Resident, images.Streamed])
@pytest.mark.parametrize("devices", [1, 8])
@pytest.mark.parametrize("count", [1, 32, 75])
def test_evaluation_counts_every_image_once(devices, count, where):
  rng = np.random.default_rng(0)
  labels = rng.integers(0, 3, 100).astype(np.int32)
  table = rng.normal(size=(2, 100, 4)).astype(np.float32)
  mesh = mesh_lib.create(1, jax.devices()[:devices])
  everywhere = mesh_lib.replicated(mesh)
  workers = () if where is images.Resident else (0,)
  evaluator = Evaluator(
    # The logits are looked up.
    lambda state, frozen, images: state[:, images[:, 0, 0, 0]],
    where(_Numbers(100), mesh, *workers),
    labels,
    num_classes=4,
    batch_size=32,
    mesh=mesh,
  )
  index = rng.permutation(100)[:count]
  state = jax.device_put(jnp.asarray(table), everywhere)
  metrics = evaluator(state, None, index, with_logits=True)
  np.testing.assert_array_equal(metrics["logits"], table[:, index])
  # With parts of their own, runs are what each would be alone.
  of_run = rng.random((2, count)) < 0.5
  of_run[:, 0] = True
  parts = evaluator(state, None, index, of_run)
  for run in range(2):
    alone = evaluator(state, None, index[of_run[run]])
    for name, values in alone.items():
      np.testing.assert_allclose(parts[name][run], values[run], rtol=1e-6)

  logits, here = table[:, index].astype(np.float64), labels[index]
  log_p = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
  loss = -log_p[:, np.arange(count), here].mean(-1)
  right = logits.argmax(-1) == here
  of_class = [
    [r[here == c].mean() if (here == c).any() else np.nan for c in range(4)]
    for r in right
  ]
  np.testing.assert_allclose(metrics["loss"], loss, rtol=1e-6)
  np.testing.assert_allclose(metrics["accuracy"], right.mean(-1))
  np.testing.assert_allclose(metrics["class_accuracy"], of_class)
  np.testing.assert_allclose(
    metrics["balanced_accuracy"], np.nanmean(of_class, -1)
  )
