"""Real guidance: synthetic gradients that never oppose the real ones."""

import math
import numbers
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax


class RealGuidanceState(NamedTuple):
  """State of :func:`real_guidance`: what the last step looked like, to log it.

  Attributes:
    cosine: Cosine between the synthetic and the real gradient, float32 scalar;
      0 where one of them is zero, NaN where one of them is not finite.
    conflict: Whether the synthetic gradient was projected, boolean scalar.
  """

  cosine: jax.typing.ArrayLike
  conflict: jax.typing.ArrayLike


def _check_same_trees(
  updates: optax.Updates, real_grads: optax.Updates
) -> None:
  """Raises a ValueError that names the first difference."""
  expected = jax.tree.structure(updates)
  actual = jax.tree.structure(real_grads)
  if actual != expected:
    raise ValueError(
      "real_grads must have the tree structure of the synthetic gradients; got "
      f"{actual} and {expected}. Inside optax.masked or optax.partition, pass "
      "mask_compatible_extra_args=True to it."
    )
  synthetic_leaves = jax.tree_util.tree_leaves_with_path(updates)
  for (path, synthetic), real in zip(
    synthetic_leaves, jax.tree.leaves(real_grads), strict=True
  ):
    if jnp.shape(real) != jnp.shape(synthetic):
      raise ValueError(
        "real_grads must have the shapes of the synthetic gradients; got "
        f"{jnp.shape(real)} and {jnp.shape(synthetic)} at "
        f"'{jax.tree_util.keystr(path)}'."
      )


def _power_of_two(tree: optax.Updates) -> jax.Array:
  """The power of two next below the largest magnitude in the tree.

  Dividing by it is exact, and the squares of the quotients neither overflow nor
  vanish altogether.
  """
  magnitudes = jax.tree.map(lambda x: jnp.max(jnp.abs(x), initial=0), tree)
  largest = jnp.asarray(jax.tree.reduce(jnp.maximum, magnitudes, 0.0))
  _, exponent = jnp.frexp(largest)
  # Some hardware takes subnormal numbers for zero, which cannot divide.
  smallest = jnp.finfo(largest.dtype).minexp
  return jnp.ldexp(jnp.ones_like(largest), jnp.maximum(exponent - 1, smallest))


def _dot(a: optax.Updates, b: optax.Updates) -> jax.Array:
  # Not `jnp.vdot`: it flattens, which gathers sharded leaves, and its default
  # precision on accelerators is below float32.
  products = jax.tree.map(lambda x, y: jnp.sum(jnp.real(x * jnp.conj(y))), a, b)
  return jnp.asarray(jax.tree.reduce(jnp.add, products, 0.0))


def _safe_divide(x: jax.Array, y: jax.Array) -> jax.Array:
  # Guards the divisor, not the result: a NaN must stay a NaN.
  return x / jnp.where(y == 0, 1, y)


