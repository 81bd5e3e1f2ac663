"""Every method on the digits, each with the learning rate it likes best.

  python -m benchmarks.digits_methods

Trains each row of configs/digits_lowshot.py's sweep with each learning rate of
one grid, takes the one with the best mean validation accuracy, and prints the
test accuracy of that. Workdirs are those of `synguide_jax.sweep`, so that what
is finished is not trained again.
"""

import time

from absl import app, flags

from synguide_jax import config as config_lib
from synguide_jax import console, experiment, workdir
from synguide_jax.analysis import table

_CONFIG = flags.DEFINE_string("config", "configs/digits_lowshot.py", "Config.")
_NUM_RUNS = flags.DEFINE_integer("num_runs", 5, "Runs of each.")
_RATES = flags.DEFINE_multi_float(
  "rates", [5e-4, 2e-3, 8e-3], "Learning rates to choose from."
)
_RATE = "optimizer.learning_rate"


def _percent(summary):
  return f"{100 * summary['mean']:.2f} +- {100 * summary['std']:.2f}"


def _difference(results, reference):
  """Paired over the runs, which share their real images."""
  if results is reference:
    return ""
  both = zip(
    results["test"]["accuracy"]["runs"],
    reference["test"]["accuracy"]["runs"],
    strict=True,
  )
  kept = [ours - theirs for ours, theirs in both if None not in (ours, theirs)]
  found = table.paired(kept)
  return f"{100 * found['mean']:+.2f} +- {100 * found['standard_error']:.2f}"


def _best(base, row):
  """Trains a row with each rate; returns all results and the best of them."""
  tried = {}
  for rate in _RATES.value:
    overrides = {**row, _RATE: rate, "num_runs": _NUM_RUNS.value}
    config = config_lib.override(base, overrides)
    folder = workdir.default_workdir(_CONFIG.value, config, base)
    tried[rate] = experiment.run(config, folder, show_progress=False)
  best = max(
    tried, key=lambda rate: tried[rate]["validation"]["accuracy"]["mean"]
  )
  return tried, best


def main(argv):
  """Prints a table."""
  del argv
  console.quiet()
  started = time.monotonic()
  base = config_lib.load(_CONFIG.value)
  rows = []
  for row in config_lib.load_sweep(_CONFIG.value):
    name = table.label(
      workdir.flatten(config_lib.override(base, row).to_dict()), row
    )
    tried, best = _best(base, row)
    rows.append((name, tried, best))
    console.say(f"{name}: {_RATE} {best}")
  references = {
    name: tried[best] for name, tried, best in rows if name in table.REFERENCES
  }
  rates = " / ".join(f"{rate:g}" for rate in _RATES.value)
  header = ["method", "accuracy", "n"]
  header += [f"vs {name}" for name in references]
  header += ["on synthetic", "learning rate", f"validation at {rates}"]
  header += ["train s"]
  lines = [header, ["---", *["---:"] * (len(header) - 1)]]
  for name, tried, best in rows:
    results = tried[best]
    lines.append(
      [
        name,
        _percent(results["test"]["accuracy"]),
        str(results["test"]["accuracy"]["n"]),
        *(_difference(results, of) for of in references.values()),
        _percent(results["synthetic"]["accuracy"]),
        f"{best:g}",
        " / ".join(
          f"{100 * of['validation']['accuracy']['mean']:.1f}"
          for of in tried.values()
        ),
        f"{results['seconds']['train']:.1f}",
      ]
    )
  print()
  for line in lines:
    print(f"| {' | '.join(line)} |")
  print(f"\n{console.duration(time.monotonic() - started)} in all")


if __name__ == "__main__":
  app.run(main)
