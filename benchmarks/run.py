"""Measures; the one command for all tables of this package's speed and memory.

  python -m benchmarks.run --output=runs/benchmarks \
      --suite=step,data,runs,end_to_end,analysis,memory

Prints a table after the other, with medians over n rounds, the smallest and the
largest in brackets, and writes <output>/<suite>.json, or one file of all where
--output ends in .json: commit, versions, hardware and every round. Suites:

  step        a training step, plain and guided, ours beside PyTorch's; overhead
  data        augmentation, decoding, memory of the input
  runs        several runs in one program beside one after the other
  end_to_end  the command from its start on, compiled programs kept or not
  analysis    `predict` beside decoding and inference
  memory      what grows with batch, data set, runs and classes

`python -m benchmarks.run --help` lists their flags.
"""

from collections.abc import Sequence
import json
import os
from pathlib import Path
from typing import Any

from absl import flags

from benchmarks import (
  data,
  end_to_end,
  memory,
  predict,
  runs,
  step,
  tables,
)
from synguide_jax import console
from synguide_jax.errors import check_known

# In this order: the first two start commands, which need the devices alone.
SUITES = {
  "runs": runs.measure,
  "end_to_end": end_to_end.measure,
  "step": step.measure,
  "data": data.measure,
  "analysis": predict.measure,
  "memory": memory.measure,
}

_SUITE = flags.DEFINE_list("suite", ["step"], f"Of {', '.join(SUITES)}.")
_OUTPUT = flags.DEFINE_string("output", "", "A .json file, or a folder.")


def measure(names: Sequence[str]) -> dict[str, list[tables.Table]]:
  """Runs suites and prints their tables.

  Args:
    names: Of the suites.

  Returns:
    Tables by suite.
  """
  found = {}
  for name in (name for name in SUITES if name in names):
    found[name] = []
    for table in SUITES[name]():
      table.title += f"; n = {tables.rounds()}"
      console.say(str(table))
      found[name].append(table)
  return found


def write(output: Path, suites: dict[str, Any], where: dict[str, Any]) -> None:
  """Writes what was measured, and where.

  Args:
    output: A file, if it ends in .json, or a folder with one for each suite.
    suites: Tables by suite.
    where: What `tables.environment` says.
  """
  files = {output: suites}
  if output.suffix != ".json":
    files = {output / f"{k}.json": {k: v} for k, v in suites.items()}
  for file, contents in files.items():
    plain = {name: list(map(vars, of)) for name, of in contents.items()}
    file.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps({"environment": where, "suites": plain}, indent=1)
    file.write_text(text + "\n")


def main() -> None:
  """Measures, prints and writes."""
  for name in _SUITE.value:
    check_known("--suite", name, SUITES)
  # PyTorch needs the rest.
  os.environ.setdefault("XLA_PYTHON_CLIENT_MEM_FRACTION", "0.5")
  suites = measure(_SUITE.value)
  where = tables.environment()
  versions = ", ".join(f"{k} {v}" for k, v in where["versions"].items())
  console.say(f"\n{where['processor']}; {where['device']}; {versions}")
  console.say(
    f"commit {where['commit']}, {where['date']}; load {where['load']}"
  )
  if _OUTPUT.value:
    write(Path(_OUTPUT.value), suites, where)


if __name__ == "__main__":
  console.run(main)
