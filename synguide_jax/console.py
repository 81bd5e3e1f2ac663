"""What a command shows: a few plain lines, and no library's log among them."""

from collections.abc import Callable, Mapping, Sequence
import logging as python_logging
import os
import re
import sys
import traceback
from typing import Any

from absl import app, flags, logging

from synguide_jax import hosts, startup
from synguide_jax.errors import (
  DivergedError,
  InUse,
  is_disk_full,
  Preempted,
  UserError,
)

# The exit code after SIGTERM or a preemption: start the same command again.
PREEMPTED = os.EX_TEMPFAIL
# The exit code where another command is at work in the workdir.
IN_USE = os.EX_PROTOCOL


def say(line: str = "") -> None:
  """Prints a line at once; of several processes, only the first does."""
  if hosts.is_first():
    print(line, flush=True)


def quiet() -> None:
  """Silences what libraries log below a warning. Call before they load."""
  os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
  os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")
  os.environ.setdefault("GRPC_VERBOSITY", "ERROR")
  logging.set_verbosity(logging.WARNING)
  logging.use_absl_handler()
  # Without time, process and source line, which mean nothing to users.
  plain = python_logging.Formatter("warning: %(message)s")
  logging.get_absl_handler().setFormatter(plain)


def run(main: Callable[[], int | None]) -> None:
  """Runs a command: parses its flags, and turns user errors into one line.

  Exits with what ``main`` returns, with 1 if training diverged or a disk is
  full, with 2 for a `UserError`, with 75 if training stopped on SIGTERM or for
  a preemption and the same command continues it, with 76 if the workdir is in
  use, and with 130 on Ctrl-C.
  """
  quiet()
  startup.keep_memory()

  def guarded(argv):
    if len(argv) > 1:
      raise UserError(f"Unexpected argument {argv[1]!r}; flags begin with --.")
    startup.keep_compiled()
    return main()

  try:
    app.run(guarded, flags_parser=_parse)
  except (DivergedError, UserError) as error:
    print(f"error: {error}", file=sys.stderr)
    codes = {DivergedError: 1, InUse: IN_USE}
    _exit(codes.get(type(error), 2))
  except Preempted as error:
    print(f"{error} The same command continues.", file=sys.stderr)
    sys.exit(PREEMPTED)
  except OSError as error:
    if not is_disk_full(error):
      _unexpected(error)
    print(f"error: the disk is full: {error}", file=sys.stderr)
    _exit(1)
  except KeyboardInterrupt:
    print("interrupted; the same command continues", file=sys.stderr)
    sys.exit(130)
  except Exception as error:
    _unexpected(error)


def _unexpected(error: Exception) -> None:
  """Raises, or of several processes leaves, which raising alone would not."""
  if not hosts.are_several():
    raise error
  traceback.print_exception(error)
  _exit(1)


def _exit(code: int) -> None:
  if hosts.are_several():
    hosts.leave(code)
  sys.exit(code)


def _parse(argv: Sequence[str]) -> Sequence[str]:
  """Parses flags, after a look at --config and its overrides.

  For config_flags would show a traceback where there is no such file or
  argument, and another one where there is no such field.
  """
  from synguide_jax import config as config_lib

  argv = list(argv)
  if "--config" in argv[:-1]:
    at = argv.index("--config")
    argv[at : at + 2] = [f"--config={argv[at + 1]}"]
  for number, flag in enumerate(argv):
    if flag.startswith("--config="):
      path, arg = config_lib.find(flag.removeprefix("--config="))
      spec = f"{path}:{arg}" if arg else str(path)
      argv[number] = f"--config={spec}"
      overrides = re.findall(r"--(?:no)?config\.([^\s=]+)", " ".join(argv))
      config_lib.check_fields(config_lib.load(spec), overrides)
  try:
    return flags.FLAGS(argv)
  except (flags.Error, TypeError, ValueError) as error:
    raise UserError(" ".join(str(error).split())) from error


class ConsoleWriter:
  """A metric writer that prints one line an evaluation.

  It has the methods of a clu ``MetricWriter`` that the trainer calls.
  """

  def write_scalars(self, step: int, scalars: Mapping[str, float]) -> None:
    """Prints progress, losses, accuracies, speed and the time left."""
    total = round(step / scalars["progress"])
    parts = [f"  step {step:>{len(str(total))}}/{total}"]
    for name, label in _SHOWN.items():
      if name in scalars:
        parts.append(f"{label} {_format(name, scalars[name])}")
    if rate := scalars.get("steps_per_sec"):
      parts.append(f"{rate:.{0 if rate >= 10 else 1}f} steps/s")
    if "seconds_left" in scalars:
      parts.append(f"{duration(scalars['seconds_left'])} left")
    say("  ".join(parts))

  def write_images(self, step: int, images: Mapping[str, Any]) -> None:
    """Does nothing: a terminal shows none."""

  def flush(self) -> None:
    """Does nothing: every line is printed at once."""

  close = flush


_SHOWN = {
  "train/loss": "loss",
  "train/conflict_rate": "conflicts",
  "validation/accuracy": "validation",
  "validation/balanced_accuracy": "balanced",
}


def _format(name: str, value: float) -> str:
  if not name.endswith("loss"):
    return f"{100 * value:.1f}%"
  return f"{value:.4f}" if value < 1e4 else f"{value:.2e}"


def duration(seconds: float) -> str:
  """Formats 3723 as ``1h 2min``, 75 as ``1min 15s``, 8.3 as ``8s``."""
  minutes, rest = divmod(round(seconds), 60)
  hours, minutes = divmod(minutes, 60)
  if hours:
    return f"{hours}h {minutes}min"
  return f"{minutes}min {rest}s" if minutes else f"{rest}s"


def percent(summary: Mapping[str, Any]) -> str:
  """Formats a results summary as ``95.32 +- 0.61 (n=10)``, in percent."""
  if summary["mean"] is None:
    return "no run left"
  spread = "" if summary["std"] is None else f" +- {100 * summary['std']:.2f}"
  return f"{100 * summary['mean']:.2f}{spread} (n={summary['n']})"
