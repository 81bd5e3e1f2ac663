"""Are samples of a generator copies of the images that it was trained on?"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from synguide_jax.errors import UserError

# A product of two centred pixel values is at most 2^14: so many of them add up
# exactly in float32, in any order.
_EXACT = 1 << 10
_FAR = np.iinfo(np.int32).max
# The squared distance of images of so many values is below that.
_MOST_VALUES = (_FAR - 1) // 255**2

_PERCENTS = (0, 1, 5, 25, 50, 75, 95)
_RATIO = 1 / 3  # of the two nearest distances, below which a sample is a copy.
_LISTED = 20
_OTHERS = 10_000  # References, at most, that are compared with all the others.


def nearest(
  queries: np.ndarray,
  references: np.ndarray,
  *,
  k: int = 2,
  own: np.ndarray | None = None,
  block: int = 1024,
) -> tuple[np.ndarray, np.ndarray]:
  r"""Finds the references nearest to each query.

  The distance of two images of :math:`D = HWC` values is Euclidean, as the root
  mean square of their differences on a scale where white is 1:

  .. math:: d(x, y) = \frac{1}{255} \sqrt{\frac{1}{D} \sum_i (x_i - y_i)^2}

  The sum is that of integers and exact, so that d is 0 for equal images and no
  others. Of references at one distance the first come first.

  It takes :math:`2 N M D` operations for M references, and memory for a copy of
  the references on the device and a few times ``block * block`` numbers.

  Args:
    queries: uint8 ``[N, H, W, C]``.
    references: uint8 ``[M, H, W, C]``.
    k: Number of references to find.
    own: For queries that are references themselves, the number of each, int
      ``[N]``, which it must not find.
    block: Queries, and references, that are compared at once.

  Returns:
    Distances, float32 ``[N, k]`` in [0, 1], ascending; and the numbers of the
    references, int32 ``[N, k]``.

  Raises:
    UserError: The images have another type, differ in shape or have more than
      33,025 values (104 x 104 x 3), or there are not ``k`` references.
  """
  queries, references = np.asarray(queries), np.asarray(references)
  _check(queries, references, k, own)
  values = int(np.prod(references.shape[1:]))
  queries, references = (x.reshape(-1, values) for x in (queries, references))
  compared = [
    jax.device_put(_padded(references[start : start + block], block))
    for start in range(0, len(references), block)
  ]
  squares, indices = np.empty((2, len(queries), k), np.int32)
  for start in range(0, len(queries), block):
    here = slice(start, start + block)
    asked = jax.device_put(_padded(queries[here], block))
    hidden = np.full(block, -1, np.int32)
    if own is not None:
      hidden[: len(own[here])] = own[here]
    best = tuple(jnp.full((block, k), x, jnp.int32) for x in (_FAR, -1))
    for number, those in enumerate(compared):
      best = _merge(best, asked, hidden, those, number * block, len(references))
    for all_found, found in zip((squares, indices), best, strict=True):
      all_found[here] = np.asarray(found)[: len(all_found[here])]
  return (np.sqrt(squares / values) / 255).astype(np.float32), indices


def _check(
  queries: np.ndarray, references: np.ndarray, k: int, own: np.ndarray | None
) -> None:
  for name, images in (("queries", queries), ("references", references)):
    if images.dtype != np.uint8 or images.ndim != 4 or 0 in images.shape[1:]:
      raise UserError(
        f"{name} must be uint8 images [N, H, W, C], got {images.dtype} "
        f"{list(images.shape)}."
      )
  if queries.shape[1:] != references.shape[1:]:
    raise UserError(
      f"queries of shape {list(queries.shape[1:])} must be resized to that of "
      f"references, {list(references.shape[1:])}."
    )
  if (values := np.prod(references.shape[1:])) > _MOST_VALUES:
    raise UserError(
      f"references of shape {list(references.shape[1:])} have {values} values "
      f"each; shrink them and queries to at most {_MOST_VALUES}."
    )
  if own is not None and len(own) != len(queries):
    raise UserError(
      f"own must have a number for each of the {len(queries)} queries, got "
      f"{len(own)}."
    )
  there = len(references) - (own is not None)
  if not 1 <= k <= there:
    raise UserError(
      f"k={k} must be at least 1 and at most the number of references that "
      f"there are to find, {max(0, there)}."
    )


def _padded(rows: np.ndarray, block: int) -> np.ndarray:
  """Fills up to ``block`` rows, so that one program serves all."""
  return np.pad(rows, ((0, block - len(rows)), (0, 0)))


@jax.jit
def _merge(
  best: tuple[jax.Array, jax.Array],
  queries: jax.Array,
  own: jax.Array,
  references: jax.Array,
  first: jax.Array,
  count: jax.Array,
) -> tuple[jax.Array, jax.Array]:
  """Looks for nearer references in one block of them.

  Args:
    best: Squared distances and indices so far, both int32 ``[B, k]``.
    queries: uint8 ``[B, D]``.
    own: int32 ``[B]``, the reference that a query must not find.
    references: uint8 ``[B, D]``.
    first: Number of the first of them.
    count: Number of all references; those behind are padding.

  Returns:
    The new ``best``.
  """
  squares, indices = best
  numbers = first + jnp.arange(len(references), dtype=jnp.int32)
  hidden = (numbers >= count) | (numbers == own[:, None])
  found = jnp.where(hidden, _FAR, _squared_distances(queries, references))
  # Those of earlier blocks come first: argmin takes the first of equals.
  found = jnp.concatenate([squares, found], axis=1)
  numbers = jnp.broadcast_to(numbers, (len(queries), len(numbers)))
  numbers = jnp.concatenate([indices, numbers], axis=1)
  rows, places = jnp.arange(len(queries)), []
  left = found
  for _ in range(squares.shape[1]):  # For a small k faster than to sort.
    places.append(left.argmin(axis=1))
    left = left.at[rows, places[-1]].set(_FAR)
  places = jnp.stack(places, axis=1)
  return tuple(jnp.take_along_axis(x, places, axis=1) for x in (found, numbers))


def _squared_distances(x: jax.Array, y: jax.Array) -> jax.Array:
  """Exact int32 ``[N, M]`` of uint8 ``[N, D]`` and ``[M, D]``."""
  x, y = (a.astype(jnp.int32) - 128 for a in (x, y))
  products = jnp.zeros((len(x), len(y)), jnp.int32)
  # |x - y|^2 = |x|^2 + |y|^2 - 2 x.y would lose small distances in float32,
  # which has 24 bits; a matrix product of integers is slow on a CPU.
  for start in range(0, x.shape[1], _EXACT):
    a, b = (z[:, start : start + _EXACT].astype(jnp.float32) for z in (x, y))
    part = jnp.dot(a, b.T, precision=jax.lax.Precision.HIGHEST)
    products += part.astype(jnp.int32)
  return (x * x).sum(1)[:, None] + (y * y).sum(1) - 2 * products


def report(samples: np.ndarray, references: np.ndarray) -> dict[str, Any]:
  r"""Compares samples with the images that their generator was trained on.

  An exact copy is equal to a reference. A near copy is a sample x whose nearest
  reference is much nearer than the second nearest,

  .. math:: d(x, r_1) < d(x, r_2) / 3,

  the rule of [1] and [2]; exact copies are among them. Distances are those of
  :func:`nearest`. References that are equal count as one, else none of their
  copies would be seen. For comparison, each reference is held against the
  others: their near copies are what the rule says of real images.

  The rule compares pixels. It sees neither copies that are shifted, mirrored or
  of other colours, nor those of an image that the references have twice with
  small differences, since then the second nearest is as near as the nearest.

  Args:
    samples: uint8 ``[N, H, W, C]``.
    references: uint8 ``[M, H, W, C]``. Of them, 10,000 at most are compared
      with the others.

  Returns:
    Plain data for JSON: ``"samples"`` and ``"references"``, both with
    ``"count"``, ``"near_copies"`` and ``"distance_percentiles"``, by percent,
    of the distance to the nearest reference, or other reference; of samples
    also ``"exact_copies"``, of references ``"duplicates"``, those equal to an
    earlier one, and ``"compared"``, how many the figures are of; and
    ``"closest_copies"``, up to 20 near copies in ascending order of their
    distances, as ``"sample"`` and ``"reference"`` (their
    numbers), ``"distance"`` and ``"second_distance"``.

  Raises:
    UserError: As `nearest`; or if there are no samples, or fewer than three
      references that differ.

  References:
    [1] Yoon et al., "Diffusion Probabilistic Models Generalize when They Fail
    to Memorize", ICML 2023 workshop on structured probabilistic inference.
    [2] Gu et al., "On Memorization in Diffusion Models", arXiv:2310.02664.
  """
  samples, references = np.asarray(samples), np.asarray(references)
  if not len(samples):
    raise UserError("samples are none: there is nothing to compare; give some.")
  different = _different(references)
  if len(different) < 3:
    raise UserError(
      f"references have {len(different)} different images; to tell what is "
      "near takes at least 3."
    )
  distances, found = nearest(samples, references[different])
  near = distances[:, 0] < _RATIO * distances[:, 1]
  copies = np.flatnonzero(near)
  copies = copies[np.argsort(distances[copies, 0], kind="stable")][:_LISTED]
  # Some of them will do.
  some = np.arange(0, len(different), -(-len(different) // _OTHERS))
  others, _ = nearest(
    references[different[some]], references[different], own=some
  )
  return {
    "samples": _summary(distances)
    | {"exact_copies": int((distances[:, 0] == 0).sum())},
    "references": _summary(others)
    | {
      "count": len(references),
      "compared": len(some),
      "duplicates": len(references) - len(different),
    },
    "closest_copies": [
      {
        "sample": int(i),
        "reference": int(different[found[i, 0]]),
        "distance": float(distances[i, 0]),
        "second_distance": float(distances[i, 1]),
      }
      for i in copies
    ],
  }


def _different(images: np.ndarray) -> np.ndarray:
  """Returns the numbers of images that equal no earlier one."""
  first: dict[bytes, int] = {}
  for number, image in enumerate(images):
    first.setdefault(image.tobytes(), number)
  return np.array(list(first.values()), int)


def _summary(distances: np.ndarray) -> dict[str, Any]:
  """Counts rows of the two smallest distances ``[N, 2]``."""
  percentiles = np.percentile(distances[:, 0], _PERCENTS)
  return {
    "count": len(distances),
    "near_copies": int((distances[:, 0] < _RATIO * distances[:, 1]).sum()),
    "distance_percentiles": {
      str(percent): float(value)
      for percent, value in zip(_PERCENTS, percentiles, strict=True)
    },
  }


def lines(report: Mapping[str, Any]) -> list[str]:
  """Says what a report found, for a person, in two or three lines."""
  samples, references = report["samples"], report["references"]
  duplicates = references["duplicates"]
  said = [
    f"of {samples['count']:,} samples {samples['exact_copies']:,} are exact "
    f"and {samples['near_copies']:,} near copies "
    f"({samples['near_copies'] / samples['count']:.1%}) of training images; "
    f"of those themselves the rule flags {references['near_copies']:,} "
    f"({references['near_copies'] / references['compared']:.1%})",
    f"distance to the nearest training image, median (5 to 95%): samples "
    f"{_spread(samples)}, training images {_spread(references)}",
  ]
  if duplicates:
    said.append(
      f"{duplicates:,} of {references['count']:,} training images equal an "
      "earlier one and count once"
    )
  return said


def _spread(summary: Mapping[str, Any]) -> str:
  at = summary["distance_percentiles"]
  return f"{at['50']:.3f} ({at['5']:.3f} to {at['95']:.3f})"
