r"""Which rows of two matrices are in each other's balls, decided exactly.

A row's ball is centred at it and reaches to its k-th nearest other row of the
same matrix. Which rows lie in which balls is decided as in float64. To compute
all distances that way takes too long, and in float32

.. math:: |x - y|^2 = |x|^2 + |y|^2 - 2 x \cdot y

loses small distances. So the device computes it in float32, of centred rows, in
blocks, with a bound of its error; the few pairs that this leaves open are
decided on the host, in float64, from the differences of their features. Equal
distances are equal there, so that ``<`` and ``<=`` mean what they say: a copy
of a row has the distances of that row.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import tqdm

BLOCK = 2048
LARGEST = 1e15  # feature, whose squares add up in float32
_SMALLEST_BLOCK = 256  # so that sets of all sizes share few programs
_ROUNDOFF = 2.0**-24  # of float32
# Neighbours that are looked at in float64 beyond the k nearest, which float32
# may have in another order.
_SPARE = 5
_AT_ONCE = 1 << 23  # numbers of float64 in memory


class _Block(NamedTuple):
  """Some rows on the device, centred.

  The last of a matrix is filled up, so that one program serves all.

  Attributes:
    first: Number of the first row.
    rows: float32 ``[B, D]``.
    norms: float32 ``[B]``, squared; inf where there is no row.
    limits: float32 ``[B]``, squared radii; -inf where there is no ball.
  """

  first: int
  rows: jax.Array
  norms: jax.Array
  limits: jax.Array


def squared_radii(features: np.ndarray, k: int, block: int) -> np.ndarray:
  """Returns squared distances of rows to their k-th nearest other row.

  Args:
    features: float32 ``[N, D]``, N above k, none above ``LARGEST``.
    k: Number of the neighbour, from 1.
    block: Rows that are compared with as many others at once.

  Returns:
    float64 ``[N]``.
  """
  block, centre = _fitting(block, len(features)), _mean(features)
  keep = k + _SPARE
  nothing = np.full(len(features), -np.inf)
  blocks = _blocks(features, centre, nothing, block)
  squares = np.empty(len(features))
  for x in _seen(blocks):
    best = jnp.full((block, keep), jnp.inf), jnp.zeros((block, keep), jnp.int32)
    for y in blocks:
      best = _closest(best, x, y)
    here = np.arange(x.first, min(x.first + block, len(features)))
    lower, indices = (np.asarray(a)[: len(here)] for a in best)
    squares[here] = _kth(features, here, indices, lower < np.inf, k)
    # All that were not kept are at least as far as the last bound.
    is_open = (squares[here] > lower[:, -1]) & (squares[here] > 0)
    for rows in _split(here[is_open], len(features)):
      indices = _closest_in_float64(features, rows, keep, centre)
      squares[rows] = _kth(features, rows, indices, indices >= 0, k)
  return squares


@jax.jit
def _closest(
  best: tuple[jax.Array, jax.Array], x: _Block, y: _Block
) -> tuple[jax.Array, jax.Array]:
  """Merges rows of y into the nearest others, by the lower bounds.

  Args:
    best: Ascending bounds and indices so far, ``[B, K]``; inf for none.
    x: Rows whose nearest they are.
    y: Rows to merge.

  Returns:
    The new ``best``.
  """
  lower, _ = _bounds(x, y)
  own, numbers = (
    block.first + jnp.arange(len(block.rows), dtype=jnp.int32)
    for block in (x, y)
  )
  lower = jnp.where(own[:, None] == numbers, jnp.inf, lower)
  numbers = jnp.broadcast_to(numbers, lower.shape)
  lower, numbers = (
    jnp.concatenate(pair, axis=1)
    for pair in zip(best, (lower, numbers), strict=True)
  )
  found, places = jax.lax.top_k(-lower, best[0].shape[1])
  return -found, jnp.take_along_axis(numbers, places, axis=1)


def _closest_in_float64(
  features: np.ndarray, rows: np.ndarray, keep: int, centre: np.ndarray
) -> np.ndarray:
  """Returns the nearest others of a few rows, int ``[R, keep]``, unordered."""
  found = np.empty((len(rows), len(features)))
  x = features[rows].astype(np.float64) - centre
  for start in range(0, len(features), BLOCK):
    y = features[start : start + BLOCK].astype(np.float64) - centre
    norms = (x * x).sum(1)[:, None] + (y * y).sum(1)
    found[:, start : start + len(y)] = norms - 2 * x @ y.T
  found[np.arange(len(rows)), rows] = np.inf
  return np.argpartition(found, keep - 1)[:, :keep]


def _kth(
  features: np.ndarray,
  rows: np.ndarray,
  indices: np.ndarray,
  valid: np.ndarray,
  k: int,
) -> np.ndarray:
  """Returns the k-th smallest squared distance of rows to those of indices."""
  pairs = np.repeat(rows, indices.shape[1]), indices.ravel()
  squares = _exact(features, features, *pairs).reshape(indices.shape)
  squares[~valid] = np.inf
  return np.partition(squares, k - 1, axis=1)[:, k - 1]


def count(
  real: np.ndarray,
  synthetic: np.ndarray,
  real_squares: np.ndarray | None,
  synthetic_squares: np.ndarray | None,
  *,
  strict: bool,
  block: int,
) -> tuple[np.ndarray, np.ndarray]:
  """Counts, for each row, the rows of the other set that share a ball with it.

  Args:
    real: float32 ``[N, D]``, none above ``LARGEST``.
    synthetic: Likewise ``[M, D]``.
    real_squares: Squared radii, float64 ``[N]``; None for no balls.
    synthetic_squares: Likewise ``[M]``.
    strict: Whether ``<`` or ``<=`` is to be in a ball.
    block: Rows of each that are compared at once.

  Returns:
    int64 ``[2, N]`` and ``[2, M]``, first for real balls, then for synthetic.
  """
  block = _fitting(block, max(len(real), len(synthetic)))
  centre = _mean(real)
  sets = (real, real_squares), (synthetic, synthetic_squares)
  limits = [
    np.full(len(rows), -np.inf) if squares is None else squares
    for rows, squares in sets
  ]
  counts = tuple(np.zeros((2, len(rows)), np.int64) for rows, _ in sets)
  blocks, others = (
    _blocks(rows, centre, of, block)
    for (rows, _), of in zip(sets, limits, strict=True)
  )
  inside = np.less if strict else np.less_equal
  for x in _seen(blocks):
    for y in others:
      *sure, any_open, is_open = _compare(x, y)
      for total, of, part in zip(counts, (x, y), sure, strict=True):
        here = total[:, of.first : of.first + block]
        here += np.asarray(part)[:, : here.shape[1]]
      if any_open:
        of, i, j = np.nonzero(np.asarray(is_open))
        i, j = i + x.first, j + y.first
        squares = _exact(real, synthetic, i, j)
        hit = inside(squares, np.where(of == 0, limits[0][i], limits[1][j]))
        np.add.at(counts[0], (of[hit], i[hit]), 1)
        np.add.at(counts[1], (of[hit], j[hit]), 1)
  return counts


@jax.jit
def _compare(
  x: _Block, y: _Block
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
  """Counts the pairs that are in a ball of x, and of y, for sure.

  Returns:
    Counts by rows of x, and by rows of y, ``[2, B]``, first for the balls of x;
    whether there are, and which ``[2, B, B]`` are, pairs that are left open.
  """
  lower, upper = _bounds(x, y)
  limits = x.limits[:, None], y.limits
  inside = jnp.stack([upper < limit for limit in limits])
  is_open = jnp.stack([lower <= limit for limit in limits]) & ~inside
  return inside.sum(2), inside.sum(1), is_open.any(), is_open


def _bounds(x: _Block, y: _Block) -> tuple[jax.Array, jax.Array]:
  """Bounds the squared distances ``[B, B]`` from both sides; inf for padding.

  The error is that of three sums of D products in the worst case, of rounding
  the centred rows, and the limit that the bounds are compared with.
  """
  norms = x.norms[:, None] + y.norms
  products = jnp.dot(x.rows, y.rows.T, precision=jax.lax.Precision.HIGHEST)
  squares = norms - 2 * products
  error = (2 * x.rows.shape[1] + 16) * _ROUNDOFF * norms
  return tuple(
    jnp.where(norms < jnp.inf, bound, jnp.inf)
    for bound in (squares - error, squares + error)
  )


def _exact(
  x: np.ndarray, y: np.ndarray, i: np.ndarray, j: np.ndarray
) -> np.ndarray:
  """Squared distances ``|x_i - y_j|^2`` of pairs, float64.

  A sum of D in one order: equal rows have equal distances, bit for bit.
  """
  squares = np.empty(len(i))
  for part in _split(np.arange(len(i)), x.shape[1]):
    differences = x[i[part]].astype(np.float64) - y[j[part]]
    squares[part] = np.square(differences, out=differences).sum(1)
  return squares


def _split(items: np.ndarray, width: int) -> list[np.ndarray]:
  """Splits items so that rows of ``width`` for each of them fit in memory."""
  step = max(1, _AT_ONCE // width)
  return [items[s : s + step] for s in range(0, len(items), step)]


def _fitting(block: int, length: int) -> int:
  """Shrinks blocks for few rows, to a power of two."""
  return min(block, max(_SMALLEST_BLOCK, 1 << (length - 1).bit_length()))


def _mean(features: np.ndarray) -> np.ndarray:
  return features.mean(0, dtype=np.float64).astype(np.float32)


def _blocks(
  features: np.ndarray, centre: np.ndarray, limits: np.ndarray, block: int
) -> list[_Block]:
  """Puts rows on the device."""
  found = []
  for first in range(0, len(features), block):
    rows = features[first : first + block] - centre
    missing = (0, block - len(rows))
    arrays = (
      np.pad(rows, (missing, (0, 0))),
      np.pad((rows * rows).sum(1), missing, constant_values=np.inf),
      np.pad(
        limits[first : first + block].astype(np.float32),
        missing,
        constant_values=-np.inf,
      ),
    )
    found.append(_Block(first, *jax.device_put(arrays)))
  return found


def _seen(blocks: Sequence[Any]) -> Any:
  """Shows progress, on terminals only, of what takes long."""
  return tqdm.tqdm(
    blocks, desc="Distances", unit=" blocks", disable=None, leave=False, delay=2
  )
