"""Optimisers and schedules by name, from a config's ``optimizer`` section."""

from typing import Any

import optax

from synguide_jax.errors import UserError

OPTIMIZERS = ("adam", "adamw", "sgd")
SCHEDULES = ("constant", "cosine")


def create(optimizer: Any, num_steps: int) -> optax.GradientTransformation:
  """Makes the optimiser of a stage.

  Args:
    optimizer: The config section: name, learning_rate, schedule,
      warmup_steps, momentum (sgd), weight_decay (adamw: decoupled; otherwise
      added to the gradient, as PyTorch does).
    num_steps: Steps of the stage, at whose end a cosine schedule is at 0.

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
