"""Tests of tpu_vm.sh; see launch_test.py."""

from pathlib import Path
import shlex

import pytest

from tests.launch_fakes import (
  BUCKET,
  Fakes,
  MAIN,
  MISSING,
  OFFLINE,
  ROOT,
  START,
  TPU_VM,
  TRAINS,
  words,
)


@pytest.fixture
def fakes(tmp_path):
  return Fakes(tmp_path)


AGAIN = ["describe", "delete", "create", "scp", "ssh", "ssh"]
TRAIN = "synguide_jax.main"
WHERE = "--project=my-project --zone=us-west4-a"
EXISTS = (0, "READY\n")
WAITS = "tpu_vm.sh: deleting, please wait.\n"


def test_tpu_vm_calls(fakes):
  done = fakes.run("tpu_vm.sh", *MAIN, BUCKET, **TPU_VM, SPOT="1")
  assert (done.returncode, done.stderr) == (0, WAITS)
  archive = f"{fakes.folder}/tmp/tmp.X/synguide_jax.tar.gz"
  tpu, calls = "gcloud compute tpus tpu-vm", fakes.calls()
  (install,), (train,) = [calls[i][-1:] for i in (4, 5)]
  checkout = calls[1][2]
  assert Path(checkout).resolve() == ROOT
  alive = "--ssh-flag='-o ServerAliveInterval=60'"
  assert calls == words(
    f"""
{tpu} describe synguide {WHERE} '--format=value(state)'
git -C {shlex.quote(checkout)} archive --format=tar.gz \
  --prefix=synguide_jax/ --output={archive} HEAD
{tpu} create synguide {WHERE} --accelerator-type=v5litepod-16 \
  --version=v2-alpha-tpuv5-lite --spot
{tpu} scp {archive} synguide: {WHERE} --worker=all
{tpu} ssh synguide {WHERE} --worker=all {alive} {shlex.quote(install)}
{tpu} ssh synguide {WHERE} --worker=all {alive} {shlex.quote(train)}
{tpu} delete synguide {WHERE} --quiet
"""
  )
  assert install.startswith("--command=tar -xzf synguide_jax.tar.gz && ")
  assert "'.[tpu]'" in install
  # Which can be brought back then, whatever the command did.
  assert install.endswith(" && mkdir -p runs")
  # What the remote shell makes of it, and the shell under the lock.
  *locked, inner = shlex.split(train.removeprefix("--command="))
  assert locked == shlex.split("flock -n -E 255 ~/synguide.lock bash -c")
  enter, command = inner.split(" && exec ")
  assert enter == "cd synguide_jax && . .venv/bin/activate"
  assert shlex.split(command) == [*TRAINS, *MAIN[1:], BUCKET]
  assert not list((fakes.folder / "tmp").iterdir())


def test_tpu_vm_brings_local_workdirs_back_from_a_single_host(fakes):
  variables = {**TPU_VM, "TYPE": "v5litepod-8", "IMAGE": "v2-alpha-tpuv6e"}
  assert fakes.run("tpu_vm.sh", *MAIN, **variables).returncode == 0
  calls = fakes.calls()
  assert fakes.verbs()[-3:] == ["ssh", "scp", "delete"]
  assert "--multihost" not in calls[-3][-1]
  assert calls[-2][5:] == shlex.split(
    f"--recurse synguide:synguide_jax/runs . {WHERE}"
  )
  assert "--version=v2-alpha-tpuv6e" in calls[2]


def test_tpu_vm_brings_nothing_back_where_the_command_was_wrong(fakes):
  fakes.add("gcloud", **{TRAIN: 2, "recurse": 1})
  variables = {**TPU_VM, "TYPE": "v5litepod-8"}
  assert fakes.run("tpu_vm.sh", *MAIN, **variables).returncode == 2
  assert fakes.verbs() == [*START, "delete"]


def test_tpu_vm_refuses_what_it_would_lose(fakes):
  variables = {**TPU_VM, "TYPE": "v5litepod-8"}
  done = fakes.run("tpu_vm.sh", *MAIN, "--workdir", "/tmp/a", **variables)
  assert done.returncode == 2
  assert "--workdir=/tmp/a" in done.stderr
  assert fakes.calls() == []


@pytest.mark.parametrize("code", [1, 75, 255])
@pytest.mark.parametrize("state", [(0, "PREEMPTED\n"), MISSING])
def test_tpu_vm_continues_on_a_new_slice(fakes, code, state):
  fakes.add("gcloud", **{TRAIN: [code, 0], "describe": [MISSING, state]})
  done = fakes.run("tpu_vm.sh", *MAIN, BUCKET, **TPU_VM)
  assert done.returncode == 0
  assert fakes.verbs() == [*START, *AGAIN, "delete"]
  trained = [c for c in fakes.calls() if TRAIN in c[-1]]
  assert trained[0] == trained[1]


def test_tpu_vm_waits_for_capacity(fakes):
  # Which does not count as a restart; what may have come to be goes at once.
  fakes.add("gcloud", create=[0, 1, 1, 0], **{TRAIN: [75, 0]})
  done = fakes.run("tpu_vm.sh", *MAIN, BUCKET, **TPU_VM, RESTARTS="1")
  assert done.returncode == 0
  again = ["create", "delete"] * 2 + ["create", "scp", "ssh", "ssh", "delete"]
  assert fakes.verbs() == [*START, "describe", "delete", *again]


