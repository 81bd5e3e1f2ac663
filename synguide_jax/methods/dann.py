r"""DANN: features from which no discriminator can tell the domains apart.

Real images are the target, synthetic ones the source, each a part of the batch.
With f the network's embedding, C its head, D the discriminator and R the
reversal of gradients, a step descends

.. math::
  CE(C(f)) + L_{dom}(D(R_\lambda(f))), \quad
  R_\lambda(f) = f, \quad \partial R_\lambda / \partial f = -\lambda, \quad
  \lambda = w \left( \frac{2}{1 + e^{-10 p}} - 1 \right)

with p the share of the training that is done: D minimises the domain loss, f
maximises :math:`\lambda` times it. The cross entropy is that of both domains,
or of the synthetic images only, and then the labels of real images have no
influence.

Ganin et al., `Domain-Adversarial Training of Neural Networks
<https://arxiv.org/abs/1505.07818>`_, JMLR 2016, knows no target labels,
reports a run with them, and trains with SGD with momentum at
``optimizer.schedule="dann"``. The defaults are those of the Transfer Learning
Library (https://github.com/thuml/Transfer-Learning-Library) where it agrees
with the paper: one forward pass for both domains, so that they share batch
statistics, and two hidden layers of 1,024 units. That library lets
:math:`\lambda` rise with the step instead (``dann.schedule="steps"``), puts a
bottleneck of 256 units before D, and normalises in D instead of dropout. Dassl
(https://github.com/KaiyangZhou/Dassl.pytorch) adds the two domains' losses
(``dann.reduction="sum"``) and runs a forward pass for each
(``dann.batch_norm="separate"``).
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax

from synguide_jax.errors import check_section
from synguide_jax.methods import (
  adversarial,
  networks,
  optimizers,
  supervised,
  two_streams,
)
from synguide_jax.methods.base import Info, Method, Stage
from synguide_jax.methods.microbatches import accumulate
from synguide_jax.methods.two_streams import Forward
from synguide_jax.models.mlp import MLP
from synguide_jax.state import TrainState

# Steps in which lambda rises with schedule "steps" as it otherwise does in all.
_RAMP_STEPS = 10_000


@jax.custom_vjp
def reverse_gradient(x: jax.Array, scale: jax.typing.ArrayLike) -> jax.Array:
  """Returns ``x``, whose gradient is multiplied by ``-scale``.

  Args:
    x: Features of any shape.
    scale: A scalar, which may be traced; it has no gradient.

  Returns:
    ``x`` itself, bit for bit.

  Example:
    >>> float(jax.grad(reverse_gradient)(3.0, 0.5))
    -0.5
  """
  del scale
  return x


def _forward(x, scale):
  return x, scale


def _backward(scale, gradient):
  return (-scale * gradient).astype(gradient.dtype), None


reverse_gradient.defvjp(_forward, _backward)


def domain_loss(
  source_logits: jax.Array, target_logits: jax.Array, reduction: str = "mean"
) -> jax.Array:
  r"""Binary cross entropy of the domains; the source's label is 1.

  .. math::
    \frac{1}{2} \left( -\frac{1}{N} \sum_i \log \sigma(s_i)
      - \frac{1}{M} \sum_j \log \sigma(-t_j) \right)

  Args:
    source_logits: Of source images, ``[N]``.
    target_logits: Of target images, ``[M]``.
    reduction: Of the two domains' means: ``"mean"`` or ``"sum"``, twice that.

  Returns:
    The loss in nats; with ``"mean"``, log 2 for a discriminator that knows
    nothing.

  Example:
    >>> loss = domain_loss(jnp.array([0.7, -0.2]), jnp.array([0.1, -1.0]))
    >>> round(float(loss), 4)
    0.5647
  """
  loss = (
    jax.nn.softplus(-source_logits).mean()
    + jax.nn.softplus(target_logits).mean()
  )
  return loss if reduction == "sum" else 0.5 * loss


def _domain_weight(
  section: Any, num_steps: int
) -> Callable[[jax.Array], jax.Array]:
  """Returns lambda as a function of the share of the training done."""

  def weight(progress):
    if section.schedule == "constant":
      return jnp.float32(section.domain_weight)
    if section.schedule == "steps":
      progress = progress * num_steps / _RAMP_STEPS
    return section.domain_weight * adversarial.ramp(progress)

  return weight


def _check(section: Any) -> None:
  check_section(
    "dann",
    section,
    {
      "labels": ("both", "source"),
      "schedule": ("progress", "steps", "constant"),
      "reduction": ("mean", "sum"),
    },
    numbers=("domain_weight",),
  )


def _groups(params: Mapping[str, Any]) -> dict[str, Any]:
  return {
    "network": networks.groups(params["network"]),
    "discriminator": "discriminator",
  }


def _loss(section: Any, forward: Forward, discriminator: MLP) -> Any:
  """Returns the loss of the network's and the discriminator's parameters."""

  def classification(losses):
    if section.labels == "source":
      return losses["synthetic"]
    return 0.5 * losses["real"] + 0.5 * losses["synthetic"]

  def loss_fn(params, batch_stats, batches, key, domain_weight):
    outputs, batch_stats = forward(params["network"], batch_stats, batches, key)
    seen = reverse_gradient(
      jnp.concatenate([o.features["embedding"] for o in outputs.values()]),
      domain_weight,
    )
    domains = discriminator.apply(
      params["discriminator"], seen, jax.random.fold_in(key, 2)
    )
    target, source = jnp.split(domains[:, 0], [len(batches["real"].labels)])
    adversary = domain_loss(source, target, section.reduction)
    losses = {
      name: networks.cross_entropy(output.logits, batches[name])
      for name, output in outputs.items()
    }
    loss = classification(losses) + adversary
    metrics = {
      "loss": loss,
      "domain_loss": adversary,
      "domain_accuracy": adversarial.domain_accuracy(source, target),
      "domain_weight": domain_weight,
    }
    for name, output in outputs.items():
      metrics[f"{name}_loss"] = losses[name]
      metrics[f"{name}_accuracy"] = networks.accuracy(
        output.logits, batches[name]
      )
    return loss, (batch_stats, metrics)

  return loss_fn


def make(config: Any, info: Info) -> Method:
  """Makes ``dann``, as ``config.dann`` says."""
  section = config.dann
  _check(section)
  streams = two_streams.streams(config, info)
  steps = supervised.num_steps(config, info, streams["synthetic"])
  discriminator = adversarial.discriminator("dann", section, outputs=1)
  weight = _domain_weight(section, steps)
  trained = networks.create_trained(config, info)
  forward = two_streams.forward(trained, config, "dann.batch_norm")
  rate = networks.backbone_rate(
    section.backbone_rate, "dann.backbone_rate", trained
  )
  tx = optimizers.create_grouped(
    config.optimizer,
    steps,
    {"backbone": rate, "head": 1.0, "discriminator": 1.0},
    _groups,
  )

  loss_fn = _loss(section, forward, discriminator)
  grad_fn = accumulate(jax.grad(loss_fn, has_aux=True), config.microbatches)

  def step(state, frozen, batches, key, progress):
    del frozen
    params = {"network": state.params, **state.extra}
    grads, (batch_stats, metrics) = grad_fn(
      params, state.batch_stats, batches, key, weight(progress)
    )
    updates, opt_state = tx.update(grads, state.opt_state, params)
    params = optax.apply_updates(params, updates)
    state = state.replace(
      params=params["network"],
      batch_stats=batch_stats,
      opt_state=opt_state,
      extra={"discriminator": params["discriminator"]},
    )
    return state, metrics

  def init(key, images):
    variables = trained.init_variables(key, images)
    params, batch_stats = variables["params"], variables.get("batch_stats", {})
    output = trained.apply(params, batch_stats, images, None, train=False)
    embedding = output.features["embedding"]
    extra = {
      "discriminator": discriminator.init(jax.random.fold_in(key, 1), embedding)
    }
    opt_state = tx.init({"network": params, **extra})
    return TrainState(params, batch_stats, opt_state, extra), None

  return Method(
    stages=(
      Stage(
        "train",
        steps,
        streams,
        step,
        learning_rate=optimizers.schedule(config.optimizer, steps),
      ),
    ),
    init=init,
    predict=trained.predict,
    model=trained.model,
  )
