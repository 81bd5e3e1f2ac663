"""One trainer for every method; `train_and_evaluate` reads top to bottom.

A batch is a function of (seed, run, stage, step) and all randomness of a step
comes from a key of the same four, so a training is its position and its
arrays: resumed from them it continues bit for bit.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
import contextlib
import dataclasses
import os
import time
from typing import Any

from absl import logging
from etils import epath
import filelock
import jax
import numpy as np

from synguide_jax import cache, calibration, hosts
from synguide_jax import results as results_lib
from synguide_jax import workdir as workdir_lib
from synguide_jax.checkpoint import Checkpointer
from synguide_jax.data import experiment_data, sources
from synguide_jax.data.experiment_data import ExperimentData
from synguide_jax.data.feed import Feed
from synguide_jax.errors import (
  check_known,
  DivergedError,
  InUse,
  is_disk_full,
  Preempted,
  UserError,
)
from synguide_jax.logs import Log
from synguide_jax.preemption import Preemption
from synguide_jax.program import Arrays, Program
from synguide_jax.results import plain

SELECT = ("best", "last")
METRICS = ("accuracy", "balanced_accuracy")


@dataclasses.dataclass
class Position:
  """Where a training is; with its arrays, all there is to a checkpoint.

  Attributes:
    stage: Index of the stage.
    step: Steps done in it.
    seconds: Time spent in training so far, over all its sessions.
    history: A record for each evaluation so far.
  """

  stage: int = 0
  step: int = 0
  seconds: float = 0.0
  history: list[dict[str, Any]] = dataclasses.field(default_factory=list)


def train_and_evaluate(
  config: Any,
  workdir: os.PathLike | str,
  writer: Any,
  hooks: Sequence[Callable[[int], Any]] = (),
  *,
  inputs: Mapping[str, str] | None = None,
  devices: Sequence[jax.Device] | None = None,
) -> dict[str, Any]:
  """Trains ``config.num_runs`` runs, evaluates them, writes results.json.

  Started again on the same workdir it continues where it was, and once it is
  finished it returns the results.

  Args:
    config: An ``ml_collections.ConfigDict``, see configs/.
    workdir: Folder of this experiment, made if missing; local or remote.
    writer: A clu ``MetricWriter``, or anything with its ``write_scalars(step,
      scalars)`` and ``flush()``. Where it has ``write_images(step, images)``,
      uint8 ``[N, H, W, 3]`` by name, it gets examples of the batches, from the
      first process only. See `logs.Log` for the names.
    hooks: Called with the number of steps done, after each step; after the
      last one of those dispatched together, ``config.steps_per_dispatch``.
    inputs: What the specs of ``config`` stand for where only a command can
      make it, by spec: a prepared set or a checkpoint folder.
    devices: Devices to use; by default all. Where JAX connects several
      processes, all of them make the same call.

  Returns:
    The contents of results.json.

  Raises:
    UserError: if the config, the data or the workdir is wrong, before any
      training.
    DivergedError: if no run is left with a finite loss.
    Preempted: after SIGTERM (in the main thread) or a preemption, with a
      checkpoint of the step it came in; the same call continues.
  """
  workdir = epath.Path(workdir)
  workdir_lib.claim(workdir, config)
  if (finished := workdir_lib.finished(workdir)) is not None:
    return finished
  started = time.monotonic()
  with _alone(workdir):
    config = workdir_lib.settled(workdir, config)
    program, data = set_up(config, inputs=inputs, devices=devices)
    config.runs_mode = program.runs_mode
    config.steps_per_dispatch = program.steps_per_dispatch
    with hosts.in_turn("splits"):
      data.keep(workdir / "splits.npz")
      workdir_lib.settle(workdir, config)
    for warning in data.warnings:
      logging.warning("%s", warning)
    carry, frozen = program.init()
    # A second SIGTERM must not end it while what it saved is being written.
    with (
      Preemption() as preemption,
      _checkpointer(config, workdir) as checkpoints,
    ):
      if restored := _restore(checkpoints, program):
        carry, best, position = restored
      else:
        carry, best = program.enter(0, carry, frozen)
        position = Position()
      preemption.begin(_steps_done(program, position))
      training = time.monotonic()
      carry, best = _train(
        *(config, program, data, frozen, checkpoints, preemption, writer),
        *(hooks, carry, best, position),
      )
    evaluating = time.monotonic()
    results = _results(config, program, data, carry, best, frozen)
    results |= {
      "history": position.history,
      "seconds": {
        "prepare": training - started,
        "train": position.seconds,
        "evaluate": time.monotonic() - evaluating,
      },
    }
    writer.flush()
    if hosts.is_first():
      workdir_lib.write_json(workdir / "results.json", plain(results))
    return plain(results)


def _train(
  config: Any,
  program: Program,
  data: ExperimentData,
  frozen: Any,
  checkpoints: Checkpointer,
  preemption: Preemption,
  writer: Any,
  hooks: Sequence[Callable[[int], Any]],
  carry: Arrays,
  best: Arrays,
  position: Position,
) -> tuple[Arrays, Arrays]:
  """Goes through the stages from ``position`` on, which it moves."""
  feed = Feed(
    data.members,
    data.labels,
    seed=config.seed,
    runs=run_numbers(config),
    weights=data.weights,
  )
  stages = program.method.stages
  total = sum(stage.num_steps for stage in stages)
  log = Log(writer, program)
  before_this_session = position.seconds - time.monotonic()
  checked = 0
  while True:
    stage = stages[position.stage]
    before = _steps_done(program, position) - position.step
    log.enter(position.stage, before)
    if not position.step:
      log.examples(feed)
    step = program.step(position.stage, frozen)

    def due(step, before=before):
      """Whether the host has something to do after a step of the stage."""
      return step % config.eval_every == 0 or checkpoints.due(before + step)

    batches = program.batches(feed, position.stage, position.step, due)
    with contextlib.closing(batches):
      for steps in batches:
        carry = step(carry, steps, position.step)
        log.stepped(steps.count)
        position.step += steps.count
        done = before + position.step
        last = position.step == stage.num_steps
        evaluates = last or position.step % config.eval_every == 0
        if evaluates:
          # So that what measures time sees steps done, not dispatched.
          jax.block_until_ready(carry)
          log.measure()
        for hook in hooks:
          hook(done)

        if evaluates:
          summed = (position.step - 1) % config.eval_every + 1
          record = {
            "step": done,
            "stage": stage.name,
            "train": _mean_metrics(program, carry, summed),
          }
          carry, best, found = _validate(
            config, program, data, frozen, carry, best, done
          )
          carry = program.reset_metrics(carry)
          position.history.append(plain(record | found))
          log.write(record | found)
        stopping = preemption.reached(done, steps.count)
        if evaluates or stopping or checkpoints.due(done):
          # Before the save: the last good checkpoint must stay.
          _check_finite(config, program, carry, stage.name, since=checked)
          checked = done + 1
          position.seconds = before_this_session + time.monotonic()
        checkpoints.save(
          done,
          {"carry": carry, "best": best},
          {"places": program.places.count, **dataclasses.asdict(position)},
          force=last or stopping,
        )
        if stopping:
          raise Preempted(f"Stopped after step {done} of {total}.")
    if position.stage + 1 == len(stages):
      return carry, best
    position.stage, position.step = position.stage + 1, 0
    carry, best = program.enter(position.stage, carry, frozen)


def _steps_done(program: Program, position: Position) -> int:
  """Steps done in all stages."""
  before = program.method.stages[: position.stage]
  return sum(stage.num_steps for stage in before) + position.step


def _validate(
  config: Any,
  program: Program,
  data: ExperimentData,
  frozen: Any,
  carry: Arrays,
  best: Arrays,
  done: int,
) -> tuple[Arrays, Arrays, dict[str, Any]]:
  """Evaluates on the validation images, where there are any."""
  index = data.indices["validation"]
  if not program.method.predict or not len(index):
    return carry, best, {}
  state = carry["state"].for_prediction()
  found = program.evaluate(state, frozen, index)
  carry = program.mark_diverged(carry, found["loss"], done)
  best = program.keep_best(best, carry, found[config.select_metric], done)
  kept = {name: found[name] for name in ("loss", *METRICS)}
  return carry, best, {"validation": kept}


def load_trained(
  config: Any,
  workdir: os.PathLike | str,
  *,
  inputs: Mapping[str, str] | None = None,
  devices: Sequence[jax.Device] | None = None,
) -> tuple[Program, Any]:
  """Loads what a finished training selected.

  Args:
    config: The config it was trained with.
    workdir: Its folder.
    inputs: As for `train_and_evaluate`.
    devices: Devices to use; by default all.

  Returns:
    The program and the state for prediction, with a leading run axis, as
    numpy's arrays.

  Raises:
    UserError: if the workdir is of another config or has no checkpoint.
  """
  workdir = epath.Path(workdir)
  workdir_lib.claim(workdir, config)
  config = workdir_lib.settled(workdir, config)
  program, _ = set_up(config, inputs=inputs, devices=devices)
  with _checkpointer(config, workdir) as checkpoints:
    restored = _restore(checkpoints, program)
  if restored is None:
    raise UserError(f"{workdir} has no checkpoint that can be read.")
  carry, best, _ = restored
  return program, program.places.fetch(_selected(config, program, carry, best))


def run_numbers(config: Any) -> tuple[int, ...]:
  """Numbers of the config's runs; each is the same alone and in company."""
  if config.num_runs < 1 or config.first_run < 0 or config.seed < 0:
    raise UserError(
      f"num_runs={config.num_runs} must be at least 1, first_run="
      f"{config.first_run} and seed={config.seed} not negative."
    )
  return tuple(range(config.first_run, config.first_run + config.num_runs))


