"""CSG: attention pooling, InfoNCE, the queue, and what a step makes of them."""

import collections

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from synguide_jax import config as config_lib
from synguide_jax import methods, models
from synguide_jax.errors import UserError
from synguide_jax.methods import csg, optimizers
from synguide_jax.methods.base import Batch, Info
from synguide_jax.models.base import Architecture
from tests import tiny
from tests.methods.asg_test import NAME, TwoStages

KEY = jax.random.key(0)
INFO = Info(("a", "b", "c"), (8, 8, 1), {"synthetic": (8, 8, 8)})
BATCH_SIZE = 8


@pytest.fixture(autouse=True, scope="module")
def two_stages():
  with pytest.MonkeyPatch.context() as patch:
    patch.setitem(models.MODELS, NAME, Architecture(TwoStages))
    yield


def _batch(views=2):
  images, labels = jax.random.split(jax.random.key(1))
  leading = (views,) if views > 1 else ()
  return Batch(
    images=jax.random.uniform(images, (*leading, BATCH_SIZE, 8, 8, 1)),
    labels=jax.random.randint(labels, (BATCH_SIZE,), 0, 3),
    real=jnp.zeros(BATCH_SIZE, bool),
  )


def _make(**overrides):
  config = tiny.config(
    **{
      "method": "csg",
      "model.name": NAME,
      "pretrained.random_model": NAME,
      "pretrained.feature_layer": "stage2",
      "optimizer.name": "sgd",
      "optimizer.learning_rate": 0.1,
      "batch_size": BATCH_SIZE,
      **overrides,
    }
  )
  return methods.make(config, INFO)


def _step(method, steps=1):
  """Takes steps that reuse the state's memory, as the trainer does."""
  (stage,) = method.stages
  batches = {"synthetic": _batch(stage.streams["synthetic"].views)}
  state, frozen = jax.jit(method.init)(KEY, jnp.zeros((1, 8, 8, 1)))
  states = [jax.tree.map(np.asarray, state)]
  step = jax.jit(stage.step, donate_argnums=0)
  for _ in range(steps):
    state, metrics = step(state, frozen, batches, KEY, 0.0)
    states.append(jax.tree.map(np.asarray, state))
  return states, metrics, frozen


def _assert_close(a, b, rtol=1e-4, atol=1e-6):
  jax.tree.map(
    lambda x, y: np.testing.assert_allclose(x, y, rtol=rtol, atol=atol), a, b
  )


def test_attention_pool_has_the_golden_values():
  features = jnp.array([[[1.0, 0], [2, 1]], [[3, 1], [0, 4]]])[None]
  pooled = csg.attention_pool(features, features)
  np.testing.assert_allclose(pooled, [[1.5833333333, 1.9166666667]], rtol=1e-5)
  # The weights themselves, from values that say where they are.
  weights = csg.attention_pool(jnp.eye(4).reshape(1, 2, 2, 4), features)
  np.testing.assert_allclose(weights, [[1 / 12, 1 / 4, 1 / 3, 1 / 3]], 1e-5)
  tokens = features.reshape(1, 4, 2)
  np.testing.assert_allclose(csg.attention_pool(tokens, tokens), pooled, 1e-6)


def test_attention_that_is_0_everywhere_is_uniform():
  rng = np.random.default_rng(0)
  values = rng.normal(size=(2, 3, 3, 4)).astype(np.float32)
  zeros = jnp.zeros((2, 3, 3, 4))

  @jax.jit
  def pooled(u):
    vectors = csg.attention_pool(values, u)
    return vectors.sum(), vectors

  grads, vectors = jax.grad(pooled, has_aux=True)(zeros)
  np.testing.assert_allclose(vectors, values.mean((1, 2)), 1e-5, 1e-6)
  assert np.isfinite(grads).all()


def test_attention_pool_needs_maps_of_the_same_positions():
  with pytest.raises(ValueError, match=r"\(1, 2, 2, 3\) and \(1, 4, 4, 3\)"):
    csg.attention_pool(jnp.ones((1, 2, 2, 3)), jnp.ones((1, 4, 4, 3)))


