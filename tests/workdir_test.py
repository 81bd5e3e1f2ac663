"""Tests of workdirs: their names, who may use them, what is written."""

import json
from pathlib import Path

from ml_collections import ConfigDict
import pytest

from synguide_jax import config as config_lib
from synguide_jax import workdir
from synguide_jax.errors import UserError


def _config(**overrides):
  config = config_lib.classifier_defaults()
  return config_lib.override(config, overrides)


def _default_workdir(file="configs/x.py", **overrides):
  return workdir.default_workdir(file, _config(**overrides), _config())


def _begin(folder, config):
  """Leaves what a training leaves that was interrupted."""
  workdir.claim(folder, config)
  (folder / "checkpoints").mkdir()


def test_default_workdir_is_config_and_method():
  assert _default_workdir() == Path("runs/x/guided")
  assert _default_workdir(method="aug") == Path("runs/x/aug")
  assert _default_workdir("/a/b/x.py:weak") == Path("runs/x_weak/guided")


def test_default_workdir_tells_overrides_apart():
  names = [
    _default_workdir(**overrides).name
    for overrides in (
      {},
      {"data.shots": 5},
      {"data.shots": 6},
      {"data.test": 5},
      {"data.shots": 5, "seed": 1},
      {"method": "aug", "data.shots": 5},
      {"model.mean": (0.25,)},
    )
  ]
  assert len(set(names)) == len(names)
  assert names[0] == "guided"
  assert all(name.startswith("guided-") for name in names[1:5])


def test_default_workdir_is_shared_by_equal_configs():
  one = _default_workdir(**{"data.shots": 5, "seed": 1})
  other = _default_workdir(**{"seed": 1, "data.shots": 5})
  assert one == other
  # What a config has anyway is no override.
  assert _default_workdir(**{"data.shots": -1}) == Path("runs/x/guided")


def test_claim_writes_the_config(tmp_path):
  folder = tmp_path / "a" / "b"
  workdir.claim(folder, _config(seed=3))
  written = json.loads((folder / "config.json").read_text())
  assert written["seed"] == 3
  assert written["model"]["mean"] == [0.5]
  assert [file.name for file in folder.iterdir()] == ["config.json"]


@pytest.mark.parametrize("mean", [(0.5, 0.25, 0.5), [0.5, 0.25, 0.5]])
def test_claim_accepts_the_same_config(tmp_path, mean):
  config = ConfigDict({"mean": (0.5, 0.25, 0.5), "seed": 0})
  _begin(tmp_path, config)
  before = (tmp_path / "config.json").read_text()
  workdir.claim(tmp_path, {"seed": 0, "mean": mean})
  assert (tmp_path / "config.json").read_text() == before


def test_claim_refuses_another_config(tmp_path):
  _begin(tmp_path, _config(seed=0))
  with pytest.raises(UserError) as error:
    workdir.claim(tmp_path, _config(**{"seed": 7, "data.real": "letters"}))
  assert str(error.value).splitlines()[1:3] == [
    "  data.real: '' there, 'letters' now",
    "  seed: 0 there, 7 now",
  ]
  assert json.loads((tmp_path / "config.json").read_text())["seed"] == 0


def test_claim_refuses_a_config_with_other_fields(tmp_path):
  _begin(tmp_path, {"old": 1, "both": 2})
  with pytest.raises(UserError) as error:
    workdir.claim(tmp_path, {"both": 2, "new": 3})
  assert "new: None there, 3 now" in str(error.value)
  assert "old: 1 there, None now" in str(error.value)


def test_claim_refuses_results_of_another_config(tmp_path):
  workdir.claim(tmp_path, {"seed": 0})
  workdir.write_json(tmp_path / "results.json", {})
  with pytest.raises(UserError, match="seed: 0 there, 1 now"):
    workdir.claim(tmp_path, {"seed": 1})


