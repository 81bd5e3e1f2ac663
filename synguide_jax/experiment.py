"""What the commands do: train a config, and say what came out."""

from collections.abc import Mapping, Sequence
import contextlib
import functools
from pathlib import Path
from typing import Any

from synguide_jax import console
from synguide_jax import workdir as workdir_lib
from synguide_jax.analysis import table
from synguide_jax.console import say


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
  from synguide_jax import inputs, methods

  methods.check_name(config.method)
  inputs.check(config)
  train_fn = functools.partial(train, show_progress=show_progress)
  made = inputs.make(config, train_fn)
  if show_progress:
    say(f"Training {config.num_runs} runs")
  return train_fn(config, workdir, made)


def train(
  config: Any, workdir: Path, inputs: Mapping[str, str], *, show_progress: bool
) -> dict[str, Any]:
  """Calls the trainer with TensorBoard events and, if asked, lines here."""
  from clu import metric_writers, periodic_actions

  from synguide_jax.train import train_and_evaluate

  writers = [metric_writers.SummaryWriter(str(workdir))]
  if show_progress:
    writers.append(console.ConsoleWriter())
  writer = metric_writers.MultiWriter(writers)
  progress = periodic_actions.ReportProgress(
    every_steps=config.eval_every, every_secs=None, writer=writer
  )
  with contextlib.closing(writer):
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
  lines.append(
    f"  {console.duration(results['seconds']['train'])} of training on "
    f"{', '.join(results['devices'])}"
  )
  return lines


def show_table(folders: Sequence[Path]) -> None:
  """Prints the table of the finished among these workdirs, if there are any."""
  if tables := table.gather(folders):
    say()
    say(table.markdown(tables))
