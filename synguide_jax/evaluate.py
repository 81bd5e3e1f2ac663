"""Exact evaluation: every image counts once, on any number of devices."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from synguide_jax import mesh as mesh_lib
from synguide_jax.images import Resident, Streamed

Metrics = dict[str, np.ndarray]


class Evaluator:
  """Evaluates all runs on stored images.

  Args:
    logits_fn: ``(state, frozen, images) -> logits`` with a leading run axis on
      ``state`` and ``logits [runs, B, K]``; ``images`` are the stored uint8
      ones ``[B, H, W, C]``, the same for every run.
    images: The images, resident or streamed.
    labels: Their labels.
    num_classes: Number of classes.
    batch_size: Images a step; the last batch is padded and masked.
    mesh: The devices, over which a batch is spread.
  """

  def __init__(
    self,
    logits_fn: Callable[[Any, Any, jax.Array], jax.Array],
    images: Resident | Streamed,
    labels: np.ndarray,
    *,
    num_classes: int,
    batch_size: int,
    mesh: jax.sharding.Mesh,
  ):
    self._images, self._labels = images, labels
    self._num_classes, self._batch_size = num_classes, batch_size
    self._sharding = mesh_lib.over_images(mesh)
    # XLA runs independent programs at the same time on CPUs, and their
    # transfers between devices then wait for each other for ever.
    cpu = mesh.devices.flat[0].platform == "cpu"
    self._in_order = cpu and mesh.size > 1

    def sums(state, frozen, stored, drawn, label, mask):
      logits = logits_fn(state, frozen, drawn.look_up(stored))
      label = jnp.broadcast_to(label, logits.shape[:-1])
      loss = optax.softmax_cross_entropy_with_integer_labels(logits, label)
      correct = (logits.argmax(-1) == label) & mask
      classes = jax.nn.one_hot(label, num_classes, dtype=jnp.int32)
      per_class = jnp.einsum("rn,rnk->rk", correct.astype(jnp.int32), classes)
      return (jnp.where(mask, loss, 0.0).sum(-1), per_class), logits

    # Sums that every process can read; logits stay where they are.
    everywhere = mesh_lib.replicated(mesh)
    where = everywhere, mesh_lib.per_run_and_image(mesh)
    self._sums = jax.jit(sums, out_shardings=where)
    self._gather = jax.jit(lambda x: x, out_shardings=everywhere)

  def __call__(
    self,
    state: Any,
    frozen: Any,
    index: np.ndarray,
    of_run: np.ndarray | None = None,
    *,
    with_logits: bool = False,
  ) -> Metrics:
    """Evaluates every run on the images ``index``.

    Args:
      state: State for prediction, with a leading run axis.
      frozen: The method's frozen networks.
      index: Indices of the images, ``[N]``.
      of_run: Which of them count for each run, bool ``[runs, N]``; by default
        all.
      with_logits: Whether to return the logits of all images too.

    Returns:
      ``loss`` (mean cross entropy in nats), ``accuracy`` (share of correct
      predictions) and ``balanced_accuracy`` (mean over classes of the share
      in the class), each float64 ``[runs]``, and ``class_accuracy``
      ``[runs, K]``, NaN for a class without images. If asked for, also
      ``logits``, float32 ``[runs, N, K]``, in every process.
    """
    if of_run is None:
      of_run = np.ones((1, len(index)), bool)
    size, partial, kept = self._batch_size, [], []
    padding = -len(index) % size
    padded = np.pad(index, (0, padding)).astype(np.int32).reshape(-1, size)
    masks = np.pad(of_run, ((0, 0), (0, padding)))
    masks = masks.reshape(len(of_run), -1, size).swapaxes(0, 1)
    drawn = self._images.listed(list(padded), self._sharding)
    for batch, indices, mask in zip(drawn, padded, masks, strict=True):
      label = mesh_lib.place(self._labels[indices], self._sharding)
      sums, logits = self._sums(
        state, frozen, self._images.stored, batch, label, mask
      )
      partial.append(sums)
      if self._in_order:
        jax.block_until_ready(sums)
      if with_logits:
        kept.append(self._fetch(logits))
    losses, correct = zip(*jax.device_get(partial), strict=True)
    loss = np.sum(losses, axis=0, dtype=np.float64) / of_run.sum(-1)
    correct = np.sum(correct, axis=0, dtype=np.int64)
    counts = np.stack(
      [
        np.bincount(self._labels[index[mask]], minlength=self._num_classes)
        for mask in of_run
      ]
    )
    with np.errstate(invalid="ignore"):
      class_accuracy = correct / counts
    logits = {}
    if with_logits:
      logits["logits"] = np.concatenate(kept, axis=1)[:, : len(index)]
    return logits | {
      "loss": loss,
      "accuracy": correct.sum(-1) / counts.sum(-1),
      "balanced_accuracy": np.nanmean(class_accuracy, -1),
      "class_accuracy": class_accuracy,
    }

  def _fetch(self, logits: jax.Array) -> np.ndarray:
    if not logits.is_fully_addressable:
      logits = self._gather(logits)
    return np.asarray(jax.device_get(logits), np.float32)
