"""How good the synthetic digits are: recognition, and distance to the pool.

  python -m benchmarks.digits_generator

For each argument of configs/generators/digits.py: the share of images whose
conditioning label a support vector machine trained on the real training pool
finds, its counterpart trained on the synthetic images and tested on real
validation images, and the distance to the nearest image of the pool (pixels in
[0, 1]) against that of the validation images. Test images are not looked at.
"""

import functools

from absl import app
import numpy as np
from sklearn.neighbors import NearestNeighbors
from sklearn.svm import SVC

from synguide_jax import config as config_lib
from synguide_jax import console, experiment, inputs
from synguide_jax.data import experiment_data

ARGS = ("narrow", "weak", "strong")


def main(argv):
  """Prints a table."""
  del argv
  console.quiet()
  rows = []
  for arg in ARGS:
    config = config_lib.load(f"configs/digits_lowshot.py:{arg}")
    (spec,) = [
      spec for *_, spec in inputs.needed(config) if "generate:" in spec
    ]
    config.pretrained.weights = ""
    made = inputs.make(
      config, functools.partial(experiment.train, show_progress=False)
    )
    config.data.synthetic = made[spec]
    data = experiment_data.load(config.data, seed=0, runs=(0,))
    x = data.pixels.read().reshape(len(data.labels), -1) / 255.0
    y, index = data.labels, data.indices
    pool, synthetic = index["pool"], index["synthetic"]
    by_real = SVC().fit(x[pool], y[pool])
    by_synthetic = SVC().fit(x[synthetic], y[synthetic])
    nearest = NearestNeighbors(n_neighbors=1).fit(x[pool])

    def quantiles(of, nearest=nearest, x=x):
      distances = nearest.kneighbors(x[of])[0][:, 0]
      return " / ".join(
        f"{q:.3f}" for q in np.quantile(distances, (0, 0.05, 0.5))
      )

    recognised = by_real.score(x[synthetic], y[synthetic])
    held_out = index["validation"]
    trains_to = by_synthetic.score(x[held_out], y[held_out])
    rows.append(
      (
        *(arg, f"{100 * recognised:.1f}", f"{100 * trains_to:.1f}"),
        quantiles(synthetic),
      )
    )
  rows.append(("real validation", "", "", quantiles(index["validation"])))
  print("| images | recognised % | trains to % | nearest: min / 5% / median |")
  print("| --- | ---: | ---: | --- |")
  for row in rows:
    print(f"| {' | '.join(row)} |")


if __name__ == "__main__":
  app.run(main)
