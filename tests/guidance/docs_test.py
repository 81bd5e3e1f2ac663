"""Runs every example of the guidance documentation and docstrings."""

import doctest
import importlib
import pathlib
import re

import pytest

GUIDE = pathlib.Path(__file__).parents[2] / "docs" / "guidance.md"


def snippets():
  """The Python blocks of the guide, named by the heading above each."""
  heading, found = "", []
  pattern = r"^#+ ([^\n]+)$|^```python\n(.*?)^```$"
  for match in re.finditer(pattern, GUIDE.read_text(), re.M | re.S):
    if match[1]:
      heading = match[1]
    else:
      found.append(pytest.param(match[2], id=heading))
  # pytest would skip an empty list in silence.
  assert found
  return found


@pytest.mark.parametrize("code", snippets())
def test_snippet(code):
  for library in ("flax", "equinox"):
    if re.search(rf"^(import|from) {library}\b", code, re.M):
      pytest.importorskip(library)
  exec(compile(code, str(GUIDE), "exec"), {"__name__": "__main__"})


@pytest.mark.parametrize("module", ["pretrained", "real"])
def test_docstrings(module):
  module = importlib.import_module(f"synguide_jax.guidance.{module}")
  result = doctest.testmod(module)
  assert result.attempted and not result.failed
