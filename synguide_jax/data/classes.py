"""Which class of the real images a synthetic class is."""

from collections.abc import Sequence

from synguide_jax.data.layouts import enumerate_names
from synguide_jax.errors import check_known, UserError

MATCH = ("name", "index")


def match(
  real: Sequence[str],
  synthetic: Sequence[str],
  *,
  by: str = "name",
  mapping: Sequence[str] = (),
  wanted: Sequence[str] = (),
  real_spec: str = "real",
  synthetic_spec: str = "synthetic",
) -> tuple[str, ...]:
  """Returns what each synthetic class is called among the real ones.

  Args:
    real: Names of the real classes.
    synthetic: Names of the synthetic classes.
    by: ``"name"``, or ``"index"``: the n-th is the n-th, whatever its name.
    mapping: ``"synthetic name=real name"`` for classes whose names differ.
    wanted: Real classes that must be there; by default all. By index, all are
      counted, also those that are not wanted.
    real_spec: What the real set is called in messages.
    synthetic_spec: What the synthetic set is called in messages.

  Raises:
    UserError: the classes do not match; the message shows both lists.
  """
  lists = (
    f"{real_spec}: {enumerate_names(real)}. "
    f"{synthetic_spec}: {enumerate_names(synthetic)}."
  )
  check_known("data.match_classes", by, MATCH)
  if by == "index":
    if mapping:
      raise UserError(
        "data.class_mapping is of names, but data.match_classes='index'; "
        "leave one of them out."
      )
    if len(real) != len(synthetic):
      raise UserError(
        "data.match_classes='index' needs as many synthetic as real classes: "
        f"{len(synthetic)} and {len(real)}. {lists}"
      )
    return tuple(real)
  renamed = {}
  for pair in mapping:
    old, equals, new = pair.partition("=")
    if not equals or new not in real:
      raise UserError(
        f"data.class_mapping: {pair!r} must be 'synthetic name=real name'. "
        f"{lists}"
      )
    renamed[old] = new
  names = tuple(renamed.get(name, name) for name in synthetic)
  missing = set(wanted or real) - set(names)
  unknown = set(names) - set(real)
  if missing or unknown:
    raise UserError(
      "The real and the synthetic set must have classes of the same names. "
      f"{lists} Only in {real_spec}: {enumerate_names(missing)}; "
      f"only in {synthetic_spec}: {enumerate_names(unknown)}. "
      "data.class_mapping and data.match_classes tell which is which."
    )
  return names
