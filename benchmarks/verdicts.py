"""The verdict of `analyze` on sets of digits whose gap is known beforehand.

  python -m benchmarks.verdicts [--seeds=3] [--folder=runs/verdicts]

Written before it was run. Each seed splits the 1,797 digits at random, class by
class, into halves. Half A is the experiment's real set, of which 100 images are
for validation, 300 for testing and the rest, about 500, for training; the seed
is config.seed and data.split_seed, too; else it is configs/digits_lowshot.py.
One `analyze`, with the parts observations and fidelity, looks at four sets:

  untouched      half B as it is
  noisy          half B with normal noise added to every pixel, of a standard
                 deviation of a quarter of the way from black to white, clipped
  digits_half    2,000 images of the project's generator, trained on the
                 experiment's own training images, without half of its modes: of
                 four clusters of a class's training images, about 12 images
                 each, the two smallest
  digits_strong  2,000 images of the same generator with all modes

All sets are larger than the real training set, so none is one of "few images";
fidelity draws 300 of each, as many as there are real test images. The rules of
the verdict are those of synguide_jax/analysis/verdict.py. Expected, of every
seed, where the verdict is the gap that is named first:

  untouched      "none"
  noisy          "quality" or "appearance"
  digits_half    "content"; recall and coverage lower than digits_strong's and
                 than those of held-out real images
  digits_strong  nothing: it is there for comparison

Nothing of this is changed after the first run; what does not hold is reported.
The first table has a row a set and seed, the second means over seeds. Shares
are in percent; accuracies are means over the config's ten runs.
"""

import json
from pathlib import Path
import subprocess
import sys

from absl import app, flags
import numpy as np
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from synguide_jax.analysis.verdict import HELD_OUT
from synguide_jax.study import REAL

_SEEDS = flags.DEFINE_integer("seeds", 3, "Number of seeds.", 2)
_FOLDER = flags.DEFINE_string("folder", "runs/verdicts", "Where to write.")

_VALIDATION, _TEST = 100, 300  # of half A, images
_NOISE = 0.25 * 255
_HALF, _STRONG = (
  f"generate:configs/generators/digits.py:{arg}" for arg in ("half", "strong")
)
# What is expected; the set without half of its modes has two more.
_EXPECTED = {
  "untouched": ("none",),
  "noisy": ("quality", "appearance"),
  "digits_half": ("content",),
  "digits_strong": None,
}
_SHARES = ("precision", "recall", "density", "coverage")


def _write_sets(folder: Path, seed: int) -> None:
  """Writes the halves, and the second one with noise."""
  folder.mkdir(parents=True, exist_ok=True)
  digits = load_digits()
  images = np.round(digits.images * (255 / 16)).astype(np.uint8)
  a, b = train_test_split(
    np.arange(len(images)),
    train_size=0.5,
    stratify=digits.target,
    random_state=seed,
  )
  noise = np.random.default_rng(seed).normal(0, _NOISE, images[b].shape)
  noisy = np.clip(np.round(images[b] + noise), 0, 255).astype(np.uint8)
  for name, pixels, index in (
    ("half_a", images[a], a),
    ("untouched", images[b], b),
    ("noisy", noisy, b),
  ):
    np.savez(folder / f"{name}.npz", images=pixels, labels=digits.target[index])


def _analyse(folder: Path, seed: int) -> dict:
  """Runs the command, or finds that it was; returns analysis.json."""
  sets = folder / "sets"
  if not (sets / "noisy.npz").exists():  # the last one
    _write_sets(sets, seed)
  specs = [f"npz:{sets / name}.npz" for name in ("untouched", "noisy")]
  command = [
    *(sys.executable, "-m", "synguide_jax.analyze"),
    "--config=configs/digits_lowshot.py",
    f"--config.seed={seed}",
    f"--config.data.split_seed={seed}",
    f"--config.data.real=npz:{sets / 'half_a.npz'}",
    f"--config.data.validation={_VALIDATION}",
    f"--config.data.test={_TEST}",
    f"--config.data.synthetic={(*specs, _HALF, _STRONG)}",
    "--parts=observations,fidelity",
    f"--workdir={folder / 'analysis'}",
  ]
  subprocess.run(command, check=True)
  return json.loads((folder / "analysis" / "analysis.json").read_text())


def _accuracy(found: dict, trained_on: str, source: str, part: str) -> float:
  matrix = found["accuracy"]
  columns = [(s["source"], s["part"]) for s in matrix["sets"]]
  row = matrix["cells"][matrix["trained_on"].index(trained_on)]
  return row[columns.index((source, part))]["mean"]


def _numbers(found: dict, name: str) -> list[float]:
  """The shares, and the two accuracies that the verdict is about first."""
  shares = found["fidelity"][name]["overall"]
  if name == HELD_OUT:
    both = [_accuracy(found, REAL, REAL, "test")] * 2
  else:
    both = [
      _accuracy(found, REAL, name, "held out"),
      _accuracy(found, name, REAL, "test"),
    ]
  return [*(shares[share] for share in _SHARES), *both]


def _holds(found: dict, name: str) -> bool | None:
  """Whether what was expected of a set holds; None if nothing was."""
  expected = _EXPECTED[name]
  if expected is None:
    return None
  held = found["verdict"][name]["gap"] in expected
  if name == "digits_half":
    less, *more = (
      found["fidelity"][n]["overall"] for n in (name, "digits_strong", HELD_OUT)
    )
    held &= all(
      less[share] < other[share]
      for share in ("recall", "coverage")
      for other in more
    )
  return held


def _print(rows: list[list[str]], last: tuple[str, ...]) -> None:
  names = [*_SHARES, "real-trained on it", "trained on it, on real test"]
  print("| " + " | ".join(("set", *names, *last)) + " |")
  print("| --- |" + " ---: |" * len(names) + " --- |" * len(last))
  for row in rows:
    print(f"| {' | '.join(row)} |")
  print()


def _text(value: float, column: int) -> str:
  # Density is no share.
  return f"{value:.2f}" if column == 2 else f"{100 * value:.1f}"


def main(argv: list[str]) -> None:
  """Prints both tables."""
  del argv
  all_found = [
    _analyse(Path(_FOLDER.value, f"seed_{seed}").absolute(), seed)
    for seed in range(_SEEDS.value)
  ]
  rows, summary = [], []
  for name in (*_EXPECTED, HELD_OUT):
    values, verdicts, held = [], [], []
    for seed, found in enumerate(all_found):
      numbers = _numbers(found, name)
      values.append(numbers)
      cells = [_text(v, column) for column, v in enumerate(numbers)]
      said, answer = "", ""
      if name != HELD_OUT:
        held.append(_holds(found, name))
        judged = found["verdict"][name]
        verdicts.append(judged["gap"])
        said = " + ".join(judged["gaps"]) or judged["gap"]
        answer = {None: "", True: "yes", False: "no"}[held[-1]]
      rows.append([f"{name}, seed {seed}", *cells, said, answer])
    means, stds = np.mean(values, 0), np.std(values, 0, ddof=1)
    cells = [
      f"{_text(mean, column)} +- {_text(std, column)}"
      for column, (mean, std) in enumerate(zip(means, stds, strict=True))
    ]
    answer = "" if None in held or not held else f"{sum(held)} of {len(held)}"
    summary.append([name, *cells, ", ".join(verdicts), answer])
  print(f"\n{_SEEDS.value} seeds\n")
  _print(rows, ("gaps, largest first", "as expected"))
  _print(summary, ("verdicts", "as expected"))


if __name__ == "__main__":
  app.run(main)
