"""What a method learns, as one pytree."""

from typing import Any

import flax.struct


@flax.struct.dataclass
class TrainState:
  """State of one run; the trainer gives every leaf a leading run axis.

  Attributes:
    params: Trained parameters.
    batch_stats: Running statistics of normalisation layers, or an empty dict.
    opt_state: State of the optax transformation(s).
    extra: Whatever else a method carries from step to step and does not predict
      with (a discriminator, a queue), a pytree or None.
    ema: What it predicts with instead of the parameters, an exponential moving
      average, or None.
  """

  params: Any
  batch_stats: Any
  opt_state: Any
  extra: Any = None
  ema: Any = None

  def for_prediction(self) -> "TrainState":
    """Returns the state without what only training needs."""
    return self.replace(opt_state=None, extra=None)
