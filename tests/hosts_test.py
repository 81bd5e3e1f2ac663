"""Several processes: how they find each other, wait and fail together."""

import os
import subprocess
import sys

import pytest

from synguide_jax import hosts, workdir
from synguide_jax.errors import UserError
from tests import tiny

_START = """
import sys
from synguide_jax import hosts
from synguide_jax.errors import UserError

try:
  hosts.initialize(timeout=int(sys.argv[1]))
except UserError as error:
  sys.exit(f"refused: {error}")
"""


def start(pytestconfig, code, *args, **variables):
  return subprocess.Popen(
    [sys.executable, "-c", code, *args],
    env={
      **os.environ,
      "PYTHONPATH": str(pytestconfig.rootpath),
      "XLA_FLAGS": "",
      "JAX_NUM_CPU_DEVICES": "1",
      **variables,
    },
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
  )


def of_two(process, port):
  return {
    "JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{port}",
    "JAX_NUM_PROCESSES": "2",
    "JAX_PROCESS_ID": str(process),
  }


def test_who_does_not_appear_is_waited_for_so_long_and_no_longer(pytestconfig):
  unreachable = start(pytestconfig, _START, "2", **of_two(1, port=1))
  missing = start(pytestconfig, _START, "2", **of_two(0, port=28431))
  unknown = start(pytestconfig, _START, "60")
  for process, port in ((unreachable, 1), (missing, 28431)):
    _, error = process.communicate(timeout=60)
    assert process.returncode == os.EX_TEMPFAIL
    (line,) = error.splitlines()
    met = f"not all 2 processes met at 127.0.0.1:{port} within 2 s"
    assert line.startswith(f"error: --multihost: {met}")
  _, error = unknown.communicate(timeout=60)
  assert error.startswith("refused: --multihost: ")
  assert "set JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES" in error


@pytest.mark.parametrize(
  "name,value,message",
  [
    ("JAX_COORDINATOR_ADDRESS", "10.0.0.1", "'10.0.0.1' must be host:port"),
    ("JAX_NUM_PROCESSES", "two", "JAX_NUM_PROCESSES='two' is not a number"),
    ("JAX_PROCESS_ID", "-1", "JAX_PROCESS_ID='-1' is not a number"),
  ],
)
def test_a_wrong_variable_is_named(monkeypatch, name, value, message):
  monkeypatch.setenv(name, value)
  with pytest.raises(UserError, match=message):
    hosts.initialize()


_IN_TURN = """
import pathlib, sys
from synguide_jax import hosts
from synguide_jax.errors import UserError

hosts.initialize(60)
made = pathlib.Path(sys.argv[1])
with hosts.in_turn():
  assert made.exists() != hosts.is_first()
  made.touch()
for failing in (0, 1):
  try:
    with hosts.in_turn():
      if hosts.is_first() == (failing == 0):
        raise OSError("nothing here")
      assert hosts.is_first(), "the others must not begin"
  except (OSError, UserError) as error:
    print(f"{type(error).__name__}: {error}")
"""


@pytest.mark.slow
def test_the_first_goes_first_and_all_fail_together(pytestconfig, tmp_path):
  made = str(tmp_path / "made")
  processes = [
    start(pytestconfig, _IN_TURN, made, **of_two(n, port=28432)) for n in (0, 1)
  ]
  found = [process.communicate(timeout=120) for process in processes]
  assert [p.returncode for p in processes] == [0, 0], found
  own = "OSError: nothing here"
  lines = [
    [line for line in output.splitlines() if "rror: " in line]
    for output, _ in found
  ]
  assert lines == [
    [own, "UserError: Process 1 failed: nothing here"],
    ["UserError: Process 0 failed: nothing here", own],
  ]


def test_a_workdir_that_another_process_does_not_see(monkeypatch, tmp_path):
  monkeypatch.setattr(hosts, "is_first", lambda: False)
  with pytest.raises(UserError, match="not seen by all processes.*--workdir"):
    workdir.claim(tmp_path / "w", tiny.config())
