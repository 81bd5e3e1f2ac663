"""What a trained network says of images, whatever is asked about them."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
import tqdm

from synguide_jax import mesh as mesh_lib
from synguide_jax.data.pixels import Pixels
from synguide_jax.errors import UserError
from synguide_jax.images import Streamed


def ask(
  function: Callable[..., Any],
  variables: Any,
  pixels: Pixels,
  indices: np.ndarray,
  columns: Sequence[np.ndarray] = (),
  *,
  batch_size: int,
  description: str,
) -> Any:
  """Asks a network about images, on this process's devices.

  Args:
    function: Of ``variables``, images, uint8 ``[B, H, W, C]``, and a batch of
      each column; it is compiled. Its arrays have B rows, in that order.
    variables: The network's weights.
    pixels: Images, of which no more than a few batches are decoded at a time.
    indices: Numbers of N of them, int ``[N]``.
    columns: More that is known of these, arrays of N rows.
    batch_size: Images a step, rounded up to a multiple of the devices.
    description: What the progress bar says, which only terminals show.

  Returns:
    What ``function`` does, in NumPy and of N rows.

  Raises:
    UserError: There are no images.
  """
  if not (count := len(indices)):
    raise UserError("indices are of no image; give one at least.")
  mesh = mesh_lib.create(1, jax.local_devices())
  shares = mesh.shape[mesh_lib.DATA]
  size = -(-min(batch_size, count) // shares) * shares
  # The last batch is filled up, so that one program serves all.
  rows = np.pad(np.arange(count), (0, -count % size), "edge").reshape(-1, size)
  sharding = mesh_lib.over_images(mesh)
  variables = jax.device_put(variables, mesh_lib.replicated(mesh))
  batches = list(np.asarray(indices, np.int32)[rows])
  drawn = Streamed(pixels, mesh, 0).listed(batches, sharding)
  compiled, found = jax.jit(function), []
  for batch, here in tqdm.tqdm(
    zip(drawn, rows, strict=True),
    total=len(rows),
    desc=description,
    unit=" batches",
    disable=None,
    leave=False,
  ):
    known = jax.device_put([column[here] for column in columns], sharding)
    found.append(jax.device_get(compiled(variables, batch.images, *known)))
  return jax.tree.map(lambda *parts: np.concatenate(parts)[:count], *found)
