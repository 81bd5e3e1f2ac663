"""What trained classifiers say of image files, together."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
import contextlib
import csv
import dataclasses
import functools
import io
import json
import os
from pathlib import Path
import sys
from typing import Any, NamedTuple, TextIO

import jax
import numpy as np

from synguide_jax import mesh as mesh_lib
from synguide_jax.data import decode, files
from synguide_jax.data.augment import Augmentation
from synguide_jax.data.files import Files
from synguide_jax.errors import check_known, is_disk_full, UserError
from synguide_jax.models.pretrained import Pretrained
from synguide_jax.synthesis import classifier as classifier_lib
from synguide_jax.synthesis.classifier import Classifier

FORMATS = ("csv", "jsonl")


@dataclasses.dataclass(frozen=True)
class Ensemble:
  """Classifiers of the same network, images and classes.

  Attributes:
    members: The classifiers, which differ in their weights.
    temperatures: What the logits of each are divided by; None: they were not
      calibrated, which is as 1.
  """

  members: tuple[Classifier, ...]
  temperatures: tuple[float, ...] | None = None

  @property
  def class_names(self) -> tuple[str, ...]:
    return self.members[0].class_names

  @functools.cached_property
  def ask(self) -> Callable[[np.ndarray], jax.Array]:
    r"""What gives images the mean of the members' probabilities.

    .. math:: \frac{1}{M} \sum_m \mathrm{softmax}(z_m / T_m)

    Of uint8 images ``[B, H, W, C]`` it makes float32 ``[B, K]``, which it does
    not wait for. B is filled up to a multiple of this process's devices.
    """
    network, mesh = self.members[0].network, _mesh()
    centre = Augmentation(network.image_shape[0]).evaluate
    everywhere = mesh_lib.replicated(mesh)
    members = [
      jax.device_put(member.network.variables, everywhere)
      for member in self.members
    ]
    temperatures = self.temperatures or (1.0,) * len(members)

    # Compiled once for all members, which take turns.
    @jax.jit
    def ask_one(variables, temperature, images):
      images = centre(images)
      logits = network.model.apply(variables, images, train=False).logits
      return jax.nn.softmax(logits / temperature)

    def ask(images):
      count = len(images)
      if missing := -count % mesh.shape[mesh_lib.DATA]:
        images = np.pad(images, ((0, missing), (0, 0), (0, 0), (0, 0)))
      images = jax.device_put(images, mesh_lib.over_images(mesh))
      found = [
        ask_one(variables, temperature, images)
        for variables, temperature in zip(members, temperatures, strict=True)
      ]
      mean = sum(found) / len(found)
      return mean[:count] if missing else mean

    return ask


class Answer(NamedTuple):
  """What is said of a file.

  Attributes:
    name: Its path below the folder.
    probabilities: float32 ``[K]``; None where it could not be used.
    problem: Why not; else empty.
  """

  name: str
  probabilities: np.ndarray | None
  problem: str = ""


def from_workdir(
  folder: Path,
  results: Mapping[str, Any],
  runs: Sequence[int],
  networks: Sequence[Pretrained],
) -> Ensemble:
  """Returns the classifiers of some runs of a finished experiment.

  Args:
    folder: The experiment's workdir.
    results: The contents of its results.json; one without temperatures has
      had no validation images, or is of an earlier version.
    runs: Numbers of the runs.
    networks: What they trained.
  """
  members = tuple(
    classifier_lib.from_workdir(folder, results, run, network)
    for run, network in zip(runs, networks, strict=True)
  )
  if "calibration" not in results:
    return Ensemble(members)
  fitted = results["calibration"]["temperature"]["runs"]
  places = [results["runs"].index(run) for run in runs]
  return Ensemble(members, tuple(fitted[place] for place in places))


def open_images(path: str) -> Files:
  """Lists a folder with all below it, an archive, or a single file.

  Raises:
    UserError: as :func:`synguide_jax.data.files.open_files`, or it is empty.
  """
  archive = path.lower().endswith(files.ARCHIVES)
  single = os.path.isfile(files.expand(path)) and not archive
  found = files.open_file(path) if single else files.open_files(path)
  if not found.names:
    raise UserError(f"{path} has no files; name a folder of images.")
  return found


def classify(
  ensemble: Ensemble, images: Files, *, batch_size: int = 64
) -> Iterator[Answer]:
  """Asks all members about all files, on this process's devices.

  An image is read as when the members were evaluated: converted to 8 bits, grey
  or RGB, upright and opaque (of an animation, the first picture), made their
  ``read_size`` by one resize, and the centre of that. Threads decode the next
  images while the devices are at work; memory does not grow with their number.

  Args:
    ensemble: The classifiers.
    images: The files.
    batch_size: Images a step, rounded up to a multiple of the devices.

  Yields:
    An :class:`Answer` for each file, in order.

  Raises:
    UserError: probabilities are not finite.
  """
  if batch_size < 1:
    raise UserError(f"batch_size={batch_size} must be at least 1.")
  first = ensemble.members[0]
  side, channels = first.read_size, first.network.image_shape[-1]
  shares = _mesh().shape[mesh_lib.DATA]
  size = -(-min(batch_size, len(images.names)) // shares) * shares

  def read(name):
    try:
      return name, decode.decode(images.read(name), side, channels), ""
    except ValueError as error:
      return name, None, str(error)

  # Two at least: one decodes while the devices are waited for.
  threads = max(2, os.cpu_count() or 1)
  decoded = decode.in_threads(read, images.names, threads)
  waiting = None
  for group in _groups(decoded, size):
    usable = [pixels for _, pixels, _ in group if pixels is not None]
    # Of one shape, which compiles once.
    batch = np.zeros((size, side, side, channels), np.uint8)
    batch[: len(usable)] = usable or 0
    asked = [(name, problem) for name, _, problem in group], ensemble.ask(batch)
    if waiting:
      yield from _answers(*waiting)
    waiting = asked
  if waiting:
    yield from _answers(*waiting)


def _mesh() -> jax.sharding.Mesh:
  return mesh_lib.create(1, jax.local_devices())


def _groups(
  decoded: Iterable[tuple[str, np.ndarray | None, str]], size: int
) -> Iterator[list[tuple[str, np.ndarray | None, str]]]:
  """Yields as many files at a time as have ``size`` images among them."""
  group, count = [], 0
  for item in decoded:
    group.append(item)
    count += item[1] is not None
    if count == size:
      yield group
      group, count = [], 0
  if group:
    yield group


def _answers(
  asked: Sequence[tuple[str, str]], probabilities: jax.Array
) -> Iterator[Answer]:
  """Yields the answers for names and problems, once they are computed."""
  rows = iter(jax.device_get(probabilities))
  for name, problem in asked:
    if problem:
      yield Answer(name, None, problem)
      continue
    row = next(rows)
    if not np.isfinite(row).all():
      raise UserError(
        f"The probabilities of {name} are not finite; leave out the run whose "
        "weights are damaged with --run."
      )
    yield Answer(name, row)


def format_of(path: str) -> str:
  """Returns the format that a path's suffix names; of none, CSV.

  Raises:
    UserError: the suffix names another one.
  """
  form = Path(path).suffix.removeprefix(".").lower() if path else FORMATS[0]
  check_known(f"--output={path}: the suffix", form, FORMATS)
  return form


@contextlib.contextmanager
def opened(path: str) -> Iterator[TextIO]:
  """Opens a file to write, which appears when all of it is there.

  Args:
    path: The file; empty: standard output.

  Raises:
    UserError: it cannot be written.
  """
  if not path:
    yield sys.stdout
    return
  output = Path(path).expanduser()
  partial = output.with_name(f"{output.name}.partial")
  try:
    output.parent.mkdir(parents=True, exist_ok=True)
    with partial.open("w", encoding="utf-8") as file:
      yield file
    partial.replace(output)
  except OSError as error:
    if is_disk_full(error):
      raise
    raise UserError(f"Cannot write {output}: {error.strerror}.") from error
  finally:
    with contextlib.suppress(OSError):
      partial.unlink(missing_ok=True)


def write(
  answers: Iterable[Answer],
  file: TextIO,
  class_names: Sequence[str],
  *,
  form: str = "csv",
  every_class: bool = False,
) -> tuple[int, list[Answer]]:
  """Writes a line for each image, as soon as it is known.

  Args:
    answers: What `classify` yields.
    file: Where to.
    class_names: Names of the classes.
    form: "csv", with a header, or "jsonl", an object a line.
    every_class: Whether to write the probabilities of all classes too.

  Returns:
    How many images were written, and the answers for files that are none.
  """
  of_class = [f"probability of {name}" for name in class_names]
  header = ["image", "class", "probability", *of_class]
  header = header if every_class else header[:3]
  if form == "csv":
    file.write(_csv(header))
  count, unusable = 0, []
  for name, probabilities, problem in answers:
    if probabilities is None:
      unusable.append(Answer(name, None, problem))
      continue
    count += 1
    best = int(probabilities.argmax())
    # As many digits as float32 has.
    values = [float(f"{p:.7g}") for p in probabilities] if every_class else []
    found = name, class_names[best], float(f"{probabilities[best]:.7g}")
    if form == "csv":
      file.write(_csv([*found, *values]))
      continue
    record = dict(zip(header[:3], found, strict=True))
    if every_class:
      record["probabilities"] = dict(zip(class_names, values, strict=True))
    file.write(json.dumps(record, ensure_ascii=False) + "\n")
  return count, unusable


def _csv(row: Sequence[Any]) -> str:
  line = io.StringIO()
  csv.writer(line, lineterminator="\n").writerow(row)
  return line.getvalue()


def remarks(
  ensemble: Ensemble, count: int, unusable: Sequence[Answer]
) -> list[str]:
  """Says in lines what was done, and which files could not be used.

  Args:
    ensemble: What was asked.
    count: Number of images that were classified.
    unusable: The answers for other files.
  """
  runs = ", ".join(str(member.origin["run"]) for member in ensemble.members)
  total = count + len(unusable)
  said = [f"{count:,} of {total:,} files classified by run {runs}"]
  if ensemble.temperatures is None:
    said.append(
      "probabilities are not calibrated: results.json has no temperature, for "
      "want of validation images or because an earlier version wrote it"
    )
  if unusable:
    said.append(f"{len(unusable):,} of {total:,} could not be used:")
    said += [f"  {name}: {problem}" for name, _, problem in unusable]
  return said
