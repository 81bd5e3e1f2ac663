"""Real images and weights to develop with, where there are any."""

import os
from pathlib import Path

import pytest


def folder():
  """Returns the folder named by SYNGUIDE_SHARED, or skips the test."""
  path = os.environ.get("SYNGUIDE_SHARED")
  if not path:
    pytest.skip("SYNGUIDE_SHARED names no folder of real images and weights")
  return Path(path)
