"""What docs/data.md names exists."""

import os
from pathlib import Path
import re
import shlex
import subprocess
import sys

import pytest

from synguide_jax import config as config_lib
from synguide_jax import workdir
from synguide_jax.data import sources
from synguide_jax.errors import UserError

ROOT = Path(__file__).parents[2]
GUIDE = (ROOT / "docs" / "data.md").read_text()


def blocks(language):
  found = re.findall(rf"^```{language}\n(.*?)^```$", GUIDE, re.M | re.S)
  assert found
  return found


def flags_of(command):
  """The flags in a command's --help."""
  done = subprocess.run(
    [sys.executable, "-m", command, "--help"],
    env={**os.environ, "PYTHONPATH": str(ROOT)},
    capture_output=True,
    text=True,
  )
  assert not done.stderr
  return set(re.findall(r"^ +--(?:\[no\])?(\w+):", done.stdout, re.M))


def test_commands_and_flags_exist():
  known = {}
  for block in blocks("sh"):
    python, _, command, *arguments = shlex.split(block.replace("\\\n", ""))
    assert python == "python"
    known.setdefault(command, flags_of(command))
    names = {a.removeprefix("--").partition("=")[0] for a in arguments}
    names = {name.partition(".")[0] for name in names}
    assert names <= known[command], block
  assert {"synguide_jax.main", "synguide_jax.prepare"} <= set(known)
  # In the text it is plain whose they are.
  mentioned = set(re.findall(r"`--(\w+)(?=[`=.])", GUIDE))
  assert mentioned <= set.union({"help"}, *known.values())


def test_fields_exist_and_take_the_values():
  config = config_lib.classifier_defaults()
  known = workdir.flatten(config.to_dict())
  fields = set(re.findall(r"--config\.([\w.]+\w)", GUIDE))
  fields |= set(re.findall(r"`(data\.\w+)", GUIDE))
  assert len(fields) > 15
  assert fields <= set(known)
  for field, value in re.findall(r"--config\.([\w.]+)=([\w:]+)", GUIDE):
    if not isinstance(known[field], (str, tuple)):
      assert isinstance(eval(value, {}), type(known[field])), field


def test_the_config_file_loads(tmp_path):
  (code,) = blocks("python")
  (tmp_path / "mine.py").write_text(code)
  config = config_lib.load(str(tmp_path / "mine.py"))
  assert config.data.real == "folder:photos"


@pytest.mark.parametrize("form", re.findall(r"`(\w+)(?=:<path>)", GUIDE))
def test_specs_are_known(form):
  with pytest.raises(UserError) as error:
    sources.open_set(f"{form}:missing")
  assert "Unknown set" not in str(error.value)
