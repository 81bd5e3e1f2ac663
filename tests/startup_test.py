"""What commands settle before JAX is loaded."""

import ctypes
import os
from pathlib import Path
import subprocess
import sys

import filelock
import pytest

from synguide_jax import startup

NAMES = (
  "JAX_COMPILATION_CACHE_DIR",
  "JAX_COMPILATION_CACHE_MAX_SIZE",
  "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS",
)


@pytest.fixture(autouse=True)
def bare(monkeypatch):
  for name in os.environ:
    if name in NAMES or name.startswith(("MALLOC_", "GLIBC_TUNABLES")):
      monkeypatch.delenv(name)
  # What a test sets is taken back.
  for name in NAMES:
    monkeypatch.setenv(name, "")
    monkeypatch.delenv(name)


def test_compiled_programs_are_kept_by_processor(monkeypatch):
  monkeypatch.setenv("SYNGUIDE_CACHE", "here")
  startup.keep_compiled()
  folder = Path(os.environ["JAX_COMPILATION_CACHE_DIR"])
  assert folder.parent == Path.cwd() / "here" / "compiled"
  monkeypatch.setattr(startup, "_processor", lambda: "another")
  monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR")
  startup.keep_compiled()
  other = Path(os.environ["JAX_COMPILATION_CACHE_DIR"])
  assert other.parent == folder.parent and other != folder


def test_a_folder_of_ones_own_is_left_alone(monkeypatch):
  monkeypatch.setenv(NAMES[0], "there")
  startup.keep_compiled()
  assert os.environ[NAMES[0]] == "there"
  assert not set(NAMES[1:]) & set(os.environ)


def test_a_program_is_compiled_once(tmp_path):
  code = """
from synguide_jax import startup
startup.keep_compiled()
import jax, jax.numpy as jnp
found = []
jax.monitoring.register_event_listener(
  lambda event, **_: found.append(event.rsplit("/", 1)[-1]))
print(jax.jit(lambda x: jnp.sin(x) @ x)(jnp.ones((64, 64))).sum())
print("cache_hits" in found, "cache_misses" in found)
"""
  printed = [
    subprocess.run(
      [sys.executable, "-c", code],
      env={
        "PATH": "",
        "PYTHONPATH": str(Path(startup.__file__).parents[1]),
        "SYNGUIDE_CACHE": str(tmp_path / "cache"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
      },
      check=True,
      capture_output=True,
      text=True,
    ).stdout.split()
    for _ in range(2)
  ]
  assert [p[1:] for p in printed] == [["False", "True"], ["True", "False"]]
  assert printed[0][0] == printed[1][0]


def test_what_a_killed_process_was_writing_is_removed(monkeypatch):
  monkeypatch.setenv("SYNGUIDE_CACHE", "here")
  startup.keep_compiled()
  folder = Path(os.environ.pop("JAX_COMPILATION_CACHE_DIR"))
  folder.mkdir(parents=True)
  for name in ("whole-cache", "whole-atime", "partial-cache"):
    (folder / name).touch()
  with filelock.FileLock(folder / ".lockfile"):
    # Its writer is at work.
    startup.keep_compiled()
  assert (folder / "partial-cache").exists()
  del os.environ["JAX_COMPILATION_CACHE_DIR"]
  startup.keep_compiled()
  assert {path.name for path in folder.glob("[!.]*")} == {
    "whole-cache",
    "whole-atime",
  }


class _Library:
  """Stands in for the C library."""

  def __init__(self):
    self.settings = []

  def mallopt(self, parameter, value):
    self.settings.append((parameter, value))
    return 1


def test_memory_is_kept_unless_the_environment_says_how(monkeypatch):
  library = _Library()
  monkeypatch.setattr(ctypes, "CDLL", lambda name: library)
  startup.keep_memory()
  # M_MMAP_MAX, M_TRIM_THRESHOLD and M_ARENA_MAX of glibc's malloc.h.
  assert sorted(library.settings) == [(-8, 1), (-4, 0), (-1, -1)]
  library.settings.clear()
  for name in ("MALLOC_ARENA_MAX", "GLIBC_TUNABLES"):
    with monkeypatch.context() as patch:
      patch.setenv(name, "1")
      startup.keep_memory()
  assert not library.settings


def test_other_c_libraries_are_left_alone(monkeypatch):
  monkeypatch.setattr(ctypes, "CDLL", lambda name: object())
  startup.keep_memory()
