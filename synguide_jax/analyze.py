"""Says what synthetic images are worth, and what they lack.

  python -m synguide_jax.analyze --config=configs/digits_lowshot.py

Looks at the config's real images and every synthetic set that it names, trains
classifiers on both, and writes report.html, its figures, which TensorBoard
shows too, and all numbers into the workdir. docs/analysis.md says how to read
it. What was done before an interruption is not done again.
"""

from pathlib import Path

from absl import flags
from ml_collections import config_flags

from synguide_jax import config as config_lib
from synguide_jax import console, workdir
from synguide_jax.console import say
from synguide_jax.errors import check_known

_CONFIG = config_flags.DEFINE_config_file(
  "config", None, "A file in configs/, with :argument.", lock_config=True
)
_WORKDIR = flags.DEFINE_string(
  "workdir", None, "Where to write; runs/<config>/analysis by default."
)
_PARTS = flags.DEFINE_list(
  "parts",
  "observations,fidelity,span,exchange",
  "What to look at; the exchange rate trains most of the classifiers.",
)
flags.mark_flag_as_required("config")


def main() -> int:
  """Runs the command; returns its exit code."""
  from synguide_jax import logs, study
  from synguide_jax.analysis import figures, report
  from synguide_jax.results import plain

  for part in _PARTS.value:
    check_known("--parts", part, study.PARTS)
  config = _CONFIG.value
  file = config_flags.get_config_filename(flags.FLAGS["config"])
  folder = Path(
    _WORKDIR.value
    or workdir.default_workdir(file, config, config_lib.load(file)).with_name(
      "analysis"
    )
  )
  found = plain(study.analyse(file, config, folder, _PARTS.value))
  workdir.write_json(folder / "analysis.json", found)
  page = report.write(found, folder)
  # Beside each other, so that events of earlier figures go with these.
  drawn = figures.find(folder / "figures")
  shown = {path.stem: path for path in drawn if path.suffix == ".png"}
  logs.write_figures(folder / "figures", shown)
  for judged in found["verdict"].values():
    say("\n" + "\n".join(judged["sentences"]))
  say(f"Written to {page}")
  return 0


if __name__ == "__main__":
  console.run(main)
