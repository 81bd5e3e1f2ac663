"""The three observations, on classifiers and losses that are known."""

import jax
import numpy as np
import pytest

from synguide_jax import models
from synguide_jax.analysis import observations
from synguide_jax.data import digits, records
from synguide_jax.data.pixels import Pixels
from synguide_jax.models.pretrained import Pretrained


@pytest.fixture(scope="module")
def part(tmp_path_factory):
  with pytest.MonkeyPatch.context() as patch:
    patch.setenv("SYNGUIDE_CACHE", str(tmp_path_factory.mktemp("cache")))
    train = records.of_prepared(digits.prepare())["train"]
  pixels = Pixels([(train, np.arange(len(train)))], 8, 1)
  index = np.arange(300)[::-1]
  labels = train.index.labels[index]
  return observations.Part("real", "training", pixels, index, labels)


def _network(seed):
  model = models.create("small_cnn", num_classes=10, channels=1)
  variables = model.init(jax.random.key(seed), np.zeros((1, 8, 8, 1), "f"))
  return Pretrained(model, variables, (8, 8, 1))


def test_losses_are_those_of_each_image_and_run(part):
  networks = [_network(0), _network(1)]
  losses, correct = observations.losses(networks, part)
  assert losses.shape == correct.shape == (2, 300)
  images = part.pixels.read(part.index) / np.float32(255)
  for run, network in enumerate(networks):
    logits = network.model.apply(network.variables, images, train=False).logits
    logs = np.asarray(jax.nn.log_softmax(logits))
    expected = -logs[np.arange(300), part.labels]
    np.testing.assert_allclose(losses[run], expected, rtol=1e-4)
    np.testing.assert_array_equal(correct[run], logs.argmax(1) == part.labels)


def test_accuracy_matrix_is_of_runs(part):
  correct = {
    ("real", "real", "training"): np.array([[1, 1, 0, 0], [1, 1, 1, 0]], bool),
    ("made", "real", "training"): np.array([[1, 0, 0, 0], [0, 0, 0, 0]], bool),
  }
  found = observations.accuracy_matrix(correct, ["real", "made"], [part])
  assert found["trained_on"] == ["real", "made"]
  assert found["sets"] == [
    {"source": "real", "part": "training", "images": 300}
  ]
  (real,), (made,) = found["cells"]
  assert real["runs"] == [0.5, 0.75] and real["mean"] == 0.625
  assert made["mean"] == 0.125 and made["n"] == 2


def test_a_curve_saturates_where_it_stays_near_its_end():
  def record(step, accuracies):
    return {
      "step": step,
      "train": {"real_accuracy": accuracies},
      "validation": {"accuracy": [a / 2 for a in accuracies]},
    }

  results = {
    "history": [
      record(10, [0.5, 1.0]),
      record(20, [0.995, 0.2]),
      record(30, [0.9, 0.99]),
      record(40, [1.0, 1.0]),
    ],
    "runs": [0, 1],
    "diverged": {},
  }
  found = observations.curves(results, "real")
  assert found["steps"] == [10, 20, 30, 40]
  assert found["training"] == [[0.5, 0.995, 0.9, 1.0], [1.0, 0.2, 0.99, 1.0]]
  assert found["validation"][1] == [0.5, 0.1, 0.495, 0.5]
  # The first falls below 99 % again; the second is there from step 30 on.
  assert found["saturation"]["runs"] == [40.0, 30.0]
  del results["history"][0]["validation"]
  assert "validation" not in observations.curves(results, "real")


def test_loss_distribution_counts_every_image():
  losses = np.array([[0.0, 0.005, 0.5, 2.0], [0.02, 0.1, 1e9, 1.0]])
  found = observations.loss_distribution(losses, "real", "made")
  assert sum(found["counts"]) == 8
  assert found["counts"][0] == 1 and found["counts"][-1] == 1
  assert found["near_zero"]["runs"] == [0.5, 0.0]
  assert found["above_one"]["runs"] == [0.25, 0.25]
  assert found["median"]["runs"] == [0.2525, 0.55]


def test_extremes_of_every_class():
  losses = np.array([[1.0, 5.0, 2.0, 3.0, 9.0], [1.0, 5.0, 2.0, 5.0, 0.0]])
  labels = np.array([0, 0, 0, 1, 1])
  lowest, highest = observations.extremes(losses, labels, 2)
  np.testing.assert_array_equal(lowest[0], [0, 2])
  np.testing.assert_array_equal(highest[0], [1, 2])
  np.testing.assert_array_equal(lowest[1], [3, 4])
  np.testing.assert_array_equal(highest[1], [4, 3])
