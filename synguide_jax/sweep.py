"""Runs the rows of a config's table that are not finished, one workdir each.

  python -m synguide_jax.sweep --config=configs/digits_lowshot.py
  ... --methods=real,fake,aug --also=configs/digits_lowshot.py:weak
  ... --grid=data.shots=1,5,10 --grid=optimizer.learning_rate=1e-3,1e-4
  ... --gpus=0,1,2,3
  ... --print_commands | xargs -d '\\n' -n 1 -P 4 \\
        --process-slot-var=CUDA_VISIBLE_DEVICES sh -c

Rows are the config files' `get_sweep()`. Overrides hold for all of them, and
the grid's combinations are crossed with them, but for the fields that a row
sets itself. Workdirs are main's, and the same command continues what was cut.

--gpus has a cell at a time on each of these GPUs, in a process that sees no
other; so has xargs with that variable, from GPU 0 on. --jobs=4 alone gives four
processes all devices: for CPUs, or for one GPU that they share, with
XLA_PYTHON_CLIENT_PREALLOCATE=false. A TPU admits one process. Processes print
to log.txt. Exits with 1 if anything is left.
"""

from absl import flags
from ml_collections import config_flags

from synguide_jax import console, experiment, grid, hosts, jobs
from synguide_jax.errors import UserError

_CONFIG = config_flags.DEFINE_config_file(
  "config", None, "A file in configs/, with :argument.", lock_config=True
)
_ALSO = flags.DEFINE_list("also", [], "Further config files, with :argument.")
_METHODS = flags.DEFINE_list("methods", [], "Only rows of these methods.")
_GRID = flags.DEFINE_multi_string(
  "grid", [], "<field>=<value>,<value>: crossed with the rows; repeatable."
)
_PRINT = flags.DEFINE_bool(
  "print_commands", False, "Only print the commands of unfinished cells."
)
_JOBS = flags.DEFINE_integer(
  "jobs", None, "Cells at a time; 1: in this process.", lower_bound=1
)
_GPUS = flags.DEFINE_list("gpus", [], "As CUDA_VISIBLE_DEVICES names them.")
_MULTIHOST = flags.DEFINE_bool("multihost", False, "As for main; no --jobs.")
flags.mark_flag_as_required("config")


def main() -> int:
  """Runs the command; returns its exit code."""
  slots = jobs.slots(_JOBS.value, _GPUS.value)
  if _MULTIHOST.value:
    if _PRINT.value or slots:
      raise UserError("--multihost wants no --jobs, --gpus, --print_commands.")
    hosts.initialize()
  flag = flags.FLAGS["config"]
  cells = grid.cells(
    [config_flags.get_config_filename(flag), *_ALSO.value],
    config_flags.get_override_values(flag),
    methods=_METHODS.value,
    grid=_GRID.value,
  )
  if _PRINT.value:
    print(*(f"{line}\n" for line in grid.commands(cells)), sep="", end="")
    return 0
  if slots:
    unfinished = jobs.run_jobs(cells, slots)
  else:
    unfinished = jobs.run_here(cells)
  experiment.show_table([cell.folder for cell in cells])
  return 1 if unfinished else 0


if __name__ == "__main__":
  console.run(main)
