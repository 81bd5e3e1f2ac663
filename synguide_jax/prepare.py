"""Prepares sets of images ahead of time, and says what is in them.

  python -m synguide_jax.prepare --source=folder:photos \
      --source=npz:samples.npz

Whatever trains on a set prepares it, too; this does it beforehand, where there
is a network, say, or where no accelerator waits. A set that is there already is
only described. docs/data.md has the forms that --source takes.
"""

from absl import flags

from synguide_jax import console
from synguide_jax.console import say

_SOURCES = flags.DEFINE_multi_string(
  "source", None, "Spec of a set, as in data.real; may be given several times."
)
_SKIP_DAMAGED = flags.DEFINE_bool(
  "skip_damaged",
  False,
  "Leave files out that cannot be read, as data.skip_damaged does.",
)
flags.mark_flag_as_required("source")


def main() -> int:
  """Runs the command; returns its exit code."""
  from synguide_jax.data import sources, summary

  for number, spec in enumerate(_SOURCES.value):
    found = sources.open_set(spec, skip_damaged=_SKIP_DAMAGED.value)
    if number:
      say()
    say("\n".join(summary.describe(found)))
  return 0


if __name__ == "__main__":
  console.run(main)
