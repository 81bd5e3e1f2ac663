"""ADDA's losses, and what its second stage must and must not depend on."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from synguide_jax import methods, models
from synguide_jax.errors import UserError
from synguide_jax.methods import adda
from synguide_jax.methods.base import Batch, Info
from synguide_jax.models.base import Architecture
from synguide_jax.models.small_cnn import SmallCNN
from tests import tiny

KEY = jax.random.key(0)
RATE, DECAY = 0.1, 0.3
INFO = Info(
  class_names=("a", "b", "c"),
  image_shape=(8, 8, 1),
  class_counts={"real": (4, 4, 4), "synthetic": (8, 8, 8)},
)


@pytest.fixture(autouse=True, scope="module")
def network():
  """One layer, which compiles fast."""
  with pytest.MonkeyPatch.context() as patch:
    architecture = Architecture(SmallCNN, {"widths": (8,)})
    patch.setitem(models.MODELS, "one_layer", architecture)
    yield


def _batch(seed):
  image_key, label_key = jax.random.split(jax.random.key(seed))
  return Batch(
    images=jax.random.uniform(image_key, (8, 8, 8, 1)),
    labels=jax.random.randint(label_key, (8,), 0, 3),
    real=jnp.full(8, seed == 1),
  )


BATCHES = {"real": _batch(1), "synthetic": _batch(2)}


def _make(**overrides):
  config = tiny.config(
    **{
      "method": "adda",
      "model.name": "one_layer",
      "optimizer.name": "sgd",
      "optimizer.momentum": 0.0,
      "optimizer.learning_rate": RATE,
      "adda.hidden": (8,),
      "adda.discriminator_decay": 0.0,
      **overrides,
    }
  )
  return methods.make(config, INFO)


@functools.cache
def _entered():
  """The state in which the second stage begins."""
  method = _make()
  state, _ = jax.jit(method.init)(KEY, BATCHES["real"].images[:1])
  return jax.jit(method.stages[1].enter)(state, KEY)


@functools.cache
def _compiled(items):
  return jax.jit(_make(**dict(items)).stages[1].step)


def _step(batches=BATCHES, **overrides):
  """Takes a step of the second stage; returns the states and the metrics."""
  state = _entered()
  step = _compiled(tuple(overrides.items()))
  new, metrics = step(state, None, batches, KEY, 0.0)
  return state, new, metrics


def _moved(old, new):
  """The largest change of each leaf."""
  return jax.tree.map(lambda a, b: float(jnp.abs(a - b).max()), old, new)


def test_losses_have_their_published_values():
  with jax.enable_x64():
    source = jnp.array([[1.0, 0.0], [0.5, 0.2]])
    target = jnp.array([[0.3, 0.9], [1.0, -1.0]])
    for loss, expected in (
      (adda.discriminator_loss(source, target), 0.8580082234),
      (adda.mapping_loss(source, target), 0.8330082234),
      (adda.mapping_loss(source, target, "target"), 0.5822079808),
    ):
      np.testing.assert_allclose(loss, expected, rtol=1e-9)


def test_inverting_both_halves_halves_the_gradient_of_the_target():
  source, target = jax.random.normal(KEY, (2, 6, 2))
  both, alone = (
    jax.grad(adda.mapping_loss, 1)(source, target, over)
    for over in ("both", "target")
  )
  np.testing.assert_allclose(both, 0.5 * alone, rtol=1e-5)


def test_the_source_network_and_the_head_stay_as_they_were():
  old, new, _ = _step()
  jax.tree.map(
    np.testing.assert_array_equal, new.extra["source"], old.extra["source"]
  )
  jax.tree.map(
    np.testing.assert_array_equal, new.params["head"], old.params["head"]
  )
  moved = _moved(old.params, new.params)
  moved.pop("head")
  assert min(jax.tree.leaves(moved)) > 0
  discriminators = old.extra["discriminator"], new.extra["discriminator"]
  assert min(jax.tree.leaves(_moved(*discriminators))) > 0


def test_labels_of_real_images_have_no_influence():
  real = BATCHES["real"]
  relabelled = dataclasses.replace(real, labels=(real.labels + 1) % 3)
  _, expected, before = _step()
  _, actual, after = _step({**BATCHES, "real": relabelled})
  jax.tree.map(np.testing.assert_array_equal, actual, expected)
  differ = {name for name in before if before[name] != after[name]}
  assert differ <= {"real_accuracy"}


def test_alternating_asks_the_discriminator_of_after_its_update():
  _, together, before = _step()
  _, first, after = _step(**{"adda.updates": "alternating"})
  jax.tree.map(
    functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-7),
    first.extra,
    together.extra,
  )
  assert before["discriminator_loss"] == after["discriminator_loss"]
  # The discriminator has become surer, which the mapping finds harder.
  assert after["mapping_loss"] > before["mapping_loss"]
  assert max(jax.tree.leaves(_moved(first.params, together.params))) > 1e-5


def test_decay_and_rates_are_of_the_network_they_name():
  old, plain, _ = _step()
  overrides = {
    "adda.discriminator_decay": DECAY,
    "adda.discriminator_rate": 0.5,
    "adda.encoder_rate": 0.25,
  }
  _, new, _ = _step(**overrides)

  def check(name, before, without, after, rate, decay):
    kernel = "kernel" in jax.tree_util.keystr(name)
    gradient = (before - without) / RATE + kernel * decay * before
    np.testing.assert_allclose(
      after, before - rate * RATE * gradient, rtol=1e-4, atol=1e-6
    )

  for trees, rate, decay in (
    ([s.extra["discriminator"] for s in (old, plain, new)], 0.5, DECAY),
    ([s.params for s in (old, plain, new)], 0.25, 0.0),
  ):
    jax.tree_util.tree_map_with_path(
      functools.partial(check, rate=rate, decay=decay), *trees
    )


def test_entering_shares_no_memory_that_a_step_would_reuse():
  state = _make().stages[1].enter(_entered(), KEY)
  leaves = jax.tree.leaves(state)
  pointers = {leaf.unsafe_buffer_pointer() for leaf in leaves}
  assert len(pointers) == len(leaves)
  jax.tree.map(
    np.testing.assert_array_equal, state.extra["source"]["params"], state.params
  )


def test_stages_have_the_lengths_and_streams_of_two_stage_methods():
  first, second = _make(**{"num_steps": 20}).stages
  assert (first.name, first.num_steps) == ("pretrain", 15)
  assert (second.name, second.num_steps) == ("adapt", 5)
  assert {s.set: s.batch_size for s in first.streams.values()} == {
    "synthetic": 16
  }
  assert {s.set: s.batch_size for s in second.streams.values()} == {
    "real": 8,
    "synthetic": 8,
  }


@pytest.mark.parametrize(
  "field,value,message",
  [
    ("adda.features", "stage3", "adda.features='stage3' is unknown; known: l"),
    ("adda.mapping_loss", "source", "adda.mapping_loss='source' is unknown"),
    ("adda.updates", "joint", "adda.updates='joint' is unknown"),
    ("adda.activation", "tanh", "adda.activation='tanh' is unknown"),
    ("adda.hidden", (-1,), r"adda.hidden=\(-1,\) must be positive"),
    ("adda.discriminator_decay", -1.0, "adda.discriminator_decay=-1.0 must"),
    ("adda.encoder_rate", -1.0, "adda.encoder_rate=-1.0 must not be negative"),
    ("adda.discriminator_rate", -1.0, "adda.discriminator_rate=-1.0 must not"),
    ("batch_size", 15, "batch_size=15 times two_streams.real_share=0.5 must"),
  ],
)
def test_a_bad_value_is_named(field, value, message):
  with pytest.raises(UserError, match=message):
    _make(**{field: value})


@pytest.mark.parametrize("missing", ["real", "synthetic"])
def test_a_missing_set_is_named(missing):
  counts = {k: v for k, v in INFO.class_counts.items() if k != missing}
  info = Info(INFO.class_names, INFO.image_shape, counts)
  with pytest.raises(UserError, match=f"'adda' needs {missing} training"):
    methods.make(tiny.config(method="adda"), info)
