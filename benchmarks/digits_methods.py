"""Every method on the digits, each with the learning rate it likes best.

  python -m benchmarks.digits_methods

Trains each row of configs/digits_lowshot.py's sweep with each learning rate of
one grid, and each rate of the second stage where there is one, takes what has
the best mean validation accuracy, and prints the test accuracy of that. The
workdirs are those of `synguide_jax.sweep`; what is finished is not trained
again.
"""

import itertools
import time

from absl import app, flags

from synguide_jax import config as config_lib
from synguide_jax import console, experiment, workdir
from synguide_jax.analysis import table
from synguide_jax.errors import DivergedError

_CONFIG = flags.DEFINE_string("config", "configs/digits_lowshot.py", "Config.")
_NUM_RUNS = flags.DEFINE_integer("num_runs", 5, "Runs of each.")
_RATES = flags.DEFINE_multi_float(
  "rates", [2e-3, 8e-3, 3.2e-2], "Learning rates to choose from."
)
_SECOND_RATES = flags.DEFINE_multi_float(
  "second_rates", [1.0, 0.01], "Those of second stages, relative to it."
)
_TWO_STAGES = ("adp", "adda", "dada", "ltda")


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


def _tried(base, row):
  """Trains a row with each choice; returns results by (rate, second rate)."""
  seconds = _SECOND_RATES.value if row["method"] in _TWO_STAGES else [1.0]
  tried = {}
  for rate, second in itertools.product(_RATES.value, seconds):
    overrides = {
      **row,
      "num_runs": _NUM_RUNS.value,
      "optimizer.learning_rate": rate,
      "two_stage.second_rate": second,
    }
    config = config_lib.override(base, overrides)
    folder = workdir.default_workdir(_CONFIG.value, config, base)
    try:
      tried[rate, second] = experiment.run(config, folder, show_progress=False)
    except DivergedError:
      console.say(f"{folder}: no run is left")
  return tried


def _validation(results):
  """Mean over the runs, those that diverged counted as 0."""
  accuracy = results["validation"]["accuracy"]
  return accuracy["mean"] * accuracy["n"] / len(results["runs"])


def _choice(rate, second):
  return f"{rate:g}" if second == 1 else f"{rate:g}, then x {second:g}"


def main(argv):
  """Prints a table."""
  del argv
  console.quiet()
  started = time.monotonic()
  base = config_lib.load(_CONFIG.value)
  rows = []
  for row in config_lib.load_sweep(_CONFIG.value):
    flat = workdir.flatten(config_lib.override(base, row).to_dict())
    name, tried = table.label(flat, row), _tried(base, row)
    best = max(tried, key=lambda choice, of=tried: _validation(of[choice]))
    rows.append((name, best, tried[best]))
    console.say(
      f"{name}: "
      + "; ".join(
        f"{_choice(*choice)}: {100 * _validation(results):.1f}"
        for choice, results in tried.items()
      )
    )
  references = {n: results for n, _, results in rows if n in table.REFERENCES}
  header = ["method", "accuracy", "n", *(f"vs {name}" for name in references)]
  header += ["on synthetic", "learning rate", "validation", "train s"]
  lines = [header, ["---", *["---:"] * (len(header) - 1)]]
  for name, best, results in rows:
    lines.append(
      [
        name,
        _percent(results["test"]["accuracy"]),
        str(results["test"]["accuracy"]["n"]),
        *(_difference(results, of) for of in references.values()),
        _percent(results["synthetic"]["accuracy"]),
        _choice(*best),
        f"{100 * _validation(results):.1f}",
        f"{results['seconds']['train']:.1f}",
      ]
    )
  print()
  for line in lines:
    print(f"| {' | '.join(line)} |")
  print(f"\n{console.duration(time.monotonic() - started)} in all")


if __name__ == "__main__":
  app.run(main)
