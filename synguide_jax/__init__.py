"""Train classifiers on real plus synthetic images, guided.

The guidance library is importable from here and needs JAX and Optax only::

  from synguide_jax import real_guidance, pretrained_guidance_loss

Names are loaded on first use, so that importing the package itself (as every
``python -m synguide_jax.<command>`` does) costs nothing.
"""

import importlib

__version__ = "0.1.0"

_GUIDANCE = (
  "a_gem",
  "pairwise_similarity",
  "pretrained_guidance_loss",
  "real_guidance",
)
__all__ = [*_GUIDANCE, "__version__"]


def __getattr__(name):
  if name in _GUIDANCE:
    return getattr(importlib.import_module("synguide_jax.guidance"), name)
  raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__():
  return sorted(__all__)