def real_guidance(
  real_weight: jax.typing.ArrayLike = 1.0,
  synthetic_weight: jax.typing.ArrayLike = 1.0,
) -> optax.GradientTransformationExtraArgs:
  r"""Removes from synthetic gradients what opposes the real gradient.

  With :math:`g_f` the gradient of the loss on synthetic data and :math:`g_r`
  that on real data, the update is

  .. math::
    g = \lambda_1 g_r + \lambda_2 \tilde g_f, \qquad
    \tilde g_f = \begin{cases}
      g_f - \dfrac{g_f \cdot g_r}{g_r \cdot g_r} g_r
        & \text{if } g_f \cdot g_r < 0 \\
      g_f & \text{otherwise}
    \end{cases}

  so a descent step along :math:`\tilde g_f` does not increase the loss on the
  real data to first order. The products run over all parameters at once, never
  leaf by leaf, and are accumulated in float32 (float64 for float64 leaves). A
  zero real gradient leaves the synthetic one alone.

  The updates passed to ``update`` are the synthetic gradients; the real ones
  are the required keyword argument ``real_grads``, a tree with the same
  structure and shapes. ``init`` and the optional ``params`` are as ever.

  Args:
    real_weight: :math:`\lambda_1`, a nonnegative scalar without a unit.
    synthetic_weight: :math:`\lambda_2`, likewise. Schedules for both go through
      :func:`optax.inject_hyperparams`.

  Returns:
    A :class:`optax.GradientTransformationExtraArgs` object with state
    :class:`RealGuidanceState`. Its updates have the dtypes of the synthetic
    gradients.

  Raises:
    ValueError: If a weight is negative or not finite, or both are zero (Python
      numbers only). By ``update``, if the two trees do not match.

  Examples:
    >>> import jax.numpy as jnp
    >>> import optax
    >>> from synguide_jax.guidance import real_guidance
    >>> tx = optax.chain(real_guidance(), optax.sgd(0.5))
    >>> params = jnp.zeros(2)
    >>> opt_state = tx.init(params)
    >>> synthetic_grads = jnp.array([2.0, -1.0])
    >>> real_grads = jnp.array([0.0, 3.0])
    >>> updates, opt_state = tx.update(
    ...   synthetic_grads, opt_state, params, real_grads=real_grads
    ... )
    >>> updates.tolist()  # -0.5 * ([0, 3] + [2, 0])
    [-1.0, -1.5]
    >>> bool(optax.tree.get(opt_state, "conflict"))
    True
    >>> print(f"{optax.tree.get(opt_state, 'cosine'):.4f}")
    -0.4472

  References:
    Wang et al., `Improving the Effectiveness of Deep Generative Data
    <https://arxiv.org/abs/2311.03959>`_, 2024

  .. note::
    It comes first in a chain: what clips, normalizes or averages gradients is
    meant to see the combined one. Inside of :func:`optax.masked` and
    :func:`optax.partition` pass ``mask_compatible_extra_args=True`` to these.

  .. note::
    If either gradient is not finite, neither are the updates, whatever the
    weights. :func:`optax.apply_if_finite` looks at the updates that it is
    given, so it belongs behind this transform; around it, it would not see
    ``real_grads``.

  .. note::
    Under :func:`jax.jit` gradients are global arrays, so the products are right
    on any mesh. Under :func:`jax.shard_map`, average both gradients over the
    devices first.

  .. note::
    Not the "real guidance" of He et al., `Is Synthetic Data from Generative
    Models Ready for Image Recognition? <https://arxiv.org/abs/2210.07574>`_,
    2022, which starts the sampling of images from noised real ones.

  .. seealso::
    :func:`a_gem` and, for gradient accumulation, :func:`guided_multi_steps`;
    :class:`optax.MultiSteps` would average the synthetic gradients only.
  """
  # Arrays may be tracers, whose values are not known.
  weights = {"real_weight": real_weight, "synthetic_weight": synthetic_weight}
  for name, weight in weights.items():
    if isinstance(weight, numbers.Real) and not 0 <= weight < math.inf:
      raise ValueError(f"{name} must be nonnegative and finite; got {weight}.")
  if all(isinstance(w, numbers.Real) and w == 0 for w in weights.values()):
    raise ValueError("real_weight and synthetic_weight must not both be 0.")

  def init_fn(params):
    del params
    return RealGuidanceState(
      cosine=jnp.zeros([], jnp.float32), conflict=jnp.zeros([], bool)
    )

  def update_fn(updates, state, params=None, *, real_grads, **extra_args):
    del state, params, extra_args
    _check_same_trees(updates, real_grads)
    grads = (updates, real_grads)
    dtype = jnp.result_type(jnp.float32, *jax.tree.leaves(grads))
    grads = jax.tree.map(lambda x: jnp.asarray(x, dtype), grads)
    scales = [_power_of_two(tree) for tree in grads]
    synthetic, real = (
      jax.tree.map(lambda x, s=scale: x / s, tree)
      for tree, scale in zip(grads, scales, strict=True)
    )
    dot, real_square = _dot(synthetic, real), _dot(real, real)
    norms = jnp.sqrt(real_square) * jnp.sqrt(_dot(synthetic, synthetic))
    # Unlike a `where` on the sign, `minimum` passes NaN on.
    opposing = scales[0] * jnp.minimum(_safe_divide(dot, real_square), 0)

    def combine(update, synthetic_grad, real_grad, unit_real_grad):
      projected = synthetic_grad - opposing * unit_real_grad
      combined = real_weight * real_grad + synthetic_weight * projected
      return combined.astype(jnp.result_type(update))

    updates = jax.tree.map(combine, updates, *grads, real)
    return updates, RealGuidanceState(
      cosine=_safe_divide(dot, norms).astype(jnp.float32), conflict=dot < 0
    )

  return optax.GradientTransformationExtraArgs(init_fn, update_fn)


