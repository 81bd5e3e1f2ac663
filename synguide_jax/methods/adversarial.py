"""What the adversarial methods, DANN, ADDA and DADA, have in common."""

from typing import Any

import jax
import jax.numpy as jnp

from synguide_jax.errors import UserError
from synguide_jax.models.mlp import MLP


def ramp(progress: jax.typing.ArrayLike) -> jax.Array:
  r"""Lets an adversary in slowly: :math:`2 / (1 + \exp(-10 p)) - 1`.

  Ganin et al., `Domain-Adversarial Training of Neural Networks
  <https://arxiv.org/abs/1505.07818>`_, JMLR 2016, Section 5.2.

  Args:
    progress: Share ``p`` of the training that is done, in [0, 1].

  Returns:
    A factor from 0 to almost 1.

  Example:
    >>> float(ramp(0.0))
    0.0
  """
  # The same, without the difference of numbers near 1.
  return jnp.tanh(5 * jnp.asarray(progress))


def domain_accuracy(source: jax.Array, target: jax.Array) -> jax.Array:
  """Share of the images whose domain is found; 0.5 is chance.

  Args:
    source: What speaks for the source, of images from it, in nats ``[N]``.
    target: The same of images from the target, ``[M]``.

  Returns:
    A scalar, the mean of both domains' shares.
  """
  found = (source > 0).mean(dtype=jnp.float32)
  return 0.5 * (found + (target <= 0).mean(dtype=jnp.float32))


def discriminator(
  name: str, section: Any, outputs: int, activation: str = "relu"
) -> MLP:
  """Makes the network that tells the domains apart.

  Args:
    name: The section's name.
    section: The section, with ``hidden`` and, if it has any, ``dropout``.
    outputs: Length of what it returns for an image.
    activation: Of the hidden layers.

  Raises:
    UserError: for widths that are not positive, or a dropout not in [0, 1).
  """
  hidden, dropout = tuple(section.hidden), section.get("dropout", 0.0)
  if not all(isinstance(width, int) and width > 0 for width in hidden):
    raise UserError(
      f"{name}.hidden={hidden!r} must be positive numbers of units, such as "
      "(64,)."
    )
  if not 0 <= dropout < 1:
    raise UserError(f"{name}.dropout={dropout} must be in [0, 1).")
  return MLP((*hidden, outputs), activation, dropout)
