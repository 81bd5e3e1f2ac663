"""Real images through the configs made for them, but for the spec."""

import numpy as np
import pytest

from synguide_jax import config as config_lib
from synguide_jax.data import experiment_data
from tests import shared


def _load(file, archive, **changes):
  config = config_lib.load(f"configs/{file}.py")
  spec = f"folder:{shared.folder()}/data/{archive}.zip"
  config = config_lib.override(
    config, {"data.real": spec, "data.synthetic": ""} | changes
  )
  return experiment_data.load(config.data, seed=0, runs=(0, 1))


def _counts(data, index):
  counts = np.bincount(data.labels[index], minlength=len(data.class_names))
  return dict(zip(data.class_names, counts.tolist(), strict=True))


@pytest.mark.slow
def test_cifar10():
  data = _load("cifar_lowshot", "cifar10_jpeg")
  assert set(_counts(data, data.indices["pool"]).values()) == {4_500}
  assert set(_counts(data, data.indices["validation"]).values()) == {500}
  assert set(_counts(data, data.indices["test"]).values()) == {1_000}
  for shots in data.members["real"]:
    assert set(_counts(data, shots).values()) == {10}
  assert data.pixels.shape == (60_000, 32, 32, 3)
  image = data.pixels.read(data.indices["test"][:1])[0]
  assert image.std() > 10


def test_magnetic_tiles():
  tiles = f"{shared.folder()}/data/magnetic_tile_groups.csv"
  for groups in (None, f"csv:{tiles}"):
    changes = {"data.groups": groups} if groups else {}
    data = _load("defects_lowshot", "magnetic_tile", **changes)
    roles = {role: _counts(data, index) for role, index in data.indices.items()}
    total = {name: 0 for name in data.class_names}
    for role in ("pool", "validation", "test"):
      assert min(roles[role].values()) >= 2
      for name, count in roles[role].items():
        total[name] += count
    assert total == {
      "blowhole": 115,
      "break": 85,
      "crack": 57,
      "fray": 32,
      "free": 952,
      "uneven": 103,
    }
    assert data.pixels.shape[1:] == (256, 256, 3)
