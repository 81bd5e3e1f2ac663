r"""ADDA: a second encoder that looks to a discriminator like the first one.

Synthetic images are the source, real ones the target. The first stage trains
the source network M_s by cross entropy on synthetic images. The second starts
M_t from a copy of it and keeps M_s and the classifier, the head of both, as
they are. With D the discriminator on the networks' logits or embeddings, whose
outputs are the logits of (source, target), and half of the batch from each set,

.. math::
  L_D &= \mathrm{mean}\left( -\log D(M_s(x_s))_{source},
      -\log D(M_t(x_t))_{target} \right)
      + \frac{\beta}{2} \sum \lVert W \rVert^2 \\
  L_M &= \mathrm{mean}\left( -\log D(M_s(x_s))_{target},
      -\log D(M_t(x_t))_{source} \right)

D descends L_D and M_t descends L_M, in which its half of the images is all that
depends on it, so that the gradient is half of that of the target alone
(``adda.mapping_loss="target"``). Labels of real images have no influence.
Real images are classified by M_t.

M_s runs with its running statistics, M_t with those of its batches, and keeps
its own running ones.

Tzeng et al., `Adversarial Discriminative Domain Adaptation
<https://arxiv.org/abs/1702.05464>`_, CVPR 2017. In the official code
(https://github.com/erictzeng/adda), whose networks have no batch normalisation,
D sees the logits and both updates are made at once, as by default here; it
adapts the last layer with the rest, and declares the decay of D's weights but
minimises a loss without it. Its digits were trained by Adam with
``optimizer.b1=0.5``, ``optimizer.learning_rate=2e-4`` and
``adda.activation="relu"``. The PyTorch code that is mostly used
(https://github.com/corenel/pytorch-adda) alternates and inverts the labels of
the target only; its users report collapses to chance, and that a learning rate
of the encoder far below the discriminator's prevents them
(``adda.encoder_rate=0.01``).
"""

from collections.abc import Callable
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
from synguide_jax.models import Output
from synguide_jax.models.mlp import MLP

# Columns of the discriminator's logits.
_SOURCE, _TARGET = 0, 1


def discriminator_loss(
  source_logits: jax.Array, target_logits: jax.Array
) -> jax.Array:
  """Mean cross entropy of the true domains over the images of both.

  Args:
    source_logits: Logits of (source, target) of source images, ``[N, 2]``.
    target_logits: The same of target images, ``[M, 2]``.

  Returns:
    The loss in nats; log 2 for a discriminator that knows nothing.

  Example:
    >>> source = jnp.array([[1.0, 0.0], [0.5, 0.2]])
    >>> target = jnp.array([[0.3, 0.9], [1.0, -1.0]])
    >>> round(float(discriminator_loss(source, target)), 4)
    0.858
  """
  losses = [
    -jax.nn.log_softmax(source_logits)[:, _SOURCE],
    -jax.nn.log_softmax(target_logits)[:, _TARGET],
  ]
  return jnp.concatenate(losses).mean()


def mapping_loss(
  source_logits: jax.Array, target_logits: jax.Array, over: str = "both"
) -> jax.Array:
  """Mean cross entropy of the inverted domains.

  Args:
    source_logits: Logits of (source, target) of source images, ``[N, 2]``.
    target_logits: The same of target images, ``[M, 2]``.
    over: ``"both"``, or only the images of the ``"target"``.

  Returns:
    The loss in nats.

  Example:
    >>> source = jnp.array([[1.0, 0.0], [0.5, 0.2]])
    >>> target = jnp.array([[0.3, 0.9], [1.0, -1.0]])
    >>> round(float(mapping_loss(source, target, "target")), 4)
    0.5822
  """
  if over == "target":
    return -jax.nn.log_softmax(target_logits)[:, _SOURCE].mean()
  # Exchanging the domains inverts the labels.
  return discriminator_loss(target_logits, source_logits)


def _check(section: Any) -> None:
  check_section(
    "adda",
    section,
    {
      "features": ("logits", "embedding"),
      "mapping_loss": ("both", "target"),
      "updates": ("simultaneous", "alternating"),
      "activation": ("leaky_relu", "relu"),
    },
    numbers=(
      "discriminator_decay",
      "encoder_rate",
      "head_rate",
      "discriminator_rate",
    ),
  )


def _seen(section: Any, output: Output) -> jax.Array:
  """What the discriminator sees of a network's output, ``[N, D]``."""
  if section.features == "logits":
    return output.logits
  return output.features["embedding"]


def _optimizers(
  config: Any, num_steps: int
) -> dict[str, optax.GradientTransformation]:
  """The second stage's optimisers."""
  section, optimizer = config.adda, two_stage.second_optimizer(config)
  rates = {"backbone": section.encoder_rate, "head": section.head_rate}
  return {
    "encoder": optimizers.create_grouped(
      optimizer, num_steps, rates, networks.groups
    ),
    "discriminator": optimizers.create_grouped(
      optimizer,
      num_steps,
      {"discriminator": section.discriminator_rate},
      lambda params: "discriminator",
    ),
  }


