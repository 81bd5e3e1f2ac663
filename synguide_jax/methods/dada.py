r"""Discriminative Adversarial Domain Adaptation (Tang and Jia, AAAI 2020).

A classifier of K classes and, as one more output, the domain "target": real
images, used without their labels, are the target, synthetic ones the source.
Of an image's K + 1 logits :math:`o`, let :math:`p` be the softmax, :math:`d =
p_{K+1}` the domain's share of it, :math:`\bar p` the softmax of the K classes
alone, and :math:`q_k = \sigma(o_{K+1} - o_k)` the domain's probability against
class k. After training on synthetic images alone, with means over a batch,

.. math::
  L_s &= -(1 - d) \log p_y - d \log(1 - p_y)
    \quad \text{(source, of label } y) \\
  L_{tF} &= -\sum_k \bar p_k \log q_k, \quad
  L_{tG} = \sum_k \bar p_k \log(1 - q_k), \quad
  H = -\sum_k \bar p_k \log \bar p_k
    \quad \text{(target)} \\
  \text{the head and the domain's descend} &\quad
    \lambda (L_s + L_{tF}) + H \\
  \text{the features, all before them,} &\quad
    -\lambda (L_s + L_{tG}) + H

and :math:`\lambda` rises from 0 with the stage's progress
(:func:`~synguide_jax.methods.adversarial.ramp`) or is constant. :math:`L_s` is
ascended by the features, which only works from a trained start. Without
``dada.discriminative`` the target is told from all classes together,
:math:`L_{tF} = -\log d` and :math:`L_{tG} = \log(1 - d)`. No term is detached.

Tang and Jia, `Discriminative Adversarial Domain Adaptation
<https://arxiv.org/abs/1911.12036>`_, AAAI 2020. The equations are those of the
official code (Gorilla-Lab-SCUT/DADA-AAAI2020), with class weights of 1: that
code is of the variant in which the target lacks some of the source's classes.
As there, one step serves both objectives, each forward pass is normalised by
its own batch's statistics, the running ones see the synthetic batch first, and
all parameters have one learning rate. Where that code replaces probabilities
of 0 by 1e-6, the logarithms here are computed from the logits.
"""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from synguide_jax.errors import check_section
from synguide_jax.methods import (
  adversarial,
  networks,
  optimizers,
  two_stage,
  two_streams,
)
from synguide_jax.methods.base import Info, Method, Stage, StepFn
from synguide_jax.models import Output, pool


def domain_logit(logits: jax.Array) -> jax.Array:
  """The logit of the probability ``d`` that an image is of the target.

  Args:
    logits: Of the K classes and, last, the domain, ``[N, K + 1]``.

  Returns:
    ``log(d / (1 - d))``, ``[N]``.

  Example:
    >>> domain_logit(jnp.array([[-jnp.inf, 3.0, 1.0]])).tolist()
    [-2.0]
  """
  return logits[:, -1] - jax.nn.logsumexp(logits[:, :-1], axis=-1)


def source_loss(logits: jax.Array, labels: jax.Array) -> jax.Array:
  r"""Cross entropy of class and "not this class", weighted by the domain.

  .. math::
    L_s = -\frac{1}{N} \sum_i (1 - d_i) \log p_{i, y_i}
      + d_i \log(1 - p_{i, y_i})

  Args:
    logits: Of source images, ``[N, K + 1]``, the domain's last.
    labels: Their classes, int ``[N]``.

  Returns:
    The mean in nats, a scalar.

  Example:
    >>> logits = jnp.array([[0.0, 0.0, -jnp.inf]])
    >>> round(float(source_loss(logits, jnp.array([1]))), 4)
    0.6931
  """
  of_label = labels[:, None] == jnp.arange(logits.shape[-1])
  chosen = jnp.where(of_label, logits, 0).sum(-1)
  others = jnp.where(of_label, -jnp.inf, logits)
  # The logit of p_y; its sign turned, that of 1 - p_y.
  margin = chosen - jax.nn.logsumexp(others, axis=-1)
  domain = domain_logit(logits)
  losses = jax.nn.sigmoid(-domain) * jax.nn.log_sigmoid(margin)
  losses += jax.nn.sigmoid(domain) * jax.nn.log_sigmoid(-margin)
  return -losses.mean()


