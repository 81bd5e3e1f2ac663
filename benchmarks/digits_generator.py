"""How good the synthetic digits are: recognition, and distance to the pool.

  python -m benchmarks.digits_generator

For each argument of configs/generators/digits.py: the share of images whose
conditioning label a support vector machine trained on the real training pool
finds, its counterpart trained on the synthetic images and tested on real
validation images, near copies of the pool, and the distance to the nearest
image of the pool (root mean square over pixels in [0, 1]; of the pool's own
images in the last row). Test images are not looked at.
"""

import functools
import json
from pathlib import Path
import time

from absl import app
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
    begin = time.monotonic()
    made = inputs.make(
      config, functools.partial(experiment.train, show_progress=False)
    )
    seconds = time.monotonic() - begin
    config.data.synthetic = made[spec]
    data = experiment_data.load(config.data, seed=0, runs=(0,))
    x = data.pixels.read().reshape(len(data.labels), -1) / 255.0
    y, index = data.labels, data.indices
    pool, synthetic = index["pool"], index["synthetic"]
    by_real = SVC().fit(x[pool], y[pool])
    by_synthetic = SVC().fit(x[synthetic], y[synthetic])
    recognised = by_real.score(x[synthetic], y[synthetic])
    held_out = index["validation"]
    trains_to = by_synthetic.score(x[held_out], y[held_out])
    copies = Path(made[spec].removeprefix("prepared:")) / "copies.json"
    report = json.loads(copies.read_text())
    rows.append(
      (
        *(arg, f"{100 * recognised:.1f}", f"{100 * trains_to:.1f}"),
        *_copies(report["samples"]),
        f"{seconds:.0f}",
      )
    )
  rows.append(("training pool", "", "", *_copies(report["references"]), ""))
  print(
    "| images | recognised % | trains to % | near copies | nearest: min / 5% / "
    "median | s |"
  )
  print("| --- | ---: | ---: | ---: | --- | ---: |")
  for row in rows:
    print(f"| {' | '.join(row)} |")


def _copies(summary):
  at = summary["distance_percentiles"]
  distances = " / ".join(f"{at[p]:.3f}" for p in ("0", "5", "50"))
  return str(summary["near_copies"]), distances


if __name__ == "__main__":
  app.run(main)
