"""What a frozen network makes of images: a row of features for each."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
import tqdm

from synguide_jax import mesh as mesh_lib
from synguide_jax.data.augment import to_float
from synguide_jax.data.pixels import Pixels
from synguide_jax.errors import UserError
from synguide_jax.images import Streamed
from synguide_jax.models.base import pool
from synguide_jax.models.pretrained import Pretrained


def embed(
  network: Pretrained,
  pixels: Pixels,
  indices: np.ndarray,
  *,
  layer: str,
  batch_size: int = 128,
) -> np.ndarray:
  """Computes pooled features of images, on this process's devices.

  The network sees them at the size of ``pixels``, as it does in training, and
  resizes and normalises them as its checkpoint says. For features to tell of
  contents and not of resolutions, give real and synthetic images one size.

  Args:
    network: The network; it is not trained.
    pixels: Images, of which no more than a few batches are decoded at a time.
    indices: Numbers of N of them, int ``[N]``.
    layer: Name of the network's stage, such as "stage3", or "embedding". Maps
      are averaged over their positions.
    batch_size: Images a step, rounded up to a multiple of the devices.

  Returns:
    float32 ``[N, D]``.

  Raises:
    UserError: The network has no such layer, takes images of other channels or
      gives features that are not finite.

  Example::

    network = load_pretrained("hf:microsoft/resnet-50")
    pixels = Pixels([(records, np.arange(len(records)))], 32, 3)
    features = embed(network, pixels, np.arange(1000), layer="embedding")
  """
  model = network.model
  model.stage(layer)

  def pooled(variables, images):
    images = to_float(images)
    output = model.apply(variables, images, train=False, upto=layer)
    return pool(output.features[layer])

  features = ask(
    pooled,
    network.variables,
    pixels,
    indices,
    batch_size=batch_size,
    description="Features",
  )
  if wrong := int((~np.isfinite(features).all(1)).sum()):
    raise UserError(
      f"{model.name}'s features at layer {layer!r} are not finite for {wrong} "
      f"of {len(features)} images; take another network or layer."
    )
  return features


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
