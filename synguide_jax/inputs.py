"""Makes the images and weights that a config's specs ask for.

  generate:<config file>[:arg]  images of a generator trained on the spot
  diffusers:<repository>        images of a pipeline of the hub
  train:<config file>[:arg]     weights of a classifier trained on the spot

All are kept in the cache folder, apart by config and by version.
"""

from collections.abc import Callable, Mapping
import contextlib
from pathlib import Path
import time
from typing import Any

import filelock

from synguide_jax import __version__, cache, hosts, methods
from synguide_jax import config as config_lib
from synguide_jax import workdir as workdir_lib
from synguide_jax.console import duration, say
from synguide_jax.data import sources
from synguide_jax.errors import UserError

GENERATE, DIFFUSERS, TRAIN = "generate:", "diffusers:", "train:"

# Methods of configs that make images.
GENERATORS = ("diffusion", "diffusers")

# What a generator takes over from the experiment that asks for its images, so
# that it sees the pool that shots are drawn from, and no image held out.
_SHARED_DATA_FIELDS = (
  "real",
  "classes",
  "duplicates",
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
  made = (GENERATE, DIFFUSERS, TRAIN)
  return [found for found in _used(config) if found[2].startswith(made)]


def _used(config: Any) -> list[tuple[str, str, str]]:
  """Returns (section, field, spec) of the synthetic sets and weights in use."""
  specs = []
  for section, field in workdir_lib.SPEC_FIELDS:
    value = config.get(section, {}).get(field, "")
    if section == "pretrained" and not methods.needs_pretrained(config):
      continue
    if section == "model" and not methods.uses_model(config):
      continue
    specs += [(section, field, s) for s, _ in sources.parse_weights(value)]
  return specs


def check(config: Any) -> None:
  """Finds what is wrong with a config before anything is made for it.

  Real images and untrained networks stand in for what has to be made. Where
  nothing has to be, the trainer itself makes these checks first of all.

  Args:
    config: The experiment's config.

  Raises:
    UserError: if it cannot be trained; of sets and weights that have to be
      downloaded and cannot be, it names all.
  """
  # They make what they need by this module.
  from synguide_jax import generators

  stand_in, instead = config.copy_and_resolve_references(), {}
  for section, field, spec in needed(config):
    if section == "data" and not spec.startswith(TRAIN):
      _, made_by = generator(spec, config)
    else:
      made_by = config_lib.load(spec.partition(":")[2])
    is_generator = made_by.method in GENERATORS
    if is_generator != (section == "data"):
      raise UserError(
        f"{section}.{field}={spec!r}: the config has method "
        f"{made_by.method!r}; generate: wants {' or '.join(GENERATORS)}, "
        "train: a classifier."
      )
    if section == "data":
      if config.data.folds:
        raise UserError(
          f"data.folds={config.data.folds}: {spec} would be trained on images "
          "that runs are tested on. Generate them beforehand, or use data.test."
        )
      generators.check(made_by)
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
  _fetch(config)
  if needed(config):
    from synguide_jax import train

    train.set_up(stand_in, inputs=instead)


def _fetch(config: Any) -> None:
  """Downloads what the config names and is not here, or says all it lacks."""
  from synguide_jax.data import tfds_sets
  from synguide_jax.models import hub_files

  fields = {config.data.real: ["data.real"]}
  for section, field, spec in _used(config):
    fields.setdefault(spec, []).append(f"{section}.{field}")
  missing = []
  with hosts.in_turn("downloads"):
    for spec, of_spec in fields.items():
      try:
        if spec.startswith("tfds:"):
          tfds_sets.find_or_prepare(spec.removeprefix("tfds:"))
        elif spec.startswith("hf:"):
          hub_files.fetch(spec)
      except UserError as error:
        local = "folder:<path>" if spec.startswith("tfds:") else "<path>"
        instead = " ".join(f"--config.{field}={local}" for field in of_spec)
        missing.append(
          f"{' and '.join(of_spec)}: {error} Or name what is here: {instead}."
        )
    if missing:
      raise UserError("\n".join(missing))


def generator(spec: str, config: Any) -> tuple[str, Any]:
  """Returns the file and the config of the generator that a spec names.

  Args:
    spec: ``generate:...`` or ``diffusers:...``.
    config: The experiment that it makes images for.
  """
  file = spec.removeprefix(GENERATE)
  if spec.startswith(DIFFUSERS):
    file = "configs/generators/diffusers.py"
  of_set = config_lib.load(file)
  if spec.startswith(DIFFUSERS):
    of_set.pipeline.repository = spec.removeprefix(DIFFUSERS)
  for field in _SHARED_DATA_FIELDS:
    of_set.data[field] = config.data[field]
  if of_set.data.shots >= 0:  # It draws those of the experiment's first run.
    of_set.seed, of_set.first_run = config.seed, config.first_run
  return file, of_set


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
    if spec.startswith(TRAIN):
      inputs[spec] = _trained_weights(spec, train)
    else:
      from synguide_jax import generators

      file, of_set = generator(spec, config)
      folder = generators.make_set(file, of_set, train)
      inputs[spec] = f"prepared:{folder}"
  return inputs


def _trained_weights(spec: str, train: TrainFn) -> str:
  """Trains a classifier and keeps the weights of its first run."""
  from synguide_jax.models.pretrained import save_pretrained

  file = spec.removeprefix(TRAIN)
  config = config_lib.load(file)
  name = _name_of(file)
  folder = cache.cache_dir() / "pretrained" / f"{name}-{mark(config)}"
  if not hosts.first_says((folder / "config.json").exists()):
    started = time.monotonic()
    say(f"Making the pretrained network with {file}")
    program, state = train_in_cache(name, config, train)
    state = first_run(state)
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


def train_in_cache(name: str, config: Any, train: TrainFn) -> tuple[Any, Any]:
  """Trains ``config`` under the cache folder; returns program and state."""
  import jax

  from synguide_jax.train import load_trained

  workdir = work_folder(name, mark(config))
  inputs = make(config, train)
  # Of several processes, which train together, the first holds the lock.
  with _alone(workdir) if hosts.is_first() else contextlib.nullcontext():
    train(config, workdir, inputs)
    devices = None
    if not hosts.are_several():  # However many it was trained on.
      config = config.copy_and_resolve_references()
      config.mesh.runs, devices = 0, jax.local_devices()[:1]
    return load_trained(config, workdir, inputs=inputs, devices=devices)


def work_folder(name: str, mark: str) -> Path:
  """Returns where something is made before it has its place in the cache."""
  return cache.cache_dir() / "work" / f"{name}-{mark}"


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


def _name_of(file: str) -> str:
  """Names what ``<config file>[:arg]`` makes."""
  path, arg = config_lib.find(file)
  return path.stem + (f"_{arg}" if arg else "")


def mark(config: Any, data: Any = None) -> str:
  """Identifies a config, the images it trains on, and this version.

  Args:
    config: The config.
    data: What `load_pool` returns, where it was called already.
  """
  return cache.fingerprint(
    {
      "config": workdir_lib.as_json(config),
      "images": (data or load_pool(config)).checksum(),
      "version": __version__,
    }
  )


def load_pool(config: Any) -> Any:
  """Returns the config's data, but for images that are made for it."""
  from synguide_jax.data import experiment_data

  there = config.copy_and_resolve_references()
  # What is made has a mark of its own, and its config is part of this one.
  there.data.synthetic = sources.join_weights(
    [
      (spec, weight)
      for spec, weight in sources.parse_weights(config.data.synthetic)
      if not spec.startswith((GENERATE, DIFFUSERS))
    ]
  )
  return experiment_data.load(
    there.data, seed=config.seed, runs=(config.first_run,)
  )


def first_run(state: Any) -> Any:
  """Returns a state without its run axis."""
  import jax

  return jax.tree.map(lambda leaf: leaf[0], state)


def _since(started: float) -> str:
  """Says how long ago that was, on the monotonic clock."""
  return duration(time.monotonic() - started)
