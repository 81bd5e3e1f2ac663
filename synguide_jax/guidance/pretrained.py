"""Pretrained guidance: keep the geometry of a pretrained feature space."""

from collections.abc import Callable, Iterable
import functools
import math
import numbers
from typing import Any

import jax
import jax.numpy as jnp

# A row metric: two vectors of one length in, a scalar similarity out.
Metric = Callable[[jax.Array, jax.Array], jax.Array]

# The built-in metrics are written for one pair of rows and mapped over both by
# `jax.vmap`: whatever depends on one row alone (its norm) is computed once per
# row, and the inner products of all pairs become a single matrix product.


def _dot(x: jax.Array, y: jax.Array) -> jax.Array:
  # The default precision of accelerators (TF32, bfloat16) has errors as large
  # as the differences between similarities that the loss is about.
  return jnp.dot(x, y, precision=jax.lax.Precision.HIGHEST)


def _normalize(x: jax.Array) -> jax.Array:
  # A zero row has no direction: it is similar to nothing and gets no gradient.
  # The inner `where` keeps the unused branch from producing 0 * inf = NaN. An
  # epsilon would be finite too, but its gradient there is 1 / epsilon.
  square = jnp.sum(x * x)
  zero = square == 0
  return jnp.where(zero, 0, x * jax.lax.rsqrt(jnp.where(zero, 1, square)))


def _cosine(x: jax.Array, y: jax.Array) -> jax.Array:
  return _dot(_normalize(x), _normalize(y))


@jax.custom_jvp
def _sqeuclidean(x: jax.Array, y: jax.Array) -> jax.Array:
  # |x|^2 + |y|^2 - 2xy would be one matrix product, but it loses all digits of
  # rows that are close compared with their norms. Under jit XLA fuses this sum
  # into a loop that never stores the differences of all pairs ...
  return -jnp.sum((x - y) ** 2)


@_sqeuclidean.defjvp
def _sqeuclidean_jvp(primals, tangents):
  # ... which its own derivative would do. Products of rows transpose to matrix
  # products; what they cancel is rounding of the size of a row, not its square.
  (x, y), (dx, dy) = primals, tangents
  tangent = _dot(y, dx) - _dot(x, dx) + _dot(x, dy) - _dot(y, dy)
  return _sqeuclidean(x, y), 2 * tangent


def _euclidean(x: jax.Array, y: jax.Array) -> jax.Array:
  square = -_sqeuclidean(x, y)
  zero = square == 0
  return -jnp.where(zero, 0, jnp.sqrt(jnp.where(zero, 1, square)))


_METRICS: dict[str, Metric] = {
  "cosine": _cosine,
  "dot": _dot,
  "euclidean": _euclidean,
  "sqeuclidean": _sqeuclidean,
}
_SIMILARITIES = ("kl", "l1", "l2", "js")
_REDUCTIONS = ("batchmean", "elementmean", "sum")
_DIRECTIONS = ("pretrained_to_trained", "trained_to_pretrained")

# Of larger batches (N above 2,048) the loss sees this many pairs at a time. Up
# to seven arrays of this size, 16 MiB in float32, are alive at once.
_PAIRS_AT_ONCE = 2**22


def _check_option(name: str, value: Any, known: Iterable[str]) -> None:
  if not isinstance(value, str) or value not in known:
    raise ValueError(
      f"{name} must be one of {', '.join(map(repr, known))}; got {value!r}."
    )


def _as_features(name: str, features: jax.typing.ArrayLike) -> jax.Array:
  """Checks the rank and converts to at least float32."""
  features = jnp.asarray(features)
  if features.ndim != 2:
    raise ValueError(
      f"{name} must have shape [N, D] (pool feature maps first); got shape "
      f"{features.shape}."
    )
  return features.astype(jnp.promote_types(features.dtype, jnp.float32))


