"""Schedules by name, read off the updates of plain gradient descent."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from synguide_jax import config as config_lib
from synguide_jax.errors import UserError
from synguide_jax.methods import optimizers


def _section(**fields):
  section = config_lib.training_defaults().optimizer
  section.update({"name": "sgd", "momentum": 0.0, **fields})
  return section


def _rates(num_steps, **fields):
  """The learning rate of every step of a training."""
  tx = optimizers.create(_section(**fields), num_steps)
  params = jnp.zeros(())

  def step(state, _):
    update, state = tx.update(jnp.ones(()), state, params)
    return state, -update

  return jax.jit(
    lambda: jax.lax.scan(step, tx.init(params), length=num_steps)
  )()[1]


def test_step_schedule_is_optax_piecewise_constant():
  rates = _rates(
    200,
    learning_rate=0.1,
    schedule="step",
    decay_factor=0.2,
    decay_at=(0.3, 0.6, 0.8),
  )
  schedule = optax.piecewise_constant_schedule(
    0.1, {60: 0.2, 120: 0.2, 160: 0.2}
  )
  np.testing.assert_allclose(rates, [schedule(i) for i in range(200)])
  expected = [0.1] * 60 + [0.02] * 60 + [0.004] * 40 + [0.0008] * 40
  np.testing.assert_allclose(rates, expected, rtol=1e-5)


def test_step_schedule_counts_from_the_beginning_of_the_warmup():
  fields = {"learning_rate": 1.0, "schedule": "step", "decay_at": (0.5,)}
  warm = _rates(20, warmup_steps=4, **fields)
  np.testing.assert_allclose(warm[:4], [0, 0.25, 0.5, 0.75])
  np.testing.assert_allclose(warm[4:], _rates(20, **fields)[4:])


def test_shares_that_fall_on_one_step_all_count():
  rates = _rates(
    2, learning_rate=1.0, schedule="step", decay_at=(0.4, 0.5, 0.6)
  )
  np.testing.assert_allclose(rates, [1, 1e-3], rtol=1e-5)


@pytest.mark.parametrize(
  "fields, message",
  [
    ({}, r"decay_at=\(\) must be shares.*such as \(0.3, 0.6, 0.8\)"),
    ({"decay_at": (60, 120)}, r"decay_at=\(60, 120\) must be shares"),
    ({"decay_at": (0.0,)}, r"decay_at=\(0.0,\) must be shares"),
    ({"decay_at": ("half",)}, r"decay_at=\('half',\) must be shares"),
    (
      {"decay_at": (0.5,), "decay_factor": -0.1},
      "decay_factor=-0.1 must be positive",
    ),
  ],
)
def test_bad_steps_are_named(fields, message):
  with pytest.raises(UserError, match=message):
    optimizers.create(_section(schedule="step", **fields), 10)


def test_unknown_schedule_is_named():
  with pytest.raises(
    UserError,
    match="'linear' is unknown; known: constant, cosine, step, asg, csg, dann",
  ):
    optimizers.create(_section(schedule="linear"), 10)


@pytest.mark.parametrize(
  "schedule, expected",
  [
    (
      "asg",
      {
        0: 1e-6,
        50: 2.4588298577e-5,
        100: 9.0953257608e-5,
        500: 5.3588673127e-5,
        # From four fifths on as it is there.
        800: 2.3492378862e-5,
        900: 2.3492378862e-5,
      },
    ),
    (
      "csg",
      {0: 1e-6, 500: 5.3588673127e-5, 900: 1.2589254118e-5, 1000: 0.0},
    ),
    (
      "dann",
      {
        0: 1e-4,
        100: 0.5946035575e-4,
        500: 0.26084743e-4,
        1000: 0.1655600261e-4,
      },
    ),
  ],
)
def test_published_schedules(schedule, expected):
  section = _section(learning_rate=1e-4, schedule=schedule)
  rate = jax.vmap(optimizers.schedule(section, 1000))
  steps, rates = jnp.array(list(expected)), list(expected.values())
  np.testing.assert_allclose(rate(steps), rates, rtol=3e-6)


@pytest.mark.parametrize("schedule", ["asg", "csg", "dann"])
def test_published_schedules_have_no_warmup_but_their_own(schedule):
  section = _section(schedule=schedule, warmup_steps=5)
  with pytest.raises(
    UserError, match=f"warmup_steps=5: schedule '{schedule}'.*warmup_steps=0"
  ):
    optimizers.create(section, 10)


PARAMS = {"head": jnp.array([1.0, -2.0]), "slow": {"a": jnp.array([0.5, 3.0])}}
PARAMS["kept"] = {"b": jnp.array([0.1, 0.7])}
# Signs change, so that momenta matter.
GRADS = (0.3, -0.1, 0.4)


def _descend(tx, params):
  """Parameters after a few steps."""

  def step(params, state, value):
    grads = jax.tree.map(lambda p: value + 0.1 * p, params)
    updates, state = tx.update(grads, state, params)
    return optax.apply_updates(params, updates), state

  state, step = tx.init(params), jax.jit(step)
  for value in GRADS:
    params, state = step(params, state, value)
  return params


@pytest.mark.parametrize(
  "fields, optimizer",
  [
    (
      {"name": "sgd", "momentum": 0.9, "weight_decay": 0.1},
      lambda rate: optax.chain(
        optax.add_decayed_weights(0.1), optax.sgd(rate, momentum=0.9)
      ),
    ),
    (
      {"name": "adamw", "weight_decay": 0.1},
      lambda rate: optax.adamw(rate, weight_decay=0.1),
    ),
  ],
)
def test_groups_move_at_their_rates(fields, optimizer):
  tx = optimizers.create_grouped(
    _section(learning_rate=0.2, **fields),
    10,
    {"head": 1.0, "slow": 0.1, "kept": 0.0},
    lambda params: {name: name for name in params},
  )
  moved = _descend(tx, PARAMS)
  for name, rate in (("head", 0.2), ("slow", 0.02)):
    expected = _descend(optimizer(rate), PARAMS[name])
    jax.tree.map(
      lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6),
      *(moved[name], expected),
    )
  np.testing.assert_array_equal(moved["kept"]["b"], PARAMS["kept"]["b"])


def _updates(grads, **fields):
  """What is subtracted from a parameter, step by step, at rate 1."""
  tx = optimizers.create(_section(learning_rate=1.0, **fields), 10)
  state, found = tx.init(jnp.zeros(())), []
  for grad in grads:
    update, state = tx.update(jnp.float32(grad), state, jnp.zeros(()))
    found.append(-update)
  return found


def test_nesterov_looks_ahead():
  # Momenta 1 and 1.9, and 0.9 of them beside the gradient.
  updates = _updates([1.0, 1.0], momentum=0.9, nesterov=True)
  np.testing.assert_allclose(updates, [1.9, 2.71], rtol=1e-6)
  plain = _updates([1.0, 1.0], momentum=0.9)
  np.testing.assert_allclose(plain, [1.0, 1.9], rtol=1e-6)


@pytest.mark.parametrize("name", ["adam", "adamw"])
def test_b1_is_the_decay_of_the_mean_of_gradients(name):
  # Means 1/2 and -1/4, of weights that sum to 1/2 and 3/4; squares are 1.
  updates = _updates([1.0, -1.0], name=name, b1=0.5)
  np.testing.assert_allclose(updates, [1.0, -1 / 3], rtol=1e-5)


@pytest.mark.parametrize("value", [-0.1, 1.0])
def test_a_bad_b1_is_named(value):
  with pytest.raises(UserError, match=f"optimizer.b1={value} must be in"):
    optimizers.create(_section(name="adam", b1=value), 10)
