r"""Optimisers and schedules by name, from a config's ``optimizer`` section.

Beside the usual schedules there are those of the methods' authors, with ``i``
the step, ``p`` the share of the stage that is done and ``r`` the rate:

.. math::
  asg  &: r \min(0.01 + 0.99 (i / 100)^2, 1) (1 - \min(p, 0.8))^{0.9} \\
  csg  &: r \min(0.01 + 0.99 (i / 100)^2, 1) (1 - p)^{0.9} \\
  dann &: r / (1 + 10 p)^{0.75}
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax.numpy as jnp
import optax

from synguide_jax.errors import check_known, check_not_negative, UserError

OPTIMIZERS = ("adam", "adamw", "sgd")
SCHEDULES = ("constant", "cosine", "step", "asg", "csg", "dann")


def create(optimizer: Any, num_steps: int) -> optax.GradientTransformation:
  """Makes the optimiser of a stage.

  Args:
    optimizer: The config section: name, learning_rate, schedule,
      decay_factor and decay_at (step), warmup_steps, momentum and nesterov
      (sgd), b1 (adam, adamw), weight_decay (adamw: decoupled; otherwise added
      to the gradient, as PyTorch does).
    num_steps: Steps of the stage, as for :func:`schedule`.

  Returns:
    An optax transformation.

  Raises:
    UserError: for an unknown name or schedule, or a value out of range.
  """
  name = optimizer.name
  check_known("optimizer.name", name, OPTIMIZERS)
  for field in ("momentum", "weight_decay"):
    check_not_negative(f"optimizer.{field}", getattr(optimizer, field))
  if not 0 <= optimizer.b1 < 1:
    raise UserError(f"optimizer.b1={optimizer.b1} must be in [0, 1).")
  rate, decay = schedule(optimizer, num_steps), optimizer.weight_decay
  if name == "adamw":
    return optax.adamw(rate, b1=optimizer.b1, weight_decay=decay)
  if name == "adam":
    base = optax.adam(rate, b1=optimizer.b1)
  else:
    base = optax.sgd(
      rate,
      momentum=optimizer.momentum or None,
      nesterov=optimizer.nesterov,
    )
  return optax.chain(optax.add_decayed_weights(decay), base) if decay else base


def create_grouped(
  optimizer: Any,
  num_steps: int,
  rates: Mapping[str, float],
  groups: Callable[[Any], Any],
) -> optax.GradientTransformation:
  """Makes an optimiser with a learning rate for each group of parameters.

  Args:
    optimizer: As for :func:`create`.
    num_steps: As for :func:`create`.
    rates: Learning rate of each group, in units of ``learning_rate``; a group
      with 0 is kept as it is.
    groups: ``params -> tree`` of the groups' names, a prefix of ``params``.

  Returns:
    An optax transformation.

  Raises:
    UserError: as :func:`create`.
  """
  base = create(optimizer, num_steps)
  # Updates are proportional to the rate in all of them.
  scaled = {
    group: optax.chain(base, optax.scale(rate)) if rate else optax.set_to_zero()
    for group, rate in rates.items()
  }
  return optax.partition(scaled, groups)


def schedule(optimizer: Any, num_steps: int) -> optax.Schedule:
  """Makes the learning rate as a function of the step.

  Args:
    optimizer: The config section, as for :func:`create`.
    num_steps: Steps of the stage, at whose end a cosine schedule is at 0, and
      of which decay_at are shares.

  Returns:
    ``step -> learning rate``.

  Raises:
    UserError: for an unknown schedule, or a value out of range.
  """
  name, peak = optimizer.schedule, optimizer.learning_rate
  warmup = optimizer.warmup_steps
  check_known("optimizer.schedule", name, SCHEDULES)
  for field in ("learning_rate", "warmup_steps"):
    check_not_negative(f"optimizer.{field}", getattr(optimizer, field))
  rate = optax.constant_schedule(peak)
  if name == "cosine":
    rate = optax.cosine_decay_schedule(peak, max(1, num_steps - warmup))
  elif name == "step":
    rate = _stepwise(optimizer, num_steps)
  elif name != "constant":
    if warmup:
      raise UserError(
        f"optimizer.warmup_steps={warmup}: schedule {name!r} is used as it was "
        "published; set warmup_steps=0."
      )
    rate = _published(name, peak, num_steps)
  if warmup:
    rise = optax.linear_schedule(0.0, peak, warmup)
    rate = optax.join_schedules((rise, rate), (warmup,))
  return rate


def _published(name: str, peak: float, num_steps: int) -> optax.Schedule:
  def rate(step):
    step = jnp.asarray(step, jnp.result_type(float))
    done = jnp.minimum(step / num_steps, 1.0)
    if name == "dann":
      return peak / (1 + 10 * done) ** 0.75
    rise = jnp.minimum(0.01 + 0.99 * (step / 100) ** 2, 1.0)
    if name == "asg":
      done = jnp.minimum(done, 0.8)
    return peak * rise * (1 - done) ** 0.9

  return rate


def _stepwise(optimizer: Any, num_steps: int) -> optax.Schedule:
  """Multiplies the rate, counted from the end of the warm-up, at some steps."""
  factor, shares = optimizer.decay_factor, optimizer.decay_at
  if factor <= 0:
    raise UserError(f"optimizer.decay_factor={factor} must be positive.")
  numbers = all(isinstance(share, int | float) for share in shares)
  if not shares or not numbers or not all(0 < share < 1 for share in shares):
    raise UserError(
      f"optimizer.decay_at={shares!r} must be shares of the training between 0 "
      "and 1, such as (0.3, 0.6, 0.8), for optimizer.schedule='step'."
    )
  scales = {}
  for share in shares:
    step = round(share * num_steps) - optimizer.warmup_steps
    # In a short training several of them may fall on the same step.
    scales[step] = scales.get(step, 1.0) * factor
  return optax.piecewise_constant_schedule(optimizer.learning_rate, scales)
