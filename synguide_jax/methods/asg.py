r"""ASG, stage one (Chen et al., ICML 2020): keep what the teacher says.

M_u sees synthetic images :math:`x` with labels :math:`y` alone. A new head
:math:`h` on its embedding :math:`f` classifies them; beside it, an old head
:math:`o` says what M_u makes of the classes that M_p, the frozen teacher
:math:`t`, was trained on, and is held to what M_p says of them:

.. math::
  L = CE(h(f(x)), y) + w \, KL(p_t(x) \,\|\, p_o(f(x)))

with :math:`w` = ``asg.kl_weight`` and no temperature. Where M_u begins from
M_p's weights, :math:`o` is M_p's own head and is not trained; the gradient goes
through it into the backbone.

Chen et al., `Automated Synthetic-to-Real Generalization
<https://arxiv.org/abs/2007.06965>`_, ICML 2020. Their second stage, which
searches for learning rates layer by layer, is left out, as in Wang et al.
(WACV 2024). The official code evaluates with sigmoids, averaged over an image
and its mirror image; here the logits decide. It keeps the learning rate inside
the momentum buffer, which differs from PyTorch's and optax's SGD under a
schedule.
"""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from synguide_jax.errors import check_known, check_not_negative, UserError
from synguide_jax.methods import networks, new_head, optimizers, supervised
from synguide_jax.methods.base import Info, Method, Stage, Stream
from synguide_jax.methods.microbatches import accumulate
from synguide_jax.state import TrainState


def distillation_loss(
  student_logits: jax.Array, teacher_logits: jax.Array
) -> jax.Array:
  r"""Divergence of a student's class probabilities from its teacher's.

  .. math::
    \frac{1}{N} \sum_n \sum_c p^T_{nc} (\log p^T_{nc} - \log p^S_{nc})

  Chen et al., ICML 2020, whose weight is 0.1; there is no temperature.

  Args:
    student_logits: ``[N, C]``.
    teacher_logits: ``[N, C]``; they get no gradient.

  Returns:
    The mean over the rows, in nats, a scalar.

  Example:
    >>> logits = jnp.array([[1.0, 2.0, 3.0]])
    >>> float(distillation_loss(logits, logits))
    0.0
  """
  student, teacher = (
    jax.nn.log_softmax(logits)
    for logits in (student_logits, jax.lax.stop_gradient(teacher_logits))
  )
  return optax.losses.kl_divergence_with_log_targets(student, teacher).mean()


def _old_head(
  config: Any, trained: networks.Trained, network: networks.Frozen
) -> str:
  """Returns what ``asg.old_head`` is: checkpoint, trainable or frozen."""
  kind = config.asg.old_head
  check_known(
    "asg.old_head", kind, ("auto", "checkpoint", "trainable", "frozen")
  )
  if not network.model.options["num_classes"]:
    raise UserError(
      f"Method 'asg' needs the logits of M_p, but pretrained.weights="
      f"{config.pretrained.weights!r} has no head. Name a checkpoint that has."
    )
  if kind == "auto":
    same = config.model.init == config.pretrained.weights
    return "checkpoint" if same else "trainable"
  same = new_head.same_architecture(trained.model, network.model)
  if kind == "checkpoint" and not same:
    raise UserError(
      "asg.old_head='checkpoint' puts M_p's head on M_u, but M_p is a "
      f"{new_head.describe(network.model)} and M_u a "
      f"{new_head.describe(trained.model)}; use asg.old_head='trainable'."
    )
  return kind


def make(config: Any, info: Info) -> Method:
  """Makes ``asg``."""
  check_not_negative("asg.kl_weight", config.asg.kl_weight)
  streams = networks.check_streams(
    config, info, {"synthetic": Stream("synthetic", config.batch_size)}
  )
  steps = supervised.num_steps(config, info, streams["synthetic"])
  trained = networks.create_trained(config, info)
  network = networks.create_frozen(config, info)
  old_head = _old_head(config, trained, network)
  classifier = new_head.create_classifier(config, info, trained)
  tx = new_head.create_optimizer(config, steps, trained)
  rate = optimizers.schedule(config.optimizer, steps)

  def trainable(state):
    heads = state.extra if old_head == "trainable" else {}
    return {"network": state.params, **heads}

  def init(key, images):
    variables = classifier.init(key, images)
    extra = {}
    if old_head != "checkpoint":
      shape = (classifier.width, network.model.options["num_classes"])
      kernel = jax.nn.initializers.lecun_normal()
      extra["old_head"] = {
        "kernel": kernel(jax.random.fold_in(key, 3), shape),
        "bias": jnp.zeros(shape[1]),
      }
    state = TrainState(
      params=variables["params"],
      batch_stats=variables.get("batch_stats", {}),
      opt_state=None,
      extra=extra,
    )
    state = state.replace(opt_state=tx.init(trainable(state)))
    return state, network.init(jax.random.fold_in(key, 1), images)

  def loss_fn(params, batch_stats, batches, key, extra, frozen):
    batch = batches["synthetic"]
    output = classifier.apply(params["network"], batch_stats, batch.images, key)
    if old_head == "checkpoint":
      old = frozen["params"]["head"]
    else:
      old = {**extra, **params}["old_head"]
    teacher = network.model.apply(frozen, batch.images, train=False).logits
    distillation = distillation_loss(
      new_head.linear(old, output.features["embedding"]), teacher
    )
    loss = networks.cross_entropy(output.logits, batch)
    loss += config.asg.kl_weight * distillation
    metrics = {
      "loss": loss,
      "synthetic_accuracy": networks.accuracy(output.logits, batch),
      "distillation_loss": distillation,
    }
    return loss, (output.batch_stats, metrics)

  grad_fn = accumulate(jax.grad(loss_fn, has_aux=True), config.microbatches)

  def step(state, frozen, batches, key, progress):
    del progress
    params = trainable(state)
    grads, (batch_stats, metrics) = grad_fn(
      params, state.batch_stats, batches, key, state.extra, frozen
    )
    updates, opt_state = tx.update(grads, state.opt_state, params)
    params = optax.apply_updates(params, updates)
    network_params = params.pop("network")
    state = state.replace(
      params=network_params,
      batch_stats=batch_stats,
      opt_state=opt_state,
      extra={**state.extra, **params},
    )
    return state, metrics

  return Method(
    stages=(Stage("train", steps, streams, step, learning_rate=rate),),
    init=init,
    predict=classifier.predict,
    model=classifier.model,
    frozen_per_run=network.per_run,
  )
