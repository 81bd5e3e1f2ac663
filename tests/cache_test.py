"""Where prepared data lives, and what keeps it apart."""

import hashlib
import json
from pathlib import Path

import pytest

from synguide_jax.cache import cache_dir, fingerprint
from synguide_jax.errors import UserError


def test_cache_dir(monkeypatch):
  monkeypatch.setenv("HOME", "/home/ada")
  monkeypatch.setenv("SYNGUIDE_CACHE", "~/sets")
  assert cache_dir() == Path("/home/ada/sets")
  monkeypatch.delenv("SYNGUIDE_CACHE")
  assert cache_dir() == Path("/home/ada/.cache/synguide_jax")


def test_cache_dir_is_local(monkeypatch):
  monkeypatch.setenv("SYNGUIDE_CACHE", "gs://bucket/sets")
  with pytest.raises(UserError, match="SYNGUIDE_CACHE=gs://bucket/sets: .*loc"):
    cache_dir()


def test_fingerprint():
  config = {"b": (1, 2.5), "a": {"x": None}}
  expected = hashlib.sha256(b'{"a":{"x":null},"b":[1,2.5]}').hexdigest()[:12]
  assert fingerprint(config) == expected
  assert fingerprint(json.loads(json.dumps(config))) == expected
  assert fingerprint({"b": (1, 2.6), "a": {"x": None}}) != expected
  with pytest.raises(TypeError):
    fingerprint({"a": object()})