def target_losses(
  logits: jax.Array, discriminative: bool = True
) -> tuple[jax.Array, jax.Array]:
  r"""What tells target images from the source, and what hides them.

  .. math::
    L_{tF} = -\frac{1}{N} \sum_{ik} \bar p_{ik} \log q_{ik}, \qquad
    L_{tG} = \frac{1}{N} \sum_{ik} \bar p_{ik} \log(1 - q_{ik})

  Args:
    logits: Of target images, ``[N, K + 1]``, the domain's last.
    discriminative: Whether the domain is compared with each class, as above, or
      with all of them together: :math:`d` takes the place of :math:`q`.

  Returns:
    The classifier's loss, which it descends, and the features', which they
    ascend; means in nats, scalars.

  Example:
    >>> losses = target_losses(jnp.zeros((1, 3)))
    >>> [round(float(loss), 4) for loss in losses]
    [0.6931, -0.6931]
  """
  if not discriminative:
    domain = domain_logit(logits)
    told, hidden = jax.nn.log_sigmoid(domain), jax.nn.log_sigmoid(-domain)
    return -told.mean(), hidden.mean()
  classes = jax.nn.softmax(logits[:, :-1])
  domain = logits[:, -1:] - logits[:, :-1]
  told, hidden = (
    (classes * jax.nn.log_sigmoid(logit)).sum(-1) for logit in (domain, -domain)
  )
  return -told.mean(), hidden.mean()


def entropy(logits: jax.Array) -> jax.Array:
  r"""Mean entropy of the classes, :math:`-\sum_k \bar p_k \log \bar p_k`.

  Args:
    logits: ``[N, K + 1]``; the last, the domain's, is left out.

  Returns:
    The mean in nats, a scalar.

  Example:
    >>> round(float(entropy(jnp.array([[2.0, 2.0, 7.0]]))), 4)
    0.6931
  """
  log_classes = jax.nn.log_softmax(logits[:, :-1])
  return -(jnp.exp(log_classes) * log_classes).sum(-1).mean()


def objectives(
  source_logits: jax.Array,
  source_labels: jax.Array,
  target_logits: jax.Array,
  *,
  weight: jax.typing.ArrayLike,
  discriminative: bool = True,
) -> tuple[jax.Array, jax.Array]:
  r"""What the classifier descends, and what the features descend.

  .. math::
    \lambda (L_s + L_{tF}) + H, \qquad -\lambda (L_s + L_{tG}) + H

  Args:
    source_logits: ``[N, K + 1]``, the domain's last.
    source_labels: Their classes, int ``[N]``.
    target_logits: ``[M, K + 1]``.
    weight: :math:`\lambda`.
    discriminative: As for :func:`target_losses`.

  Returns:
    The two objectives in nats, scalars.

  Example:
    >>> logits = jnp.zeros((1, 3))  # of two classes and the domain
    >>> both = objectives(logits, jnp.array([0]), logits, weight=1.0)
    >>> [round(float(objective), 3) for objective in both]
    [2.254, 0.519]
  """
  source = source_loss(source_logits, source_labels)
  told, hidden = target_losses(target_logits, discriminative)
  uncertainty = entropy(target_logits)
  return (
    weight * (source + told) + uncertainty,
    -weight * (source + hidden) + uncertainty,
  )


def _domain_head(key: jax.Array, width: int) -> dict[str, jax.Array]:
  kernel = jax.nn.initializers.lecun_normal()(key, (width, 1))
  return {"kernel": kernel, "bias": jnp.zeros(1)}


def _with_domain(output: Output, head: dict[str, jax.Array]) -> jax.Array:
  """The K + 1 logits; a network's dropout does not touch the last."""
  embedding = pool(output.features["embedding"])
  domain = embedding @ head["kernel"] + head["bias"]
  return jnp.concatenate([output.logits, domain], -1)


