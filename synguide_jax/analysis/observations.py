r"""The paper's three observations on classifiers of different sources.

Each classifier is trained on one source, the real images or a synthetic set,
and asked about all of them (Wang et al., 2024, Section 3.2):

1. its accuracy on each source (Table 1); that a classifier of real images knows
   synthetic ones but not the other way round is what a content gap looks like;
2. when its training accuracy saturates (Figure 2): a simplified set is learnt
   sooner;
3. the losses of single images under the classifier of an opposite source
   (Figure 3): those of synthetic images are mostly close to zero.
"""

from collections.abc import Callable, Mapping, Sequence
import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from synguide_jax.asking import ask
from synguide_jax.data.augment import Augmentation
from synguide_jax.data.pixels import Pixels
from synguide_jax.models.pretrained import Pretrained
from synguide_jax.results import plain, summarise

# Bins of log10 of the loss in nats; the outer ones take all beyond.
EDGES = np.linspace(-5, 1.5, 53)
NEAR_ZERO, HIGH = 0.01, 1.0  # nats
# Share of its final value at which a training accuracy counts as saturated.
SATURATED = 0.99


@dataclasses.dataclass(frozen=True)
class Part:
  """Some images of a source.

  Attributes:
    source: Its name, "real" or that of a synthetic set.
    part: "training", "validation", "test" or "held out".
    pixels: The images of all sources.
    index: Numbers of its N images, int ``[N]``.
    labels: Their classes, int ``[N]``.
  """

  source: str
  part: str
  pixels: Pixels
  index: np.ndarray
  labels: np.ndarray


def judging(network: Pretrained) -> Callable[..., Any]:
  """Makes the function that `losses` asks networks by.

  Args:
    network: One of them; the others differ in their weights only.

  Returns:
    A function of variables with a leading axis of R runs, images, uint8
    ``[B, H, W, C]``, and labels ``[B]``: cross entropy in nats, and whether the
    label is the most probable class, both ``[B, R]``.
  """
  centre = Augmentation(network.image_shape[0]).evaluate

  def judge(variables, images, labels):
    images = centre(images)

    def of_run(variables):
      logits = network.model.apply(variables, images, train=False).logits
      log_probs = jax.nn.log_softmax(logits)
      of_label = jnp.take_along_axis(log_probs, labels[:, None], -1)[:, 0]
      return -of_label, logits.argmax(-1) == labels

    # One after the other, so that memory is that of one.
    of_runs = jax.lax.map(of_run, variables)
    return jax.tree.map(jnp.transpose, of_runs)

  return judge


def losses(
  networks: Sequence[Pretrained],
  part: Part,
  judge: Callable[..., Any] | None = None,
) -> tuple[np.ndarray, np.ndarray]:
  """Asks classifiers about the images of a part.

  Args:
    networks: Of R runs.
    part: N images; the networks see their centre, as when they were evaluated.
    judge: What `judging` made of networks of the same kind, so that several
      calls share what is compiled.

  Returns:
    Cross entropy in nats, float32 ``[R, N]``, and whether the most probable
    class is the label, bool ``[R, N]``.
  """
  found = ask(
    judge or judging(networks[0]),
    jax.tree.map(lambda *x: np.stack(x), *(n.variables for n in networks)),
    part.pixels,
    part.index,
    [part.labels.astype(np.int32)],
    batch_size=256,
    description=f"{part.source}, {part.part}",
  )
  return tuple(np.transpose(x) for x in found)


def accuracy_matrix(
  correct: Mapping[tuple[str, str, str], np.ndarray],
  trained_on: Sequence[str],
  parts: Sequence[Part],
) -> dict[str, Any]:
  """Makes Table 1: accuracies of all classifiers on all parts.

  Args:
    correct: What `losses` found, by source of the classifier, and source and
      name of the part.
    trained_on: The sources with a classifier, in order.
    parts: The parts, in order.

  Returns:
    The entry "accuracy" of analysis.json.
  """
  return {
    "trained_on": list(trained_on),
    "sets": [
      {"source": p.source, "part": p.part, "images": len(p.index)}
      for p in parts
    ],
    "cells": [
      [_summary(correct[name, p.source, p.part].mean(1)) for p in parts]
      for name in trained_on
    ],
  }


def curves(results: Mapping[str, Any], source: str) -> dict[str, Any]:
  """Makes Figure 2 of a classifier: its accuracies in training.

  Args:
    results: Its results.json.
    source: What it was trained on.

  Returns:
    An entry of "curves" of analysis.json; ``saturation`` is the step after
    which a run's training accuracy stays above 99 % of its last one.
  """
  name = "real_accuracy" if source == "real" else "synthetic_accuracy"
  history = results["history"]
  steps = [record["step"] for record in history]
  training = np.array([record["train"][name] for record in history], float)
  saturated = []
  for of_run in training.T:
    below = np.flatnonzero(~(of_run >= SATURATED * of_run[-1]))
    saturated.append(steps[below[-1] + 1] if len(below) else steps[0])
  found = {"steps": steps, "training": plain(training.T)}
  if all("validation" in record for record in history):
    validation = [record["validation"]["accuracy"] for record in history]
    found["validation"] = plain(np.array(validation, float).T)
  kept = [str(run) not in results["diverged"] for run in results["runs"]]
  return found | {"saturation": summarise(saturated, kept)}


def loss_distribution(
  of_images: np.ndarray, trained_on: str, evaluated_on: str
) -> dict[str, Any]:
  """Makes one half of a panel of Figure 3.

  Args:
    of_images: Losses, ``[R, N]``, of the classifiers of R runs.
    trained_on: Their source.
    evaluated_on: That of the images.

  Returns:
    An entry of "losses" of analysis.json; counts are of all runs together.
  """
  logs = np.log10(np.maximum(of_images, 1e-30))
  clipped = np.clip(logs, EDGES[0], EDGES[-1])
  return {
    "trained_on": trained_on,
    "evaluated_on": evaluated_on,
    "edges": plain(EDGES),
    "counts": np.histogram(clipped, EDGES)[0].tolist(),
    "near_zero": _summary((of_images < NEAR_ZERO).mean(1)),
    "above_one": _summary((of_images > HIGH).mean(1)),
    "median": _summary(np.median(of_images, 1)),
  }


def extremes(
  of_images: np.ndarray, labels: np.ndarray, number: int
) -> tuple[dict[int, np.ndarray], dict[int, np.ndarray]]:
  """Finds the images of each class with the lowest and the highest loss.

  Args:
    of_images: Losses, ``[R, N]``; their mean over the runs counts.
    labels: Classes, ``[N]``.
    number: Images a class, at most.

  Returns:
    Numbers in [0, N) by class, the lowest first, and the highest first.
  """
  order = np.argsort(of_images.mean(0), kind="stable")
  lowest, highest = {}, {}
  for c in np.unique(labels):
    of_class = order[labels[order] == c]
    lowest[int(c)], highest[int(c)] = of_class[:number], of_class[::-1][:number]
  return lowest, highest


def _summary(of_runs: np.ndarray) -> dict[str, Any]:
  return summarise(of_runs, [True] * len(of_runs))
