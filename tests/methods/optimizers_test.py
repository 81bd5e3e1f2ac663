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
    UserError, match="'linear' is unknown; known: constant, cosine, step"
  ):
    optimizers.create(_section(schedule="linear"), 10)