def resolve(config: Any, inputs: Mapping[str, str]) -> Any:
  """Returns a copy of ``config`` with its specs replaced by ``inputs``."""
  resolved = config.copy_and_resolve_references()
  for section, field in workdir_lib.SPEC_FIELDS:
    if section not in resolved or field not in resolved[section]:
      continue
    value = resolved[section][field]
    if field == "synthetic":
      pairs = sources.parse_weights(value)
      value = sources.join_weights(
        [(inputs.get(spec, spec), weight) for spec, weight in pairs]
      )
    resolved[section][field] = inputs.get(value, value)
  return resolved


def set_up(
  config: Any,
  *,
  inputs: Mapping[str, str] | None = None,
  devices: Sequence[jax.Device] | None = None,
) -> tuple[Program, ExperimentData]:
  """Loads the data and makes the program, with every check there is.

  Args:
    config: The experiment's config.
    inputs: As for `train_and_evaluate`.
    devices: Devices to use; by default all.

  Returns:
    The program and its data.

  Raises:
    UserError: if the config or the data is wrong.
  """
  runs = run_numbers(config)
  resolved = resolve(config, inputs or {})
  with hosts.in_turn("data"):
    data = experiment_data.load(resolved.data, seed=config.seed, runs=runs)
    program = Program(resolved, data, runs, devices)
    _check(config, program, data)
  return program, data


