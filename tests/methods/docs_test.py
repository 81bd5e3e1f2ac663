"""What docs/methods.md names exists; examples in docstrings run."""

import doctest
import importlib
from pathlib import Path
import re
import shlex

import pytest

from synguide_jax import config as config_lib
from synguide_jax import methods, paper, workdir

GUIDE = (Path(__file__).parents[2] / "docs" / "methods.md").read_text()
CONFIG = config_lib.classifier_defaults()


def test_every_method_has_its_row():
  named = re.findall(r"^\| ((?:`\w+` ?)+) \|.*\|.*\|.*\|.*\|$", GUIDE, re.M)
  named = [name for row in named for name in re.findall(r"`(\w+)`", row)]
  assert sorted(named) == sorted(set(methods.METHODS) - {"diffusion"})


def test_fields_exist():
  sections = "|".join(
    name for name in CONFIG if hasattr(CONFIG[name], "to_dict")
  )
  named = re.findall(rf"(?<![\w/])((?:{sections})\.(?!py)\w+)", GUIDE)
  assert len(named) > 20
  config_lib.check_fields(CONFIG, named)
  for assigned in re.findall(r"--config\.([\w.]+=\S+?)[`\s]", GUIDE):
    field, _, value = assigned.partition("=")
    known = workdir.flatten(CONFIG.to_dict())
    text = {"True": True, "False": False}.get(value, value)
    config_lib.override(CONFIG, {field: type(known[field])(text)})


def test_published_settings_are_those_of_the_sweeps():
  rows = re.findall(r"^\| `(\w+)` \| `(\w[\w.]*=.*)` \|$", GUIDE, re.M)
  told = {}
  for name, settings in rows:
    pairs = shlex.split(settings.replace(", ", ","))
    told[name] = dict(pair.split("=") for pair in pairs)
  assert told == {
    name: {
      field: str(value).replace(", ", ",") for field, value in settings.items()
    }
    for name, settings in paper.PUBLISHED.items()
  }
  for settings in paper.PUBLISHED.values():
    config_lib.override(CONFIG, settings)


@pytest.mark.parametrize(
  "module", ["adda", "adversarial", "asg", "csg", "dada", "dann", "ltda"]
)
def test_docstrings(module):
  module = importlib.import_module(f"synguide_jax.methods.{module}")
  result = doctest.testmod(module)
  assert result.attempted and not result.failed