def pairwise_similarity(
  features: jax.typing.ArrayLike, metric: str | Metric = "cosine"
) -> jax.Array:
  r"""Similarity of every pair of rows.

  .. math::
    S_{ij} = \delta(x_i, x_j)

  for all :math:`i, j`, the diagonal included. Distances enter negated, so a
  larger value always means closer.

  Args:
    features: Features of a batch, with shape ``[N, D]``. Computed in at least
      float32.
    metric: ``"cosine"`` (all-zero rows have similarity 0 to every row),
      ``"dot"``, ``"euclidean"`` or ``"sqeuclidean"`` (negated distances), or
      any function of two rows, with shape ``[D]`` each, that returns a scalar,
      larger for closer rows. Such a function is also called with twice the
      same row and needs a finite gradient there; ``-jnp.linalg.norm(x - y)``
      has none.

  Returns:
    The similarities, with shape ``[N, N]``, in float32, or float64 for float64
    features.

  Raises:
    ValueError: If ``features`` is not a matrix, ``metric`` is not known, or
      ``metric`` does not return a scalar.

  Examples:
    >>> import jax.numpy as jnp
    >>> from synguide_jax.guidance import pairwise_similarity
    >>> features = jnp.array([[3.0, 0.0], [0.0, 2.0], [0.0, 0.0]])
    >>> pairwise_similarity(features).tolist()
    [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 0.0]]
    >>> pairwise_similarity(features, "sqeuclidean")[0].tolist()
    [-0.0, -13.0, -9.0]
    >>> manhattan = lambda x, y: -jnp.sum(jnp.abs(x - y))
    >>> pairwise_similarity(features, manhattan)[0].tolist()
    [-0.0, -5.0, -3.0]

  .. note::
    Cosine and dot compile to one matrix product at the highest precision. The
    two distances are summed from the differences of rows, since the expanded
    square is wrong for rows that are close together; their gradients are matrix
    products. Under :func:`jax.jit` none of them stores an ``[N, N, D]`` array.
  """
  features = _as_features("features", features)
  if not callable(metric):
    _check_option("metric", metric, _METRICS)
  return _similarities(features, features, metric)


def _similarities(
  rows: jax.Array, columns: jax.Array, metric: str | Metric
) -> jax.Array:
  """Similarity of every row of one matrix and every row of another."""
  metric = metric if callable(metric) else _METRICS[metric]
  one_row = jax.vmap(metric, in_axes=(None, 0))
  similarity = jax.vmap(one_row, in_axes=(0, None))(rows, columns)
  if jnp.ndim(similarity) != 2:
    raise ValueError(
      "metric must return a scalar for two rows of shape [D]; got shape "
      f"{jnp.shape(similarity)[2:]}."
    )
  return similarity


