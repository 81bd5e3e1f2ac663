"""A method's pure functions, over all runs and devices, jitted."""

from collections.abc import Callable, Iterator, Mapping, Sequence
import functools
import math
import os
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from synguide_jax import images, methods
from synguide_jax import mesh as mesh_lib
from synguide_jax.data.augment import Augmentation
from synguide_jax.data.experiment_data import ExperimentData
from synguide_jax.data.feed import Feed
from synguide_jax.errors import check_known
from synguide_jax.evaluate import Evaluator
from synguide_jax.images import Drawn
from synguide_jax.methods.base import Batch, Info

RUNS_MODES = ("vmap", "map")

# Arrays by name, each with a leading run axis.
Arrays = dict[str, Any]


def _jit(function: Callable, mesh: jax.sharding.Mesh, **options: Any) -> Any:
  """jax.jit, with LLVM's second instead of its third level on the CPU.

  The third unrolls the loops of the random number generator: compilation takes
  up to four times as long, and what it makes is no faster. A level that
  XLA_FLAGS names is left alone.
  """
  flag = "xla_backend_optimization_level"
  on_cpu = mesh.devices.flat[0].platform == "cpu"
  if on_cpu and flag not in os.environ.get("XLA_FLAGS", ""):
    options["compiler_options"] = {flag: 2}
  return jax.jit(function, **options)


