"""An analysis that is made up: ten classes, two synthetic sources."""

import numpy as np
from PIL import Image

from synguide_jax import results

CLASSES = [str(digit) for digit in range(10)]
# The second name is longer than a phone has room for.
GOOD, BAD = "generated_digits", "digits_with_noise_added_to_every_single_pixel"
SOURCES = ("real", GOOD, BAD)
_SHOTS = [1, 2, 5, 10, 20]


def build(workdir, seed=0):
  """Makes all parts of analysis.json.

  Args:
    workdir: Where the images that it names are written.
    seed: Of the numbers.
  """
  random = np.random.default_rng(seed)
  images = _images(workdir, random)
  return {
    "config": {
      "data": {"real": "digits", "synthetic": "prepared:generated"},
      "num_runs": 5,
      "batch_size": 128,
    },
    "versions": {"python": "3.11.2", "jax": "0.10.2"},
    "commit": "0123456789abcdef0123456789abcdef01234567",
    "seconds": {"train": 412.3, "fidelity": 3.2},
    "class_names": CLASSES,
    "sources": [
      {"name": "real", "spec": "digits", "kind": "real", "images": 900},
      {
        "name": GOOD,
        "spec": "prepared:/data/generated_digits/0123456789abcdef",
        "kind": "synthetic",
        "images": 2000,
      },
      {
        "name": BAD,
        "spec": "npz:/data/noisy.npz",
        "kind": "synthetic",
        "images": 4500,
      },
    ],
    "accuracy": _accuracy(random),
    "curves": _curves(random),
    "losses": _losses(random, images),
    "fidelity": _fidelity(random, images),
    "copies": {GOOD: _copies(4), BAD: _copies(0)},
    "span": _span(random),
    "exchange": {GOOD: _exchange(random, 0.02), BAD: _exchange(random, -0.01)},
    "verdict": _verdict(),
  }


def summary(random, mean, std=0.008, n=5):
  """A summary of runs whose mean is about ``mean``."""
  values = np.clip(mean + std * random.standard_normal(n), 0, 1)
  return results.summarise(values, [True] * n)


def _images(workdir, random):
  """Writes 8 x 8 images; returns their files relative to the workdir."""
  (workdir / "images").mkdir(parents=True)
  names = []
  for number in range(40):
    rows, columns = np.mgrid[:8, :8]
    ring = np.hypot(rows - 3.5, columns - 3.5 + number % 3 - 1)
    pixels = 255 * np.exp(-((ring - 1 - number % 4 / 2) ** 2))
    pixels += 25 * random.random((8, 8))
    names.append(f"images/{number:02}.png")
    image = Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))
    image.save(workdir / names[-1])
  return names


def _accuracy(random):
  means = [
    [0.995, 0.955, 0.97, 0.968, 0.62, 0.61],
    [0.912, 0.908, 0.998, 0.985, 0.55, 0.54],
    [0.80, 0.79, 0.86, 0.85, 0.97, 0.91],
  ]
  sets = [
    {"source": source, "part": part, "images": count}
    for source, held_out, counts in (
      ("real", "test", (700, 897)),
      (GOOD, "held out", (1600, 400)),
      (BAD, "held out", (3600, 900)),
    )
    for part, count in zip(("training", held_out), counts, strict=True)
  ]
  return {
    "trained_on": list(SOURCES),
    "sets": sets,
    "cells": [[summary(random, mean) for mean in row] for row in means],
  }


def _curves(random):
  steps = list(range(0, 1001, 50))
  pace = {"real": (180, 0.995, 0.95), GOOD: (80, 0.998, 0.91)}
  pace[BAD] = (260, 0.97, 0.8)
  found = {}
  for name, (scale, training, validation) in pace.items():

    def runs(best, scale=scale):
      grown = best - (best - 0.1) * np.exp(-np.array(steps) / scale)
      noise = 0.012 * random.standard_normal((5, len(steps)))
      return np.clip(grown + noise, 0, 1).tolist()

    found[name] = {
      "steps": steps,
      "training": runs(training),
      "validation": runs(validation),
      "saturation": results.summarise(
        np.round(3 * scale + 50 * random.random(5)).tolist(), [True] * 5
      ),
    }
  return found


def _losses(random, images):
  edges = np.linspace(-6, 1.5, 31)
  centres = {("real", GOOD): -3, (GOOD, "real"): -1.8}
  centres |= {("real", BAD): -0.4, (BAD, "real"): -1.2}
  found = []
  for (trained, evaluated), centre in centres.items():
    logs = np.clip(centre + 1.1 * random.standard_normal(900), -6, 1.5)
    found.append(
      {
        "trained_on": trained,
        "evaluated_on": evaluated,
        "edges": edges.tolist(),
        "counts": np.histogram(logs, edges)[0].tolist(),
        "near_zero": summary(random, (logs < -2).mean()),
        "above_one": summary(random, (logs > 0).mean()),
        "median": summary(random, 10 ** np.median(logs), 1e-4),
        "lowest": {name: images[:8] for name in CLASSES},
        "highest": {name: images[8:16] for name in CLASSES},
      }
    )
  return found


