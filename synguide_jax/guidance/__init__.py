"""Guidance from a pretrained network and from real data.

Needs jax and optax only, so it can be used in any JAX training loop.
"""

from synguide_jax.guidance.pretrained import (
  pairwise_similarity,
  pretrained_guidance_loss,
)
from synguide_jax.guidance.real import (
  a_gem,
  guided_multi_steps,
  GuidedMultiStepsState,
  real_guidance,
  RealGuidanceState,
)

__all__ = [
  "GuidedMultiStepsState",
  "RealGuidanceState",
  "a_gem",
  "guided_multi_steps",
  "pairwise_similarity",
  "pretrained_guidance_loss",
  "real_guidance",
]
