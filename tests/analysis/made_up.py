"""Results that are made up, so that tables of them can be checked by hand."""

from pathlib import Path

from synguide_jax import config as config_lib
from synguide_jax import workdir

POINT = 0.01


def write(name, accuracies, *, first_run=0, rates=None, **overrides):
  """Writes the results of a made-up experiment; returns its workdir.

  Args:
    name: Folder in runs/.
    accuracies: Of each run, a share; None if it diverged.
    first_run: Number of the first one.
    rates: Conflict rate of each run.
    **overrides: Fields of the config, with "__" for the dot.
  """
  config = config_lib.classifier_defaults()
  config = config_lib.override(
    config,
    {
      "data.real": "digits",
      "data.synthetic": "folder:synthetic",
      "data.shots": 10,
      "num_runs": len(accuracies),
      "first_run": first_run,
      **{field.replace("__", "."): value for field, value in overrides.items()},
    },
  )
  inside = [value for value in accuracies if value is not None]
  accuracy = {
    "mean": sum(inside) / len(inside) if inside else None,
    "std": 0.5 * POINT if len(inside) > 1 else None,
    "n": len(inside),
    "runs": accuracies,
  }
  train = {"loss": [1.0]} | ({"conflict_rate": rates} if rates else {})
  folder = Path("runs") / name
  folder.mkdir(parents=True)
  workdir.write_json(
    folder / "results.json",
    {
      "method": config.method,
      "config": workdir.as_json(config),
      "runs": list(range(first_run, first_run + len(accuracies))),
      # Half of it, so that the two cannot be taken for each other.
      "test": {"accuracy": accuracy, "balanced_accuracy": _halved(accuracy)},
      "synthetic": {"accuracy": {"mean": 0.9, "std": None, "n": 1}},
      "history": [{"step": 1, "train": train}],
      "seconds": {"train": 12.34},
    },
  )
  return folder


def _halved(summary):
  return {
    **summary,
    "mean": summary["mean"] and summary["mean"] / 2,
    "runs": [value and value / 2 for value in summary["runs"]],
  }
