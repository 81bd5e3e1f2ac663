"""What the commands do: train a config, and say what came out."""

from collections.abc import Mapping, Sequence
import contextlib
import functools
import operator
from typing import Any

from etils import epath

from synguide_jax import console, hosts
from synguide_jax import workdir as workdir_lib
from synguide_jax.analysis import table
from synguide_jax.console import say
from synguide_jax.errors import UserError


def run(
  config: Any,
  workdir: epath.Path,
  *,
  show_progress: bool = True,
  profile: int = 0,
) -> dict[str, Any]:
  """Trains and evaluates ``config`` in ``workdir``, or returns its results.

  Imports JAX only if there is something to compute, and TensorFlow only for
  TensorBoard events and to prepare sets.

  Args:
    config: The experiment's config.
    workdir: Its folder.
    show_progress: Whether to print a line at each validation.
    profile: Steps to trace.

  Returns:
    The contents of results.json.
  """
  workdir_lib.claim(workdir, config)
  if (finished := workdir_lib.finished(workdir)) is not None:
    return finished
  from synguide_jax import inputs, methods

  methods.check_name(config.method)
  inputs.check(config)
  train_fn = functools.partial(train, show_progress=show_progress)
  made = inputs.make(config, train_fn)
  if show_progress:
    say(f"Training {config.num_runs} runs")
  return train_fn(config, workdir, made, profile=profile)


def train(
  config: Any,
  workdir: epath.Path,
  inputs: Mapping[str, str],
  *,
  show_progress: bool,
  profile: int = 0,
) -> dict[str, Any]:
  """Calls the trainer with TensorBoard events and, if asked, lines here.

  Args:
    config: The experiment's config.
    workdir: Its folder.
    inputs: What its specs stand for.
    show_progress: Whether to print a line at each validation.
    profile: Steps to trace.

  Returns:
    The contents of results.json.
  """
  from clu import metric_writers

  from synguide_jax.train import train_and_evaluate

  writers = []
  if hosts.is_first():
    writers.append(metric_writers.SummaryWriter(str(workdir)))
  if show_progress:
    writers.append(console.ConsoleWriter())
  writer = metric_writers.MultiWriter(writers)
  with contextlib.closing(writer), _Trace(workdir, profile) as trace:
    return train_and_evaluate(
      config, workdir, writer, hooks=(trace,), inputs=inputs
    )


class _Trace:
  """A hook that writes a trace of some steps for TensorBoard's profiler.

  clu's begins at a global step, which a training that continues may be past,
  and leaves out one that is cut short.

  Args:
    folder: Where to; ``plugins/profile`` is made in it.
    length: Steps to trace, after the ten that a session begins with; 0: none.
      Of steps that are dispatched together all are traced.
  """

  _FIRST = 10

  def __init__(self, folder: epath.Path, length: int):
    self._folder, self._length = folder, length
    # Steps since the session's first dispatch, and before the trace.
    self._steps, self._before, self._running = 0, 0, False
    self._first: int | None = None

  def __call__(self, step: int) -> None:
    """Begins or ends the trace after so many steps of the training."""
    import jax

    if self._first is None:
      self._first = step
    self._steps = step - self._first + 1
    if self._running:
      if self._steps >= self._before + self._length:
        self._stop()
    elif self._length and not self._before and self._steps >= self._FIRST:
      jax.block_until_ready(jax.live_arrays())
      jax.profiler.start_trace(self._folder)
      self._before, self._running = self._steps, True

  def _stop(self) -> None:
    import jax

    # Steps are dispatched ahead of the devices.
    jax.block_until_ready(jax.live_arrays())
    jax.profiler.stop_trace()
    self._running = False
    traced = self._steps - self._before
    empty = "" if traced else ": none was left"
    say(f"  traced {traced} steps into {self._folder}{empty}")

  def __enter__(self) -> "_Trace":
    return self

  def __exit__(self, *error: Any) -> None:
    if self._running:
      self._stop()
    elif self._length and not self._before:
      say(f"  no trace: there were not more than {self._FIRST} steps")


def best_run(results: Mapping[str, Any]) -> int:
  """Number of the run that was best on validation.

  Args:
    results: The contents of results.json.

  Returns:
    Its number; without validation, that of the first run that is finite.
  """
  metric = results["config"]["select_metric"]
  accuracy = results.get("validation", {}).get(metric, {}).get("runs")
  runs = [run for run in results["runs"] if str(run) not in results["diverged"]]
  if not runs:
    raise UserError("All runs diverged; there is no classifier.")
  if not accuracy:
    return runs[0]
  return max(runs, key=lambda run: accuracy[results["runs"].index(run)])


def load_classifier(
  workdir: epath.Path, results: Mapping[str, Any], run: int
) -> Any:
  """Loads the classifier of one run; see `load_classifiers`."""
  return load_classifiers(workdir, results, [run])[0]