def a_gem() -> optax.GradientTransformationExtraArgs:
  r"""Averaged gradient episodic memory: the real gradient only constrains.

  The same as ``real_guidance(real_weight=0.0, synthetic_weight=1.0)``: the
  projected synthetic gradient is the update, with the real data in the place of
  the episodic memory.

  .. math::
    g = \begin{cases}
      g_f - \dfrac{g_f \cdot g_r}{g_r \cdot g_r} g_r
        & \text{if } g_f \cdot g_r < 0 \\
      g_f & \text{otherwise}
    \end{cases}

  Returns:
    A :class:`optax.GradientTransformationExtraArgs` object with state
    :class:`RealGuidanceState`; see :func:`real_guidance` for the arguments of
    its ``update``.

  Examples:
    >>> import jax.numpy as jnp
    >>> from synguide_jax.guidance import a_gem
    >>> tx = a_gem()
    >>> synthetic_grads = jnp.array([2.0, -1.0])
    >>> state = tx.init(synthetic_grads)
    >>> real_grads = jnp.array([0.0, 3.0])
    >>> updates, state = tx.update(
    ...   synthetic_grads, state, real_grads=real_grads
    ... )
    >>> updates.tolist()
    [2.0, 0.0]

  References:
    Chaudhry et al., `Efficient Lifelong Learning with A-GEM
    <https://arxiv.org/abs/1812.00420>`_, 2019
  """
  return real_guidance(real_weight=0.0, synthetic_weight=1.0)


class GuidedMultiStepsState(NamedTuple):
  """State of :func:`guided_multi_steps`.

  Attributes:
    mini_step: Number of gradient pairs in the averages, int32 scalar; 0 right
      after an update.
    inner_state: State of the wrapped transformation.
    synthetic_grads: Average of the synthetic gradients so far.
    real_grads: Average of the real gradients so far.
  """

  mini_step: jax.typing.ArrayLike
  inner_state: optax.OptState
  synthetic_grads: optax.Updates
  real_grads: optax.Updates


