"""Several processes: how they find each other, wait and fail together."""

import os
import socket
import subprocess
import sys

import pytest

from synguide_jax import hosts, workdir
from synguide_jax.errors import UserError
from tests import compiling, tiny

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
      "XLA_FLAGS": compiling.CHEAPLY,
      "JAX_NUM_CPU_DEVICES": "1",
      **variables,
    },
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
  )


def free_port():
  with socket.socket() as taken:
    taken.bind(("127.0.0.1", 0))
    return taken.getsockname()[1]


def of_two(process, port):
  return {
    "JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{port}",
    "JAX_NUM_PROCESSES": "2",
    "JAX_PROCESS_ID": str(process),
  }


def test_who_does_not_appear_is_waited_for_so_long_and_no_longer(pytestconfig):
  unreachable = start(pytestconfig, _START, "2", **of_two(1, port=1))
  port = free_port()
  missing = start(pytestconfig, _START, "2", **of_two(0, port))
  unknown = start(pytestconfig, _START, "60")
  for process, of in ((unreachable, 1), (missing, port)):
    _, error = process.communicate(timeout=60)
    assert process.returncode == os.EX_TEMPFAIL
    (line,) = error.splitlines()
    met = f"not all 2 processes met at 127.0.0.1:{of} within 2 s"
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
import os, pathlib, signal, sys, time
from synguide_jax import hosts
from synguide_jax.errors import UserError
from synguide_jax.preemption import Preemption

hosts.initialize(60)
made = pathlib.Path(sys.argv[1])
with hosts.in_turn("made"):
  assert made.exists() != hosts.is_first()
  made.touch()
for failing in (0, 1):
  try:
    with hosts.in_turn("failing"):
      if hosts.is_first() == (failing == 0):
        raise OSError("nothing here")
      assert hosts.is_first(), "the others must not begin"
  except (OSError, UserError) as error:
    print(f"{type(error).__name__}: {error}")
assert hosts.first_says(hosts.is_first())

# A training of ten steps; then one is asked to stop before the first step of
# another that continues at 500, or that begins anew.
with Preemption() as preemption:
  preemption.begin(0)
  assert not any(preemption.reached(step) for step in range(1, 11))
if not hosts.is_first():
  os.kill(os.getpid(), signal.SIGTERM)
time.sleep(3)
start = int(sys.argv[2])
with Preemption() as preemption:
  preemption.begin(start)
  asked = [preemption.reached(step) for step in range(start + 1, start + 5)]
print(f"asked: {asked}")
"""


@pytest.mark.slow
@pytest.mark.parametrize("step", [0, 500])
def test_two_processes_wait_fail_and_stop_together(
  pytestconfig, tmp_path, step
):
  made, port = str(tmp_path / "made"), free_port()
  processes = [
    start(pytestconfig, _IN_TURN, made, str(step), **of_two(n, port))
    for n in (0, 1)
  ]
  found = [process.communicate(timeout=120) for process in processes]
  assert [p.returncode for p in processes] == [0, 0], found
  # At the first chance, in both.
  for output, _ in found:
    assert output.endswith("asked: [True, True, True, True]\n")
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
