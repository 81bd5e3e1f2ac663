"""Tests of gce_mig.sh; see launch_test.py."""

import re
import shlex
import subprocess

import pytest

from tests.launch_fakes import (
  BUCKET,
  CREATE_GROUP,
  DELETE_ALL,
  Fakes,
  GCE_MIG,
  LOOK,
  MAIN,
  OFFLINE,
  PREPARE,
  TRAINS,
  UPLOAD,
  words,
)


@pytest.fixture
def fakes(tmp_path):
  return Fakes(tmp_path)


PROJECT = "--project=my-project"


def test_gce_mig_calls(fakes):
  fakes.add("gcloud", cat=(0, "0\n"))
  done = fakes.run("gce_mig.sh", *MAIN, BUCKET, **GCE_MIG, SPOT="1")
  assert done.returncode == 0
  assert done.stderr == "gce_mig.sh: deleting, please wait.\n"
  scratch = f"{fakes.folder}/tmp/tmp.X"
  policy = "projects/my-project/regions/us-east5/resourcePolicies/synguide"
  where, region = "--zone=us-east5-a", "--region=us-east5"
  compute = "gcloud compute"
  group = f"{compute} instance-groups managed"
  # Each name has a folder of its own.
  staging = "gs://bucket/stage/synguide"
  calls = fakes.calls()
  assert calls.pop(3)[0] == "git"
  assert calls == words(
    f"""
{compute} resource-policies describe synguide {PROJECT} {region}
{compute} instance-templates describe synguide {PROJECT}
{group} describe synguide {PROJECT} {where}
gcloud storage cp {scratch}/synguide_jax.tar.gz {staging}/
gcloud storage ls {staging}/
{compute} resource-policies create workload-policy synguide {PROJECT} \
  {region} --type=HIGH_THROUGHPUT --accelerator-topology=4x4
{compute} instance-templates create synguide {PROJECT} \
  --machine-type=ct6e-standard-4t \
  --image-project=ubuntu-os-accelerator-images \
  --image-family=ubuntu-accel-2204-amd64-tpu-v5e-v5p-v6e \
  --boot-disk-size=200GB --maintenance-policy=TERMINATE \
  --provisioning-model=SPOT --instance-termination-action=STOP \
  --scopes=cloud-platform --metadata-from-file=startup-script=\
{scratch}/startup.sh,shutdown-script={scratch}/shutdown.sh
gcloud storage rm {staging}/started
gcloud storage rm {staging}/exit_code
{group} create synguide {PROJECT} {where} --template=synguide --size=4 \
  --workload-policy={policy} \
  --target-size-policy-mode=bulk --default-action-on-vm-failure=do-nothing
gcloud storage cat {staging}/exit_code
{group} delete synguide {PROJECT} {where} --quiet
{compute} instance-templates delete synguide {PROJECT} --quiet
{compute} resource-policies delete synguide {PROJECT} {region} --quiet
"""
  )


def test_gce_mig_startup_script(fakes):
  variables = {**GCE_MIG, "MACHINE": "tpu7x-standard-4t"}
  fakes.add("gcloud", cat=(0, "0\n"))
  assert fakes.run("gce_mig.sh", *MAIN, BUCKET, **variables).returncode == 0
  family = "--image-family=ubuntu-accel-2404-amd64-tpu-tpu7x"
  assert any(family in call for call in fakes.calls())
  startup = (fakes.folder / "startup.sh").read_text()
  # A host that was started again has one already.
  assert "uv venv -q --clear " in startup
  command = re.search(r" && exec (.*)\)\n", startup)[1]
  assert shlex.split(command) == [*TRAINS, *MAIN[1:], BUCKET]
  # It runs as root on a host; here with tools that only say so.
  root = fakes.folder / "root"
  root.mkdir()
  text = startup.replace("/root", str(root)).replace("/run/", f"{root}/")
  local = fakes.folder / "local.sh"
  local.write_text(text.replace(". .venv/bin/activate", "true"))
  (root / "synguide_jax").mkdir()
  (root / ".local" / "bin").mkdir(parents=True)
  (root / ".local" / "bin" / "uv").symlink_to("/bin/true")
  for name in ("tar", "python3", "pip"):
    fakes.add(name)
  fakes.add("python", synguide_jax=75)
  subprocess.run(["bash", local], env=fakes.environment, check=True)
  calls = fakes.calls()
  names = [call[0] for call in calls]
  order = ["gcloud"] * 2 + ["tar", "python3", "pip", "python", "gcloud"]
  assert names[-7:] == order
  staging = "gs://bucket/stage/synguide"
  assert calls[-7][2:] == ["cp", "started", f"{staging}/started"]
  assert (root / "started").exists()
  assert calls[-2][3:] == ["--multihost", *MAIN[1:], BUCKET]
  said = ["exit_code", f"{staging}/exit_code"]
  assert calls[-1][3:] == ["--if-generation-match=0", *said]
  assert (root / "exit_code").read_text() == "75\n"
  assert (root / "synguide.pid").read_text().strip().isdigit()