def guided_multi_steps(
  tx: optax.GradientTransformation,
  every_k: int,
  accumulator_dtype: jax.typing.DTypeLike | None = None,
) -> optax.GradientTransformationExtraArgs:
  r"""Averages synthetic and real gradients over mini-steps, then guides.

  .. math::
    \text{tx}\left(\frac{1}{k} \sum_{m=1}^{k} g_f^{(m)},
      \; \frac{1}{k} \sum_{m=1}^{k} g_r^{(m)}\right)

  in every :math:`k`-th call; the calls between return zero updates and leave
  the state of ``tx``, with its schedules and moments, alone. With batches of
  equal size this is the step of a batch :math:`k` times as large, for losses
  that are means over images. :func:`pretrained_guidance_loss` is not: it
  compares the pairs within each of the smaller batches.

  :class:`optax.MultiSteps` must not be used around :func:`real_guidance`: it
  averages the updates but hands on the keyword arguments of the last mini-step,
  so it projects with the wrong real gradient, without an error.

  Args:
    tx: The whole optimizer, :func:`real_guidance` included.
    every_k: Number :math:`k` of mini-steps in a step.
    accumulator_dtype: Dtype of the averages that are kept between calls; by
      default those of the parameters, at least float32. They take the memory of
      twice the parameters.

  Returns:
    A :class:`optax.GradientTransformationExtraArgs` object with state
    :class:`GuidedMultiStepsState`, whose ``update`` takes ``real_grads`` as
    that of :func:`real_guidance` does. Other keyword arguments reach ``tx`` as
    they are in the last mini-step.

  Raises:
    ValueError: If ``every_k`` is not a positive integer. By ``update``, if the
      two trees do not match.

  Examples:
    >>> import jax.numpy as jnp
    >>> import optax
    >>> from synguide_jax.guidance import guided_multi_steps, real_guidance
    >>> tx = optax.chain(real_guidance(), optax.sgd(1.0))
    >>> tx = guided_multi_steps(tx, every_k=2)
    >>> params = jnp.zeros(2)
    >>> opt_state = tx.init(params)
    >>> synthetic_grads = jnp.array([2.0, -1.0])
    >>> for real_grads in (jnp.array([0.0, 6.0]), jnp.array([0.0, 0.0])):
    ...   updates, opt_state = tx.update(
    ...     synthetic_grads, opt_state, params, real_grads=real_grads
    ...   )
    ...   print(updates.tolist())
    [0.0, 0.0]
    [-2.0, -3.0]

  .. note::
    A gradient that is not finite makes the averages, and so the update of this
    step, not finite; the next step starts afresh.
  """
  if isinstance(every_k, bool) or not isinstance(every_k, numbers.Integral):
    raise ValueError(f"every_k must be an integer; got {every_k!r}.")
  if every_k < 1:
    raise ValueError(f"every_k must be at least 1; got {every_k}.")
  tx = optax.with_extra_args_support(tx)

  def zero(x):
    dtype = accumulator_dtype or jnp.result_type(jnp.float32, x)
    return jnp.zeros_like(x, dtype=dtype)

  def init_fn(params):
    return GuidedMultiStepsState(
      mini_step=jnp.zeros([], jnp.int32),
      inner_state=tx.init(params),
      # Two trees, not one twice: jit cannot donate a buffer twice.
      synthetic_grads=jax.tree.map(zero, params),
      real_grads=jax.tree.map(zero, params),
    )

  def update_fn(updates, state, params=None, *, real_grads, **extra_args):
    _check_same_trees(updates, real_grads)
    grads = (updates, real_grads)
    # A float32 count has bfloat16 gradients averaged in float32.
    count = (state.mini_step + 1).astype(jnp.float32)
    averages = jax.tree.map(
      lambda average, x: average + (x - average) / count,
      (state.synthetic_grads, state.real_grads),
      grads,
    )

    def emit():
      synthetic, real = optax.tree.cast_like(averages, grads)
      new_updates, inner_state = tx.update(
        synthetic, state.inner_state, params, real_grads=real, **extra_args
      )
      return new_updates, GuidedMultiStepsState(
        jnp.zeros_like(state.mini_step),
        inner_state,
        optax.tree.zeros_like(state.synthetic_grads),
        optax.tree.zeros_like(state.real_grads),
      )

    def wait():
      shapes, _ = jax.eval_shape(emit)
      return optax.tree.zeros_like(shapes), GuidedMultiStepsState(
        state.mini_step + 1,
        state.inner_state,
        *optax.tree.cast_like(
          averages, (state.synthetic_grads, state.real_grads)
        ),
      )

    return jax.lax.cond(state.mini_step + 1 == every_k, emit, wait)

  return optax.GradientTransformationExtraArgs(init_fn, update_fn)
