"""Ways to train, by name."""

import importlib
from typing import Any

from synguide_jax.errors import UserError
from synguide_jax.methods.base import Info, Method

# Name -> the module whose `make(config, info)` makes it; loaded on use.
METHODS = {
  "real": "synguide_jax.methods.supervised",
  "fake": "synguide_jax.methods.supervised",
  "aug": "synguide_jax.methods.supervised",
  "balanced": "synguide_jax.methods.supervised",
  "weighted": "synguide_jax.methods.supervised",
  "linear_probe": "synguide_jax.methods.transfer",
  "finetune": "synguide_jax.methods.transfer",
  "adp": "synguide_jax.methods.two_stage",
  "adda": "synguide_jax.methods.adda",
  "dada": "synguide_jax.methods.dada",
  "ltda": "synguide_jax.methods.ltda",
  "dann": "synguide_jax.methods.dann",
  "asg": "synguide_jax.methods.asg",
  "csg": "synguide_jax.methods.csg",
  "a_gem": "synguide_jax.methods.guided",
  "guided": "synguide_jax.methods.guided",
  "diffusion": "synguide_jax.synthesis.diffusion",
}


# Methods whose step computes one gradient of each loss, which can be done in
# parts.
_IN_PARTS = (
  *("real", "fake", "aug", "balanced", "weighted", "linear_probe", "finetune"),
  *("adp", "dann", "asg", "a_gem", "guided"),
)


def check_name(name: str) -> None:
  """Raises UserError for an unknown method."""
  if name == "diffusers":
    raise UserError(
      "A pipeline of diffusers is not trained; python -m "
      "synguide_jax.synthesize makes its images."
    )
  if name not in METHODS:
    raise UserError(
      f"Unknown method {name!r}; known methods: {', '.join(METHODS)}."
    )


def needs_pretrained(config: Any) -> bool:
  """Whether the method uses the network of ``config.pretrained``."""
  if config.method == "guided":
    return config.guidance.pg_real or config.guidance.pg_synthetic
  return config.method in ("linear_probe", "finetune", "asg", "csg")


def check_is_network(config: Any) -> None:
  """Raises UserError if what is trained is more than a network with a head."""
  if config.method in ("asg", "csg"):
    head = config[config.method].head
    if head != "linear":
      raise UserError(
        f"Method {config.method!r} trains a network under a head of two "
        f"layers, which has no common form: set {config.method}.head='linear'."
      )


def uses_model(config: Any) -> bool:
  """Whether the method trains the network of ``config.model``."""
  return config.method not in ("linear_probe", "finetune")


def _check_microbatches(config: Any) -> None:
  parts = config.microbatches
  if parts < 1:
    raise UserError(f"microbatches={parts} must be at least 1.")
  if parts == 1:
    return
  if config.method not in _IN_PARTS:
    raise UserError(
      f"microbatches={parts}: method {config.method!r} sees a batch as a "
      f"whole; set it to 1. Known in parts: {', '.join(_IN_PARTS)}."
    )
  if needs_pretrained(config) and config.guidance.reduction == "sum":
    raise UserError(
      f"microbatches={parts}: guidance.reduction='sum' would be of the pairs "
      "within a part, which are fewer; choose a mean."
    )


def make(config: Any, info: Info) -> Method:
  """Makes the method ``config.method``.

  Args:
    config: The experiment's config.
    info: What is known of the data before training.

  Returns:
    The :class:`Method`.

  Raises:
    UserError: for an unknown method, or a config it cannot run with.
  """
  check_name(config.method)
  _check_microbatches(config)
  module = importlib.import_module(METHODS[config.method])
  return module.make(config, info)