def test_a_workdir_without_training_is_free(tmp_path):
  # As after a wrong config: its correction may use the same --workdir.
  workdir.claim(tmp_path, {"metric": "coisne"})
  workdir.claim(tmp_path, {"metric": "cosine"})
  assert json.loads((tmp_path / "config.json").read_text()) == {
    "metric": "cosine"
  }


@pytest.mark.parametrize("folder", ["file/workdir", "/proc/workdir"])
def test_claim_reports_an_unwritable_folder(tmp_path, folder):
  (tmp_path / "file").write_text("")
  with pytest.raises(UserError, match="Cannot write .*workdir.*--workdir"):
    workdir.claim(tmp_path / folder, {"seed": 0})


@pytest.mark.parametrize("content", [b'{"seed": ', b"", b"\xff\xfe", b"null"])
@pytest.mark.parametrize("name", ["config.json", "results.json"])
def test_damaged_files_are_named(tmp_path, name, content):
  (tmp_path / name).write_bytes(content)
  with pytest.raises(UserError, match=f"{name}.*[Dd]elete"):
    workdir.claim(tmp_path, {"seed": 0})
  assert (tmp_path / name).read_bytes() == content


@pytest.mark.parametrize(
  ("config", "field"),
  [
    ({"guidance": {"pg_weight": float("nan")}}, "guidance.pg_weight=nan"),
    ({"seed": 0, "mean": (0.5, float("inf"))}, "mean=.0.5, inf."),
  ],
)
def test_claim_refuses_numbers_that_are_not_finite(tmp_path, config, field):
  with pytest.raises(UserError, match=field):
    workdir.claim(tmp_path / "new", config)
  assert not (tmp_path / "new").exists()


def test_write_json_leaves_the_old_file_where_it_fails(tmp_path):
  path = tmp_path / "results.json"
  workdir.write_json(path, {"a": [1, None]})
  for value in ({"a": float("nan")}, {"a": object()}):
    with pytest.raises((ValueError, TypeError)):
      workdir.write_json(path, value)
  assert json.loads(path.read_text()) == {"a": [1, None]}
  assert list(tmp_path.iterdir()) == [path]


def test_results(tmp_path):
  assert workdir.results(tmp_path) is None
  assert workdir.results(tmp_path / "missing") is None
  workdir.write_json(tmp_path / "results.json", {"method": "aug"})
  assert workdir.results(tmp_path) == {"method": "aug"}


def test_differences_are_by_flat_field():
  old = {"a": 1, "b": {"c": [1, 2], "d": 0}}
  new = {"a": 1, "b": {"c": [1, 3]}}
  assert workdir.differences(old, new) == {
    "b.c": ([1, 2], [1, 3]),
    "b.d": (0, None),
  }


def test_a_file_of_an_older_version_is_completed(tmp_path):
  defaults = config_lib.classifier_defaults()
  workdir.claim(tmp_path, defaults)
  file = tmp_path / "config.json"
  old = json.loads(file.read_text())
  del old["mesh"], old["steps_per_dispatch"], old["model"]["remat"]
  file.write_text(json.dumps(old))
  (tmp_path / "checkpoints").mkdir()
  workdir.claim(tmp_path, defaults)
  found = workdir.config(tmp_path)
  assert found.model.remat is False and found.model.name == old["model"]["name"]
  assert found.mesh.runs == 0
  # What was done step by step goes on so.
  assert workdir.settled(tmp_path, defaults).steps_per_dispatch == 1
  defaults.model.remat = True
  with pytest.raises(UserError, match="model.remat: False there, True now"):
    workdir.claim(tmp_path, defaults)


def test_a_generator_gets_no_field_of_classifiers(tmp_path):
  wanted = config_lib.load("configs/generators/digits.py:smoke")
  workdir.claim(tmp_path, wanted)
  (tmp_path / "checkpoints").mkdir()
  workdir.claim(tmp_path, wanted)
  assert workdir.as_json(workdir.config(tmp_path)) == workdir.as_json(wanted)
