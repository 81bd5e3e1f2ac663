"""What commands do: make what a config names, train, say what came out."""

from collections.abc import Mapping, Sequence
from pathlib import Path
import time
from typing import Any

from synguide_jax import __version__, cache, console
from synguide_jax import config as config_lib
from synguide_jax import workdir as workdir_lib
from synguide_jax.console import say

GENERATE, TRAIN = "generate:", "train:"

# What a generator takes over from the experiment that asks for its images.
_SHARED_DATA_FIELDS = (
  "real",
  "image_size",
  "store_size",
  "channels",
  "validation",
  "test",
  "split_seed",
)


def run(
  config: Any, workdir: Path, *, show_progress: bool = True
) -> dict[str, Any]:
  """Trains and evaluates ``config`` in ``workdir``, or returns its results.

  Imports JAX only if there is something to compute, and TensorFlow only for
  TensorBoard events and to prepare sets.

  Args:
    config: The experiment's config.
    workdir: Its folder.
    show_progress: Whether to print a line at each validation.

  Returns:
    The contents of results.json.
  """
  workdir_lib.claim(workdir, config)
  if (finished := workdir_lib.results(workdir)) is not None:
    return finished
  from synguide_jax import methods

  methods.check_name(config.method)
  inputs = make_inputs(config)
  if show_progress:
    say(f"Training {config.num_runs} runs")
  return _train(config, workdir, inputs, show_progress)


def _train(
  config: Any,
  workdir: Path,
  inputs: Mapping[str, str],
  show_progress: bool = True,
) -> dict[str, Any]:
  from clu import metric_writers, periodic_actions

  from synguide_jax.train import train_and_evaluate

  writers = [metric_writers.SummaryWriter(str(workdir))]
  if show_progress:
    writers.append(console.ConsoleWriter())
  writer = metric_writers.MultiWriter(writers)
  progress = periodic_actions.ReportProgress(
    every_steps=config.eval_every, every_secs=None, writer=writer
  )
  return train_and_evaluate(
    config, workdir, writer, hooks=(progress,), inputs=inputs
  )


def headline(results: Mapping[str, Any]) -> str:
  """The figure one looks for first, on one line."""
  for name in ("test", "validation"):
    if name in results:
      return f"{name} accuracy {console.percent(results[name]['accuracy'])}"
  loss = results["history"][-1]["train"]["loss"]
  return f"training loss {loss[0]:.4f}"


def summary(results: Mapping[str, Any]) -> list[str]:
  """What came out, in a few lines."""
  lines = [f"{results['method']}: {headline(results)}"]
  if "synthetic" in results:
    accuracy = console.percent(results["synthetic"]["accuracy"])
    lines.append(f"  accuracy on the synthetic images {accuracy}")
  if diverged := results["diverged"]:
    listed = ", ".join(f"{run} (step {step})" for run, step in diverged.items())
    lines.append(f"  excluded because their loss diverged: runs {listed}")
  seconds = results["seconds"]
  lines.append(
    f"  {console.duration(seconds['train'])} of training on "
    f"{', '.join(results['devices'])}"
  )
  return lines


def show_table(folders: Sequence[Path]) -> None:
  """Prints the table of the finished among these workdirs."""
  from synguide_jax.analysis import table

  say()
  say(table.markdown(table.gather(folders)))


def make_inputs(config: Any) -> dict[str, str]:
  """Makes the sets and weights that specs ask for, unless they are there.

  Args:
    config: The experiment's config.

  Returns:
    What stands for each ``generate:`` and ``train:`` spec.
  """
  inputs = {}
  for section, field in workdir_lib.SPEC_FIELDS:
    spec = config.get(section, {}).get(field, "")
    if spec.startswith(GENERATE):
      inputs[spec] = _generated_set(spec, config.data)
    elif spec.startswith(TRAIN):
      inputs[spec] = _trained_weights(spec)
  return inputs


def _name(file: str) -> str:
  path, arg = config_lib.find(file)
  return path.stem + (f"_{arg}" if arg else "")


def _mark(config: Any) -> str:
  """Tells what is kept in the cache apart: by config, and by our version."""
  config = workdir_lib.as_json(config)
  return cache.fingerprint({"config": config, "version": __version__})


def _train_in_cache(name: str, config: Any) -> tuple[Any, Any]:
  """Trains ``config`` under the cache folder; returns program and state."""
  from synguide_jax import train

  workdir = cache.cache_dir() / "work" / f"{name}-{_mark(config)}"
  inputs = make_inputs(config)
  _train(config, workdir, inputs)
  return train.load_trained(config, workdir, inputs=inputs)


def _generated_set(spec: str, data: Any) -> str:
  """Trains a generator on the experiment's training pool, samples, stores."""
  from synguide_jax.data import prepared

  file = spec.removeprefix(GENERATE)
  config = config_lib.load(file)
  # It sees the pool that shots are drawn from, and no image held out.
  for field in _SHARED_DATA_FIELDS:
    config.data[field] = data[field]
  name = f"generated_{_name(file)}"
  mark = _mark(config)
  folder = prepared.folder_of(name, mark)
  if not prepared.is_prepared(name, mark):
    from synguide_jax.synthesis import diffusion
    from synguide_jax.synthesis.contact_sheet import contact_sheet

    started = time.monotonic()
    say(f"Making synthetic images with {file}: training the generator")
    # Sets that differ only in sampling share their generator.
    training = config.copy_and_resolve_references()
    del training.sample
    program, state = _train_in_cache(_name(file), training)
    params = diffusion.ema_params(_first_run(state))
    say(f"  sampling {config.sample.per_class} images a class")
    prepared.prepare(
      name,
      mark,
      lambda: diffusion.generate(config, params, program.info),
      program.info.class_names,
      provenance={"config": workdir_lib.as_json(config), "spec": spec},
    )
    images = prepared.read(folder)["train"]
    sheet = folder / "contact_sheet.png"
    contact_sheet(images.images, images.labels, images.class_names, sheet)
    say(f"  done in {_since(started)}; look at {sheet}")
  return f"prepared:{folder}"


def _trained_weights(spec: str) -> str:
  """Trains a classifier and keeps the weights of its first run."""
  from synguide_jax.models.pretrained import save_pretrained

  file = spec.removeprefix(TRAIN)
  config = config_lib.load(file)
  name = f"{_name(file)}-{_mark(config)}"
  folder = cache.cache_dir() / "pretrained" / name
  if not (folder / "config.json").exists():
    started = time.monotonic()
    say(f"Making the pretrained network with {file}")
    program, state = _train_in_cache(_name(file), config)
    state = _first_run(state)
    variables = {"params": state.params, "batch_stats": state.batch_stats}
    save_pretrained(folder, program.method.model, variables)
    say(f"  done in {_since(started)}: {folder}")
  return str(folder)


def _first_run(state: Any) -> Any:
  import jax

  return jax.tree.map(lambda leaf: leaf[0], jax.device_get(state))


def _since(started: float) -> str:
  return console.duration(time.monotonic() - started)
