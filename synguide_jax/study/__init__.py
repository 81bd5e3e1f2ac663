"""What a synthetic set is worth: trains, measures and judges, for `analyze`."""

from collections.abc import Sequence
import functools
from pathlib import Path
from typing import Any

from synguide_jax import experiment, inputs, workdir
from synguide_jax import results as results_lib
from synguide_jax.analysis import verdict
from synguide_jax.study import compare, observe, rates, span
from synguide_jax.study.base import open_sources, REAL, Study

PARTS = ("observations", "fidelity", "span", "exchange")


def analyse(
  file: str, config: Any, folder: Path, parts: Sequence[str] = PARTS
) -> dict[str, Any]:
  """Does what is not done yet, and returns all of it.

  Args:
    file: ``<config file>[:arg]``.
    config: The experiment's config, which is trained and measured as it says;
      every synthetic set is looked at by itself.
    folder: The workdir.
    parts: Of ``PARTS``, what to look at.

  Returns:
    The contents of analysis.json.

  Raises:
    UserError: something is wrong with the config or the data.
  """
  train = functools.partial(experiment.train, show_progress=False)
  inputs.check(config)
  made = inputs.make(config, train)
  study = Study(file, config, folder, open_sources(config, made), made)
  # It may have had other parts and sets; those of this one are saved anew.
  study.remove_images()
  first = study.sources[0].data
  found = {
    "config": workdir.as_json(config),
    "versions": results_lib.versions(),
    "commit": results_lib.commit(),
    "class_names": list(first.class_names),
    "sources": [
      {
        "name": REAL,
        "spec": config.data.real,
        "kind": "real",
        "images": len(first.indices["pool"]),
      },
      *(
        {
          "name": source.name,
          "spec": source.spec,
          "kind": "synthetic",
          "images": len(source.data.indices["synthetic"]),
        }
        for source in study.sources
      ),
    ],
  }
  if "observations" in parts:
    found |= observe.observe(study)
  if "fidelity" in parts:
    found |= compare.compare(study)
  if "span" in parts:
    found["span"] = span.span(study, study.sources[0])
  if "exchange" in parts:
    found["exchange"] = {
      s.name: rates.exchange_rate(study, s) for s in study.sources
    }
  found["verdict"] = {
    s.name: verdict.judge(found, s.name) for s in study.sources
  }
  return found
