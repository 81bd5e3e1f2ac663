"""Tests of synguide_jax.asking; features_test.py has more."""

import jax.numpy as jnp
import numpy as np

from synguide_jax.asking import ask
from synguide_jax.data import prepared, records
from synguide_jax.data.pixels import Pixels


def test_columns_go_with_their_images(tmp_path):
  images = np.random.default_rng(0).integers(0, 256, (21, 10, 10, 3), np.uint8)
  examples = [prepared.Example(image, 0) for image in images]
  folder = tmp_path / "synguide_test" / "a" / "1.0.0"
  prepared.write(folder, examples, ["a"], provenance={})
  found = records.of_prepared(folder)["train"]
  pixels = Pixels([(found, np.arange(21))], 10, 3)
  indices = np.arange(21)[::-1]

  def brightest(offset, batch, number, weight):
    peak = jnp.max(batch, axis=(1, 2, 3))
    return {"peak": peak, "number": number + offset, "weight": weight[:, 0]}

  found = ask(
    *(brightest, np.int32(100), pixels, indices),
    [indices.astype(np.int32), np.ones((21, 2), np.float32) / 2],
    batch_size=8,
    description="Test",
  )
  np.testing.assert_array_equal(found["peak"], images.max((1, 2, 3))[::-1])
  np.testing.assert_array_equal(found["number"], indices + 100)
  np.testing.assert_array_equal(found["weight"], np.full(21, 0.5))
