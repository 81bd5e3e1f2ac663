"""Tests of what the launch scripts for the cloud share; see launch_test.py."""

import os
import shlex
import signal
import subprocess

import pytest

from tests.launch_fakes import (
  BUCKET,
  CREATE_GROUP,
  DELETE_ALL,
  Fakes,
  GCE_MIG,
  GKE,
  HEEDING_CTRL_C,
  LAUNCH,
  MAIN,
  PREPARE,
  START,
  TPU_VM,
  until,
)


@pytest.fixture
def fakes(tmp_path):
  return Fakes(tmp_path)


TRAIN = "synguide_jax.main"


@pytest.mark.parametrize(
  ("script", "variables", "during", "calls"),
  [
    ("tpu_vm.sh", TPU_VM, "create", START[:3]),
    ("tpu_vm.sh", TPU_VM, TRAIN, START),
    ("gce_mig.sh", GCE_MIG, "managed create", [*PREPARE, *CREATE_GROUP]),
    ("gke.sh", GKE, "logs", ["kubectl"] * 3),
  ],
)
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_all_is_deleted_when_interrupted(
  fakes, script, variables, during, calls, number
):
  tool = "kubectl" if script == "gke.sh" else "gcloud"
  fakes.add(tool, **{during: (0, "", 30)})
  process = _start(fakes, script, variables)
  until(lambda: len(fakes.calls()) == len(calls))
  # A terminal tells all processes, kill one.
  send = os.killpg if number == signal.SIGINT else os.kill
  send(process.pid, number)
  assert process.wait(timeout=20) == (
    130 if number == signal.SIGINT else -number
  )
  if script == "gce_mig.sh":
    assert fakes.verbs() == [*calls, *DELETE_ALL]
  else:
    assert fakes.verbs()[:-1] == calls
    assert "delete" in fakes.calls()[-1]


def _start(fakes, script, variables):
  kind = ["tpu"] if script == "gke.sh" else []
  return subprocess.Popen(
    [*HEEDING_CTRL_C, "bash", str(LAUNCH / script), *kind, *MAIN, BUCKET],
    env={**fakes.environment, **variables},
    stderr=subprocess.DEVNULL,
    start_new_session=True,
  )


@pytest.mark.parametrize(
  ("script", "variables", "tool"),
  [
    ("tpu_vm.sh", TPU_VM, "gcloud"),
    ("gce_mig.sh", GCE_MIG, "gcloud"),
    ("gke.sh", GKE, "kubectl"),
  ],
)
def test_a_second_ctrl_c_does_not_stop_the_deletion(
  fakes, script, variables, tool
):
  rules = {"cat": (0, "0"), "get": (0, "Completed")}
  fakes.add(tool, **rules, delete=(0, "", 0.5))
  process = _start(fakes, script, variables)
  until(lambda: any("delete" in call for call in fakes.calls()))
  for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
    os.killpg(process.pid, number)
  assert process.wait(timeout=20) == 0
  deletes = [call for call in fakes.calls() if "delete" in call]
  assert len(deletes) == (3 if script == "gce_mig.sh" else 1)


@pytest.mark.parametrize(
  ("script", "variables", "args", "kinds"),
  [
    ("tpu_vm.sh", TPU_VM, [], 1),
    ("gce_mig.sh", GCE_MIG, [], 3),
    ("gke.sh", GKE, ["tpu"], 1),
  ],
)
def test_a_deletion_that_fails_is_tried_again(
  fakes, script, variables, args, kinds
):
  for tool in ("gcloud", "kubectl"):
    fakes.add(tool, delete=1, get=(0, "Completed"), cat=(0, "0"))
  done = fakes.run(script, *args, *MAIN, BUCKET, **variables)
  assert done.returncode == 1
  deletes = [shlex.join(c) for c in fakes.calls() if "delete" in c]
  assert len(deletes) == 3 * kinds
  for call in set(deletes):
    assert f"until this is run: {call}" in done.stderr
  (fakes.folder / "calls").unlink()
  fakes.add("gcloud", delete=[1, 1, 0])
  fakes.add("kubectl", delete=[1, 1, 0])
  assert fakes.run(script, "delete", **variables).returncode == 0
  assert len(fakes.calls()) == 2 + kinds
