"""Makes the set of images that a generator's config describes.

A diffusion model is trained on the config's real images, or is found trained,
and samples; a pipeline of diffusers only samples. A classifier may then label
and filter what they made.
"""

from collections.abc import Mapping
from pathlib import Path
import time
from typing import Any, NamedTuple

from synguide_jax import config as config_lib
from synguide_jax import hosts, inputs
from synguide_jax import workdir as workdir_lib
from synguide_jax.console import duration, say
from synguide_jax.data import prepared, sources
from synguide_jax.data.experiment_data import ExperimentData
from synguide_jax.data.experiment_data import load as load_data
from synguide_jax.errors import check_known, UserError
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
  check_known("config.method", config.method, inputs.GENERATORS)
  if config.sample.per_class < 1:
    raise UserError(
      f"config.sample.per_class={config.sample.per_class} must be at least 1."
    )
  if config.method == "diffusion":
    sampling.check(config)
  elif config.sample.modes:
    raise UserError(
      f"config.sample.modes={config.sample.modes} is for diffusion models."
    )
  if config.filter.classifier:
    _rules(config).check()


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
  started, mark = time.monotonic(), inputs.mark(config)
  # Sets of one file and different arguments have different marks.
  path, _ = config_lib.find(file)
  name = f"generated_{path.stem}"
  # What the classifier leaves is another set.
  raw = prepared.folder_of(name, mark)
  folder = raw.parent / "filtered" if config.filter.classifier else raw
  data = load_data(config.data, seed=config.seed, runs=(0,))
  if not hosts.first_says(prepared.is_complete(folder)):
    say(f"Making synthetic images with {file}")
    classifier = _classifier(config, train)
    source = _SOURCES[config.method](file, config, data, train)
    with hosts.in_turn("generated set"):
      _prepare(name, mark, config, data, source)
      if classifier:
        _filter(raw, folder, config, classifier)
  if hosts.is_first():
    new = not (folder / "copies.json").exists()
    if new:  # The set is written; its groups are not needed any more.
      generated.clear(inputs.work_folder(name, mark))
    lines = generated.look_at(folder, data)
    if new:
      say("\n".join(f"  {line}" for line in lines))
      took = duration(time.monotonic() - started)
      say(f"  done in {took}; look at {folder / 'contact_sheet.png'}")
  return folder


def _diffusion(
  file: str, config: Any, data: ExperimentData, train: inputs.TrainFn
) -> _Source:
  """Trains a diffusion model."""
  # Sets that differ only in sampling share their generator.
  training = config.copy_and_resolve_references().unlock()
  del training.sample, training.filter
  total = config.sample.per_class * len(data.class_names)
  learning, making = estimate.seconds(config, data, total)
  say(
    f"  {config.num_steps:,} steps of training and {total:,} images: about "
    f"{duration(learning)} and {duration(making)} here, by a first measurement"
  )
  path, _ = config_lib.find(file)
  program, state = inputs.train_in_cache(path.stem, training, train)
  params = ema_params(inputs.first_run(state))
  sampler = sampling.Sampler(config, params, program.info)
  origin = {
    "training_steps": config.num_steps,
    "weights_checksum": weight_files.checksum(params),
  }
  return _Source(sampler, sampler.batch_size, origin)


def _diffusers(
  file: str, config: Any, data: ExperimentData, train: inputs.TrainFn
) -> _Source:
  """Opens a pipeline."""
  del file, train
  generator = pipelines.open_pipeline(config, data.class_names)
  origin = {"pipeline": config.pipeline.repository}
  return _Source(generator, sampling.GROUP, origin)


_SOURCES = {"diffusion": _diffusion, "diffusers": _diffusers}


def _prepare(
  name: str, mark: str, config: Any, data: ExperimentData, source: _Source
) -> None:
  """Samples and stores the images."""
  folder = inputs.work_folder(name, mark)
  dropped = None
  if config.sample.modes or config.sample.dropped_modes:
    trained_on = data.members["real"][0]
    dropped = modes.fit(
      data.pixels.resized(config.data.image_size).read(trained_on),
      data.labels[trained_on],
      config.sample.modes,
      config.sample.dropped_modes,
      class_names=data.class_names,
      file=folder / "modes.npy",
    )
  provenance = {
    "config": workdir_lib.as_json(config),
    "seed": config.sample.seed,
    "guidance": config.sample.guidance,
    **source.origin,
  }
  prepared.prepare(
    name,
    mark,
    lambda: generated.examples(
      config,
      source.generator,
      folder,
      data.class_names,
      batch_size=source.batch_size,
      modes=dropped,
    ),
    data.class_names,
    provenance=provenance,
  )


def _classifier(config: Any, train: inputs.TrainFn) -> Classifier | None:
  """Opens the classifier that the config names, before anything is made."""
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