@pytest.mark.parametrize(
  ("answers", "code"),
  [
    # Continued after saving; gone without a word; still at work.
    ([(0, "75"), (0, "0")], 0),
    ([(1, ""), (0, "0")], 0),
    ([(0, "2")], 2),
    ([(0, "1")], 1),
  ],
)
def test_gce_mig_continues(fakes, answers, code):
  listed = (0, "RUNNING\nTERMINATED\n")
  fakes.add("gcloud", cat=answers, **{"list-instances": listed})
  done = fakes.run("gce_mig.sh", *MAIN, BUCKET, **GCE_MIG)
  assert done.returncode == code
  expected = [*PREPARE, *CREATE_GROUP, "cat"]
  if len(answers) == 2:
    looked = ["instance-groups"] if answers[0][0] else []
    expected += [*looked, "instance-groups", *CREATE_GROUP, "cat"]
  assert fakes.verbs() == [*expected, *DELETE_ALL]


def test_gce_mig_waits_and_stops_restarting(fakes):
  waits = [(1, "")] * 3 + [(0, "137")]
  fakes.add("gcloud", cat=waits, **{"list-instances": (0, "RUNNING\n")})
  done = fakes.run("gce_mig.sh", *MAIN, BUCKET, **GCE_MIG, RESTARTS="1")
  assert done.returncode == 137
  assert fakes.verbs().count("cat") == 5
  assert fakes.verbs()[-3:] == DELETE_ALL


def test_gce_mig_waits_for_capacity(fakes):
  creates = {"managed create": [0, 1, 1, 0]}
  fakes.add("gcloud", cat=[(0, "75"), (0, "0")], **creates)
  done = fakes.run("gce_mig.sh", *MAIN, BUCKET, **GCE_MIG, RESTARTS="1")
  assert done.returncode == 0
  delete = "instance-groups"
  again = [delete, *[*CREATE_GROUP, delete] * 2, *CREATE_GROUP]
  assert fakes.verbs() == [
    *(*PREPARE, *CREATE_GROUP, "cat", *again, "cat", *DELETE_ALL)
  ]


@pytest.mark.parametrize("mode", ["", "individual"])
def test_gce_mig_size_policy(fakes, mode):
  fakes.add("gcloud", cat=(0, "0"))
  variables = {**GCE_MIG, "SIZE_POLICY": mode}
  assert fakes.run("gce_mig.sh", *MAIN, BUCKET, **variables).returncode == 0
  flags = [a for c in fakes.calls() for a in c if "size-policy" in a]
  assert flags == ([f"--target-size-policy-mode={mode}"] if mode else [])


def test_gce_mig_does_not_look_for_ever(fakes):
  listed = [OFFLINE, (0, ""), OFFLINE, OFFLINE]
  fakes.add("gcloud", cat=1, **{"list-instances": listed})
  done = fakes.run("gce_mig.sh", *MAIN, BUCKET, **GCE_MIG, FAILURES="2")
  assert done.returncode == 1
  assert "the login has expired" in done.stderr
  looks = ["cat", "instance-groups"] * 4
  assert fakes.verbs() == [*PREPARE, *CREATE_GROUP, *looks, *DELETE_ALL]


def test_gce_mig_gives_up_on_hosts_that_do_not_begin(fakes):
  # Those that wait for capacity do not run yet, so their time does not count.
  listed = [(0, ""), (0, ""), (0, "RUNNING\n")]
  started = {"ls gs://bucket/stage/synguide/started": 1}
  fakes.add("gcloud", cat=1, **{"list-instances": listed}, **started)
  done = fakes.run("gce_mig.sh", *MAIN, BUCKET, **GCE_MIG, START_LIMIT="0")
  assert done.returncode == 1
  assert "stage/synguide/started" in done.stderr
  looks = [*["cat", "instance-groups"] * 3, "ls"]
  assert fakes.verbs() == [*PREPARE, *CREATE_GROUP, *looks, *DELETE_ALL]


def test_gce_mig_creates_nothing_without_its_folder(fakes):
  fakes.add("gcloud", **{"storage ls": 1})
  assert fakes.run("gce_mig.sh", *MAIN, BUCKET, **GCE_MIG).returncode == 1
  assert fakes.verbs() == [*LOOK, *UPLOAD]


@pytest.mark.parametrize("kind", LOOK)
def test_gce_mig_leaves_what_it_did_not_make(fakes, kind):
  part = f"{kind} managed" if kind == "instance-groups" else kind
  fakes.add("gcloud", **{f"{part} describe": 0})
  done = fakes.run("gce_mig.sh", *MAIN, BUCKET, **GCE_MIG)
  assert done.returncode == 2
  assert "another NAME" in done.stderr
  assert fakes.verbs() == LOOK[: LOOK.index(kind) + 1]


@pytest.mark.parametrize(("fails", "made"), [("workload", 1), ("machine", 2)])
def test_gce_mig_deletes_only_what_it_made(fakes, fails, made):
  fakes.add("gcloud", **{fails: 1})
  assert fakes.run("gce_mig.sh", *MAIN, BUCKET, **GCE_MIG).returncode == 1
  assert fakes.verbs() == [*PREPARE[: 6 + made], *DELETE_ALL[3 - made :]]


def test_gce_mig_deletes_all_that_it_can(fakes):
  fakes.add("gcloud", delete=1)
  assert fakes.run("gce_mig.sh", "delete", **GCE_MIG).returncode == 1
  assert fakes.verbs() == [kind for kind in DELETE_ALL for _ in range(3)]
