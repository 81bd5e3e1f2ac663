r"""Long-tailed recognition as domain adaptation (Jamal et al., CVPR 2020).

After training on synthetic images alone, every image i of a training batch of
B gets the weight of its class, for which n images are at hand (Cui et al., CVPR
2019), and a conditional weight :math:`\epsilon_i` of its own, learnt anew in
each step from development images, real ones of all classes alike. With
:math:`\ell_i` the cross entropies and :math:`L_d` their mean over the
development batch,

.. math::
  w_c &\propto (1 - \beta) / (1 - \beta^{n_c}), \quad \sum_c w_c = K \\
  \tilde\theta(\epsilon) &= \theta - \eta \nabla
    \sum_i (w_{y_i} + \epsilon_i) \ell_i(\theta) \\
  \epsilon_i &= -\tau \left. \frac{\partial L_d(\tilde\theta(\epsilon))}
    {\partial \epsilon_i} \right|_{\epsilon = 0}
    = \tau \eta \, \nabla L_d(\tilde\theta(0)) \cdot \nabla \ell_i(\theta)

and the optimiser descends the mean of :math:`(w_{y_i} + \epsilon_i)
\ell_i(\theta)`. The virtual step :math:`\tilde\theta` is plain gradient descent
whatever the optimiser, and linear in :math:`\epsilon`, so that one directional
derivative of the losses gives all :math:`\epsilon_i`. A step takes 3.3 times
the operations of one that descends the cross entropy.

Jamal et al., `Rethinking Class-Balanced Methods for Long-Tailed Visual
Recognition from a Domain Adaptation Perspective
<https://arxiv.org/abs/2003.10780>`_, CVPR 2020; Cui et al., `Class-Balanced
Loss Based on Effective Number of Samples <https://arxiv.org/abs/1901.05555>`_,
CVPR 2019. The equations are those of the official code
(abdullahjamal/Longtail_DA), whose virtual step takes the sum of the losses, B
times the mean that the step itself takes (``ltda.inner_reduction``). As there,
weights may become negative, all forward passes use their batch's statistics,
and the running ones see only the training batch. That code holds development
images out of the training set; here they are the real images, also where the
training images are real or both. In its first stage it descends the cross
entropy of the same training set, here of synthetic images (Wang et al., WACV
2024).
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from synguide_jax.data.feed import SETS
from synguide_jax.errors import check_known, check_section, UserError
from synguide_jax.methods import networks, two_stage
from synguide_jax.methods.base import Batch, Info, Method, Stage, StepFn, Stream

_REDUCTIONS = ("sum", "mean")


def class_balanced_weights(
  counts: Sequence[int] | np.ndarray, beta: float
) -> np.ndarray:
  r"""Weights that even out how often classes are seen.

  .. math:: w_c \propto (1 - \beta) / (1 - \beta^{n_c}), \quad \sum_c w_c = K

  Args:
    counts: Images of each class, ``[K]``. A class without any has weight 0.
    beta: In [0, 1); with 0 all classes weigh the same, towards 1 each weighs in
      inverse proportion to its images.

  Returns:
    The weights, float64 ``[K]``.

  Raises:
    UserError: for a ``beta`` out of range, or if no class has an image.

  Example:
    >>> class_balanced_weights([30, 30, 0], beta=0.9999).tolist()
    [1.5, 1.5, 0.0]
  """
  if not 0 <= beta < 1:
    raise UserError(f"ltda.beta={beta} must be at least 0 and below 1.")
  counts = np.asarray(counts, np.float64)
  if not counts.any():
    raise UserError(f"counts={counts.tolist()}: no class has an image.")
  # At least 1 for a class that has images.
  effective = (1 - np.power(beta, counts)) / (1 - beta)
  weights = np.where(counts > 0, 1 / np.maximum(effective, 1), 0)
  return weights * len(counts) / weights.sum()


def conditional_weights(
  losses_fn: Callable[[Any], jax.Array],
  dev_loss_fn: Callable[[Any], jax.Array],
  params: Any,
  weights: jax.Array,
  *,
  inner_rate: jax.typing.ArrayLike,
  example_rate: jax.typing.ArrayLike,
  inner_reduction: str = "sum",
) -> tuple[jax.Array, jax.Array]:
  r"""What to add to examples' weights, to do better on development images.

  .. math::
    \tilde\theta &= \theta - \eta \sum_i w_i \nabla \ell_i(\theta) \\
    \epsilon_i &= \tau \eta \, \nabla L_d(\tilde\theta) \cdot
      \nabla \ell_i(\theta)

  which is a step of :math:`-\tau \, \partial L_d / \partial \epsilon_i` from
  0; with ``"mean"``, both sums are divided by B.

  Args:
    losses_fn: ``params -> losses`` of the training examples, ``[B]``.
    dev_loss_fn: ``params -> loss`` of the development examples, a scalar.
    params: Parameters, a pytree.
    weights: The examples' weights so far, ``[B]``.
    inner_rate: Learning rate of the virtual step, :math:`\eta`.
    example_rate: Step of the weights, :math:`\tau`.
    inner_reduction: Of the losses in the virtual step, ``"sum"`` or
      ``"mean"``.

  Returns:
    The conditional weights, ``[B]``, and the development loss at the virtual
    parameters. Both are constants to differentiation.

  Raises:
    UserError: for an unknown ``inner_reduction``.

  Example:
    >>> epsilon, dev_loss = conditional_weights(
    ...   lambda w: w * jnp.array([1.0, -1.0]),  # losses whose gradients differ
    ...   lambda w: w**2,
    ...   jnp.array(2.0),
    ...   jnp.array([1.0, 0.0]),
    ...   inner_rate=1.0,
    ...   example_rate=0.5,
    ... )
    >>> epsilon.tolist(), float(dev_loss)
    ([1.0, -1.0], 1.0)
  """
  check_known("ltda.inner_reduction", inner_reduction, _REDUCTIONS)
  rate = inner_rate / (len(weights) if inner_reduction == "mean" else 1)
  _, pullback = jax.vjp(losses_fn, params)
  (grads,) = pullback(weights)
  virtual = jax.tree.map(lambda p, g: p - rate * g, params, grads)
  dev_loss, direction = jax.value_and_grad(dev_loss_fn)(virtual)
  _, changes = jax.jvp(losses_fn, (params,), (direction,))
  return jax.lax.stop_gradient((example_rate * rate * changes, dev_loss))


def _class_weights(section: Any, info: Info) -> np.ndarray:
  both = section.train_on == "mixed"
  names = ("real", "synthetic") if both else (section.train_on,)
  counts = sum(np.asarray(info.class_counts[name]) for name in names)
  return class_balanced_weights(counts, section.beta)


def _inner_rate(config: Any, steps: tuple[int, int]) -> optax.Schedule:
  """The virtual step's learning rate, by the step of the second stage."""
  if config.ltda.inner_rate:
    return optax.constant_schedule(config.ltda.inner_rate)
  return two_stage.rates_of(config, steps)[1]


