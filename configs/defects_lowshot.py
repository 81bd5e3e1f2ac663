"""Defects on magnetic tiles, real and synthetic: for Table 4, "SDI".

The paper's industrial images are not public. These are (Huang et al., Surface
defect saliency of magnetic tile, 2020): 1,344 grey images of six classes, 952,
115, 103, 85, 57 and 32 of them. Take the .jpg files, not the .png masks:

  git clone https://github.com/abin24/Magnetic-tile-defect-datasets. tiles
  for class in Blowhole Break Crack Fray Free Uneven; do
    mkdir -p magnetic_tile/$class
    cp tiles/MT_$class/Imgs/*.jpg magnetic_tile/$class/
  done
  python -m synguide_jax.main --config=configs/defects_lowshot.py \
      --config.data.synthetic=folder:<path>

The paper has two synthetic images for a real one, as many of every class.

Every place was photographed about six times, at frames that lie close together:
the M of exp<N>_num_<M>.jpg. Split by file, a test image would have siblings in
training. By default images stay together whose M is of the same ten thousand,
32 groups. That is coarse, but keeps whole all of the 224 groups that frames at
most 100 apart make. A list of these balances classes better:

      --config.data.groups=csv:<file with columns file and group>

Images are resized and cut to their central square.

Hardware, wall time and result: not run.
"""

from synguide_jax import config as config_lib
from synguide_jax import paper

ARGS = ("full", "smoke")


def get_config(arg=None):
  """Returns the config; ``arg`` is one of ``ARGS``, "full" by default."""
  arg = config_lib.check_arg(arg, ARGS, default="full")
  config = paper.low_shot()
  config.data.real = "folder:magnetic_tile"
  # All but the last four digits of the frame's number.
  config.data.groups = r"pattern:_num_\d*?(?=\d{1,4}\.)"
  # Of whole groups: 509 and 197 images; 638 are left to train on.
  config.data.test = 400
  config.data.validation = 200
  # Seven of ten images are without defect.
  config.select_metric = "balanced_accuracy"
  config.eval_every = 200
  return config_lib.smoke(config) if arg == "smoke" else config


def get_sweep(arg=None):
  """Returns the rows of Table 4."""
  del arg
  return paper.low_shot_rows()
