"""Writes a trained classifier for others to load.

  python -m synguide_jax.export --workdir=runs/cifar_lowshot/guided \
      --output=exported

Each format gets a folder of its own under --output: transformers (config.json,
preprocessor_config.json, model.safetensors, for from_pretrained), torchvision
(a state dict of a ResNet), synguide_jax (for pretrained.weights and
model.init) and stablehlo (a program from images to logits, read with
jax.export, that needs none of our code).
"""

from pathlib import Path

from absl import flags
from etils import epath
import safetensors

from synguide_jax import console, experiment, workdir
from synguide_jax.console import say
from synguide_jax.errors import UserError

_WORKDIR = flags.DEFINE_string("workdir", None, "A finished experiment.")
_OUTPUT = flags.DEFINE_string("output", None, "Folder to write to.")
_FORMATS = flags.DEFINE_list(
  "formats", None, "By default the most widely read one, and stablehlo."
)
_RUN = flags.DEFINE_integer(
  "run", None, "Its number; by default the best run on validation."
)
flags.mark_flags_as_required(["workdir", "output"])


def main() -> int:
  """Runs the command; returns its exit code."""
  folder, output = epath.Path(_WORKDIR.value), Path(_OUTPUT.value)
  results = workdir.results(folder)
  if results is None:
    raise UserError(f"{folder} is not finished; there is no results.json.")
  run = experiment.best_run(results) if _RUN.value is None else _RUN.value
  classifier = experiment.load_classifier(folder, results, run)

  from synguide_jax.models import export

  formats = _FORMATS.value or export.default_formats(classifier)
  for name in formats:
    if name not in export.FORMATS:
      raise UserError(
        f"Unknown format {name!r}; known: {', '.join(export.FORMATS)}."
      )
  say(f"{classifier.model.name} of run {run}")
  for name in formats:
    path = output / name
    try:
      export.FORMATS[name](classifier, path, results["data"]["class_names"])
    except (OSError, safetensors.SafetensorError) as error:
      raise UserError(f"Cannot write {path}: {error}") from error
    say(f"  {path}: {', '.join(sorted(p.name for p in path.iterdir()))}")
  return 0


if __name__ == "__main__":
  console.run(main)
