"""One step of each method, against its equations written out again."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from synguide_jax import methods, models
from synguide_jax.errors import UserError
from synguide_jax.guidance import pretrained_guidance_loss
from synguide_jax.methods.base import Batch, Info, Stream
from synguide_jax.models.base import Architecture
from synguide_jax.models.wide_resnet import WideResNet
from tests import tiny

INFO = Info(
  class_names=("a", "b", "c"),
  image_shape=(8, 8, 1),
  class_counts={"real": (4, 4, 4), "synthetic": (8, 8, 8)},
)
KEY = jax.random.key(0)
RATE = 0.1


def batch(seed, size, real):
  image_key, label_key = jax.random.split(jax.random.key(seed))
  return Batch(
    images=jax.random.uniform(image_key, (size, 8, 8, 1)),
    labels=jax.random.randint(label_key, (size,), 0, 3),
    real=jnp.asarray(real),
  )


REAL = batch(1, 8, [True] * 8)
SYNTHETIC = batch(2, 8, [False] * 8)
MIXED = batch(3, 16, [True, False, False, True] * 4)
BATCHES = {"real": REAL, "synthetic": SYNTHETIC, "mixed": MIXED}
# The real images, called something else.
OPPOSED = REAL.replace(labels=(REAL.labels + 1) % 3, real=~REAL.real)


def make(**overrides):
  """Plain gradient descent, so that a step shows the gradient."""
  config = tiny.config(
    **{
      "optimizer.name": "sgd",
      "optimizer.momentum": 0.0,
      "optimizer.learning_rate": RATE,
      **overrides,
    }
  )
  return methods.make(config, INFO)


def one_step(method, **others):
  """Returns the state before, the gradient that was applied, and metrics."""
  (stage,) = method.stages
  state, frozen = jax.jit(method.init)(KEY, REAL.images[:1])
  batches = {
    name: {**BATCHES, **others}[stream.set]
    for name, stream in stage.streams.items()
  }
  new, metrics = jax.jit(stage.step)(state, frozen, batches, KEY, 0.0)
  applied = jax.tree.map(
    lambda old, new: (old - new) / RATE, state.params, new.params
  )
  return state, frozen, applied, metrics


NETWORK = models.create("small_cnn", num_classes=3, channels=1)


def cross_entropy(params, batch):
  logits = NETWORK.apply({"params": params}, batch.images, train=True).logits
  chosen = jnp.take_along_axis(
    jax.nn.log_softmax(logits), batch.labels[:, None], axis=1
  )
  return -chosen.mean()


def pg(params, frozen, batch, where=None):
  def features(variables):
    output = NETWORK.apply(variables, batch.images, train=False)
    return output.features["stage3"].mean((1, 2))

  return pretrained_guidance_loss(
    features({"params": params}), features(frozen), where=where
  )


def flat(tree):
  return jax.flatten_util.ravel_pytree(tree)[0]


def assert_close(tree, expected):
  np.testing.assert_allclose(flat(tree), expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
  "method,losses",
  [
    ("real", lambda p: cross_entropy(p, REAL)),
    ("fake", lambda p: cross_entropy(p, SYNTHETIC)),
    ("aug", lambda p: cross_entropy(p, MIXED)),
    (
      "balanced",
      lambda p: cross_entropy(p, REAL) + cross_entropy(p, SYNTHETIC),
    ),
    (
      "weighted",
      lambda p: (
        0.8 * cross_entropy(p, REAL) + 0.2 * cross_entropy(p, SYNTHETIC)
      ),
    ),
  ],
)
def test_plain_methods_descend_their_loss(method, losses):
  state, _, applied, metrics = one_step(make(method=method))
  value, grads = jax.jit(jax.value_and_grad(losses))(state.params)
  np.testing.assert_allclose(metrics["loss"], value, rtol=1e-5)
  assert_close(applied, flat(grads))


def test_weighted_with_replacement_descends_the_batch_it_gets():
  method = make(method="weighted", **{"weighted.replacement_probability": 0.5})
  assert method.stages[0].streams == {
    "replaced": Stream("real", 16, replacement=0.5)
  }
  state, _, applied, metrics = one_step(method)
  # The exchange is the feed's; weighted.real_weight is of no use.
  value, grads = jax.jit(jax.value_and_grad(cross_entropy))(state.params, REAL)
  np.testing.assert_allclose(metrics["loss"], value, rtol=1e-5)
  assert_close(applied, flat(grads))


@pytest.mark.parametrize("value", [-0.1, 1.5])
def test_a_bad_replacement_probability_is_named(value):
  with pytest.raises(
    UserError, match=f"weighted.replacement_probability={value} must be in"
  ):
    make(method="weighted", **{"weighted.replacement_probability": value})


@pytest.mark.parametrize("pg_real", [False, True])
@pytest.mark.parametrize("pg_synthetic", [False, True])
def test_rg_projects_gradients_that_include_pg(pg_real, pg_synthetic):
  method = make(
    **{
      "guidance.pg_real": pg_real,
      "guidance.pg_synthetic": pg_synthetic,
      "guidance.pg_weight": 10.0,
      "guidance.real_weight": 0.5,
      "guidance.synthetic_weight": 2.0,
    }
  )
  state, frozen, applied, metrics = one_step(method, synthetic=OPPOSED)

  def loss(params, batch, guided):
    value = cross_entropy(params, batch)
    return value + (10 * pg(params, frozen, batch) if guided else 0)

  grad = jax.jit(jax.grad(loss), static_argnames="guided")
  g_r, g_f = (
    np.asarray(flat(grad(state.params, of, guided=on)), np.float64)
    for of, on in ((REAL, pg_real), (OPPOSED, pg_synthetic))
  )
  dot = g_f @ g_r
  projected = g_f - (dot / (g_r @ g_r)) * g_r if dot < 0 else g_f
  assert_close(applied, 0.5 * g_r + 2.0 * projected)
  np.testing.assert_allclose(
    metrics["gradient_cosine"],
    dot / np.linalg.norm(g_r) / np.linalg.norm(g_f),
    rtol=1e-3,
    atol=1e-5,
  )
  assert dot < 0 and metrics["conflict_rate"] == 1
  for name, on, of in (
    ("real_pg", pg_real, REAL),
    ("synthetic_pg", pg_synthetic, OPPOSED),
  ):
    assert (name in metrics) == on
    if on:
      np.testing.assert_allclose(
        metrics[name], jax.jit(pg)(state.params, frozen, of), rtol=1e-4
      )


def test_without_rg_pg_acts_on_rows_of_the_mixed_batch():
  method = make(**{"guidance.rg": False, "guidance.pg_weight": 3.0})
  state, frozen, applied, metrics = one_step(method)

  def loss(params):
    where = MIXED.real
    return (
      cross_entropy(params, MIXED)
      + 3 * pg(params, frozen, MIXED, where)
      + 3 * pg(params, frozen, MIXED, ~where)
    )

  value, grads = jax.jit(jax.value_and_grad(loss))(state.params)
  np.testing.assert_allclose(metrics["loss"], value, rtol=1e-5)
  assert_close(applied, flat(grads))


def test_a_gem_is_guided_with_weights_0_and_1_bit_for_bit():
  switches = {"guidance.pg_real": False, "guidance.pg_synthetic": False}
  weights = {"guidance.real_weight": 0.0, "guidance.synthetic_weight": 1.0}
  a_gem = one_step(make(method="a_gem"), synthetic=OPPOSED)
  guided = one_step(
    make(method="guided", **switches, **weights), synthetic=OPPOSED
  )
  assert a_gem[3]["conflict_rate"] == 1
  jax.tree.map(np.testing.assert_array_equal, a_gem[2:], guided[2:])


def test_pg_of_weight_0_is_no_pg_bit_for_bit():
  off = {"guidance.pg_real": False, "guidance.pg_synthetic": False}
  without = one_step(make(**off))
  zero = one_step(make(**{"guidance.pg_weight": 0.0}))
  jax.tree.map(np.testing.assert_array_equal, without[2], zero[2])


def test_pg_of_weight_0_is_plain_training_bit_for_bit(monkeypatch):
  # With dropout, which draws from the same keys.
  network = Architecture(WideResNet, {"depth": 10, "widen": 1})
  monkeypatch.setitem(models.MODELS, "dropping", network)
  fields = {"model.name": "dropping", "guidance.rg": False}
  plain = one_step(make(method="aug", **fields))
  zero = one_step(
    make(method="guided", **fields, **{"guidance.pg_weight": 0.0})
  )
  jax.tree.map(np.testing.assert_array_equal, plain[2], zero[2])


def test_methods_start_a_run_from_the_same_weights():
  starts = [
    jax.jit(make(method=name).init)(KEY, REAL.images[:1])[0].params
    for name in ("real", "weighted", "a_gem", "guided")
  ]
  for start in starts[1:]:
    jax.tree.map(np.testing.assert_array_equal, start, starts[0])


def test_running_statistics_see_the_real_batch_first(monkeypatch):
  monkeypatch.setitem(models.MODELS, "tiny", tiny.RESNET)
  method = make(
    **{
      "model.name": "tiny",
      "guidance.pg_real": False,
      "guidance.pg_synthetic": False,
    }
  )
  state, frozen = jax.jit(method.init)(KEY, REAL.images[:1])
  (stage,) = method.stages
  batches = {"real": REAL, "synthetic": SYNTHETIC}
  new, _ = jax.jit(stage.step)(state, frozen, batches, KEY, 0.0)
  network = models.create("tiny", num_classes=3, channels=1)

  @jax.jit
  def statistics(batch_stats, images):
    variables = {"params": state.params, "batch_stats": batch_stats}
    return network.apply(variables, images, train=True).batch_stats

  expected = state.batch_stats
  for part in (REAL, SYNTHETIC):
    expected = statistics(expected, part.images)
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5),
    new.batch_stats,
    expected,
  )


@pytest.mark.parametrize(
  "optimizer,transform",
  [
    ({"name": "adam"}, optax.adam(RATE)),
    (
      {"name": "adamw", "weight_decay": 0.1},
      optax.adamw(RATE, weight_decay=0.1),
    ),
    ({"name": "sgd", "momentum": 0.9}, optax.sgd(RATE, momentum=0.9)),
    (
      {"name": "sgd", "momentum": 0.0, "weight_decay": 0.1},
      optax.chain(optax.add_decayed_weights(0.1), optax.sgd(RATE)),
    ),
    (
      {"name": "sgd", "momentum": 0.0, "schedule": "cosine", "warmup_steps": 2},
      optax.sgd(
        lambda n: jnp.where(
          n < 2, RATE * n / 2, RATE * (1 + jnp.cos(jnp.pi * (n - 2) / 8)) / 2
        )
      ),
    ),
  ],
)
def test_optimisers_are_optax_s(optimizer, transform):
  config = tiny.config(**{"optimizer.learning_rate": RATE})
  config.optimizer.update(optimizer)
  ours = methods.optimizers.create(config.optimizer, 10)
  params = jnp.array([1.0, -2.0])
  states = [tx.init(params) for tx in (ours, transform)]
  for step in range(5):
    grads = jnp.array([0.3, 0.1 * step])
    updates = []
    for n, tx in enumerate((ours, transform)):
      update, states[n] = tx.update(grads, states[n], params)
      updates.append(update)
    np.testing.assert_allclose(*updates, rtol=1e-6, atol=1e-9)
    params = params + updates[0]


@pytest.mark.parametrize("missing", ["real", "synthetic"])
def test_a_missing_set_is_named(missing):
  counts = dict(INFO.class_counts)
  del counts[missing]
  info = Info(INFO.class_names, INFO.image_shape, counts)
  does_without = {
    "real": ("fake", "asg", "csg", "diffusion"),
    "synthetic": ("real", "diffusion"),
  }
  for name in set(methods.METHODS) - set(does_without[missing]):
    with pytest.raises(UserError, match=f"'{name}' needs {missing} training"):
      methods.make(tiny.config(method=name), info)
  only_pg = tiny.config(**{"guidance.rg": False, "guidance.pg_real": False})
  if missing == "synthetic":
    with pytest.raises(UserError, match="'guided' needs synthetic training"):
      methods.make(only_pg, info)


def test_epochs_are_of_the_synthetic_images():
  config = dict(num_steps=0, num_epochs=2.0)
  for name, steps in (
    ("real", 2),  # 2 * 12 real images, 16 a step
    ("fake", 3),  # 2 * 24 synthetic images, 16 a step
    ("aug", 5),  # 2 * 36 images, 16 a step
    ("guided", 6),  # 2 * 24 synthetic images, 8 a step
  ):
    assert make(method=name, **config).stages[0].num_steps == steps


@pytest.mark.parametrize(
  "fields, message",
  [
    ({"real_share": 0.3}, "batch_size=16 times two_streams.real_share=0.3"),
    ({"real_share": 1.0}, "times two_streams.real_share=1.0 must be"),
    ({"real_sampler": "all"}, "two_streams.real_sampler='all' is unknown"),
    ({"batch_norm": "none"}, "two_streams.batch_norm='none' is unknown"),
    (
      {"batch_norm": "joint", "running_statistics": "real"},
      "two_streams.batch_norm='joint' has the statistics of all images",
    ),
  ],
)
def test_bad_fields_of_two_streams_are_named(fields, message):
  overrides = {f"two_streams.{name}": v for name, v in fields.items()}
  for name in ("balanced", "guided"):
    with pytest.raises(UserError, match=message):
      make(method=name, **overrides)


def test_real_images_may_be_another_part_of_a_batch():
  overrides = {
    "two_streams.real_share": 0.25,
    "two_streams.real_sampler": "balanced",
  }
  for name in ("balanced", "a_gem", "guided", "dann"):
    streams = make(method=name, **overrides).stages[-1].streams
    assert (streams["real"].batch_size, streams["real"].sampler) == (
      4,
      "balanced",
    )
    assert streams["synthetic"].batch_size == 12


def test_pg_needs_pairs():
  with pytest.raises(UserError, match="batch_size=2 is too small for Pre"):
    make(method="guided", batch_size=2)
  make(method="a_gem", batch_size=2)


def test_zero_shot_guided_says_what_to_switch_off():
  info = Info(INFO.class_names, INFO.image_shape, {"synthetic": (8, 8, 8)})
  config = tiny.config(**{"data.shots": 0})
  with pytest.raises(
    UserError, match="there are none: data.shots=0. Or switch off guidance.rg"
  ):
    methods.make(config, info)
  config.guidance.update(rg=False, pg_real=False)
  (stage,) = methods.make(config, info).stages
  assert list(stage.streams) == ["synthetic"]


def test_statistics_of_one_batch_are_kept_whatever_is_said_of_two(monkeypatch):
  monkeypatch.setitem(models.MODELS, "tiny", tiny.RESNET)
  method = make(
    method="fake",
    **{"model.name": "tiny", "two_streams.running_statistics": "real"},
  )
  state, frozen = jax.jit(method.init)(KEY, REAL.images[:1])
  (stage,) = method.stages
  new, _ = jax.jit(stage.step)(
    state, frozen, {"synthetic": SYNTHETIC}, KEY, 0.0
  )
  assert not np.array_equal(flat(new.batch_stats), flat(state.batch_stats))