def test_tpu_vm_gives_up_waiting_for_capacity(fakes):
  fakes.add("gcloud", create=[0, 1], **{TRAIN: 75})
  done = fakes.run("tpu_vm.sh", *MAIN, BUCKET, **TPU_VM, CREATES="2")
  assert done.returncode == 75
  again = ["delete", *["create", "delete"] * 2]
  assert fakes.verbs() == [*START, "describe", *again]


def test_pauses_grow_to_half_an_hour(fakes):
  fakes.add("gcloud", create=[0, 1], **{TRAIN: 75})
  fakes.add("sleep")
  fakes.run("tpu_vm.sh", *MAIN, BUCKET, **TPU_VM, WAIT="60", CREATES="8")
  slept = [int(c[1]) for c in fakes.calls() if c[0] == "sleep"]
  assert slept == [60, 120, 240, 480, 960, 1800, 1800]


def test_tpu_vm_leaves_what_it_did_not_make(fakes):
  for state, said in ((EXISTS, "another NAME"), (OFFLINE, "has expired")):
    fakes.add("gcloud", describe=state)
    done = fakes.run("tpu_vm.sh", *MAIN, BUCKET, **TPU_VM)
    assert done.returncode == 2
    assert said in done.stderr
  assert fakes.verbs() == ["describe"] * 2


def test_tpu_vm_does_not_take_a_lost_connection_for_a_lost_slice(fakes):
  states = [MISSING, OFFLINE, OFFLINE, EXISTS]
  fakes.add("gcloud", **{TRAIN: [75, 0]}, describe=states)
  done = fakes.run("tpu_vm.sh", *MAIN, BUCKET, **TPU_VM)
  assert done.returncode == 0
  assert fakes.verbs() == [*START, *["describe"] * 3, "ssh", "delete"]
  # For good: it ends, and says what is left.
  (fakes.folder / "calls").unlink()
  fakes.add("gcloud", **{TRAIN: 75}, describe=states[:2], delete=OFFLINE)
  done = fakes.run("tpu_vm.sh", *MAIN, BUCKET, **TPU_VM, FAILURES="2")
  assert done.returncode == 1
  assert fakes.verbs() == [*START, *["describe"] * 2, *["delete"] * 3]
  assert "gcloud compute tpus tpu-vm delete synguide" in done.stderr


def test_tpu_vm_creates_no_other_where_one_cannot_be_deleted(fakes):
  states = [MISSING, (0, "PREEMPTED\n")]
  fakes.add("gcloud", **{TRAIN: 75}, describe=states, delete=[1, 1, 1, 1, 0])
  done = fakes.run("tpu_vm.sh", *MAIN, BUCKET, **TPU_VM)
  assert done.returncode == 1
  assert fakes.verbs() == [*START, "describe", *["delete"] * 5]


def test_tpu_vm_is_not_missed_where_it_is_gone(fakes):
  fakes.add("gcloud", delete=MISSING)
  done = fakes.run("tpu_vm.sh", *MAIN, BUCKET, **TPU_VM)
  assert (done.returncode, done.stderr) == (0, WAITS)


def test_restarts_are_limited_by_default(fakes):
  fakes.add("gcloud", **{TRAIN: 75, "describe": [MISSING, EXISTS]})
  assert fakes.run("tpu_vm.sh", *MAIN, BUCKET, **TPU_VM).returncode == 75
  assert len([c for c in fakes.calls() if TRAIN in c[-1]]) == 21


@pytest.mark.parametrize(
  ("code", "runs"), [(1, 1), (2, 1), (75, 3), (130, 1), (134, 3), (137, 3)]
)
def test_tpu_vm_restarts_on_the_same_slice(fakes, code, runs):
  fakes.add("gcloud", **{TRAIN: code, "describe": [MISSING, EXISTS]})
  done = fakes.run("tpu_vm.sh", *MAIN, BUCKET, **TPU_VM, RESTARTS="2")
  assert done.returncode == code
  verbs = [verb for verb in fakes.verbs() if verb != "describe"]
  assert verbs == [*START[1:], *["ssh"] * (runs - 1), "delete"]


@pytest.mark.parametrize("fails", ["create", "pip install"])
def test_tpu_vm_does_not_train_where_setting_up_failed(fakes, fails):
  fakes.add("gcloud", **{fails: 1})
  assert fakes.run("tpu_vm.sh", *MAIN, BUCKET, **TPU_VM).returncode == 1
  # Also what could not be created may be there.
  done = START[:3] if fails == "create" else START[:-1]
  assert fakes.verbs() == [*done, "delete"]


def test_tpu_vm_is_kept_where_workdirs_cannot_be_brought_back(fakes):
  fakes.add("gcloud", recurse=1)
  variables = {**TPU_VM, "TYPE": "v5litepod-8"}
  done = fakes.run("tpu_vm.sh", *MAIN, **variables)
  assert fakes.verbs()[-1] == "scp"
  assert "gcloud compute tpus tpu-vm delete synguide" in done.stderr


def test_tpu_vm_can_be_kept(fakes):
  done = fakes.run("tpu_vm.sh", *MAIN, BUCKET, **TPU_VM, KEEP="1")
  assert fakes.verbs() == START
  assert "gcloud compute tpus tpu-vm delete synguide" in done.stderr


def test_tpu_vm_needs_a_size(fakes):
  done = fakes.run("tpu_vm.sh", *MAIN, **{**TPU_VM, "TYPE": "v5litepod"})
  assert done.returncode == 2
  assert "TYPE=v5litepod" in done.stderr