def _decay(discriminator: Any) -> jax.Array:
  """Half the squared norm of the weights, without the biases."""
  return 0.5 * sum(
    jnp.square(layer["kernel"]).sum() for layer in discriminator.values()
  )


def _losses(
  section: Any, judge: MLP
) -> tuple[Callable[..., Any], Callable[..., Any]]:
  """Returns L_D and L_M as functions of what they are descended in."""

  def of_discriminator(discriminator, source, target):
    logits = [judge.apply(discriminator, x) for x in (source, target)]
    loss = discriminator_loss(*logits)
    margins = [x[:, _SOURCE] - x[:, _TARGET] for x in logits]
    metrics = {
      "discriminator_loss": loss,
      "domain_accuracy": adversarial.domain_accuracy(*margins),
    }
    return loss + section.discriminator_decay * _decay(discriminator), metrics

  def of_target(target, source, discriminator):
    logits = [judge.apply(discriminator, x) for x in (source, target)]
    return mapping_loss(*logits, section.mapping_loss)

  return of_discriminator, of_target


def _descend(
  tx: optax.GradientTransformation, grads: Any, opt_state: Any, params: Any
) -> tuple[Any, Any]:
  updates, opt_state = tx.update(grads, opt_state, params)
  return optax.apply_updates(params, updates), opt_state


def _step(
  section: Any,
  trained: networks.Trained,
  judge: MLP,
  txs: dict[str, optax.GradientTransformation],
) -> StepFn:
  """Makes the second stage's step."""
  d_loss, m_loss = _losses(section, judge)

  def step(state, frozen, batches, key, progress):
    del frozen, progress
    real, synthetic = batches["real"], batches["synthetic"]

    def encode(params):
      output = trained.apply(params, state.batch_stats, real.images, key)
      return _seen(section, output), output

    # M_s(x_s) and M_t(x_t), one forward pass each.
    source = trained.apply(
      **state.extra["source"], images=synthetic.images, key=None, train=False
    )
    source = _seen(section, source)
    target, pull_back, output = jax.vjp(encode, state.params, has_aux=True)

    before = state.extra["discriminator"]
    grads, metrics = jax.grad(d_loss, has_aux=True)(before, source, target)
    discriminator, d_state = _descend(
      txs["discriminator"], grads, state.opt_state["discriminator"], before
    )
    judged_by = before if section.updates == "simultaneous" else discriminator
    loss, grads = jax.value_and_grad(m_loss)(target, source, judged_by)
    params, m_state = _descend(
      txs["encoder"],
      *pull_back(grads),
      state.opt_state["encoder"],
      state.params,
    )
    metrics |= {
      "loss": loss + metrics["discriminator_loss"],
      "mapping_loss": loss,
      "real_accuracy": networks.accuracy(output.logits, real),
    }
    state = state.replace(
      params=params,
      batch_stats=output.batch_stats,
      opt_state={"encoder": m_state, "discriminator": d_state},
      extra={**state.extra, "discriminator": discriminator},
    )
    return state, metrics

  return step


def _adaptation(
  config: Any, info: Info, trained: networks.Trained, num_steps: int
) -> Stage:
  """Makes the second stage."""
  section = config.adda
  judge = adversarial.discriminator(
    "adda", section, outputs=2, activation=section.activation
  )
  txs = _optimizers(config, num_steps)

  def enter(state, key):
    source = {"params": state.params, "batch_stats": state.batch_stats}
    image = jnp.zeros((1, *info.image_shape))
    output = trained.apply(**source, images=image, key=None, train=False)
    discriminator = judge.init(key, _seen(section, output))
    return state.replace(
      opt_state={
        "encoder": txs["encoder"].init(state.params),
        "discriminator": txs["discriminator"].init(discriminator),
      },
      extra={
        # Copies, since steps reuse the memory of the state.
        "source": jax.tree.map(jnp.copy, source),
        "discriminator": discriminator,
      },
    )

  streams = two_streams.streams(config, info)
  step = _step(section, trained, judge, txs)
  rate = optimizers.schedule(two_stage.second_optimizer(config), num_steps)
  return Stage("adapt", num_steps, streams, step, enter, rate)


def make(config: Any, info: Info) -> Method:
  """Makes ``adda``, as ``config.adda`` and ``config.two_stage`` say."""
  _check(config.adda)
  trained = networks.create_trained(config, info)
  steps = two_stage.lengths(
    config,
    info,
    two_stage.first_streams(config)["synthetic"],
    two_streams.streams(config, info)["real"],
  )
  tx = optimizers.create(config.optimizer, steps[0])
  rate = optimizers.schedule(config.optimizer, steps[0])

  def init(key, images):
    return trained.init(key, images, tx), None

  return Method(
    stages=(
      two_stage.pretraining(config, info, trained, tx, steps[0], rate),
      _adaptation(config, info, trained, steps[1]),
    ),
    init=init,
    predict=trained.predict,
    model=trained.model,
  )
