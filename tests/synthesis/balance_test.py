"""Tests of synguide_jax.synthesis.balance."""

from pathlib import Path

import numpy as np
import pytest

from synguide_jax.data import experiment_data
from synguide_jax.errors import UserError
from synguide_jax.synthesis.balance import real_counts
from tests import pictures, tiny

_NAMES = ("cat", "dog", "owl")
_NUMBERS = {"cat": 12, "dog": 25, "owl": 17}


@pytest.fixture
def photos():
  """Files whose classes are the three, unequally many."""
  files = {
    f"{name}/{number}.png": pictures.encode(pictures.pixels())
    for name, count in _NUMBERS.items()
    for number in range(count)
  }
  pictures.write("photos", files)
  return "folder:photos"


def _keep(file, **changes):
  """Writes what an experiment's workdir has; returns its images."""
  fields = {
    "real": "folder:photos",
    "synthetic": "folder:photos",
    "channels": 3,
    "validation": 7,
    "test": 8,
    "shots": -1,
    **changes,
  }
  config = tiny.config(**{f"data.{name}": v for name, v in fields.items()})
  data = experiment_data.load(config.data, seed=0, runs=(0, 1))
  Path(file).parent.mkdir()
  data.keep(Path(file))
  return data


def test_a_spec_counts_its_train_split(photos):
  assert real_counts(photos, _NAMES).tolist() == [12, 25, 17]
  # In the order that is asked for.
  found = real_counts(photos, ("owl", "cat", "dog"))
  assert found.tolist() == [17, 12, 25]
  with pytest.raises(
    UserError, match="'cat', 'dog'; it has .*workdir"
  ) as error:
    real_counts(photos, ("cat", "dog"))
  assert "class_mapping" not in str(error.value)


def test_a_workdir_counts_what_its_first_run_trains_on(photos):
  data = _keep("work/splits.npz")
  found = real_counts("work", _NAMES)
  assert found.sum() == 54 - 7 - 8
  labels = data.labels[data.members["real"][0]]
  assert found.tolist() == [(labels == c).sum() for c in range(3)]
  # Some of each class are held out.
  assert (found < list(_NUMBERS.values())).all()

  _keep("shots/splits.npz", shots=4)
  assert real_counts("shots", _NAMES).tolist() == [4, 4, 4]
  # Its own labels are of the classes it takes, in its order.
  _keep("two/splits.npz", classes=("owl", "cat"), validation=5, test=5)
  cats, owls = real_counts("two", ("cat", "owl"))
  assert cats < owls and cats + owls == 12 + 17 - 5 - 5
  with pytest.raises(UserError, match="balance_with='two'.*it has 'owl', 'cat"):
    real_counts("two", _NAMES)


def test_what_cannot_be_counted(tmp_path):
  Path("begun").mkdir()
  message = "balance_with='begun' is no workdir .*begun.*Unknown set 'begun'"
  with pytest.raises(UserError, match=message):
    real_counts("begun", _NAMES)
  Path("begun/splits.npz").write_bytes(b"hello")
  with pytest.raises(UserError, match="splits.npz cannot be read"):
    real_counts("begun", _NAMES)
  np.savez("begun/splits.npz", labels=[0])
  with pytest.raises(UserError, match="splits.npz cannot be read"):
    real_counts("begun", _NAMES)
  np.savez("bare.npz", images=np.stack([pictures.pixels() for _ in range(3)]))
  with pytest.raises(UserError, match="npz:bare.npz' has no split 'train'"):
    real_counts("npz:bare.npz", _NAMES)