class Program:
  """A method made ready for the data, the runs and the devices at hand.

  Args:
    config: The experiment's config, its specs resolved.
    data: Its images.
    runs: Numbers of the runs.
    devices: Devices to use; by default all.

  Attributes:
    info: What the method was told of the data.
    method: The method.
    mesh: The devices, as axes ``("run", "data")``.
    images: The images, resident or streamed.
  """

  def __init__(
    self,
    config: Any,
    data: ExperimentData,
    runs: Sequence[int],
    devices: Sequence[jax.Device] | None = None,
  ):
    check_known("runs_mode", config.runs_mode, RUNS_MODES)
    size, channels = config.data.image_size, data.pixels.shape[-1]
    self._runs_mode = config.runs_mode
    self._augmentation = Augmentation.from_config(config.data)
    self._augmentation.check(data.pixels.shape[1])
    self._image_shape = (size, size, channels)
    self.info = Info(data.class_names, self._image_shape, data.class_counts())
    self.method = methods.make(config, self.info)

    self.mesh = mesh_lib.create(len(runs), devices)
    for stage in self.method.stages:
      for name, stream in stage.streams.items():
        mesh_lib.check_batch_size(self.mesh, stream.batch_size, name)
    self._per_run = mesh_lib.per_run(self.mesh)
    self._num_runs = len(runs)
    # All randomness of a run comes from its key: one to begin with, one to
    # enter stages, one for steps.
    run_keys = jax.vmap(jax.random.fold_in, (None, 0))(
      jax.random.key(config.seed), jnp.asarray(runs)
    )
    self._init_keys, self._enter_keys, self._step_keys = jax.device_put(
      tuple(
        jax.vmap(lambda key: jax.random.split(key, 3), out_axes=1)(run_keys)
      ),
      self._per_run,
    )
    self.images = images.create(config.data, data.pixels, self.mesh)
    self._host = {"labels": data.labels, "real": data.real}
    shares = self.mesh.shape[mesh_lib.DATA]
    self._evaluator = Evaluator(
      self._logits,
      self.images,
      data.labels,
      num_classes=self.info.num_classes,
      batch_size=math.ceil(config.eval_batch_size / shares) * shares,
      index_sharding=mesh_lib.over_images(self.mesh),
    )

  @functools.cached_property
  def _stored(self) -> Arrays:
    """What steps look up; decoded and placed when the first one does."""
    everywhere = mesh_lib.replicated(self.mesh)
    placed = {k: mesh_lib.place(v, everywhere) for k, v in self._host.items()}
    return placed | {"images": self.images.stored}

  def init(self) -> tuple[Arrays, Any]:
    """Returns what is carried into the first stage, and the frozen networks."""
    shared = not self.method.frozen_per_run
    kept = mesh_lib.replicated(self.mesh) if shared else self._per_run
    init = _jit(self._init, self.mesh, out_shardings=(self._per_run, kept))
    state, frozen = init(self._init_keys)
    return {"state": state, "diverged": self._filled(-1)}, frozen

  def enter(
    self, number: int, carry: Arrays, frozen: Any
  ) -> tuple[Arrays, Arrays]:
    """Begins stage ``number``.

    Args:
      number: Index of the stage.
      carry: What is carried out of the stage before.
      frozen: The frozen networks.

    Returns:
      What steps carry: ``state``, ``metrics`` (sums since they were last set
      to zero) and ``diverged`` (the first step with a non-finite loss, or -1).
      And what evaluations keep: ``state`` for prediction, with its validation
      ``accuracy`` (-1 before the first evaluation) and ``step``.
    """
    enter = _jit(self._enter(number), self.mesh, out_shardings=self._per_run)
    state, best = enter(self._enter_keys, carry["state"])
    metrics = self._metrics_of(number, state, frozen)
    carry = {
      "state": state,
      "metrics": {name: self._filled(0.0) for name in metrics},
      "diverged": carry["diverged"],
    }
    best = {
      "state": best,
      "accuracy": self._filled(-1.0),
      "step": self._filled(0),
    }
    return carry, best

  def abstract(self, number: int) -> dict[str, Arrays]:
    """What `enter` returns, as shapes, types and shardings to restore into."""
    state, frozen = jax.eval_shape(self._init, self._init_keys)
    for stage in range(number + 1):
      state, best = jax.eval_shape(self._enter(stage), self._enter_keys, state)
    metrics = self._metrics_of(number, state, frozen)
    numbers = {"int": self._filled(0), "float": self._filled(0.0)}
    tree = {
      "carry": {
        "state": state,
        "metrics": {name: numbers["float"] for name in metrics},
        "diverged": numbers["int"],
      },
      "best": {
        "state": best,
        "accuracy": numbers["float"],
        "step": numbers["int"],
      },
    }
    return jax.tree.map(
      lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=self._per_run),
      tree,
    )

  def step(self, number: int, frozen: Any) -> Callable[..., Arrays]:
    """Returns ``(carry, drawn, step) -> carry`` for stage ``number``.

    ``carry`` is donated. ``drawn`` is what :meth:`batches` yields; ``step``
    counts from the beginning of the stage.
    """
    stages = self.method.stages
    before = sum(stage.num_steps for stage in stages[:number])
    step_of_all = self._step_of_all(number)

    def run_step(carry, frozen, keys, stored, drawn, step):
      state, metrics = step_of_all(
        carry["state"], frozen, keys, stored, drawn, step
      )
      newly = (carry["diverged"] < 0) & ~jnp.isfinite(metrics["loss"])
      return {
        "state": state,
        "metrics": jax.tree.map(jnp.add, carry["metrics"], metrics),
        "diverged": jnp.where(newly, before + step + 1, carry["diverged"]),
      }

    jitted = _jit(
      run_step,
      self.mesh,
      donate_argnames="carry",
      out_shardings=self._per_run,
    )

    def step(carry, drawn, step):
      return jitted(
        carry, frozen, self._step_keys, self._stored, drawn, np.int32(step)
      )

    step.num_compilations = jitted._cache_size
    return step

  def batches(
    self, feed: Feed, number: int, start: int
  ) -> Iterator[Mapping[str, Drawn]]:
    """Yields what stage ``number`` draws from step ``start`` on, on devices."""
    stage = self.method.stages[number]
    return self.images.batches(
      functools.partial(feed, number, stage.streams), start, stage.num_steps
    )

  def reset_metrics(self, carry: Arrays) -> Arrays:
    """Returns ``carry`` with the sums of the metrics set to zero."""
    zeros = {name: self._filled(0.0) for name in carry["metrics"]}
    return {**carry, "metrics": zeros}

  def mark_diverged(
    self, carry: Arrays, losses: np.ndarray, step: int
  ) -> Arrays:
    """Marks runs with a loss on held-out images that is not finite.

    The loss of a step is that of the weights before it, so that of the last one
    would not show what it did.
    """
    diverged = np.array(jax.device_get(carry["diverged"]))
    diverged[(diverged < 0) & ~np.isfinite(losses)] = step
    return {**carry, "diverged": jax.device_put(diverged, self._per_run)}

  def keep_best(
    self, best: Arrays, carry: Arrays, accuracy: np.ndarray, step: int
  ) -> Arrays:
    """Replaces what is best for the runs whose validation accuracy rose."""
    return _keep_best(
      best,
      carry["state"].for_prediction(),
      jax.device_put(accuracy.astype(np.float32), self._per_run),
      carry["diverged"],
      np.int32(step),
    )

  def evaluate(
    self,
    state: Any,
    frozen: Any,
    index: np.ndarray,
    of_run: np.ndarray | None = None,
  ) -> Mapping[str, np.ndarray]:
    """Evaluates every run; see :class:`synguide_jax.evaluate.Evaluator`."""
    return self._evaluator(state, frozen, index, of_run)

  def _init(self, keys: jax.Array) -> tuple[Any, Any]:
    image = jnp.zeros((1, *self._image_shape))
    return jax.vmap(
      lambda key: self.method.init(key, image),
      out_axes=(0, 0 if self.method.frozen_per_run else None),
    )(keys)

  def _enter(self, number: int) -> Callable[..., Any]:
    stage = self.method.stages[number]

    def enter(keys, state):
      keys = jax.vmap(jax.random.fold_in, (0, None))(keys, number)
      state = jax.vmap(stage.enter)(state, keys)
      # A copy, because the next step reuses the state's memory.
      return state, jax.tree.map(jnp.copy, state.for_prediction())

    return enter

  def _metrics_of(self, number: int, state: Any, frozen: Any) -> list[str]:
    """Names of the metrics that a step of the stage returns."""
    drawn = {
      name: self.images.abstract((self._num_runs, stream.batch_size))
      for name, stream in self.method.stages[number].streams.items()
    }
    step = self._step_of_all(number)
    stored = {**self._host, "images": self.images.abstract_stored}
    arguments = (state, frozen, self._step_keys, stored, drawn, 0)
    return list(jax.eval_shape(step, *arguments)[1])

  def _filled(self, value: float | int) -> jax.Array:
    dtype = np.int32 if isinstance(value, int) else np.float32
    return jax.device_put(np.full(self._num_runs, value, dtype), self._per_run)

  def _over_runs(self, function: Callable, frozen: Any, *args: Any) -> Any:
    """Calls ``function(frozen, *args)`` for every run, by the runs mode."""
    shared = not self.method.frozen_per_run
    if self._runs_mode == "vmap":
      axes = (None if shared else 0, *(0 for _ in args))
      over_runs = jax.vmap(function, axes, spmd_axis_name=mesh_lib.RUN)
      return over_runs(frozen, *args)
    if shared:
      return jax.lax.map(lambda of_run: function(frozen, *of_run), args)
    return jax.lax.map(lambda of_run: function(*of_run), (frozen, *args))

  def _step_of_all(self, number: int) -> Callable[..., Any]:
    """The stage's step: draw and augment the batches, then the method's."""
    stage = self.method.stages[number]
    streams = sorted(stage.streams.items())

    def step_of_all(state, frozen, keys, stored, drawn, step):
      def step_of_run(frozen, state, key, drawn):
        key = jax.random.fold_in(jax.random.fold_in(key, number), step)
        step_key, *draw_keys = jax.random.split(key, len(streams) + 1)
        batches = {
          name: self._batch(draw_key, stored, drawn[name], stream.views)
          for draw_key, (name, stream) in zip(draw_keys, streams, strict=True)
        }
        progress = jnp.float32(step) / stage.num_steps
        return stage.step(state, frozen, batches, step_key, progress)

      return self._over_runs(step_of_run, frozen, state, keys, drawn)

    return step_of_all

  def _batch(
    self, key: jax.Array, stored: Arrays, drawn: Drawn, views: int
  ) -> Batch:
    images = drawn.look_up(stored["images"])
    if views == 1:
      images = self._augmentation.train(key, images)
    else:
      keys = jax.random.split(key, views)
      images = jax.vmap(self._augmentation.train, (0, None))(keys, images)
    index = drawn.index
    return Batch(images, stored["labels"][index], stored["real"][index])

  def _logits(self, state: Any, frozen: Any, images: jax.Array) -> jax.Array:
    images = self._augmentation.evaluate(images)
    return self._over_runs(
      lambda frozen, state: self.method.predict(state, frozen, images),
      frozen,
      state,
    )


@jax.jit
def _keep_best(best, state, accuracy, diverged, step):
  better = (accuracy > best["accuracy"]) & (diverged < 0)

  def pick(new, old):
    shape = (-1, *(1 for _ in new.shape[1:]))
    return jnp.where(better.reshape(shape), new, old)

  return {
    "state": jax.tree.map(pick, state, best["state"]),
    "accuracy": jnp.where(better, accuracy, best["accuracy"]),
    "step": jnp.where(better, step, best["step"]),
  }
