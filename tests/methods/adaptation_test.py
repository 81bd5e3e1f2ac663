"""Adversaries do what they are for, on digits drawn with a thicker pen."""

import jax
import numpy as np
import pytest
from scipy import ndimage

from synguide_jax.data import experiment_data
from synguide_jax.train import train_and_evaluate
from tests import tiny

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("optimized")]
# What adaptation adds to training on the source alone, in accuracy. Stated, and
# the seed chosen, before this test was run; it was 0.2 and more with others.
MARGIN, SEED = 0.10, 3
OPTIONS = {
  "fake": {},
  "dann": {
    "dann.labels": "source",
    "dann.hidden": (64,),
    "dann.dropout": 0.0,
    "dann.domain_weight": 0.1,
  },
  "adda": {
    "adda.hidden": (64,),
    "adda.encoder_rate": 0.01,
    "two_stage.first_share": 0.5,
  },
}


def config_of(method, **overrides):
  """All of the pool's real digits are the target; the last weights count."""
  return tiny.config(
    **{
      "method": method,
      "seed": SEED,
      "num_runs": 5,
      "select": "last",
      "data.shots": -1,
      "data.validation": 200,
      "data.test": 697,
      "batch_size": 64,
      "num_steps": 800,
      "eval_every": 100,
      "checkpoint_every": 800,
      "eval_batch_size": 700,
      "optimizer.learning_rate": 2e-3,
      "optimizer.schedule": "cosine",
      **OPTIONS[method],
      **overrides,
    }
  )


@pytest.fixture(scope="module")
def source_of(tmp_path_factory):
  """Writes the pool, changed by a function, as a labelled set."""
  folder = tmp_path_factory.mktemp("sources")
  config = config_of("fake", **{"data.synthetic": ""})
  data = experiment_data.load(config.data, seed=0, runs=(0,))
  pool = data.indices["pool"]
  images, labels = data.pixels.read(pool), data.labels[pool]

  def write(name, change):
    np.savez(folder / f"{name}.npz", images=change(images), labels=labels)
    return f"npz:{folder / name}.npz"

  return write


def train(method, source, folder, **overrides):
  """Returns test accuracies and the records of the adversarial stage."""
  config = config_of(method, **{"data.synthetic": source, **overrides})
  # On one device: eight would wait for each other a thousand times.
  results = train_and_evaluate(
    config, folder / method, tiny.Recorder(), devices=jax.devices()[:1]
  )
  last = results["history"][-1]["stage"]
  records = [r for r in results["history"] if r["stage"] == last]
  return results["test"]["accuracy"], records


def test_adaptation_beats_the_source_alone(source_of, tmp_path):
  def thicker(images):
    return ndimage.maximum_filter(images, size=(1, 3, 3, 1))

  source = source_of("thick", thicker)
  accuracies = {m: train(m, source, tmp_path)[0] for m in OPTIONS}
  assert all(accuracy["n"] == 5 for accuracy in accuracies.values())
  alone = accuracies.pop("fake")["mean"]
  for method, accuracy in accuracies.items():
    assert accuracy["mean"] > alone + MARGIN, (method, accuracies, alone)


@pytest.mark.parametrize("method", ["dann", "adda"])
def test_the_same_domain_twice_cannot_be_told_apart(
  method, source_of, tmp_path
):
  source = source_of("same", np.copy)
  accuracy, records = train(method, source, tmp_path, num_steps=400)
  found = [record["train"]["domain_accuracy"] for record in records]
  # A hundred steps of 64 images, five runs each.
  assert np.abs(np.mean(found, axis=1) - 0.5).max() < 0.05
  assert accuracy["mean"] > 0.9
