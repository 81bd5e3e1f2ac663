"""Tests of synguide_jax.analysis.embedding."""

import importlib.util
import sys
import types
import warnings

import numpy as np
import pytest

from synguide_jax.analysis import embedding


@pytest.fixture(scope="module")
def features():
  """Two sources, the second of which lies along an axis of its own."""
  random = np.random.default_rng(0)
  real = random.normal(size=(40, 6)) * [9, 4, 1, 1, 1, 1]
  synthetic = random.normal(size=(30, 6)) * [1, 1, 1, 1, 1, 20]
  return [real.astype(np.float32), synthetic.astype(np.float32)]


def _without(monkeypatch):
  # Which makes its import fail, installed or not.
  monkeypatch.setitem(sys.modules, "umap", None)


def test_the_axes_are_those_of_the_first_source(features, monkeypatch):
  _without(monkeypatch)
  found = embedding.project(features)
  assert set(found) == {"PCA"}
  points = found["PCA"]
  assert points.shape == (70, 2)
  centred = np.concatenate(features) - features[0].mean(0)
  axes = np.linalg.svd(centred[:40], full_matrices=False)[2][:2]
  np.testing.assert_allclose(
    np.abs(points), np.abs(centred @ axes.T), rtol=1e-3, atol=1e-3
  )


def test_umap_stands_beside_it_where_it_is_installed(features, monkeypatch):
  made = []

  class UMAP:
    def __init__(self, **options):
      made.append(options)
      warnings.warn("n_jobs value overridden", UserWarning, stacklevel=1)

    def fit_transform(self, values):
      warnings.warn("old", FutureWarning, stacklevel=1)
      return values[:, :2]

  monkeypatch.setitem(sys.modules, "umap", types.SimpleNamespace(UMAP=UMAP))
  found = embedding.project(features)
  assert list(found) == ["PCA", "UMAP"]
  np.testing.assert_array_equal(found["UMAP"], np.concatenate(features)[:, :2])
  (options,) = made
  assert options["random_state"] == 0 and options["n_neighbors"] == 15
  embedding.project([part[:4] for part in features])
  assert made[1]["n_neighbors"] == 7


def test_another_package_of_that_name_is_not_umap(features, monkeypatch):
  monkeypatch.setitem(sys.modules, "umap", types.ModuleType("umap"))
  assert set(embedding.project(features)) == {"PCA"}


@pytest.mark.skipif(
  importlib.util.find_spec("umap") is None, reason="umap-learn is missing"
)
def test_umap_repeats_and_tells_clusters_apart():
  random = np.random.default_rng(0)
  features = [random.normal(10 * n, 1, (40, 8)) for n in range(2)]
  points = embedding.project(features)["UMAP"]
  assert points.shape == (80, 2) and np.isfinite(points).all()
  np.testing.assert_array_equal(points, embedding.project(features)["UMAP"])
  spread = max(
    np.ptp(part, axis=0).max() for part in (points[:40], points[40:])
  )
  apart = np.linalg.norm(points[:40].mean(0) - points[40:].mean(0))
  assert apart > spread