def _loss_of_rows(
  features: jax.Array,
  pretrained_features: jax.Array,
  temperature: jax.typing.ArrayLike,
  where: jax.Array | None,
  block: jax.typing.ArrayLike,
  blocks: int,
  options: tuple[str, str | Metric, str],
) -> jax.Array:
  """Sums the loss over the rows ``block``, ``block + blocks``, and so on.

  Blocks are not contiguous: of a batch sharded over devices, each of these has
  a share of every block, and none waits for the others.
  """
  similarity, metric, direction = options

  def rows_of(array):
    if blocks == 1:
      return array
    array = array.reshape(-1, blocks, *array.shape[1:])
    return jax.lax.dynamic_index_in_dim(array, block, axis=1, keepdims=False)

  # In two dimensions from the start: of a sharded batch, each device knows the
  # numbers of its own pairs.
  n = features.shape[0]
  row, column = (
    jax.lax.broadcasted_iota(jnp.int32, (n // blocks, n), axis)
    for axis in (0, 1)
  )
  pairs = row * blocks + block != column
  if where is not None:
    pairs &= rows_of(where)[:, None] & where[None, :]

  def similarities(features):
    return _similarities(rows_of(features), features, metric) / temperature

  trained = similarities(features)
  pretrained = similarities(pretrained_features)

  def log_probabilities(scores):
    # A row without a pair keeps its scores: log_softmax needs one. Zeros then
    # take all that is no pair out of the sums below.
    kept = pairs | ~jnp.any(pairs, axis=1, keepdims=True)
    scores = jnp.where(kept, scores, -jnp.inf)
    return jnp.where(pairs, jax.nn.log_softmax(scores), 0)

  def kl(log_p, log_q):
    return jnp.exp(log_p) * (log_p - log_q)

  if similarity == "l1":
    terms = jnp.where(pairs, jnp.abs(pretrained - trained), 0)
  elif similarity == "l2":
    terms = jnp.where(pairs, jnp.square(pretrained - trained), 0)
  else:
    log_p = log_probabilities(pretrained)
    log_q = log_probabilities(trained)
    if similarity == "js":
      log_m = jnp.logaddexp(log_p, log_q) - math.log(2)
      log_m = jnp.where(pairs, log_m, 0)
      terms = (kl(log_p, log_m) + kl(log_q, log_m)) / 2
    elif direction == "pretrained_to_trained":
      terms = kl(log_p, log_q)
    else:
      terms = kl(log_q, log_p)
  return jnp.sum(terms)


# Reverse mode through a loop would keep what every block computed, which is all
# pairs again, or compute it a second time. The gradient of a sum is known block
# by block, so the rule takes it where the value is computed, at the cost of the
# usual two passes, and gives JAX a tangent that transposes to a multiplication.
# A custom rule of reverse mode could do no more, and would forbid forward mode.
@functools.partial(jax.custom_jvp, nondiff_argnums=(4, 5))
def _loss_in_blocks(
  features, pretrained_features, temperature, where, blocks, options
):
  """:func:`_loss_of_rows` over all rows, in memory for one block."""
  arguments = features, pretrained_features, temperature, where

  def add(total, block):
    return total + _loss_of_rows(*arguments, block, blocks, options), None

  zero = jnp.zeros_like(temperature)
  return jax.lax.scan(add, zero, jnp.arange(blocks))[0]


@_loss_in_blocks.defjvp
def _loss_in_blocks_jvp(blocks, options, primals, tangents):
  features, _, temperature, _ = primals
  # The pretrained features get no gradient.
  features_tangent, _, temperature_tangent, _ = tangents
  of_block = jax.value_and_grad(_loss_of_rows, argnums=(0, 2))

  # Derivatives of this derivative compute the block again.
  @functools.partial(jax.checkpoint, prevent_cse=False)
  def add(total, block):
    found = of_block(*primals, block, blocks, options)
    return jax.tree.map(jnp.add, total, found), None

  zero = jnp.zeros_like(temperature)
  zeros = zero, (jnp.zeros_like(features), zero)
  (value, gradients), _ = jax.lax.scan(add, zeros, jnp.arange(blocks))
  tangent = jnp.sum(gradients[0] * features_tangent)
  return value, tangent + gradients[1] * temperature_tangent


# Outside of jit a loop would be compiled for each call.
@functools.partial(jax.jit, static_argnums=(4, 5))
def _loss_of_large_batch(
  features, pretrained_features, temperature, where, blocks, options
):
  similarity, metric, direction = options
  n = features.shape[0]
  if missing := -n % blocks:
    where = jnp.ones(n, bool) if where is None else where
    features, pretrained_features = (
      jnp.pad(array, ((0, missing), (0, 0)), constant_values=1)
      for array in (features, pretrained_features)
    )
    where = jnp.pad(where, (0, missing))
  if metric == "cosine":
    # Once, instead of in each block.
    features = jax.vmap(_normalize)(features)
    pretrained_features = jax.vmap(_normalize)(pretrained_features)
    metric = "dot"
  # Like the features also in what it varies over, inside of a shard_map: a loop
  # needs this of what it sums, and gradients would be summed over devices.
  temperature = jnp.full_like(features[0, 0], temperature)
  return _loss_in_blocks(
    features,
    pretrained_features,
    temperature,
    where,
    blocks,
    (similarity, metric, direction),
  )


def pretrained_guidance_loss(
  features: jax.typing.ArrayLike,
  pretrained_features: jax.typing.ArrayLike,
  similarity: str = "kl",
  metric: str | Metric = "cosine",
  reduction: str = "batchmean",
  direction: str = "pretrained_to_trained",
  temperature: jax.typing.ArrayLike = 1.0,
  where: jax.typing.ArrayLike | None = None,
) -> jax.Array:
  r"""Pretrained guidance: match the pairwise similarities of a frozen network.

  With :math:`S_{ij}` and :math:`\hat S_{ij}` the similarities
  (:func:`pairwise_similarity`) of rows :math:`i \neq j` in the trained and in
  the pretrained feature space, divided by the temperature :math:`\tau`, the
  loss is the sum over the rows :math:`i` of

  .. math::
    \begin{aligned}
    \text{kl:}\quad & \sum_{j \neq i} \hat P_{ij}
      \left(\log \hat P_{ij} - \log P_{ij}\right) \\
    \text{js:}\quad & \tfrac{1}{2} KL(\hat P_i \,\|\, M_i)
      + \tfrac{1}{2} KL(P_i \,\|\, M_i),
      \quad M_i = \tfrac{1}{2} (\hat P_i + P_i) \\
    \text{l1:}\quad & \sum_{j \neq i} |\hat S_{ij} - S_{ij}| \\
    \text{l2:}\quad & \sum_{j \neq i} (\hat S_{ij} - S_{ij})^2
    \end{aligned}

  where :math:`P_i = \mathrm{softmax}_{j \neq i}(S_{ij})`, likewise
  :math:`\hat P_i`. Only distances within a batch are compared, so the two
  feature spaces need not have the same width, and with the cosine metric the
  loss is zero for features that are equal up to scale and rotation.

  Args:
    features: Features of the trained network, with shape ``[N, D]``, pooled to
      one row per image.
    pretrained_features: Features of the frozen network for the same images,
      with shape ``[N, E]``. They receive no gradient.
    similarity: How the two spaces are compared: ``"kl"``, ``"js"`` (both in
      nats), ``"l1"`` or ``"l2"`` (the square, without a root).
    metric: Similarity of two rows, see :func:`pairwise_similarity`.
    reduction: ``"batchmean"`` divides the sum by the number of rows,
      ``"elementmean"`` by the number of pairs ``N * (N - 1)``, ``"sum"`` by
      nothing. The three differ by orders of magnitude, and with them the
      weight that the loss needs.
    direction: For ``"kl"``, ``"pretrained_to_trained"`` is
      :math:`KL(\hat P \| P)` and ``"trained_to_pretrained"`` is
      :math:`KL(P \| \hat P)`. The other similarities are symmetric.
    temperature: Positive, without a unit. Divides the similarities of both
      spaces, for every ``similarity``: it flattens (above 1) or sharpens
      (below 1) the distributions of kl and js, and scales l1 by its inverse
      and l2 by the square of it. The loss is not multiplied by
      :math:`\tau^2` in compensation, as distillation losses often are.
    where: Rows to use, booleans with shape ``[N]``; all if ``None``. The loss
      is that of the selected rows alone, also in what ``reduction`` divides
      by. Fewer than two selected rows give 0.

  Returns:
    The loss, a scalar in float32, or float64 for float64 features.

  Raises:
    ValueError: For an unknown option, a temperature that is not positive and
      finite (Python numbers only), fewer than two rows, or shapes that do not
      fit.

  Examples:
    >>> import jax
    >>> import jax.numpy as jnp
    >>> from synguide_jax.guidance import pretrained_guidance_loss
    >>> pretrained_features = jnp.array([[1.0, 0, 0], [1, 1, 0], [0, 1, 1]])
    >>> features = jnp.array([[1.0, 0.0], [1.0, 1.0], [-1.0, 1.0]])
    >>> loss = pretrained_guidance_loss(features, pretrained_features)
    >>> print(f"{loss:.4f}")
    0.0284

    Only two of the rows, as for the real half of a mixed batch, with squared
    differences of similarities:

    >>> loss = pretrained_guidance_loss(
    ...   features,
    ...   pretrained_features,
    ...   similarity="l2",
    ...   where=jnp.array([True, False, True]),
    ... )
    >>> print(f"{loss:.4f}")
    0.5000

    The gradient reaches the trained features only:

    >>> gradient = jax.grad(pretrained_guidance_loss, argnums=1)(
    ...   features, pretrained_features
    ... )
    >>> bool(jnp.any(gradient))
    False

  References:
    Wang et al., `Improving the Effectiveness of Deep Generative Data
    <https://arxiv.org/abs/2311.03959>`_, 2024

    Ojha et al., `Few-shot Image Generation via Cross-domain Correspondence
    <https://arxiv.org/abs/2104.06820>`_, 2021

  .. note::
    Zero rows, coincident rows and half-precision features have finite values
    and gradients. A row that ``where`` leaves out has no influence, even if it
    is not finite; a selected one that is not finite makes the loss so.

  .. note::
    Under :func:`jax.jit` a batch sharded over devices is one batch: all of its
    pairs are compared, and the value does not depend on the mesh.

  .. note::
    Time is quadratic in ``N``. Memory is so up to ``N`` = 2,048, or with a
    metric of your own; beyond that the rows are taken in blocks, whose number
    is a power of two, and the gradient is computed with the value, in the same
    time as without blocks (second derivatives compute each block again). Of a
    sharded batch each device has its share of every block; about as much is
    sent between devices as without blocks, in more and smaller pieces. Where
    devices and blocks together do not divide ``N``, XLA may move rows to other
    devices first.
  """
  _check_option("similarity", similarity, _SIMILARITIES)
  _check_option("reduction", reduction, _REDUCTIONS)
  _check_option("direction", direction, _DIRECTIONS)
  if not callable(metric):
    _check_option("metric", metric, _METRICS)
  # Arrays may be tracers, whose values are not known.
  if isinstance(temperature, numbers.Real) and not 0 < temperature < math.inf:
    raise ValueError(
      f"temperature must be positive and finite; got {temperature}."
    )
  features = _as_features("features", features)
  pretrained_features = jax.lax.stop_gradient(
    _as_features("pretrained_features", pretrained_features)
  )
  n = features.shape[0]
  if pretrained_features.shape[0] != n:
    raise ValueError(
      "features and pretrained_features must have one row per image each; got "
      f"{n} and {pretrained_features.shape[0]} rows."
    )
  if n < 2:
    raise ValueError(f"The loss compares pairs of rows; got {n} row(s).")

  count = n
  if where is not None:
    where = jnp.asarray(where)
    if where.shape != (n,) or where.dtype != bool:
      raise ValueError(
        f"where must be boolean with shape ({n},); got {where.dtype} with "
        f"shape {where.shape}."
      )
    count = jnp.maximum(jnp.sum(where), 2)
    # Masking the result alone would let 0 * NaN into the gradient. Ones, since
    # a user's metric may divide by the norm.
    features = jnp.where(where[:, None], features, 1)
    pretrained_features = jnp.where(where[:, None], pretrained_features, 1)

  arguments = features, pretrained_features, temperature, where
  options = similarity, metric, direction
  # A power of two divides most batches, and what devices have of them.
  blocks = 1
  while n * n > blocks * _PAIRS_AT_ONCE:
    blocks *= 2
  if blocks == 1 or callable(metric):
    # A user's metric may depend on arrays that it does not take.
    loss = _loss_of_rows(*arguments, 0, 1, options)
  else:
    loss = _loss_of_large_batch(*arguments, blocks, options)

  divisor = {
    "batchmean": count,
    "elementmean": count * (count - 1),
    "sum": 1,
  }[reduction]
  return loss / divisor