def _checkpointer(config: Any, workdir: epath.Path) -> Checkpointer:
  return Checkpointer(workdir / "checkpoints", config.checkpoint_every)


def _restore(
  checkpoints: Checkpointer, program: Program
) -> tuple[Arrays, Arrays, Position] | None:
  # Another number of devices may have had other places.
  restored = checkpoints.restore(
    lambda record: program.places.abstract(
      program.abstract(record["stage"]), record["places"]
    )
  )
  if restored is None:
    return None
  arrays, record = restored
  arrays = program.refill(arrays, record.pop("places"))
  return arrays["carry"], arrays["best"], Position(**record)


def _selected(
  config: Any, program: Program, carry: Arrays, best: Arrays
) -> Any:
  """The state for prediction that ``config.select`` names."""
  if config.select == "best" and program.method.predict:
    return best["state"]
  return carry["state"].for_prediction()


@contextlib.contextmanager
def _alone(workdir: epath.Path) -> Iterator[None]:
  """Locks the workdir, or raises UserError if another command has.

  One that is not local is not locked.
  """
  lock = contextlib.nullcontext()
  with hosts.in_turn("lock"):
    if hosts.is_first():
      if "://" not in os.fspath(workdir):
        lock = _locked(workdir)
      for partial in cache.leftovers(workdir):
        partial.unlink(missing_ok=True)
  with lock:
    yield


