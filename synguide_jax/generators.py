"""Makes the set of images that a generator's config describes.

A diffusion model is trained on the config's real images, or is found trained,
and samples; a pipeline of diffusers only samples. A classifier may then label
and filter what they made.
"""

from collections.abc import Mapping
import math
from pathlib import Path
import re
import time
from typing import Any, NamedTuple

from synguide_jax import cache, generator_config, hosts, inputs
from synguide_jax import config as config_lib
from synguide_jax import workdir as workdir_lib
from synguide_jax.console import duration, say
from synguide_jax.data import prepared, sources
from synguide_jax.data.experiment_data import ExperimentData
from synguide_jax.errors import UserError
from synguide_jax.models import weight_files
from synguide_jax.synthesis import (
  estimate,
  generated,
  labeling,
  modes,
  pipelines,
  sampling,
)
from synguide_jax.synthesis.classifier import Classifier
from synguide_jax.synthesis.diffusion import ema_params
from synguide_jax.synthesis.selection import Rules


class _Source(NamedTuple):
  """What makes images, how many at a time, and what is worth noting of it."""

  generator: sampling.Generator
  batch_size: int
  origin: Mapping[str, Any]


def check(config: Any) -> None:
  """Raises UserError for what of a generator's config is wrong.

  What its training would find is left to that.
  """
  if config.method not in inputs.GENERATORS:
    raise UserError(
      f"config.method={config.method!r}: a generator's config has "
      f"{' or '.join(inputs.GENERATORS)}; python -m synguide_jax.main trains "
      "classifiers."
    )
  if config.data.synthetic:
    raise UserError(
      f"config.data.synthetic={config.data.synthetic!r}: a generator learns "
      "from real images only; leave it empty."
    )
  for field, value in workdir_lib.flatten(config.to_dict()).items():
    if isinstance(value, float) and not math.isfinite(value):
      raise UserError(f"config.{field}={value} must be finite.")
  sample = config.sample
  if not 0 <= sample.seed < 2**32:
    raise UserError(
      f"config.sample.seed={sample.seed} must be at least 0 and below 2**32."
    )
  if sample.per_class < 1:
    raise UserError(
      f"config.sample.per_class={sample.per_class} must be at least 1."
    )
  if config.method == "diffusion":
    sampling.check(config)
  elif sample.modes or sample.dropped_modes:
    raise UserError(
      f"config.sample.modes={sample.modes} and dropped_modes="
      f"{sample.dropped_modes} are for diffusion models; set both to 0."
    )
  if config.filter.classifier:
    _rules(config).check()
  elif config.filter.to_dict() != generator_config.filtering().to_dict():
    raise UserError(
      "config.filter has rules, but config.filter.classifier is empty; name "
      "one that is to judge the images."
    )


def make_set(file: str, config: Any, train: inputs.TrainFn) -> Path:
  """Makes the set of a generator's config, or finds it.

  What was made when a command was killed is used by the next.

  Args:
    file: ``<config file>[:arg]``, after which the set is called.
    config: The generator's config.
    train: Trains a config in a workdir.

  Returns:
    The folder of a prepared set. Beside its images it has ``contact_sheets/``
    and ``copies.json``; its provenance has the config.

  Raises:
    UserError: the config is wrong.
  """
  check(config)
  started, data = time.monotonic(), inputs.load_pool(config)
  classifier = _classifier(config, train)
  # What a classifier leaves of them is another set.
  unfiltered = config.copy_and_resolve_references()
  unfiltered.filter = generator_config.filtering()
  mark = inputs.mark(unfiltered, data)
  # Sets of one file and different arguments have different marks.
  stem = re.sub(r"\W", "_", config_lib.find(file)[0].stem, flags=re.ASCII)
  name = f"generated_{stem}"
  raw = folder = prepared.folder_of(name, mark)
  if classifier:
    judged = [config.filter.to_dict(), classifier.checksum()]
    folder = raw.parent / f"filtered_{cache.fingerprint({'by': judged})}"
  if not hosts.first_says(prepared.is_complete(folder)):
    say(f"Making synthetic images with {file}")
    if not hosts.first_says(prepared.is_complete(raw)):
      _make_raw(name, mark, file, unfiltered, data, train)
    if classifier:
      with hosts.in_turn("filtered set"):
        _filter(raw, folder, config, classifier)
  if hosts.is_first() and not generated.is_looked_at(folder):
    # The set is written; its groups are not needed any more.
    generated.clear(inputs.work_folder(name, mark))
    say("\n".join(f"  {line}" for line in generated.look_at(folder, data)))
    took = duration(time.monotonic() - started)
    say(f"  done in {took}; look at {folder / 'contact_sheet.png'}")
  return folder