def _adapt(
  config: Any,
  trained: networks.Trained,
  tx: optax.GradientTransformation,
  class_weights: np.ndarray,
  steps: tuple[int, int],
) -> StepFn:
  """Makes the second stage's step."""
  section = config.ltda
  rate = _inner_rate(config, steps)

  def step(state, frozen, batches, key, progress):
    del frozen
    train: Batch = batches["train"]
    train_key, dev_key = jax.random.split(key)

    # With one key, so that all derivatives are of the same losses.
    def losses_fn(params):
      output = trained.apply(params, state.batch_stats, train.images, train_key)
      losses = optax.softmax_cross_entropy_with_integer_labels(
        output.logits, train.labels
      )
      return losses, output

    def dev_loss_fn(params):
      dev: Batch = batches["dev"]
      output = trained.apply(params, state.batch_stats, dev.images, dev_key)
      return networks.cross_entropy(output.logits, dev)

    weights = jnp.asarray(class_weights, jnp.float32)[train.labels]
    epsilon, dev_loss = conditional_weights(
      lambda params: losses_fn(params)[0],
      dev_loss_fn,
      state.params,
      weights,
      inner_rate=rate(jnp.round(progress * steps[1]).astype(jnp.int32)),
      example_rate=section.example_rate,
      inner_reduction=section.inner_reduction,
    )
    weights += epsilon

    def loss_fn(params):
      losses, output = losses_fn(params)
      return (weights * losses).mean(), output

    (loss, output), grads = jax.value_and_grad(loss_fn, has_aux=True)(
      state.params
    )
    updates, opt_state = tx.update(grads, state.opt_state, state.params)
    state = state.replace(
      params=optax.apply_updates(state.params, updates),
      batch_stats=output.batch_stats,
      opt_state=opt_state,
    )
    return state, {
      "loss": loss,
      "dev_loss": dev_loss,
      "train_accuracy": networks.accuracy(output.logits, train),
      "example_weight_mean": weights.mean(),
      "example_weight_std": weights.std(),
      "example_weight_change": jnp.abs(epsilon).mean(),
    }

  return step


def make(config: Any, info: Info) -> Method:
  """Makes ``ltda``."""
  section = config.ltda
  check_section(
    "ltda",
    section,
    {"train_on": SETS, "inner_reduction": _REDUCTIONS},
    numbers=("dev_batch_size", "example_rate", "inner_rate"),
  )
  dev_size = section.dev_batch_size or config.batch_size
  streams = {
    "train": Stream(section.train_on, config.batch_size),
    "dev": Stream("real", dev_size, "balanced"),
  }
  networks.check_streams(config, info, streams)
  first = two_stage.first_streams(config)["synthetic"]
  steps = two_stage.lengths(config, info, first, streams["train"])
  trained = networks.create_trained(config, info)
  before, after = two_stage.optimizers_of(config, steps)
  rates = two_stage.rates_of(config, steps)
  class_weights = _class_weights(section, info)

  def init(key, images):
    return trained.init(key, images, before), None

  return Method(
    stages=(
      two_stage.pretraining(config, info, trained, before, steps[0], rates[0]),
      Stage(
        "adapt",
        steps[1],
        streams,
        _adapt(config, trained, after, class_weights, steps),
        two_stage.enter_with(config, after),
        rates[1],
      ),
    ),
    init=init,
    predict=trained.predict,
    model=trained.model,
  )
