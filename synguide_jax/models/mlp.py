"""Small networks on feature vectors: discriminators and heads."""

from collections.abc import Sequence
import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

_ACTIVATIONS = {
  "relu": nn.relu,
  "leaky_relu": lambda x: nn.leaky_relu(x, negative_slope=0.1),
}


class _Layers(nn.Module):
  widths: Sequence[int]
  activation: str
  dropout: float

  @nn.compact
  def __call__(self, x, *, train):
    for width in self.widths[:-1]:
      x = _ACTIVATIONS[self.activation](nn.Dense(width)(x))
      x = nn.Dropout(self.dropout, deterministic=not train)(x)
    return nn.Dense(self.widths[-1])(x)


@dataclasses.dataclass(frozen=True)
class MLP:
  """A multilayer perceptron as a pair of pure functions, in float32.

  Attributes:
    widths: Units of the layers, the output's last.
    activation: Of the hidden layers, "relu" or "leaky_relu" (slope 0.1).
    dropout: Rate behind each hidden layer, in training.
  """

  widths: tuple[int, ...]
  activation: str = "relu"
  dropout: float = 0.0

  def init(self, key: jax.Array, features: jax.Array) -> Any:
    """Returns parameters for vectors like ``features`` ``[N, D]``."""
    return self._layers.init(key, features, train=False)["params"]

  def apply(
    self, params: Any, features: jax.Array, rng: jax.Array | None = None
  ) -> jax.Array:
    """Maps ``[N, D]`` to ``[N, widths[-1]]``; with a key, dropout is on."""
    rngs = None if rng is None else {"dropout": rng}
    return self._layers.apply(
      {"params": params},
      features.astype(jnp.float32),
      train=rng is not None,
      rngs=rngs,
    )

  @property
  def _layers(self) -> _Layers:
    return _Layers(self.widths, self.activation, self.dropout)
