"""What a frozen network makes of images: a row of features for each."""

import numpy as np

from synguide_jax.asking import ask
from synguide_jax.data.augment import to_float
from synguide_jax.data.pixels import Pixels
from synguide_jax.errors import UserError
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
