"""Classifies image files with what an experiment trained.

  python -m synguide_jax.predict --workdir=runs/cifar_lowshot/guided \
      --images=photos --output=photos.csv

A line for each image: its path below --images, the most probable class and its
probability, the mean over the runs, each with the temperature that was fitted
on its validation images. Files that are no images, or damaged ones, are listed
at the end. Of an animation the first picture counts.
"""

import sys

from absl import flags
from etils import epath
import tqdm

from synguide_jax import console, experiment

_WORKDIR = flags.DEFINE_string("workdir", None, "A finished experiment.")
_IMAGES = flags.DEFINE_string(
  "images", None, "A folder, with all folders in it; an archive; or a file."
)
_OUTPUT = flags.DEFINE_string(
  "output", "", "A .csv or .jsonl file; by default CSV is printed."
)
_RUN = flags.DEFINE_integer("run", None, "Number of the only run to ask.")
_ALL = flags.DEFINE_bool("all", False, "Probabilities of all classes.")
_BATCH_SIZE = flags.DEFINE_integer("batch_size", 64, "Images a step.")
flags.mark_flags_as_required(["workdir", "images"])


def main() -> int:
  """Runs the command; returns its exit code."""
  from synguide_jax.analysis import predictions

  form = predictions.format_of(_OUTPUT.value)
  images = predictions.open_images(_IMAGES.value)
  ensemble = experiment.open_ensemble(epath.Path(_WORKDIR.value), _RUN.value)
  answers = predictions.classify(ensemble, images, batch_size=_BATCH_SIZE.value)
  # Seen on terminals only.
  answers = tqdm.tqdm(
    answers, "Predicting", len(images.names), unit=" images", disable=None
  )
  with images, predictions.opened(_OUTPUT.value) as file:
    count, unusable = predictions.write(
      answers, file, ensemble.class_names, form=form, every_class=_ALL.value
    )
  for line in predictions.remarks(ensemble, count, unusable):
    print(line, file=sys.stderr)
  return 0


if __name__ == "__main__":
  console.run(main)
