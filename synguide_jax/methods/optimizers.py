"""Optimisers and schedules by name, from a config's ``optimizer`` section."""

from typing import Any

import optax

from synguide_jax.errors import UserError

OPTIMIZERS = ("adam", "adamw", "sgd")
SCHEDULES = ("constant", "cosine", "step")


def create(optimizer: Any, num_steps: int) -> optax.GradientTransformation:
  """Makes the optimiser of a stage.

  Args:
    optimizer: The config section: name, learning_rate, schedule,
      decay_factor and decay_at (step), warmup_steps, momentum (sgd),
      weight_decay (adamw: decoupled; otherwise added to the gradient, as
      PyTorch does).
    num_steps: Steps of the stage, at whose end a cosine schedule is at 0, and
      of which decay_at are shares.

  Returns:
    An optax transformation.

  Raises:
    UserError: for an unknown name or schedule, or a value out of range.
  """
  name, schedule = optimizer.name, optimizer.schedule
  if name not in OPTIMIZERS:
    raise UserError(
      f"optimizer.name={name!r} is unknown; known: {', '.join(OPTIMIZERS)}."
    )
  if schedule not in SCHEDULES:
    raise UserError(
      f"optimizer.schedule={schedule!r} is unknown; known: "
      f"{', '.join(SCHEDULES)}."
    )
  fields = ("learning_rate", "warmup_steps", "momentum", "weight_decay")
  for field in fields:
    if getattr(optimizer, field) < 0:
      raise UserError(
        f"optimizer.{field}={getattr(optimizer, field)} must not be negative."
      )
  rate, warmup = optimizer.learning_rate, optimizer.warmup_steps
  if schedule == "cosine":
    rate = optax.cosine_decay_schedule(rate, max(1, num_steps - warmup))
  elif schedule == "step":
    rate = _stepwise(optimizer, num_steps)
  if warmup:
    rise = optax.linear_schedule(0.0, optimizer.learning_rate, warmup)
    after = rate if callable(rate) else optax.constant_schedule(rate)
    rate = optax.join_schedules((rise, after), (warmup,))
  decay = optimizer.weight_decay
  if name == "adamw":
    return optax.adamw(rate, weight_decay=decay)
  if name == "adam":
    base = optax.adam(rate)
  else:
    base = optax.sgd(rate, momentum=optimizer.momentum or None)
  return optax.chain(optax.add_decayed_weights(decay), base) if decay else base


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
