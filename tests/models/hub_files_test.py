"""A model that the hub's cache holds is loaded without a call to the hub."""

import json

import huggingface_hub
from huggingface_hub import constants
import pytest

from synguide_jax.errors import UserError
from synguide_jax.models import hub_files
from tests import hub_layout

TIMM = json.dumps({"architecture": "resnet50"}).encode()
TRANSFORMERS = json.dumps({"model_type": "resnet"}).encode()
WEIGHTS = {"model.safetensors": b"weights"}


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
  monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
  monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
  return tmp_path / "hub"


@pytest.fixture(autouse=True)
def asked(monkeypatch):
  """What was asked of a hub that cannot be reached."""
  urls = []
  monkeypatch.setattr(hub_files, "is_reachable", lambda url: urls.append(url))
  return urls


@pytest.mark.parametrize(
  "contents",
  [
    {"config.json": TIMM, **WEIGHTS},
    {"config.json": TIMM, "pytorch_model.bin": b"weights"},
    {
      "config.json": TRANSFORMERS,
      "preprocessor_config.json": b"{}",
      **WEIGHTS,
    },
  ],
)
def test_what_is_whole_is_not_asked_for(cache, asked, contents):
  folder = hub_layout.store(cache, "some/net", contents)
  assert hub_files.fetch("hf:some/net") == folder
  assert hub_files.fetch(f"hf:some/net@{hub_layout.COMMIT}") == folder
  assert not asked


def test_a_revision_has_its_own_copy(cache, asked):
  contents = {"config.json": TIMM, **WEIGHTS}
  hub_layout.store(cache, "some/net", contents)
  other = "f" * 40
  folder = hub_layout.store(cache, "some/net", contents, "v2", other)
  assert hub_files.fetch("hf:some/net@v2") == folder
  assert folder.name == other
  with pytest.raises(UserError, match="hf download some/net --revision=v3"):
    hub_files.fetch("hf:some/net@v3")


@pytest.mark.parametrize("contents", [{}, {"config.json": TIMM}, WEIGHTS])
def test_half_a_model_is_asked_for(cache, asked, contents):
  hub_layout.store(cache, "some/net", contents)
  with pytest.raises(
    UserError,
    match=f"not in the cache .*{cache}, .*{constants.ENDPOINT} cannot be "
    "reached.*hf download some/net.*models--some--net",
  ):
    hub_files.fetch("hf:some/net")
  assert asked == [constants.ENDPOINT]


def test_preprocessing_that_is_not_cached_is_asked_for(cache, asked):
  # transformers' from_pretrained leaves only these two.
  contents = {"config.json": TRANSFORMERS, **WEIGHTS}
  folder = hub_layout.store(cache, "some/net", contents)
  assert hub_files.fetch("hf:some/net") == folder
  assert asked == [constants.ENDPOINT]
  unknown = folder.parents[1] / ".no_exist" / hub_layout.COMMIT
  unknown.mkdir(parents=True)
  (unknown / "preprocessor_config.json").touch()
  assert hub_files.fetch("hf:some/net") == folder
  assert len(asked) == 1


def test_what_is_missing_is_downloaded(cache, monkeypatch):
  monkeypatch.setattr(hub_files, "is_reachable", lambda url: True)
  hub_layout.store(cache, "some/net", {"config.json": TIMM})
  patterns = []

  def download(repository, *, revision, allow_patterns):
    assert (repository, revision) == ("some/net", None)
    patterns.append(allow_patterns[-1])
    new = {"pytorch_model.bin": b"weights"} if len(patterns) == 2 else {}
    return hub_layout.store(cache, repository, new)

  monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
  folder = hub_files.fetch("hf:some/net")
  assert (folder / "pytorch_model.bin").is_file()
  assert patterns == ["model.safetensors", "pytorch_model.bin"]
  assert hub_files.fetch("hf:some/net") == folder
  assert len(patterns) == 2


def test_garbled_names_and_the_offline_switch_are_named(monkeypatch):
  with pytest.raises(UserError, match="hf:a/b/c is not in the cache.*Repo id"):
    hub_files.fetch("hf:a/b/c")
  monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
  with pytest.raises(UserError, match="some/net.*HF_HUB_OFFLINE"):
    hub_files.fetch("hf:some/net")
