"""What the hub says of how images are prepared for a network, both ways.

transformers keeps it in preprocessor_config.json, timm in its config.json.
"""

from collections.abc import Mapping
from typing import Any

from synguide_jax.errors import UserError
from synguide_jax.models.base import Preprocessing

Config = Mapping[str, Any]
# As in Pillow, whose numbers the files hold.
_RESAMPLE = {0: "nearest", 1: "lanczos3", 2: "bilinear", 3: "cubic"}
# timm's words for them.
_TIMM_INTERPOLATION = {
  "nearest": "nearest",
  "lanczos": "lanczos3",
  "bilinear": "bilinear",
  "bicubic": "cubic",
}


def from_transformers(config: Config, of: str) -> Preprocessing:
  """Reads preprocessor_config.json.

  An image is resized to the side that the network sees at once; the centre crop
  of photographs that some processors do is not, it would cut an augmented image
  a second time.

  Args:
    config: Its contents.
    of: Its name, for messages.

  Returns:
    The preprocessing of images in [0, 1].

  Raises:
    UserError: for a value that is not supported.
    KeyError, TypeError, ValueError: for a field that is missing or garbled.
  """
  size, interpolation = None, "bilinear"
  if config.get("do_resize", True):
    cropped = config.get("do_center_crop", False) and "crop_size" in config
    size = _side(config.get("crop_size" if cropped else "size"), of)
    resample = config.get("resample", 2)
    if resample not in _RESAMPLE:
      raise UserError(f"{of}: resample={resample!r} is not supported.")
    interpolation = _RESAMPLE[resample]
  # What images of 0 ... 1 become: factor * x - shift, and then normalised.
  factor, shift = 255.0, 0.0
  if config.get("do_rescale", True):
    factor = 255 * config.get("rescale_factor", 1 / 255)
    shift = 1.0 if config.get("rescale_offset", False) else 0.0
  mean, std = [0.0], [1.0]
  if config.get("do_normalize", True):
    mean, std = config["image_mean"], config["image_std"]
    if config.get("include_top", False):
      # EfficientNet's divides twice.
      std = [s * s for s in std]
  return Preprocessing(
    mean=tuple(round((m + shift) / factor, 9) for m in mean),
    std=tuple(round(s / factor, 9) for s in std),
    size=size,
    interpolation=interpolation,
    channel_order="BGR" if config.get("do_flip_channel_order") else "RGB",
  )


def _side(size: Any, of: str) -> int:
  if isinstance(size, Mapping):
    sides = {size[k] for k in ("height", "width", "shortest_edge") if k in size}
    size = sides.pop() if len(sides) == 1 else None
  if not isinstance(size, int):
    raise UserError(f"{of}: the size of images cannot be read from it.")
  return size


def from_timm(config: Config) -> Preprocessing:
  """Reads the pretrained_cfg of a timm config.

  Args:
    config: Its contents.

  Returns:
    The preprocessing of images in [0, 1].

  Raises:
    UserError: for a value that is not supported.
    KeyError, TypeError: for a field that is missing or garbled.
  """
  return Preprocessing(
    mean=tuple(config["mean"]),
    std=tuple(config["std"]),
    size=config["input_size"][-1],
    interpolation=_TIMM_INTERPOLATION[config["interpolation"]],
  )


def to_transformers(
  preprocessing: Preprocessing, channels: int, image_size: int
) -> dict[str, Any]:
  """Returns the preprocessor_config.json of ``preprocessing``.

  Args:
    preprocessing: The network's.
    channels: Of the images.
    image_size: Side of the images that are not resized further, pixels.

  Returns:
    The config; `from_transformers` is its inverse.

  Raises:
    UserError: if the channels are swapped, which the processor does not do.
  """
  if preprocessing.channel_order != "RGB":
    raise UserError(
      "transformers' ViTImageProcessor keeps channels in order, but this "
      f"network wants {preprocessing.channel_order}."
    )
  side = preprocessing.size or image_size
  resample = {name: number for number, name in _RESAMPLE.items()}

  def each(values):
    return list(values) * (channels if len(values) == 1 else 1)

  return {
    "image_processor_type": "ViTImageProcessor",
    "do_resize": True,
    "size": {"height": side, "width": side},
    "resample": resample[preprocessing.interpolation],
    "do_rescale": True,
    "rescale_factor": 1 / 255,
    "do_normalize": True,
    "image_mean": each(preprocessing.mean),
    "image_std": each(preprocessing.std),
  }
