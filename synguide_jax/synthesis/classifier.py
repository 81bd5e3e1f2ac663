"""A classifier to ask about images: a network and the names of its classes."""

from collections.abc import Mapping, Sequence
import dataclasses
import json
from pathlib import Path
from typing import Any

from absl import logging
import jax
import jax.numpy as jnp
import numpy as np
import safetensors

from synguide_jax import workdir
from synguide_jax.asking import ask
from synguide_jax.data import files
from synguide_jax.data.augment import Augmentation
from synguide_jax.data.pixels import Pixels
from synguide_jax.data.records import Records
from synguide_jax.errors import UserError
from synguide_jax.models import weight_files
from synguide_jax.models.pretrained import load_pretrained, Pretrained


@dataclasses.dataclass(frozen=True)
class Classifier:
  """A network, and what its logits are of.

  Attributes:
    network: The network with its weights and preprocessing.
    class_names: Of its logits, in order.
    read_size: Side that images are read at, pixels; it sees their centre of
      ``network.image_shape``.
    origin: Where it comes from, plain data.
  """

  network: Pretrained
  class_names: tuple[str, ...]
  read_size: int
  origin: Mapping[str, Any]

  def checksum(self) -> str:
    """Tells its weights apart from others."""
    return weight_files.checksum(self.network.variables)


def from_workdir(
  folder: Path, results: Mapping[str, Any], run: int, network: Pretrained
) -> Classifier:
  """Returns the classifier that a run of a finished experiment trained.

  Images are read as they were for training.

  Args:
    folder: The experiment's workdir.
    results: The contents of its results.json.
    run: Number of the run.
    network: What that run trained.
  """
  data = workdir.config(folder).data
  return Classifier(
    network,
    tuple(results["data"]["class_names"]),
    data.store_size or data.image_size,
    {"workdir": str(folder), "run": run},
  )


def from_weights(spec: str) -> Classifier:
  """Loads a classifier whose checkpoint names its classes.

  The names are ``id2label`` (transformers) or ``label_names`` (timm) in its
  config.json, or ``class_names`` in the metadata of a .safetensors file, where
  ``synguide_jax.export`` puts them. Images are read at the side that the
  checkpoint resizes to, so that they are resized once.

  Args:
    spec: As :func:`synguide_jax.models.pretrained.load_pretrained` takes it.

  Raises:
    UserError: there is no such checkpoint, or it does not name its classes.
  """
  if files.is_remote(spec):
    raise UserError(
      f"classifier={spec!r} is not a local folder or file; copy it here first."
    )
  if (Path(spec).expanduser() / "checkpoints").exists():
    raise UserError(
      f"classifier={spec!r} is a workdir that is not finished; there is no "
      "results.json."
    )
  network = load_pretrained(spec)
  names = _class_names(spec)
  outputs = network.model.options["num_classes"]
  if not outputs:
    raise UserError(f"classifier={spec!r} has no head; it cannot classify.")
  if len(names) != outputs:
    raise UserError(
      f"classifier={spec!r} has {outputs} classes and names {len(names)} of "
      "them. Give its config.json a field id2label, "
      '{"0": "cat", "1": "dog"}, or take the workdir that it was trained in.'
    )
  return Classifier(network, names, network.image_shape[0], {"weights": spec})


def _class_names(spec: str) -> tuple[str, ...]:
  """The names of a checkpoint's classes; () where it has none."""
  if spec.startswith("hf:"):
    import huggingface_hub

    repository, _, revision = spec.removeprefix("hf:").partition("@")
    # It is there already, since the weights are.
    file = huggingface_hub.hf_hub_download(
      repository,
      "config.json",
      revision=revision or None,
      local_files_only=True,
    )
    path = Path(file).parent
  else:
    path = Path(spec).expanduser()
  config = (path if path.is_dir() else path.parent) / "config.json"
  if path.is_dir() or (path.name == "model.safetensors" and config.is_file()):
    fields = weight_files.read_json(config)
    numbered = fields.get("id2label") or {}
    names = [numbered[n] for n in sorted(numbered, key=int)]
    names = names or fields.get("label_names") or []
  elif path.suffix == ".safetensors":
    with safetensors.safe_open(path, "np") as file:
      names = json.loads((file.metadata() or {}).get("class_names", "[]"))
  else:
    names = []
  return _distinct([str(name) for name in names])


def _distinct(names: Sequence[str]) -> tuple[str, ...]:
  """Numbers names that occur twice, such as ImageNet's "crane"."""
  return tuple(
    f"{name} ({number})" if names.count(name) > 1 else name
    for number, name in enumerate(names)
  )


@dataclasses.dataclass(frozen=True)
class Predictions:
  """What a classifier says of images, arrays ``[N]``.

  Attributes:
    labels: int32, what the image is from now on.
    predicted: int32, the most probable class.
    confidences: float32, its probability.
    losses: float32, cross entropy of ``labels``, nats.
  """

  labels: np.ndarray
  predicted: np.ndarray
  confidences: np.ndarray
  losses: np.ndarray


def predict(
  classifier: Classifier,
  images: Records,
  labels: np.ndarray,
  *,
  batch_size: int = 128,
) -> Predictions:
  """Asks a classifier about all images, on this process's devices.

  They are read as when it was evaluated: its ``read_size`` by one resize, and
  the centre of that. Memory does not grow with their number.

  Args:
    classifier: The classifier.
    images: ``N`` images.
    labels: Classes of the classifier, int32 ``[N]``; -1: the most probable.
    batch_size: Images a step, rounded up to a multiple of the devices.

  Returns:
    The :class:`Predictions`; probabilities are computed in float32.

  Raises:
    UserError: the classifier's probabilities are not finite.
  """
  network = classifier.network
  channels = network.image_shape[-1]
  if channels == 1 and (coloured := int((~images.index.grey).sum())):
    logging.warning(
      "the classifier is of grey images and sees %d coloured ones in grey",
      coloured,
    )
  index = np.arange(len(images))
  pixels = Pixels([(images, index)], classifier.read_size, channels)
  centre = Augmentation(network.image_shape[0]).evaluate

  def judge(variables, images, label):
    logits = network.model.apply(variables, centre(images), train=False).logits
    log_probs = jax.nn.log_softmax(logits)
    predicted = log_probs.argmax(-1).astype(jnp.int32)
    label = jnp.where(label < 0, predicted, label)
    loss = -jnp.take_along_axis(log_probs, label[:, None], -1)[:, 0]
    return label, predicted, jnp.exp(log_probs.max(-1)), loss

  columns = ask(
    judge,
    network.variables,
    pixels,
    index,
    [labels.astype(np.int32)],
    batch_size=batch_size,
    description="Labelling",
  )
  found = Predictions(*columns)
  if wrong := int((~np.isfinite(found.confidences)).sum()):
    raise UserError(
      f"The classifier's probabilities of {wrong} of {len(images)} images are "
      "not finite; take another one."
    )
  return found