def _adapt(
  config: Any, trained: networks.Trained, tx: optax.GradientTransformation
) -> StepFn:
  """Makes the second stage's step."""
  section = config.dada
  updates_statistics = two_streams.updates_statistics(config)

  def objectives_fn(variables, batch_stats, batches, key, weight):
    logits, keys = {}, jax.random.split(key)
    for stream_key, name in zip(keys, ("synthetic", "real"), strict=True):
      output = trained.apply(
        variables["network"], batch_stats, batches[name].images, stream_key
      )
      logits[name] = _with_domain(output, variables["domain_head"])
      if updates_statistics(name):
        batch_stats = output.batch_stats
    of_classifier, of_features = objectives(
      logits["synthetic"],
      batches["synthetic"].labels,
      logits["real"],
      weight=weight,
      discriminative=section.discriminative,
    )
    metrics = {
      "loss": of_classifier,
      "feature_loss": of_features,
      "entropy": entropy(logits["real"]),
      "domain_weight": weight,
      **_accuracies(logits, batches),
    }
    values = {"classifier": of_classifier, "features": of_features}
    return values, (batch_stats, metrics)

  def step(state, frozen, batches, key, progress):
    del frozen
    weight = jnp.float32(section.weight)
    if section.schedule == "progress":
      weight *= adversarial.ramp(progress)
    variables = {"network": state.params, **state.extra}
    _, found, (batch_stats, metrics) = two_streams.gradients(
      lambda v: objectives_fn(v, state.batch_stats, batches, key, weight),
      variables,
    )
    groups = {"network": networks.groups(state.params), "domain_head": "head"}
    grads = jax.tree.map(
      lambda group, head, rest: head if group == "head" else rest,
      groups,
      found["classifier"],
      found["features"],
    )
    updates, opt_state = tx.update(grads, state.opt_state, variables)
    variables = optax.apply_updates(variables, updates)
    params = variables.pop("network")
    state = state.replace(
      params=params,
      batch_stats=batch_stats,
      opt_state=opt_state,
      extra=variables,
    )
    return state, metrics

  return step


def _accuracies(logits, batches) -> dict[str, jax.Array]:
  accuracies = {
    "domain_accuracy": adversarial.domain_accuracy(
      -domain_logit(logits["synthetic"]), -domain_logit(logits["real"])
    )
  }
  for name in logits:
    accuracies[f"{name}_accuracy"] = networks.accuracy(
      logits[name][:, :-1], batches[name]
    )
  return accuracies


def make(config: Any, info: Info) -> Method:
  """Makes ``dada``; its predictions are over the K classes."""
  check_section(
    "dada",
    config.dada,
    {"schedule": ("progress", "constant")},
    numbers=("weight",),
  )
  streams = two_streams.streams(config, info)
  first = two_stage.first_streams(config)["synthetic"]
  steps = two_stage.lengths(config, info, first, streams["real"])
  trained = networks.create_trained(config, info)
  before = optimizers.create(config.optimizer, steps[0])
  second = two_stage.second_optimizer(config)
  after = optimizers.create(second, steps[1])
  rates = (
    optimizers.schedule(config.optimizer, steps[0]),
    optimizers.schedule(second, steps[1]),
  )

  def init(key, images):
    return trained.init(key, images, before), None

  def enter(state, key):
    width = state.params["head"]["kernel"].shape[0]
    extra = {"domain_head": _domain_head(key, width)}
    opt_state = after.init({"network": state.params, **extra})
    return state.replace(opt_state=opt_state, extra=extra)

  return Method(
    stages=(
      two_stage.pretraining(config, info, trained, before, steps[0], rates[0]),
      Stage(
        "adapt",
        steps[1],
        streams,
        _adapt(config, trained, after),
        enter,
        rates[1],
      ),
    ),
    init=init,
    predict=trained.predict,
    model=trained.model,
  )
