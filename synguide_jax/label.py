"""Labels a set of images with a classifier, and keeps those worth keeping.

  python -m synguide_jax.label --source=npz:samples.npz \
      --classifier=runs/cifar/real --output=samples_labeled

An image that has a label keeps it; any other gets the most probable class.
Those whose largest probability is above --threshold are kept, and written as a
set: --config.data.synthetic=prepared:samples_labeled.
"""

from absl import flags

from synguide_jax import console, experiment
from synguide_jax.console import say

_SOURCE = flags.DEFINE_string("source", None, "Spec, as in data.synthetic.")
_CLASSIFIER = flags.DEFINE_string(
  "classifier", None, "A finished workdir; or weights: a path, or hf:<name>."
)
_OUTPUT = flags.DEFINE_string("output", None, "Folder to be made.")
_SKIP = flags.DEFINE_bool("skip_damaged", False, "As data.skip_damaged.")
_RULES = (
  flags.DEFINE_string("split", None, 'By default "train", or the first.'),
  flags.DEFINE_enum(
    "match_classes", "name", ["name", "index"], "As data.match_classes."
  ),
  flags.DEFINE_multi_string("class_mapping", [], "As data.class_mapping."),
  flags.DEFINE_bool("relabel", False, "Labels are replaced by predictions."),
  flags.DEFINE_float(
    "threshold", None, "Of the probability; by default 0.8, or 0 by loss."
  ),
  flags.DEFINE_bool("agree", False, "Keep only labels that are predicted."),
  flags.DEFINE_float("min_loss", 0.0, "Of the label, nats."),
  flags.DEFINE_float("max_loss", None, "Of the label, nats."),
  flags.DEFINE_integer("per_class", None, "Keep so many, drawn at random."),
  flags.DEFINE_string(
    "balance_with",
    None,
    "Even out the classes of these real images: best a workdir, for what its "
    "run 0 trains on; or a spec, for all of its train split.",
  ),
  flags.DEFINE_integer("seed", 0, "Of the draw."),
)
flags.mark_flags_as_required(["source", "classifier", "output"])


def main() -> int:
  """Runs the command; returns its exit code."""
  from synguide_jax.data import sources
  from synguide_jax.synthesis import labeling

  rules = labeling.Rules(**{flag.name: flag.value for flag in _RULES})
  rules.check()
  source = sources.open_set(_SOURCE.value, skip_damaged=_SKIP.value)
  classifier = experiment.open_classifier(_CLASSIFIER.value)
  report = labeling.label(
    source, classifier, _OUTPUT.value, rules, skip_damaged=_SKIP.value
  )
  if not report.new:
    say(f"Finished before; delete {report.output} to do it again.")
  for line in labeling.table(report):
    say(line)
  say(f"Use it with --config.data.synthetic=prepared:{_OUTPUT.value}")
  return 0


if __name__ == "__main__":
  console.run(main)
