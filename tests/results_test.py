"""Tests of what is written about the runs of an experiment."""

import json
import shutil
import subprocess
import sys

import numpy as np
import pytest

from synguide_jax import results


def test_plain_gives_json():
  value = {
    "array": np.array([[1.5, np.nan], [np.inf, 2.0]], np.float32),
    "number": np.int64(3),
    "nested": [(1, float("nan")), {"yes": np.bool_(True)}],
    "text": "nan",
  }
  expected = {
    "array": [[1.5, None], [None, 2.0]],
    "number": 3,
    "nested": [[1, None], {"yes": True}],
    "text": "nan",
  }
  assert results.plain(value) == expected
  assert json.loads(json.dumps(expected, allow_nan=False)) == expected


def test_summarise():
  summary = results.summarise([0.5, 0.75, 1.0], [True, True, True])
  # The sample standard deviation: sqrt((0.0625 + 0 + 0.0625) / 2).
  assert summary == {
    "mean": 0.75,
    "std": 0.25,
    "n": 3,
    "runs": [0.5, 0.75, 1.0],
  }


def test_summarise_leaves_diverged_runs_out():
  summary = results.summarise([0.5, np.nan, 0.7], [True, False, True])
  assert summary["mean"] == pytest.approx(0.6)
  assert summary["std"] == pytest.approx(0.02**0.5)
  assert summary["n"] == 2
  assert summary["runs"] == [0.5, None, 0.7]


def test_summarise_one_run_and_none():
  assert results.summarise([0.5, 0.1], [True, False]) == {
    "mean": 0.5,
    "std": None,
    "n": 1,
    "runs": [0.5, None],
  }
  assert results.summarise([0.5], [False]) == {
    "mean": None,
    "std": None,
    "n": 0,
    "runs": [None],
  }


def test_summarise_evaluation():
  summary = results.summarise_evaluation(
    {
      "accuracy": np.array([0.5, 1.0]),
      "class_accuracy": np.array([[0.5, np.nan], [1.0, np.nan]]),
    },
    [True, True],
  )
  assert summary["accuracy"]["mean"] == 0.75
  assert summary["class_accuracy"] == [[0.5, None], [1.0, None]]


def test_versions_name_what_computed():
  versions = results.versions()
  assert versions["python"] == ".".join(map(str, sys.version_info[:3]))
  assert versions["numpy"] == np.__version__
  assert "jax" in versions


def _git(folder, *args):
  subprocess.run(
    ("git", "-c", "user.name=n", "-c", "user.email=e", *args),
    cwd=folder,
    check=True,
    capture_output=True,
  )


@pytest.fixture
def copied(tmp_path, monkeypatch):
  """The module as if the package lay in a folder of its own."""
  copy = tmp_path / "synguide_jax" / "results.py"
  copy.parent.mkdir()
  shutil.copy(results.__file__, copy)
  monkeypatch.setattr(results, "__file__", str(copy))
  # Folders above may be a repository, too.
  monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
  return copy


def test_commit_of_a_checkout(copied, tmp_path):
  _git(tmp_path, "init")
  _git(tmp_path, "add", ".")
  _git(tmp_path, "commit", "-m", "m")
  commit = results.commit()
  assert len(commit) == 40
  copied.write_text(copied.read_text() + "\n")
  assert results.commit() == commit + "-dirty"


def test_no_commit_outside_of_a_checkout(copied, tmp_path):
  assert results.commit() is None
  # An installed package inside of somebody else's repository.
  _git(tmp_path, "init")
  _git(tmp_path, "commit", "--allow-empty", "-m", "m")
  assert results.commit() is None
