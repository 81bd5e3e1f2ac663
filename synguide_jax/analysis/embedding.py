"""Features of several sources in two dimensions, to look at."""

from collections.abc import Sequence
import warnings

import numpy as np

_NEIGHBOURS = 15  # of a point, as UMAP's authors have it


def project(features: Sequence[np.ndarray]) -> dict[str, np.ndarray]:
  """Projects features to the plane, by each method that is installed.

  PCA shows all sources along the two main axes of the first. It is linear, so
  what is far apart on it is far apart. UMAP (McInnes et al., 2018) keeps near
  points near and shows clusters; distances between these mean little. It needs
  the extra ``umap``. Both give the same points again.

  Args:
    features: Of each source, ``[N_i, D]``; the first has two rows at least.

  Returns:
    Points, ``[sum_i N_i, 2]`` in the order of the sources, by method: "PCA"
    and, where umap-learn is installed, "UMAP".

  Example::

    points = project([of_real, of_synthetic])["PCA"]
  """
  # Slow to import.
  from sklearn.decomposition import PCA

  together = np.concatenate(features)
  found = {"PCA": PCA(2, random_state=0).fit(features[0]).transform(together)}
  with warnings.catch_warnings():
    # That it needs TensorFlow for other things, or runs on one thread.
    warnings.simplefilter("ignore")
    try:
      from umap import UMAP
    except ImportError:
      return found
    mapping = UMAP(
      n_components=2,
      n_neighbors=min(_NEIGHBOURS, len(together) - 1),
      # Repeats on one thread only.
      random_state=0,
      n_jobs=1,
    )
    return found | {"UMAP": mapping.fit_transform(together)}