def _make_raw(
  name: str,
  mark: str,
  file: str,
  config: Any,
  data: ExperimentData,
  train: inputs.TrainFn,
) -> None:
  """Makes the set that no classifier has judged."""
  work = inputs.work_folder(name, mark)
  real, sample = data.members["real"][0], config.sample
  trained_on = None
  if sample.modes or sample.dropped_modes:
    # Before the training, which takes longer.
    pixels = data.pixels.resized(config.data.image_size)
    trained_on = pixels.read(real), data.labels[real]
    modes.check(
      *trained_on, sample.modes, sample.dropped_modes, data.class_names
    )
  source = _SOURCES[config.method](file, config, data, work, train)

  def examples():
    dropped = None
    if trained_on:
      dropped = modes.fit(
        *(*trained_on, sample.modes, sample.dropped_modes),
        file=work / "modes.npy",
      )
    return generated.examples(
      config,
      source.generator,
      work,
      data.class_names,
      batch_size=source.batch_size,
      modes=dropped,
    )

  provenance = {
    "config": workdir_lib.as_json(config),
    "seed": sample.seed,
    "guidance": sample.guidance,
    **source.origin,
  }
  with hosts.in_turn("generated set"):
    prepared.prepare(
      name, mark, examples, data.class_names, provenance=provenance
    )


def _diffusion(
  file: str,
  config: Any,
  data: ExperimentData,
  work: Path,
  train: inputs.TrainFn,
) -> _Source:
  """Trains a diffusion model, or finds it trained."""
  # Sets that differ only in sampling share their generator.
  training = config.copy_and_resolve_references().unlock()
  del training.sample, training.filter
  stem = config_lib.find(file)[0].stem
  workdir = inputs.work_folder(stem, inputs.mark(training, data))
  steps = config.num_steps - estimate.steps_done(workdir, config.num_steps)
  images = config.sample.per_class * len(data.class_names)
  images = max(images - generated.count(work), 0)
  if hosts.is_first():
    learning, making = estimate.seconds(
      config, estimate.seconds_an_image(config, data), steps, images
    )
    say(
      f"  {steps:,} steps of training and {images:,} images to make: about "
      f"{duration(learning)} and {duration(making)} here, as first measured"
    )
  program, state = inputs.train_in_cache(stem, training, train)
  params = ema_params(inputs.first_run(state))
  sampler = sampling.Sampler(config, params, program.info)
  origin = {
    "training_steps": config.num_steps,
    "weights_checksum": weight_files.checksum(params),
  }
  return _Source(sampler, sampler.batch_size, origin)


def _diffusers(
  file: str,
  config: Any,
  data: ExperimentData,
  work: Path,
  train: inputs.TrainFn,
) -> _Source:
  """Opens a pipeline."""
  del file, work, train
  generator = pipelines.open_pipeline(config, data.class_names)
  origin = {"pipeline": config.pipeline.repository}
  return _Source(generator, sampling.GROUP, origin)


_SOURCES = {"diffusion": _diffusion, "diffusers": _diffusers}


def _classifier(config: Any, train: inputs.TrainFn) -> Classifier | None:
  """Opens the classifier that the config names, if there is one."""
  if not config.filter.classifier:
    return None
  # It loads those of workdirs by making what they need.
  from synguide_jax import experiment

  made, spec = inputs.make(config, train), config.filter.classifier
  return experiment.open_classifier(made.get(spec, spec))


def _filter(
  raw: Path, folder: Path, config: Any, classifier: Classifier
) -> None:
  """Lets a classifier label and filter a set."""
  source = sources.open_set(f"prepared:{raw}")
  report = labeling.label(source, classifier, folder, _rules(config))
  for line in labeling.table(report):
    say(f"  {line}")


def _rules(config: Any) -> Rules:
  fields = config.filter.to_dict()
  del fields["classifier"]
  fields["max_loss"] = fields["max_loss"] or None
  fields["per_class"] = fields["per_class"] or None
  return Rules(**fields)
