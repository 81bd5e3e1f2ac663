"""Makes the images and weights that a config's specs ask for.

  generate:<config file>[:arg]  images of a generator trained on the spot
  train:<config file>[:arg]     weights of a classifier trained on the spot

Both are kept in the cache folder, apart by config and by version.
"""

from collections.abc import Callable, Mapping
import contextlib
from pathlib import Path
import time
from typing import Any

import filelock
import numpy as np

from synguide_jax import __version__, cache, hosts, methods
from synguide_jax import config as config_lib
from synguide_jax import workdir as workdir_lib
from synguide_jax.console import duration, say
from synguide_jax.data import sources
from synguide_jax.errors import UserError

GENERATE, TRAIN = "generate:", "train:"

# What a generator takes over from the experiment that asks for its images, so
# that it sees the pool that shots are drawn from, and no image held out.
_SHARED_DATA_FIELDS = (
  "real",
  "classes",
  "duplicates",
  "image_size",
  "store_size",
  "channels",
  "convert_channels",
  "skip_damaged",
  "validation",
  "test",
  "test_split",
  "groups",
  "split_seed",
)

# (config, workdir, inputs) -> results.
TrainFn = Callable[[Any, Path, Mapping[str, str]], Any]


def needed(config: Any) -> list[tuple[str, str, str]]:
  """Returns (section, field, spec) of what stands for something to be made."""
  specs = []
  for section, field in workdir_lib.SPEC_FIELDS:
    value = config.get(section, {}).get(field, "")
    if section == "pretrained" and not methods.needs_pretrained(config):
      continue
    if section == "model" and not methods.uses_model(config):
      continue
    for spec, _ in sources.parse_weights(value):
      if spec.startswith((GENERATE, TRAIN)):
        specs.append((section, field, spec))
  return specs


def check(config: Any) -> None:
  """Finds what is wrong with a config before anything is made for it.

  Real images and untrained networks stand in for what has to be made. Where
  nothing has to be, the trainer itself makes these checks first of all.

  Args:
    config: The experiment's config.

  Raises:
    UserError: if it cannot be trained.
  """
  stand_in, instead = config.copy_and_resolve_references(), {}
  for section, field, spec in needed(config):
    made_by = config_lib.load(spec.partition(":")[2])
    is_generator = made_by.method == "diffusion"
    if is_generator != (section == "data"):
      raise UserError(
        f"{section}.{field}={spec!r}: the config has method "
        f"{made_by.method!r}; generate: wants 'diffusion', train: a classifier."
      )
    if section == "data":
      if config.data.folds:
        raise UserError(
          f"data.folds={config.data.folds}: {spec} would be trained on images "
          "that runs are tested on. Generate them beforehand, or use data.test."
        )
      instead[spec] = config.data.real
      # These would be said of the stand-in.
      stand_in.data.duplicates = "warn"
      continue
    methods.check_is_network(made_by)
    # As its checkpoint will say, unless this config does.
    size = stand_in[section].image_size or made_by.model.image_size
    stand_in[section].image_size = size
    if section == "model":
      stand_in.model.init = "scratch"
      if (
        methods.uses_model(made_by) and made_by.model.name != config.model.name
      ):
        raise UserError(
          f"model.init={spec!r} is a {made_by.model.name}, but model.name is "
          f"{config.model.name!r}."
        )
    else:
      stand_in.pretrained.weights = "random"
      stand_in.pretrained.random_model = made_by.model.name
  if needed(config):
    from synguide_jax import train

    train.set_up(stand_in, inputs=instead)


def make(config: Any, train: TrainFn) -> dict[str, str]:
  """Makes what is needed, unless it is there.

  Args:
    config: The experiment's config.
    train: Trains a config in a workdir.

  Returns:
    What stands for each spec: a prepared set or a folder of weights.
  """
  inputs = {}
  for *_, spec in needed(config):
    if spec.startswith(GENERATE):
      inputs[spec] = _generated_set(spec, config.data, train)
    else:
      inputs[spec] = _trained_weights(spec, train)
  return inputs


