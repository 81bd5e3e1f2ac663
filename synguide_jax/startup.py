"""What a command settles before JAX is loaded: speed that costs nothing.

Both can be had without it, from the environment, and an environment that says
something is left alone.
"""

import ctypes
import os
from pathlib import Path

import filelock

from synguide_jax.cache import cache_dir, fingerprint

# Bytes of compiled programs that are kept; the longest unused go first.
_KEPT = 2 << 30
# Shorter compilations are not kept, seconds.
_WORTH_KEEPING = 0.1
# Of glibc's malloc.h: what mallopt sets, and to what.
_MMAP_MAX, _TRIM_THRESHOLD, _ARENA_MAX = -4, -1, -8


def keep_compiled() -> None:
  """Lets JAX find what it compiled before, in ``<cache>/compiled``.

  Programs are of one kind of processor, which have a folder each, so that
  machines may share the cache. ``JAX_COMPILATION_CACHE_DIR`` names another
  folder, which is used as JAX does by itself;
  ``JAX_ENABLE_COMPILATION_CACHE=false`` keeps nothing.

  Raises:
    UserError: ``$SYNGUIDE_CACHE`` is not local.
  """
  if "JAX_COMPILATION_CACHE_DIR" in os.environ:
    # A limit would not know the age of what others left there.
    return
  folder = cache_dir() / "compiled" / fingerprint({"processor": _processor()})
  _remove_partial(folder)
  os.environ["JAX_COMPILATION_CACHE_DIR"] = str(folder.absolute())
  for name, value in {
    "COMPILATION_CACHE_MAX_SIZE": _KEPT,
    "PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": _WORTH_KEEPING,
  }.items():
    os.environ.setdefault(f"JAX_{name}", str(value))


def _remove_partial(folder: Path) -> None:
  """Removes programs that a killed process was writing.

  JAX writes the time of use after the program. One without it would stay, be
  warned of at every start, and keep others from being written.
  """
  if not folder.exists():
    return
  try:
    # JAX's own lock, so that nobody is writing.
    with filelock.FileLock(folder / ".lockfile").acquire(timeout=0):
      for program in folder.glob("*-cache"):
        used = program.with_name(program.name.removesuffix("cache") + "atime")
        if not used.exists():
          program.unlink()
  except (filelock.Timeout, OSError):
    # Somebody is, or it cannot be changed: it is only a cache.
    return


def keep_memory() -> None:
  """Lets glibc keep what a step frees for the next one.

  XLA's CPU client frees a step's temporaries after it. By default they go back
  to the kernel, which zeroes every page again that the next step touches: a
  third of the time of a step of a small ResNet (benchmarks/NOTES.md). The
  process then stays as large as it once was. Where the environment sets
  ``MALLOC_...`` or ``GLIBC_TUNABLES`` this does nothing, nor on other systems.
  """
  named = ("MALLOC_", "GLIBC_TUNABLES")
  if any(name.startswith(named) for name in os.environ):
    return
  try:
    mallopt = ctypes.CDLL(None).mallopt
  except (AttributeError, OSError, TypeError):
    return
  # The three work together only. A threshold of -1 is none.
  for parameter, value in (
    (_MMAP_MAX, 0),
    (_TRIM_THRESHOLD, -1),
    (_ARENA_MAX, 1),
  ):
    mallopt(parameter, value)


def _processor() -> str:
  """What tells kinds of processors apart."""
  try:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
  except OSError:
    return ""
  told = ("model name", "flags", "Features", "CPU part")
  return "\n".join(
    dict.fromkeys(line for line in lines if line.startswith(told))
  )