def _locked(workdir: epath.Path) -> contextlib.AbstractContextManager:
  try:
    return filelock.FileLock(workdir / ".lock").acquire(timeout=0)
  except filelock.Timeout as error:
    raise InUse(
      f"{workdir} is in use by another process; wait for it, or choose another "
      "--workdir."
    ) from error
  except OSError as error:
    if is_disk_full(error):
      raise
    raise UserError(
      f"Cannot write to the workdir {workdir}: {error.strerror}. Choose "
      "another with --workdir."
    ) from error


def _check(config: Any, program: Program, data: ExperimentData) -> None:
  """Raises UserError for what would only fail during training."""
  for field in ("eval_every", "checkpoint_every", "eval_batch_size"):
    if config[field] < 1:
      raise UserError(f"{field}={config[field]} must be at least 1.")
  check_known("select", config.select, SELECT)
  check_known("select_metric", config.select_metric, METRICS)
  if unknown := set(config.evaluate_on) - {"test", "synthetic", "pool"}:
    raise UserError(
      f"evaluate_on={config.evaluate_on}: {sorted(unknown)[0]!r} is unknown; "
      "known: test, synthetic, pool."
    )
  if not program.method.predict:
    return
  if config.select == "best" and not len(data.indices["validation"]):
    raise UserError(
      "select='best' needs validation images, but there are none: set "
      "data.validation, or select='last'."
    )


def _mean_metrics(
  program: Program, carry: Arrays, steps: int
) -> dict[str, np.ndarray]:
  sums = program.places.fetch(carry["metrics"])
  return {name: value / np.float32(steps) for name, value in sums.items()}


def _check_finite(
  config: Any, program: Program, carry: Arrays, stage: str, since: int
) -> None:
  """Reports runs that diverged since a step; raises if no other is left."""
  diverged = program.places.fetch(carry["diverged"])
  if (diverged < since).all():
    return
  listed = ", ".join(
    f"run {run} at step {step}"
    for run, step in zip(run_numbers(config), diverged, strict=True)
    if step >= since
  )
  message = (
    f"method {config.method!r}, stage {stage!r}: the loss became NaN or "
    f"infinite in {listed}"
  )
  if (diverged >= 0).all():
    raise DivergedError(
      f"{message}; no run is left. Lower optimizer.learning_rate or the "
      "weights of the method's losses."
    )
  logging.warning("%s; excluded from the results.", message)


def _results(
  config: Any,
  program: Program,
  data: ExperimentData,
  carry: Arrays,
  best: Arrays,
  frozen: Any,
) -> dict[str, Any]:
  """Evaluates what was selected: the only look at the test images."""
  state = _selected(config, program, carry, best)
  evaluations, logits = {}, {}
  if program.method.predict:
    last = sum(stage.num_steps for stage in program.method.stages)
    for name in ("validation", *config.evaluate_on):
      if len(data.indices[name]):
        of_run = data.tested_by if name == "test" else None
        # Without validation images there is nothing to fit a temperature on.
        wanted = name in ("validation", "test")
        wanted = wanted and len(data.indices["validation"]) > 0
        found = program.evaluate(
          *(state, frozen, data.indices[name], of_run), with_logits=wanted
        )
        if wanted:
          logits[name] = found.pop("logits")
        evaluations[name] = found
        carry = program.mark_diverged(carry, found["loss"], last)
  diverged = program.places.fetch(carry["diverged"])
  evaluations = {
    name: results_lib.summarise_evaluation(metrics, diverged < 0)
    for name, metrics in evaluations.items()
  }
  if logits:
    evaluations["calibration"] = calibration.report(
      logits,
      {name: data.labels[data.indices[name]] for name in logits},
      diverged < 0,
      of_run={"test": data.tested_by},
    )
  numbers = run_numbers(config)
  return {
    "method": config.method,
    "config": workdir_lib.as_json(config),
    "runs": numbers,
    **evaluations,
    "best_step": program.places.fetch(best["step"]),
    "diverged": {
      str(run): int(step)
      for run, step in zip(numbers, diverged, strict=True)
      if step >= 0
    },
    "data": {
      "class_names": data.class_names,
      "images": data.describe(),
      "held_out": program.method.predict
      and results_lib.held_out(config, data.describe()),
      "provenance": data.provenance,
      "warnings": data.warnings,
      "feed": program.images.name,
    },
    "versions": results_lib.versions(),
    "commit": results_lib.commit(),
    "devices": [str(device) for device in program.mesh.devices.flat],
    "mesh": dict(program.mesh.shape),
  }
