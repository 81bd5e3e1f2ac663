"""Tests of configs: where they are found, and what every one must be."""

import json
from pathlib import Path
import re

import pytest

from synguide_jax import config as config_lib
from synguide_jax import inputs, workdir
from synguide_jax.errors import UserError

ROOT = Path(__file__).resolve().parent.parent
FILES = sorted(
  path.relative_to(ROOT).as_posix() for path in ROOT.glob("configs/**/*.py")
)


def _args(file):
  namespace = {}
  exec((ROOT / file).read_text(), namespace)
  return (None, *namespace["ARGS"])


SPECS = [
  file + (f":{arg}" if arg else "") for file in FILES for arg in _args(file)
]


def test_find_prefers_the_current_folder(tmp_path):
  assert config_lib.find("configs/letters.py") == (
    ROOT / "configs/letters.py",
    None,
  )
  (tmp_path / "configs").mkdir()
  (tmp_path / "configs/letters.py").write_text("")
  assert config_lib.find("configs/letters.py:smoke") == (
    Path("configs/letters.py"),
    "smoke",
  )


def test_unknown_file_and_argument():
  with pytest.raises(UserError, match="No config file 'configs/nothing.py'"):
    config_lib.load("configs/nothing.py:smoke")
  with pytest.raises(
    UserError, match=r"letters.py.*'huge'.*known: full, smoke"
  ):
    config_lib.load("configs/letters.py:huge")


def test_a_config_file_must_be_python():
  Path("config.json").write_text("{}")
  with pytest.raises(UserError, match="config.json is not a Python file"):
    config_lib.load("config.json")


def test_a_file_without_sweep_is_named():
  with pytest.raises(UserError, match=r"letters.py has no get_sweep\(\)"):
    config_lib.load_sweep("configs/letters.py")


@pytest.mark.parametrize("spec", SPECS)
def test_every_config_is_plain_data(spec):
  config = config_lib.load(spec)
  as_dict = config.to_dict()
  text = json.dumps(as_dict, allow_nan=False)
  # Tuples come back as lists, and nothing else changes.
  back = workdir.flatten(json.loads(text))
  for field, value in workdir.flatten(as_dict).items():
    expected = list(value) if isinstance(value, tuple) else value
    assert back.pop(field) == expected
  assert not back


@pytest.mark.parametrize("file", FILES)
def test_every_config_has_a_smoke_form(file):
  assert "smoke" in _args(file)


@pytest.mark.parametrize("file", FILES)
def test_a_smoke_form_is_the_config_without_data_or_weights(file):
  config, smoke = config_lib.load(file), config_lib.load(f"{file}:smoke")
  fetched = ("tfds:", "hf:", "folder:", "npz:", "stylegan:", "prepared:")
  specs = [smoke.data.real, smoke.data.synthetic]
  if config.method not in inputs.GENERATORS:
    specs += [smoke.model.init, smoke.pretrained.weights]
  assert [spec for spec in specs if spec.startswith(fetched)] == []
  if config.method == "diffusers":
    return  # It trains nothing.
  # Many steps would be no smoke test, another network one of another thing.
  assert 0 < smoke.num_steps <= 6
  for field in ("name", "image_size", "mean", "std"):
    assert smoke.model.get(field) == config.model.get(field)
  for field in ("image_size", "store_size", "channels", "padding", "crop"):
    assert smoke.data[field] == config.data[field]


WITH_SWEEP = [
  spec for spec in SPECS if "get_sweep" in config_lib.find(spec)[0].read_text()
]


@pytest.mark.parametrize("spec", WITH_SWEEP)
def test_rows_of_a_sweep_are_different_experiments(spec):
  config, rows = config_lib.load(spec), config_lib.load_sweep(spec)
  folders = {
    workdir.default_workdir(spec, config_lib.override(config, row), config)
    for row in rows
  }
  assert len(folders) == len(rows)


@pytest.mark.parametrize(
  "file", ["config.py", "method_config.py", "generator_config.py"]
)
def test_every_default_is_explained(file):
  source = (ROOT / "synguide_jax" / file).read_text()
  lines = [line.strip() for line in source.splitlines()]
  fields = {
    line.split(" = ")[0]: above
    for above, line in zip(lines, lines[1:], strict=False)
    if line.startswith(("config.", "section."))
    and not re.search(r"ConfigDict\(\)|generator_config\.", line)
  }
  assert len(fields) > 20
  # Said in the comment of the field above.
  for field in ("data.test", "data.randaugment_magnitude", "model.std"):
    fields.pop(f"config.{field}", None)
  assert [f for f, above in fields.items() if not above.startswith("#")] == []


def test_override():
  config = config_lib.classifier_defaults()
  changed = config_lib.override(
    config, {"data.shots": 5, "guidance.pg_weight": 3, "model.mean": (1.0, 2.0)}
  )
  assert changed.data.shots == 5
  assert changed.guidance.pg_weight == 3.0
  assert changed.model.mean == (1.0, 2.0)
  assert config.data.shots == -1


def test_override_names_the_nearest_field():
  config = config_lib.classifier_defaults()
  with pytest.raises(UserError, match="'data.shotz'.*mean data.shots"):
    config_lib.override(config, {"data.shotz": 5})
  with pytest.raises(UserError, match="no field 'qqq'.$"):
    config_lib.override(config, {"qqq": 5})
  with pytest.raises(UserError, match="data.shots='many'"):
    config_lib.override(config, {"data.shots": "many"})
