"""Every test sees eight host devices, its own cache folder, and no network."""

import os

from tests import compiling

# Before anything imports JAX.
os.environ["XLA_FLAGS"] = " ".join(
  [
    os.environ.get("XLA_FLAGS", ""),
    "--xla_force_host_platform_device_count=8",
    compiling.CHEAPLY,
  ]
).strip()
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
os.environ["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] = "0"
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ["HF_HUB_OFFLINE"] = "1"

import jax  # noqa: E402
import pytest  # noqa: E402


@pytest.fixture(autouse=True, scope="session")
def cache(tmp_path_factory):
  """One cache for all tests of a session, so that sets are prepared once."""
  # Workers of one session share the folder; preparation is safe for that.
  root = tmp_path_factory.getbasetemp()
  if os.environ.get("PYTEST_XDIST_WORKER"):
    root = root.parent
  folder = root / "synguide_cache"
  os.environ["SYNGUIDE_CACHE"] = str(folder)
  # Trainings that many tests repeat compile once.
  jax.config.update("jax_compilation_cache_dir", str(root / "jax_cache"))
  return folder


@pytest.fixture(autouse=True)
def in_empty_folder(tmp_path, monkeypatch):
  """Tests run in a folder of their own, where commands may leave runs/."""
  monkeypatch.chdir(tmp_path)


@pytest.fixture
def optimized(monkeypatch):
  """Lets `synguide_jax.compilation.jit` choose the level, for long trainings.

  They take half of the time or less then.
  """
  # XLA reads its flags at the first use of a device; the others are to stay.
  jax.devices()
  flags = os.environ["XLA_FLAGS"].split()
  kept = [flag for flag in flags if "optimization_level" not in flag]
  monkeypatch.setenv("XLA_FLAGS", " ".join(kept))
