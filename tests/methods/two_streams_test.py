"""What is done to both batches of a step at once."""

import re

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec
import numpy as np
import pytest

from synguide_jax.methods import two_streams

KERNEL = np.random.default_rng(0).normal(size=(3, 3, 2, 5)).astype(np.float32)


def features(images):
  """A convolution, as it is on accelerators, and the mean over positions."""
  maps = jax.lax.conv_general_dilated(
    images, KERNEL, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
  )
  return jax.nn.relu(maps).mean((1, 2))


def images(seed, count):
  shape = (count, 4, 4, 2)
  return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


@pytest.mark.parametrize("sizes", [(8, 8), (8, 24), (3, 4), (5, 1)])
def test_at_once_is_one_after_the_other(sizes):
  batches = {"real": images(1, sizes[0]), "synthetic": images(2, sizes[1])}
  found = jax.jit(lambda x: two_streams.at_once(features, x))(batches)
  assert list(found) == ["real", "synthetic"]
  for name, batch in batches.items():
    np.testing.assert_allclose(found[name], features(batch), rtol=1e-5)


def test_at_once_of_none_is_none():
  assert two_streams.at_once(features, {}) == {}


@pytest.mark.parametrize("sizes", [(8, 8), (8, 24)])
def test_at_once_leaves_every_image_on_its_device(sizes):
  mesh = Mesh(np.array(jax.devices()[:8]), ("data",))
  sharding = NamedSharding(mesh, PartitionSpec("data"))
  batches = {
    name: jax.device_put(images(seed, size), sharding)
    for seed, (name, size) in enumerate(
      zip(("real", "synthetic"), sizes, strict=True)
    )
  }
  step = jax.jit(lambda x: two_streams.at_once(features, x))
  text = step.lower(batches).compile().as_text()
  # An eighth of all images on each.
  assert re.search(rf"f32\[{sum(sizes) // 8},4,4,5\]\S* convolution\(", text)
  assert not re.findall(
    r"all-gather|all-to-all|collective-permute|all-reduce", text
  )