def test_info_nce_has_the_golden_values():
  queries, keys = [[0.6, 0.8], [1, 0]], [[0.8, 0.6], [0, 1]]
  queue = [[1.0, 0], [0, 1], [-0.6, 0.8]]
  losses = csg.info_nce(*map(jnp.array, (queries, keys, queue)), 0.07)
  np.testing.assert_allclose(losses, [0.1021980258, 14.2857155356], rtol=1e-5)
  np.testing.assert_allclose(losses.mean(), 7.1939767807, rtol=1e-5)


def test_schedule_has_the_golden_values():
  section = config_lib.training_defaults().optimizer
  section.schedule, section.learning_rate = "csg", 1e-4
  with jax.enable_x64(True):
    rate = optimizers.schedule(section, 1000)
    rates = [rate(step) for step in (500, 900, 1000)]
  golden = [5.3588673127e-5, 1.2589254118e-5, 0]
  np.testing.assert_allclose(rates, golden, rtol=1e-6)


@pytest.mark.parametrize("size", [3, 4, 6, 7])
def test_the_queue_is_first_in_first_out(size):
  """Against a deque, of which the queue and what is said of it must tell."""
  expected = collections.deque([(-1, -1)] * size, maxlen=size)
  queue = jnp.full((size, 2), -1)
  for step in range(5):
    ages = [step - of for of, _ in expected if of >= 0]
    said = csg.queue_state(jnp.int32(step), 3, size)
    np.testing.assert_allclose(said["queue_filled"], len(ages) / size, 1e-6)
    np.testing.assert_allclose(
      said["queue_age"], np.mean(ages) if ages else 0, rtol=1e-6
    )
    keys = [(step, n) for n in range(3)]
    expected.extend(keys)
    position = (3 * step) % size
    queue = csg.enqueue(queue, jnp.array(keys), jnp.int32(position))
    oldest = (position + 3) % size
    np.testing.assert_array_equal(jnp.roll(queue, -oldest, axis=0), expected)


@pytest.mark.parametrize(
  "counts, size",
  [((8, 8, 8), 24), ((9, 9, 9), 24), ((2, 2, 2), 8), ((40_000,) * 3, 65_536)],
)
def test_the_queue_holds_no_more_than_there_are_images(counts, size):
  config = tiny.config(**{"method": "csg", "batch_size": 8})
  info = Info(INFO.class_names, INFO.image_shape, {"synthetic": counts})
  method = methods.make(config, info)
  state = jax.eval_shape(method.init, KEY, jnp.zeros((1, 8, 8, 1)))[0]
  shapes = {name: x.shape for name, x in state.extra["queue"].items()}
  assert shapes == {"stage2": (size, 128), "stage3": (size, 128)}


def test_without_weight_it_is_fake():
  """The networks of both begin alike, too."""
  overrides = {"weight": 0.0, "pooling": "average", "head": "linear"}
  overrides |= {"batch_norm": "train", "views": 1}
  ours = _make(**{f"csg.{name}": value for name, value in overrides.items()})
  fake = _make(method="fake")
  assert ours.model == fake.model
  (ours, metrics, _), (fake, expected, _) = _step(ours), _step(fake)
  np.testing.assert_allclose(metrics["loss"], expected["loss"], rtol=1e-5)
  assert metrics["contrastive_loss"] > 0
  for a, b in zip(ours, fake, strict=True):
    _assert_close(a.params, b.params, rtol=1e-5)
    _assert_close(a.batch_stats, b.batch_stats, rtol=1e-5)


@pytest.fixture(scope="module")
def two_steps(two_stages):
  """Two steps with the running statistics, the second one around the queue."""
  overrides = {"queue_size": 12, "batch_norm": "frozen"}
  # So that there is something to learn from a queue of random vectors.
  overrides |= {"temperature": 1.0, "momentum": 0.5}
  method = _make(**{f"csg.{name}": value for name, value in overrides.items()})
  return method, *_step(method, 2)


def test_key_heads_follow_the_query_heads(two_steps):
  _, (first, second, third), _, _ = two_steps
  assert set(first.extra["query_heads"]) == {"stage1", "stage2"}
  # The average is taken of the query heads that the step begins with.
  for before, after in ((first, second), (second, third)):
    expected = jax.tree.map(
      lambda key, query: 0.5 * key + 0.5 * query,
      before.extra["key_heads"],
      before.extra["query_heads"],
    )
    _assert_close(after.extra["key_heads"], expected, 1e-5, 1e-8)
  _assert_close(first.extra["key_heads"], first.extra["query_heads"])
  moved = jax.tree.map(
    lambda a, b: np.abs(a - b).max() > 1e-5,
    second.extra["query_heads"],
    second.extra["key_heads"],
  )
  assert all(jax.tree.leaves(moved))


