"""What commands print as one line, without a traceback."""

from collections.abc import Iterable
from typing import Any


class UserError(ValueError):
  """A wrong config, file or workdir; the message names field, value, remedy.

  Raised before any training starts. Commands exit with 2.
  """


class DivergedError(ArithmeticError):
  """The loss of every run became NaN or infinite. Commands exit with 1."""


def check_known(field: str, value: Any, known: Iterable[Any]) -> None:
  """Raises UserError, naming the config's field, for an unknown value."""
  if value not in known:
    listed = ", ".join(map(str, known))
    raise UserError(f"{field}={value!r} is unknown; known: {listed}.")


def check_not_negative(field: str, value: float) -> None:
  """Raises UserError, naming the field, for a value below 0, or NaN."""
  if not value >= 0:
    raise UserError(f"{field}={value} must not be negative.")
