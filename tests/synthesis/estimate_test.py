"""How long it will take is told from what is left to do."""

import numpy as np

from synguide_jax.data import experiment_data
from synguide_jax.synthesis import estimate
from tests.synthesis import small


def test_seconds_are_those_of_all_passes():
  config = small.config(**{"sample.num_steps": 18, "batch_size": 10})
  # 1,000 steps of 10 images, three passes; 200 images, 35 passes.
  found = estimate.seconds(config, 0.001, 1_000, 200)
  np.testing.assert_allclose(found, (30, 7))
  config.sample.guidance = 2.0
  found = estimate.seconds(config, 0.001, 0, 200)
  np.testing.assert_allclose(found, (0, 14))


def test_an_image_takes_time(tmp_path, monkeypatch):
  monkeypatch.setenv("SYNGUIDE_CACHE", str(tmp_path))
  config = small.config()
  data = experiment_data.load(config.data, seed=0, runs=(0,))
  assert 0 < estimate.seconds_an_image(config, data) < 1


def test_steps_done(tmp_path):
  assert estimate.steps_done(tmp_path, 30) == 0
  for name in ("10", "20", "tmp.25"):
    (tmp_path / "checkpoints" / name).mkdir(parents=True)
  assert estimate.steps_done(tmp_path, 30) == 20
  (tmp_path / "results.json").touch()
  assert estimate.steps_done(tmp_path, 30) == 30