def test_keys_join_the_queue(two_steps):
  _, states, metrics, _ = two_steps
  for layer in ("stage1", "stage2"):
    first, second, third = (s.extra["queue"][layer] for s in states)
    for queue in (first, second, third):
      np.testing.assert_allclose(np.linalg.norm(queue, axis=1), 1, rtol=1e-5)
    np.testing.assert_array_equal(second[8:], first[8:])
    # 8, 9, 10, 11, 0, 1, 2, 3.
    np.testing.assert_array_equal(third[4:8], second[4:8])
    assert (third[:4] != second[:4]).any(1).all()
    assert (third[8:] != second[8:]).any(1).all()
  assert [int(s.extra["num_batches"]) for s in states] == [0, 1, 2]
  np.testing.assert_allclose(metrics["queue_filled"], 8 / 12, rtol=1e-6)


def test_frozen_statistics_stay_and_scale_and_bias_do_not(two_steps):
  _, (first, *_, last), _, _ = two_steps
  jax.tree.map(
    np.testing.assert_array_equal, last.batch_stats, first.batch_stats
  )
  for name in ("norm1", "norm2"):
    for parameter in ("scale", "bias"):
      assert (
        last.params[name][parameter] != first.params[name][parameter]
      ).any()


def test_predictions_are_the_new_head_s_of_the_embedding(two_steps):
  method, states, _, frozen = two_steps
  state, images = states[-1].for_prediction(), _batch(views=1).images
  assert method.model is None and state.extra is None
  logits = jax.jit(method.predict)(state, frozen, images)
  network = models.create(NAME, num_classes=3, channels=1)
  variables = {"params": state.params, "batch_stats": state.batch_stats}
  embedding = jax.jit(
    lambda v: network.apply(v, images, train=False, upto="embedding").features
  )(variables)["embedding"]
  hidden, out = (state.params["head"][f"Dense_{n}"] for n in (0, 1))
  x = np.asarray(embedding) @ hidden["kernel"] + hidden["bias"]
  expected = np.maximum(x, 0) @ out["kernel"] + out["bias"]
  np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
  "field, value, message",
  [
    ("weight", -1.0, "csg.weight=-1.0 must not be negative"),
    ("layers", ("stage7",), r"csg.layers=\('stage7',\) are not maps of two_"),
    ("layers", ("embedding",), "not maps of two_stages; it has stage1, stage2"),
    ("pooling", "max", "pooling='max' is unknown; known: attention, average"),
    ("dimension", 0, "csg.dimension=0 must be positive"),
    ("temperature", 0.0, "csg.temperature=0.0 must be positive"),
    ("queue_size", 7, "csg.queue_size=7 must be at least batch_size=8"),
    ("momentum", 1.5, r"csg.momentum=1.5 must be in \[0, 1\]"),
    ("views", 3, "csg.views=3 must be 1 or 2"),
    ("batch_norm", "eval", "csg.batch_norm='eval' is unknown"),
    ("backbone_rate", -2.0, "csg.backbone_rate=-2.0 must not be negative"),
  ],
)
def test_bad_values_are_named(field, value, message):
  with pytest.raises(UserError, match=message):
    _make(**{f"csg.{field}": value})


def test_networks_must_be_alike():
  with pytest.raises(
    UserError, match="identical archit.* M_u is a two_stages and M_p a small_c"
  ):
    _make(**{"pretrained.random_model": "small_cnn"})
  larger = {"pretrained.image_size": 16}
  with pytest.raises(
    UserError, match=r"stage1 is \(8, 8, 4\) in M_u and \(16, 16, 4\) in M_p"
  ):
    _make(**larger)
  _make(**{"csg.pooling": "average", **larger})


def test_the_classifier_sees_the_embedding_whatever_is_compared():
  method = _make(**{"csg.head": "linear", "csg.layers": ("stage1",)})
  assert method.model is not None