def load_classifiers(
  workdir: epath.Path, results: Mapping[str, Any], runs: Sequence[int]
) -> list[Any]:
  """Loads classifiers that a finished experiment selected.

  The images and weights that its config names are loaded as well, and those
  that a spec makes are made again if they are not in the cache any more.

  Args:
    workdir: Its folder.
    results: The contents of its results.json.
    runs: Numbers of the runs.

  Returns:
    A :class:`synguide_jax.models.pretrained.Pretrained` for each run.

  Raises:
    UserError: if there is no such run, it diverged, or what the config names
      is not there any more.
  """
  for run in runs:
    if run not in results["runs"]:
      raise UserError(f"{workdir} has no run {run}, only {results['runs']}.")
    if str(run) in results["diverged"]:
      raise UserError(f"Run {run} of {workdir} diverged.")
  import jax

  from synguide_jax import inputs, methods
  from synguide_jax.models.pretrained import Pretrained
  from synguide_jax.train import load_trained

  config = workdir_lib.config(workdir)
  # However many devices it was trained on.
  config.mesh.runs, devices = 0, jax.local_devices()[:1]
  methods.check_is_network(config)
  made = inputs.make(config, functools.partial(train, show_progress=False))
  program, state = load_trained(config, workdir, inputs=made, devices=devices)
  if program.method.predict is None:
    raise UserError(f"{workdir} holds a {config.method}, not a classifier.")
  every = {"params": state.params, "batch_stats": state.batch_stats}
  places = [results["runs"].index(run) for run in runs]
  return [
    Pretrained(
      program.method.model,
      jax.tree.map(operator.itemgetter(place), every),
      program.info.image_shape,
    )
    for place in places
  ]


def open_classifier(spec: str) -> Any:
  """Opens a classifier: of a finished workdir the run best on validation.

  Args:
    spec: The workdir, or weights that name their classes: a path, or
      ``hf:<repository>``.

  Returns:
    A :class:`synguide_jax.synthesis.classifier.Classifier`.

  Raises:
    UserError: there is no such classifier.
  """
  from synguide_jax.synthesis import classifier

  folder = epath.Path(spec).expanduser()
  if (results := workdir_lib.results(folder)) is None:
    return classifier.from_weights(spec)
  run = best_run(results)
  network = load_classifier(folder, results, run)
  return classifier.from_workdir(folder, results, run, network)


def open_ensemble(folder: epath.Path, run: int | None = None) -> Any:
  """Opens all runs of a finished workdir that did not diverge, or one.

  Args:
    folder: The workdir.
    run: Number of the only run; None: all.

  Returns:
    A :class:`synguide_jax.analysis.predictions.Ensemble`, with the temperatures
    in results.json.

  Raises:
    UserError: there is no such run, or the workdir is not finished.
  """
  if (results := workdir_lib.results(folder)) is None:
    raise UserError(f"{folder} is not finished; there is no results.json.")
  finite = [n for n in results["runs"] if str(n) not in results["diverged"]]
  runs = finite if run is None else [run]
  networks = load_classifiers(folder, results, runs)
  from synguide_jax.analysis import predictions

  return predictions.from_workdir(folder, results, runs, networks)


def _evaluated(results: Mapping[str, Any]) -> str | None:
  """The held-out set whose figures count, if there is one."""
  return next((n for n in ("test", "validation") if n in results), None)


def _by_class(results: Mapping[str, Any], name: str) -> str:
  """Accuracy of the classes, the lowest first where there are many."""
  kept = [
    of_run
    for run, of_run in zip(
      results["runs"], results[name]["class_accuracy"], strict=True
    )
    if str(run) not in results["diverged"]
  ]
  columns = ([v for v in of_class if v is not None] for of_class in zip(*kept))  # noqa: B905
  means = [
    (sum(values) / len(values), class_name)
    for values, class_name in zip(
      columns, results["data"]["class_names"], strict=False
    )
    if values
  ]
  shown, title = means, "by class"
  if len(means) > 10:
    shown, title = sorted(means)[:5], "lowest classes"
  return f"{title}: " + ", ".join(f"{n} {100 * mean:.1f}" for mean, n in shown)


def headline(results: Mapping[str, Any]) -> str:
  """The figure one looks for first, on one line."""
  if name := _evaluated(results):
    accuracy, balanced = (
      console.percent(results[name][metric])
      for metric in ("accuracy", "balanced_accuracy")
    )
    return f"{name} accuracy {accuracy}, balanced {balanced}"
  loss = results["history"][-1]["train"]["loss"]
  return f"training loss {loss[0]:.4f}"


def summary(results: Mapping[str, Any]) -> list[str]:
  """What came out, in a few lines."""
  lines = [f"{results['method']}: {headline(results)}"]
  if name := _evaluated(results):
    lines.append(f"  {_by_class(results, name)}")
  if held_out := results["data"]["held_out"]:
    lines.append(f"  {held_out}")
  if "synthetic" in results:
    accuracy, balanced = (
      console.percent(results["synthetic"][metric])
      for metric in ("accuracy", "balanced_accuracy")
    )
    lines.append(
      f"  accuracy on the synthetic images {accuracy}, balanced {balanced}"
    )
  if diverged := results["diverged"]:
    listed = ", ".join(f"{run} (step {step})" for run, step in diverged.items())
    lines.append(f"  excluded because their loss diverged: runs {listed}")
  lines.append(
    f"  {console.duration(results['seconds']['train'])} of training on "
    f"{', '.join(results['devices'])}"
  )
  return lines


def show_table(folders: Sequence[epath.Path]) -> None:
  """Prints the table of the finished among these workdirs, if there are any."""
  if tables := table.gather(folders):
    say()
    say(table.markdown(tables))