def _generated_set(spec: str, data: Any, train: TrainFn) -> str:
  """Trains a generator on the experiment's training pool, samples, stores."""
  from synguide_jax.data import prepared, records
  from synguide_jax.data.pixels import Pixels
  from synguide_jax.synthesis import diffusion
  from synguide_jax.synthesis.contact_sheet import contact_sheet

  file = spec.removeprefix(GENERATE)
  config = config_lib.load(file)
  for field in _SHARED_DATA_FIELDS:
    config.data[field] = data[field]
  name, mark = f"generated_{_name(file)}", _mark(config)
  folder = prepared.folder_of(name, mark)
  started = time.monotonic()
  if not hosts.first_says(prepared.is_prepared(name, mark)):
    say(f"Making synthetic images with {file}: training the generator")
    # Sets that differ only in sampling share their generator.
    training = config.copy_and_resolve_references()
    del training.sample
    path, _ = config_lib.find(file)
    program, state = _train_in_cache(path.stem, training, train)
    params = diffusion.ema_params(_first_run(state))
    say(f"  sampling {config.sample.per_class} images a class")
    with hosts.in_turn("generated set"):
      prepared.prepare(
        name,
        mark,
        lambda: diffusion.generate(config, params, program.info),
        program.info.class_names,
        provenance={"config": workdir_lib.as_json(config), "spec": spec},
      )
  sheet = folder / "contact_sheet.png"
  if hosts.is_first() and not sheet.exists():
    images = records.of_prepared(folder)["train"]
    pixels = Pixels(
      [(images, np.arange(len(images)))],
      config.data.store_size or config.data.image_size,
      config.data.channels,
    )
    labels = images.index.labels
    contact_sheet(pixels.read(), labels, images.class_names, sheet)
    say(f"  done in {_since(started)}; look at {sheet}")
  return f"prepared:{folder}"


def _trained_weights(spec: str, train: TrainFn) -> str:
  """Trains a classifier and keeps the weights of its first run."""
  from synguide_jax.models.pretrained import save_pretrained

  file = spec.removeprefix(TRAIN)
  config = config_lib.load(file)
  name, mark = _name(file), _mark(config)
  folder = cache.cache_dir() / "pretrained" / f"{name}-{mark}"
  if not hosts.first_says((folder / "config.json").exists()):
    started = time.monotonic()
    say(f"Making the pretrained network with {file}")
    program, state = _train_in_cache(name, config, train)
    state = _first_run(state)
    variables = {"params": state.params, "batch_stats": state.batch_stats}
    with hosts.in_turn("weights"), _alone(folder):
      # Who waited for it finds it there, and may be reading it.
      if not (folder / "config.json").exists():
        save_pretrained(
          folder,
          program.method.model,
          variables,
          program.info.image_shape,
          program.info.class_names,
        )
    say(f"  done in {_since(started)}: {folder}")
  return str(folder)


def _train_in_cache(name: str, config: Any, train: TrainFn) -> tuple[Any, Any]:
  """Trains ``config`` under the cache folder; returns program and state."""
  from synguide_jax.train import load_trained

  workdir = cache.cache_dir() / "work" / f"{name}-{_mark(config)}"
  inputs = make(config, train)
  # Of several processes, which train together, the first holds the lock.
  with _alone(workdir) if hosts.is_first() else contextlib.nullcontext():
    train(config, workdir, inputs)
    return load_trained(config, workdir, inputs=inputs)


def _alone(folder: Path) -> filelock.FileLock:
  """Lets one process make a folder that others wait for."""
  try:
    folder.parent.mkdir(parents=True, exist_ok=True)
  except OSError as error:
    raise UserError(
      f"Cannot write {folder}: {error.strerror}. Point the environment "
      "variable SYNGUIDE_CACHE to a folder that can be written."
    ) from error
  return filelock.FileLock(f"{folder}.lock")


def _name(file: str) -> str:
  path, arg = config_lib.find(file)
  return path.stem + (f"_{arg}" if arg else "")


def _mark(config: Any) -> str:
  """Identifies a config, the images it trains on, and this version."""
  from synguide_jax.data import experiment_data

  there = config.copy_and_resolve_references()
  # What is made has a mark of its own, and its config is part of this one.
  there.data.synthetic = sources.join_weights(
    [
      (spec, weight)
      for spec, weight in sources.parse_weights(config.data.synthetic)
      if not spec.startswith(GENERATE)
    ]
  )
  data = experiment_data.load(there.data, seed=config.seed, runs=(0,))
  return cache.fingerprint(
    {
      "config": workdir_lib.as_json(config),
      "images": data.checksum(),
      "version": __version__,
    }
  )


def _first_run(state: Any) -> Any:
  import jax

  return jax.tree.map(lambda leaf: leaf[0], state)


def _since(started: float) -> str:
  return duration(time.monotonic() - started)
