"""What commands print as one line, without a traceback."""


class UserError(ValueError):
  """A wrong config, file or workdir; the message names field, value, remedy.

  Raised before any training starts. Commands exit with 2.
  """


class DivergedError(ArithmeticError):
  """The loss of every run became NaN or infinite. Commands exit with 1."""