def _fidelity(random, images):
  means = {GOOD: (0.93, 0.71, 0.98, 0.74), BAD: (0.31, 0.82, 0.25, 0.38)}
  means["held-out real"] = (0.92, 0.9, 1.01, 0.94)
  metrics = ("precision", "recall", "density", "coverage")
  found = {}
  for name, values in means.items():

    def near(values=values):
      shares = np.asarray(values) + 0.06 * random.standard_normal(4)
      return dict(zip(metrics, np.clip(shares, 0, 1).tolist(), strict=True))

    classes = {c: near() for c in CLASSES}
    found[name] = {
      "network": "letters",
      "layer": "stage3",
      "overall": dict(zip(metrics, values, strict=True))
      | {"frechet": 12.4 - 10 * values[3]},
      "classes": classes,
      "neighbours": [
        [images[n], images[n + 16], 0.4 + 0.05 * n] for n in range(10)
      ],
      "uncovered": images[16:28],
    }
  found[GOOD]["classes"]["8"]["coverage"] = 0.21
  found[BAD]["classes"]["1"] = None
  return found


def _copies(exact):
  percentiles = {str(p): 0.05 + p / 500 for p in (0, 1, 5, 25, 50, 75, 95)}
  return {
    "samples": {
      "count": 2000,
      "near_copies": exact + 3,
      "exact_copies": exact,
      "distance_percentiles": percentiles,
    },
    "references": {
      "count": 700,
      "compared": 700,
      "duplicates": 1,
      "near_copies": 2,
      "distance_percentiles": percentiles,
    },
    "closest_copies": [
      {"sample": 7, "reference": 12, "distance": 0.0, "second_distance": 0.21}
    ],
  }


def _span(random):
  edges = np.linspace(0, 1.4, 41)

  def counts(centre, width):
    values = centre + width * random.standard_normal(20_000)
    return np.histogram(values, edges)[0].tolist()

  points = random.standard_normal((900, 2)) * [3, 2]
  points[300:600] *= 0.6
  points[600:] += [2.5, 1]
  return {
    "edges": edges.tolist(),
    "frozen": counts(0.7, 0.2),
    "networks": {"fake": counts(0.45, 0.2), "guided": counts(0.66, 0.19)},
    "embedding": {
      "source": [name for name in SOURCES for _ in range(300)],
      "points": {"PCA": points.tolist(), "UMAP": (points**3).tolist()},
    },
  }


def _exchange(random, gain):
  real = [0.48, 0.63, 0.82, 0.915, 0.945]
  with_synthetic = {
    "balanced": [0.85, 0.87, 0.9, 0.925, 0.95],
    "guided": [0.86, 0.88, 0.908, 0.931, 0.953],
  }

  def summaries(means, more=0.0):
    return [summary(random, mean + more, 0.01) for mean in means]

  return {
    "shots": _SHOTS,
    "real": summaries(real),
    "with": {
      name: summaries(means, gain) for name, means in with_synthetic.items()
    },
    "amount": {
      "images": [0, 100, 300, 1000, 2000],
      "accuracy": summaries([0.915, 0.925, 0.93, 0.938, 0.94], gain / 2),
      "shots": 10,
      "method": "balanced",
    },
    "worth": {
      "shots": 10,
      "method": "balanced",
      "equivalent": 17.2 if gain > 0 else 9.1,
      "low": 14.0 if gain > 0 else 7.8,
      "high": 19.5 if gain > 0 else 10.6,
      "beyond": False,
      "below": False,
      "most": 20,
      "n": 5,
      "draws": 2000,
    },
  }


def _verdict():
  return {
    GOOD: {
      "gap": "content",
      "sentences": [
        "A classifier trained on real images recognises 97.0% of the "
        "synthetic ones, but one trained on synthetic images recognises only "
        "90.8% of the real ones.",
        "The synthetic images cover 74% of the real ones; held-out real "
        "images cover 94%.",
      ],
      "evidence": [
        {
          "rule": "coverage below that of held-out real images",
          "value": 0.74,
          "threshold": 0.89,
          "met": True,
        },
        {
          "rule": "precision below that of held-out real images",
          "value": 0.93,
          "threshold": 0.87,
          "met": False,
        },
      ],
      "least_covered": ["8", "3"],
      "advice": [
        "Train with Real Guidance on both: --config.method=guided.",
        "Add real images of 8 and 3.",
      ],
    },
    BAD: {
      "gap": "quality",
      "sentences": [
        "A classifier trained on real images recognises 61.0% of them."
      ],
      "evidence": [],
      "least_covered": [],
      "advice": ["Filter them: python -m synguide_jax.label."],
    },
  }
