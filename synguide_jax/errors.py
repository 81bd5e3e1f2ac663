"""The one exception that means: the user can fix this, no traceback needed."""


class UserError(ValueError):
  """A wrong config, file or workdir; the message names field, value, remedy.

  Commands print it as one line and exit with 2. Library code raises it before
  any training starts.
  """
