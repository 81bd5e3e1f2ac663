"""A method's pure functions, over all runs and devices, jitted."""

from collections.abc import Callable, Iterator, Mapping, Sequence
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from synguide_jax import compilation, images, methods
from synguide_jax import mesh as mesh_lib
from synguide_jax import runs as runs_lib
from synguide_jax.data.augment import Augmentation
from synguide_jax.data.experiment_data import ExperimentData
from synguide_jax.data.feed import Feed
from synguide_jax.errors import check_known
from synguide_jax.evaluate import Evaluator
from synguide_jax.images import Drawn
from synguide_jax.methods.base import Batch, Info
from synguide_jax.state import TrainState

SPLIT = ("optimizer", "frozen")

# Arrays by name, each with a leading run axis.
Arrays = dict[str, Any]


class Program:
  """A method made ready for the data, the runs and the devices at hand.

  Where the runs do not fill the mesh's run axis, copies of the first take the
  empty places (:class:`synguide_jax.runs.Places`); what is measured leaves them
  out.

  Args:
    config: The experiment's config, its specs resolved.
    data: Its images.
    runs: Numbers of the runs.
    devices: Devices to use; by default all. Those of a topology that is not
      there will do for :meth:`traced_step`.

  Attributes:
    info: What the method was told of the data.
    method: The method.
    mesh: The devices, as axes ``("run", "data")``.
    places: Where the runs are on it.
    runs_mode: "vmap" or "map".
    steps_per_dispatch: Steps that the devices do at a time, at most.
    images: The images, resident or streamed.
  """

  def __init__(
    self,
    config: Any,
    data: ExperimentData,
    runs: Sequence[int],
    devices: Sequence[jax.Device] | None = None,
  ):
    for part in config.mesh.split:
      check_known("mesh.split", part, SPLIT)
    size, channels = config.data.image_size, data.pixels.shape[-1]
    self._augmentation = Augmentation.from_config(config.data)
    self._augmentation.check(data.pixels.shape[1])
    self._image_shape = (size, size, channels)
    self.info = Info(data.class_names, self._image_shape, data.class_counts())
    self.method = methods.make(config, self.info)

    self.mesh = mesh_lib.create(len(runs), devices, run_axis=config.mesh.runs)
    for stage in self.method.stages:
      for name, stream in stage.streams.items():
        mesh_lib.check_batch_size(
          self.mesh, stream.batch_size, name, config.microbatches
        )
    self.places = runs_lib.Places(self.mesh, len(runs))
    self._split = tuple(config.mesh.split)
    self._seed, self._runs = config.seed, self.places.fill(np.asarray(runs))
    model = self.method.model
    side = (model and model.preprocessing.size) or size
    shares = self.mesh.shape[mesh_lib.DATA]
    platform = self.mesh.devices.flat[0].platform
    pixels = config.batch_size // (shares * config.microbatches) * side**2
    self.runs_mode = runs_lib.choose_mode(config.runs_mode, platform, pixels)
    self.images = images.create(config.data, data.pixels, self.mesh)
    self.steps_per_dispatch = runs_lib.choose_steps(
      config.steps_per_dispatch,
      platform,
      pixels,
      resident=isinstance(self.images, images.Resident),
    )
    self._traced_steps: dict[int, compilation.Once] = {}
    self._pixels = data.pixels
    self._host = {"labels": data.labels, "real": data.real}
    self._evaluator = Evaluator(
      self._logits,
      self.images,
      data.labels,
      num_classes=self.info.num_classes,
      batch_size=math.ceil(config.eval_batch_size / shares) * shares,
      mesh=self.mesh,
    )

  @functools.cached_property
  def _keys(self) -> jax.Array:
    """Keys to begin with, to enter stages and for steps, ``[3, places]``."""
    keys = compilation.jit(
      self._make_keys, self.mesh, out_shardings=self._of_keys
    )
    return keys(self._runs)

  @functools.cached_property
  def _stored(self) -> Arrays:
    """What steps look up; decoded and placed when the first one does."""
    everywhere = mesh_lib.replicated(self.mesh)
    placed = {k: mesh_lib.place(v, everywhere) for k, v in self._host.items()}
    return placed | {"images": self.images.stored}

  def init(self) -> tuple[Arrays, Any]:
    """Returns what is carried into the first stage, and the frozen networks."""
    abstract = self._abstract_init()
    shardings = jax.tree.map(lambda x: x.sharding, abstract)
    init = compilation.jit(
      self._traced_init, self.mesh, out_shardings=shardings
    )
    state, frozen = init(self._keys)
    return {"state": state, "diverged": self.places.filled(-1)}, frozen

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
    function, state = self._enter(number), carry["state"]
    abstract = jax.eval_shape(function, self._keys, state)
    enter = compilation.jit(
      function, self.mesh, out_shardings=self._shardings(abstract)
    )
    state, best = enter(self._keys, state)
    metrics = self._metrics_of(number, state, frozen)
    filled = self.places.filled
    carry = {
      "state": state,
      "metrics": {name: filled(0.0) for name in metrics},
      "diverged": carry["diverged"],
    }
    return carry, {"state": best, "accuracy": filled(-1.0), "step": filled(0)}

  def abstract(self, number: int) -> dict[str, Arrays]:
    """What `enter` returns, as shapes, types and shardings to restore into."""
    state, frozen = self._abstract_init()
    for stage in range(number + 1):
      state, best = jax.eval_shape(
        self._enter(stage), self._abstract_keys, state
      )
    metrics = self._metrics_of(number, state, frozen)
    integer, real = (
      jax.ShapeDtypeStruct((self.places.count,), dtype)
      for dtype in (np.int32, np.float32)
    )
    tree = {
      "carry": {
        "state": state,
        "metrics": {name: real for name in metrics},
        "diverged": integer,
      },
      "best": {"state": best, "accuracy": real, "step": integer},
    }
    return compilation.with_shardings(tree, self._shardings(tree))

  def refill(self, arrays: dict[str, Arrays], count: int) -> dict[str, Arrays]:
    """Gives what a program with ``count`` places saved those of this one."""
    if count == self.places.count:
      return arrays
    index = self.places.fill(np.arange(self.places.num_runs))

    def refill(arrays):
      return jax.tree.map(lambda x: x[index], arrays)

    shardings = self._shardings(jax.eval_shape(refill, arrays))
    return compilation.jit(refill, self.mesh, out_shardings=shardings)(arrays)

  def step(self, number: int, frozen: Any) -> Callable[..., Arrays]:
    """Returns ``(carry, steps, step) -> carry`` for stage ``number``.

    ``carry`` is donated. ``steps`` is what :meth:`batches` yields; ``step`` is
    the number of the first of them, from the beginning of the stage.
    """
    jitted = self._jitted_step(number)

    def step(carry, steps, step):
      counts = np.int32(step), np.int32(steps.count)
      return jitted(
        *(carry, frozen, self._keys, self._stored, steps.drawn, *counts)
      )

    step.num_compilations = jitted._cache_size
    return step

  def traced_step(self, number: int = 0) -> jax.stages.Traced:
    """Traces a stage's step for the mesh's devices, which need not be there.

    ``.lower().compile()`` of it says what the step takes.
    """
    everywhere = mesh_lib.replicated(self.mesh)
    over_batch = mesh_lib.per_run_and_image(self.mesh)
    drawn = self._abstract_drawn(number)
    if (several := self.steps_per_dispatch) > 1:
      over_batch = mesh_lib.per_step_run_and_image(self.mesh)
      drawn = jax.tree.map(lambda x: x.update(shape=(several, *x.shape)), drawn)
    stored = {
      name: jax.ShapeDtypeStruct(array.shape, array.dtype)
      for name, array in self._host.items()
    }
    stored["images"] = self.images.abstract_stored
    return self._jitted_step(number).trace(
      self.abstract(number)["carry"],
      self._abstract_init()[1],
      self._abstract_keys,
      compilation.with_sharding(stored, everywhere),
      compilation.with_sharding(drawn, over_batch),
      *[jax.ShapeDtypeStruct((), np.int32)] * 2,
    )

  def batches(
    self,
    feed: Feed,
    number: int,
    start: int,
    due: Callable[[int], bool] = lambda step: False,
  ) -> Iterator[images.Steps]:
    """Yields what stage ``number`` draws from step ``start`` on, on devices.

    Args:
      feed: Says what is drawn.
      number: Index of the stage.
      start: Number of the first step.
      due: Whether something is to be done after so many steps of the stage, so
        that they are not followed by others at once. The first one is alone.
    """
    stage = self.method.stages[number]
    draw = functools.partial(
      _draw, feed, number, stage.streams, self.places.count
    )
    if (at_a_time := self.steps_per_dispatch) == 1:
      return self.images.batches(draw, start, stage.num_steps)
    return self.images.batches(
      draw,
      start,
      stage.num_steps,
      at_a_time=at_a_time,
      # Compilation comes with the first, whose time says nothing of others.
      due=lambda step: step == start + 1 or due(step),
    )

  def images_per_step(self, number: int) -> int:
    """Images that a step of stage ``number`` draws, over all runs."""
    streams = self.method.stages[number].streams.values()
    return self.places.num_runs * sum(x.batch_size for x in streams)

  def examples(self, feed: Feed, number: int, count: int) -> dict[str, Batch]:
    """Returns what the first step of a stage shows the first run.

    It is computed by this process alone, on one of its devices.

    Args:
      feed: Says what is drawn.
      number: Index of the stage.
      count: Images of a batch to return, at most.

    Returns:
      The first images of the batch of each stream, as numpy's arrays.
    """
    streams = self.method.stages[number].streams
    drawn = {
      name: Drawn(index[0], self._pixels.read(index[0]))
      for name, index in feed(number, streams, 0).items()
    }

    def augmented(runs, stored, drawn):
      key = self._make_keys(runs)[2, 0]
      _, batches = self._batches(number, key, 0, stored, drawn)
      return {
        name: Batch(
          batch.images[..., :count, :, :, :],
          batch.labels[:count],
          batch.real[:count],
        )
        for name, batch in batches.items()
      }

    arguments = self._runs[:1], {**self._host, "images": None}, drawn
    placed = jax.device_put(arguments, self.mesh.local_devices[0])
    return jax.device_get(compilation.jit(augmented, self.mesh)(*placed))

  def reset_metrics(self, carry: Arrays) -> Arrays:
    """Returns ``carry`` with the sums of the metrics set to zero."""
    zeros = {name: self.places.filled(0.0) for name in carry["metrics"]}
    return {**carry, "metrics": zeros}

  def mark_diverged(
    self, carry: Arrays, losses: np.ndarray, step: int
  ) -> Arrays:
    """Marks runs with a loss on held-out images that is not finite.

    The loss of a step is that of the weights before it, so that of the last one
    would not show what it did.
    """
    diverged = np.array(self.places.fetch(carry["diverged"]))
    diverged[(diverged < 0) & ~np.isfinite(losses)] = step
    return {**carry, "diverged": self.places.place(diverged)}

  def keep_best(
    self, best: Arrays, carry: Arrays, accuracy: np.ndarray, step: int
  ) -> Arrays:
    """Replaces what is best for the runs whose validation accuracy rose."""
    return _keep_best(
      best,
      carry["state"].for_prediction(),
      self.places.place(accuracy.astype(np.float32)),
      carry["diverged"],
      np.int32(step),
    )

  def evaluate(
    self,
    state: Any,
    frozen: Any,
    index: np.ndarray,
    of_run: np.ndarray | None = None,
    *,
    with_logits: bool = False,
  ) -> dict[str, np.ndarray]:
    """Evaluates every run; see :class:`synguide_jax.evaluate.Evaluator`."""
    if of_run is not None:
      of_run = self.places.fill(of_run)
    found = self._evaluator(
      state, frozen, index, of_run, with_logits=with_logits
    )
    return {name: self.places.cut(values) for name, values in found.items()}

  @property
  def _of_keys(self) -> jax.sharding.NamedSharding:
    spec = jax.sharding.PartitionSpec(None, mesh_lib.RUN)
    return jax.sharding.NamedSharding(self.mesh, spec)

  def _make_keys(self, runs: jax.Array) -> jax.Array:
    """All randomness of a run comes from its key."""
    run_keys = jax.vmap(jax.random.fold_in, (None, 0))(
      jax.random.key(self._seed), runs
    )
    return jax.vmap(lambda key: jax.random.split(key, 3), out_axes=1)(run_keys)

  @property
  def _abstract_keys(self) -> jax.ShapeDtypeStruct:
    return compilation.with_sharding(
      jax.eval_shape(self._make_keys, self._runs), self._of_keys
    )

  def _abstract_init(self) -> tuple[Any, Any]:
    """What `_init` returns, as shapes, types and shardings."""
    state, frozen = self._traced_init.out
    per_run = self.method.frozen_per_run
    if "frozen" in self._split:
      shardings = mesh_lib.split(self.mesh, frozen, runs=per_run)
      frozen = compilation.with_shardings(frozen, shardings)
    else:
      frozen = compilation.with_sharding(
        frozen,
        self.places.sharding if per_run else mesh_lib.replicated(self.mesh),
      )
    return compilation.with_shardings(state, self._shardings(state)), frozen

  def _shardings(self, tree: Any) -> Any:
    """Shardings of arrays with a leading axis of places."""

    def of(part):
      per_run = jax.tree.map(lambda _: self.places.sharding, part)
      if isinstance(part, TrainState) and "optimizer" in self._split:
        split = mesh_lib.split(self.mesh, part.opt_state, runs=True)
        per_run = per_run.replace(opt_state=split)
      return per_run

    return jax.tree.map(of, tree, is_leaf=lambda x: isinstance(x, TrainState))

  @functools.cached_property
  def _traced_init(self) -> compilation.Once:
    return compilation.Once(self._init, self._abstract_keys)

  def _init(self, keys: jax.Array) -> tuple[Any, Any]:
    image = jnp.zeros((1, *self._image_shape))
    return jax.vmap(
      lambda key: self.method.init(key, image),
      out_axes=(0, 0 if self.method.frozen_per_run else None),
    )(keys[0])

  def _enter(self, number: int) -> Callable[..., Any]:
    stage = self.method.stages[number]

    def enter(keys, state):
      keys = jax.vmap(jax.random.fold_in, (0, None))(keys[1], number)
      state = jax.vmap(stage.enter)(state, keys)
      # A copy, because the next step reuses the state's memory.
      return state, jax.tree.map(jnp.copy, state.for_prediction())

    return enter

  def _abstract_drawn(self, number: int) -> dict[str, Drawn]:
    streams = self.method.stages[number].streams.items()
    return {
      name: self.images.abstract((self.places.count, stream.batch_size))
      for name, stream in streams
    }

  def _metrics_of(self, number: int, state: Any, frozen: Any) -> list[str]:
    """Names of the metrics that a step of the stage returns."""
    return list(self._traced_step_of_all(number, state, frozen).out[1])

  def _jitted_step(self, number: int) -> Any:
    stages = self.method.stages
    before = sum(stage.num_steps for stage in stages[:number])

    def run_step(carry, frozen, keys, stored, drawn, step):
      state = carry["state"]
      step_of_all = self._traced_step_of_all(number, state, frozen)
      state, metrics = step_of_all(state, frozen, keys, stored, drawn, step)
      newly = (carry["diverged"] < 0) & ~jnp.isfinite(metrics["loss"])
      return {
        "state": state,
        "metrics": jax.tree.map(jnp.add, carry["metrics"], metrics),
        "diverged": jnp.where(newly, before + step + 1, carry["diverged"]),
      }

    shardings = self.places.sharding
    if self._split:
      shardings = self._shardings(self.abstract(number)["carry"])

    def run_steps(carry, frozen, keys, stored, drawn, step, count):
      if self.steps_per_dispatch == 1:
        return run_step(carry, frozen, keys, stored, drawn, step)

      def body(i, carry):
        of_step = jax.tree.map(lambda x: x[i], drawn)
        carry = run_step(carry, frozen, keys, stored, of_step, step + i)
        # Or the compiler would split weights from one step to the next.
        return jax.lax.with_sharding_constraint(carry, shardings)

      return jax.lax.fori_loop(0, count, body, carry)

    return compilation.jit(
      run_steps, self.mesh, donate_argnames="carry", out_shardings=shardings
    )

  def _over_runs(self, function: Callable) -> Callable:
    """Makes ``function(frozen, *of_run)`` one of all runs."""
    return runs_lib.over_runs(
      function,
      self.runs_mode,
      self.mesh,
      frozen_per_run=self.method.frozen_per_run,
    )

  def _traced_step_of_all(
    self, number: int, state: Any, frozen: Any
  ) -> compilation.Once:
    """Traces a stage's step for such states, the first time."""
    if number not in self._traced_steps:
      stored = {**self._host, "images": self.images.abstract_stored}
      self._traced_steps[number] = compilation.Once(
        self._step_of_all(number),
        *(state, frozen, self._abstract_keys, stored),
        *(self._abstract_drawn(number), np.int32(0)),
      )
    return self._traced_steps[number]

  def _step_of_all(self, number: int) -> Callable[..., Any]:
    """The stage's step: draw and augment the batches, then the method's."""
    stage = self.method.stages[number]

    def step_of_all(state, frozen, keys, stored, drawn, step):
      def step_of_run(frozen, state, key, drawn):
        step_key, batches = self._batches(number, key, step, stored, drawn)
        progress = jnp.float32(step) / stage.num_steps
        return stage.step(state, frozen, batches, step_key, progress)

      return self._over_runs(step_of_run)(frozen, state, keys[2], drawn)

    return step_of_all

  def _batches(
    self,
    number: int,
    key: jax.Array,
    step: jax.Array | int,
    stored: Arrays,
    drawn: Mapping[str, Drawn],
  ) -> tuple[jax.Array, dict[str, Batch]]:
    """Returns the key of a run's step, and its batches, augmented."""
    streams = sorted(self.method.stages[number].streams.items())
    key = jax.random.fold_in(jax.random.fold_in(key, number), step)
    step_key, *draw_keys = jax.random.split(key, len(streams) + 1)
    batches = {
      name: self._batch(draw_key, stored, drawn[name], stream.views)
      for draw_key, (name, stream) in zip(draw_keys, streams, strict=True)
    }
    return step_key, batches

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
    predict = self._over_runs(
      lambda frozen, state: self.method.predict(state, frozen, images)
    )
    return predict(frozen, state)


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


def _draw(
  feed: Feed,
  number: int,
  streams: Mapping[str, Any],
  places: int,
  step: int,
) -> dict[str, np.ndarray]:
  """What a step draws for every place; at the top level, to be pickled."""
  drawn = feed(number, streams, step)
  return {name: runs_lib.fill(index, places) for name, index in drawn.items()}
