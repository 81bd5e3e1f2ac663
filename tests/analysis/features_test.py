"""Tests of synguide_jax.analysis.features."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from synguide_jax import models
from synguide_jax.analysis import features
from synguide_jax.data import prepared, records
from synguide_jax.data.pixels import Pixels
from synguide_jax.errors import UserError
from synguide_jax.models.base import Preprocessing
from synguide_jax.models.pretrained import Pretrained


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
  """21 images, 10x10, and what reads them in 1 or 3 channels."""
  folder = tmp_path_factory.mktemp("sets") / "synguide_test" / "a" / "1.0.0"
  images = np.random.default_rng(0).integers(0, 256, (21, 10, 10, 3), np.uint8)
  examples = [prepared.Example(image, 0) for image in images]
  prepared.write(folder, examples, ["a"], provenance={})
  found = records.of_prepared(folder)["train"]
  return images, lambda channels: Pixels([(found, np.arange(21))], 10, channels)


@pytest.fixture(scope="module")
def network():
  """A small network that resizes its images, to 12 pixels."""
  model = models.create(
    "small_cnn",
    num_classes=3,
    channels=3,
    preprocessing=Preprocessing(size=12),
  )
  variables = model.init(jax.random.key(0), jnp.zeros((1, 12, 12, 3)))
  return Pretrained(model, variables, (12, 12, 3))


# More and fewer than there are, and no multiples of the eight devices.
@pytest.mark.parametrize("batch_size", [1, 16, 100])
def test_pooled_features_in_the_order_asked_for(stored, network, batch_size):
  images, pixels = stored[0], stored[1](3)
  indices = np.array([20, 3, 3, *range(19)])
  output = network.model.apply(
    network.variables, jnp.asarray(images / 255, jnp.float32), train=False
  )
  for layer in ("stage2", "embedding"):
    maps = np.asarray(output.features[layer])
    expected = maps.mean((1, 2)) if layer == "stage2" else maps
    found = features.embed(
      network, pixels, indices, layer=layer, batch_size=batch_size
    )
    assert found.dtype == np.float32 and found.flags.c_contiguous
    np.testing.assert_allclose(found, expected[indices], rtol=1e-4, atol=1e-5)
    # They tell images apart.
    assert np.ptp(found, axis=0).max() > 1e-3


def test_no_more_than_a_few_batches_are_decoded(stored, network, monkeypatch):
  pixels = stored[1](3)
  sizes, read = [], Pixels.read

  def counted(self, indices=None, **arguments):
    sizes.append(np.size(indices))
    return read(self, indices, **arguments)

  monkeypatch.setattr(Pixels, "read", counted)
  features.embed(network, pixels, np.arange(21), layer="stage1", batch_size=8)
  assert sizes == [8, 8, 8]


def test_what_cannot_be_embedded(stored, network):
  pixels = stored[1](3)
  embed = features.embed
  with pytest.raises(UserError, match="no feature layer 'stage9'; it has"):
    embed(network, pixels, np.arange(2), layer="stage9")
  with pytest.raises(UserError, match="indices are of no image"):
    embed(network, pixels, np.arange(0), layer="stage1")
  grey = stored[1](1)
  with pytest.raises(UserError, match="3 channels; these have 1"):
    embed(network, grey, np.arange(2), layer="stage1")
  broken = Pretrained(
    network.model,
    jax.tree.map(lambda leaf: leaf * jnp.nan, network.variables),
    network.image_shape,
  )
  with pytest.raises(UserError, match="'embedding' are not finite for 4 of 4"):
    embed(broken, pixels, np.arange(4), layer="embedding")
