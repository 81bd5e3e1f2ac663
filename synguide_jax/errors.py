"""What commands print as one line, without a traceback."""

from collections.abc import Iterable, Mapping
import errno
from typing import Any


class UserError(ValueError):
  """A wrong config, file or workdir; the message names field, value, remedy.

  Raised before any training starts. Commands exit with 2.
  """


class InUse(UserError):
  """Another command is training in the workdir. Commands exit with 76."""


class DivergedError(ArithmeticError):
  """The loss of every run became NaN or infinite. Commands exit with 1."""


class Preempted(Exception):
  """Stopped by SIGTERM or preemption, with a checkpoint; commands exit with 75.

  The same call continues.
  """


def is_disk_full(error: BaseException) -> bool:
  """Whether an error is that of a full disk, or of a quota that is."""
  return getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT)


def check_known(field: str, value: Any, known: Iterable[Any]) -> None:
  """Raises UserError, naming the config's field, for an unknown value."""
  if value not in known:
    listed = ", ".join(map(str, known))
    raise UserError(f"{field}={value!r} is unknown; known: {listed}.")


def check_not_negative(field: str, value: float) -> None:
  """Raises UserError, naming the field, for a value below 0, or NaN."""
  if not value >= 0:
    raise UserError(f"{field}={value} must not be negative.")


def check_section(
  name: str,
  section: Any,
  choices: Mapping[str, tuple[str, ...]],
  numbers: tuple[str, ...] = (),
) -> None:
  """Checks fields of a method's section.

  Args:
    name: The section's name.
    section: The section.
    choices: What is known, by field.
    numbers: Fields that must not be negative.

  Raises:
    UserError: for a value that is unknown, or negative.
  """
  for field, known in choices.items():
    check_known(f"{name}.{field}", section[field], known)
  for field in numbers:
    check_not_negative(f"{name}.{field}", section[field])
