"""Tests of the launch scripts for the cloud; see launch_test.py."""

import json
import os
from pathlib import Path
import re
import shlex
import signal
import subprocess

import pytest
import yaml

from tests.launch_fakes import (
  BUCKET,
  Fakes,
  GCE_MIG,
  GKE,
  LAUNCH,
  MAIN,
  ROOT,
  TPU_VM,
  TRAINS,
  until,
  words,
)


@pytest.fixture
def fakes(tmp_path):
  return Fakes(tmp_path)


START = ["git", "create", "scp", "ssh", "ssh"]
AGAIN = ["describe", "delete", "create", "scp", "ssh", "ssh"]
PREPARE = ["git", "cp", "resource-policies", "instance-templates"]
CREATE_GROUP = ["rm", "instance-groups"]
DELETE_ALL = ["instance-groups", "instance-templates", "resource-policies"]


# tpu_vm.sh
WHERE = "--project=my-project --zone=us-west4-a"
TRAIN = "synguide_jax.main"


def test_tpu_vm_calls(fakes):
  done = fakes.run("tpu_vm.sh", *MAIN, BUCKET, **TPU_VM, SPOT="1")
  assert (done.returncode, done.stderr) == (0, "")
  archive = f"{fakes.folder}/tmp/tmp.X/synguide_jax.tar.gz"
  tpu, calls = "gcloud compute tpus tpu-vm", fakes.calls()
  (install,), (train,) = [calls[i][-1:] for i in (3, 4)]
  assert Path(calls[0][2]).resolve() == ROOT
  assert calls == words(
    f"""
git -C {shlex.quote(calls[0][2])} archive --format=tar.gz \
  --prefix=synguide_jax/ --output={archive} HEAD
{tpu} create synguide {WHERE} --accelerator-type=v5litepod-16 \
  --version=v2-alpha-tpuv5-lite --spot
{tpu} scp {archive} synguide: {WHERE} --worker=all
{tpu} ssh synguide {WHERE} --worker=all {shlex.quote(install)}
{tpu} ssh synguide {WHERE} --worker=all {shlex.quote(train)}
{tpu} delete synguide {WHERE} --quiet
"""
  )
  assert install.startswith("--command=tar -xzf synguide_jax.tar.gz && ")
  assert "'.[tpu]'" in install
  enter, command = train.split(" && exec ")
  assert enter == "--command=cd synguide_jax && . .venv/bin/activate"
  # What the remote shell makes of it.
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
  assert "--version=v2-alpha-tpuv6e" in calls[1]


@pytest.mark.parametrize("code", [1, 75, 255])
@pytest.mark.parametrize("state", [(0, "PREEMPTED\n"), (1, "")])
def test_tpu_vm_continues_on_a_new_slice(fakes, code, state):
  fakes.add("gcloud", **{TRAIN: [code, 0], "describe": state})
  done = fakes.run("tpu_vm.sh", *MAIN, BUCKET, **TPU_VM)
  assert done.returncode == 0
  assert fakes.verbs() == [*START, *AGAIN, "delete"]
  trained = [c for c in fakes.calls() if TRAIN in c[-1]]
  assert trained[0] == trained[1]


def test_tpu_vm_waits_for_capacity_and_gives_up(fakes):
  fakes.add("gcloud", create=[0, 1, 1, 0], **{TRAIN: [75, 0]}, describe=1)
  done = fakes.run("tpu_vm.sh", *MAIN, BUCKET, **TPU_VM)
  assert done.returncode == 0
  again = ["delete", "create"] * 3 + ["scp", "ssh", "ssh", "delete"]
  assert fakes.verbs() == [*START, "describe", *again]
  fakes.add("gcloud", create=[0, 1], **{TRAIN: 75}, describe=1)
  (fakes.folder / "calls").unlink()
  for count in fakes.folder.glob("gcloud.[0-9]"):
    count.unlink()
  done = fakes.run("tpu_vm.sh", *MAIN, BUCKET, **TPU_VM, RESTARTS="2")
  assert done.returncode == 75
  assert fakes.verbs() == [*START, "describe", *["delete", "create"] * 2]


@pytest.mark.parametrize(
  ("code", "runs"), [(1, 1), (2, 1), (75, 3), (130, 1), (134, 3), (137, 3)]
)
def test_tpu_vm_restarts_on_the_same_slice(fakes, code, runs):
  fakes.add("gcloud", **{TRAIN: code, "describe": (0, "READY\n")})
  done = fakes.run("tpu_vm.sh", *MAIN, BUCKET, **TPU_VM, RESTARTS="2")
  assert done.returncode == code
  verbs = [verb for verb in fakes.verbs() if verb != "describe"]
  assert verbs == [*START, *["ssh"] * (runs - 1), "delete"]


@pytest.mark.parametrize("fails", ["create", "pip install"])
def test_tpu_vm_does_not_train_where_setting_up_failed(fakes, fails):
  fakes.add("gcloud", **{fails: 1})
  assert fakes.run("tpu_vm.sh", *MAIN, BUCKET, **TPU_VM).returncode == 1
  if fails == "create":
    assert fakes.verbs() == ["git", "create"]
  else:
    assert fakes.verbs() == [*START[:-1], "delete"]


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


@pytest.mark.parametrize(
  ("script", "variables", "during", "calls"),
  [
    ("tpu_vm.sh", TPU_VM, "create", START[:2]),
    ("tpu_vm.sh", TPU_VM, TRAIN, START),
    ("gce_mig.sh", GCE_MIG, "managed create", [*PREPARE, *CREATE_GROUP]),
  ],
)
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_all_is_deleted_when_interrupted(
  fakes, script, variables, during, calls, number
):
  fakes.add("gcloud", **{during: (0, "", 30)})
  # A shell started in the background would ignore Ctrl-C.
  process = subprocess.Popen(
    ["bash", str(LAUNCH / script), *MAIN, BUCKET],
    env={**fakes.environment, **variables},
    stderr=subprocess.DEVNULL,
    start_new_session=True,
  )
  until(lambda: len(fakes.calls()) == len(calls))
  # A terminal tells all processes, kill one.
  send = os.killpg if number == signal.SIGINT else os.kill
  send(process.pid, number)
  assert process.wait(timeout=20) == (
    130 if number == signal.SIGINT else -number
  )
  deletes = ["delete"] if script == "tpu_vm.sh" else DELETE_ALL
  assert fakes.verbs() == [*calls, *deletes]


# gce_mig.sh
PROJECT = "--project=my-project"


def test_gce_mig_calls(fakes):
  fakes.add("gcloud", cat=(0, "0\n"))
  done = fakes.run("gce_mig.sh", *MAIN, BUCKET, **GCE_MIG, SPOT="1")
  assert (done.returncode, done.stderr) == (0, "")
  scratch = f"{fakes.folder}/tmp/tmp.X"
  policy = "projects/my-project/regions/us-east5/resourcePolicies/synguide"
  where, region = "--zone=us-east5-a", "--region=us-east5"
  compute = "gcloud compute"
  group = f"{compute} instance-groups managed"
  assert fakes.calls()[1:] == words(
    f"""
gcloud storage cp {scratch}/synguide_jax.tar.gz gs://bucket/stage/
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
gcloud storage rm gs://bucket/stage/exit_code
{group} create synguide {PROJECT} {where} --template=synguide --size=4 \
  --workload-policy={policy} \
  --target-size-policy-mode=bulk --default-action-on-vm-failure=do-nothing
gcloud storage cat gs://bucket/stage/exit_code
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
  order = ["gcloud", "tar", "python3", "pip", "python", "gcloud"]
  assert names[-6:] == order
  assert calls[-2][3:] == ["--multihost", *MAIN[1:], BUCKET]
  said = ["exit_code", "gs://bucket/stage/exit_code"]
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


def test_gce_mig_leaves_what_it_did_not_make(fakes):
  fakes.add("gcloud", workload=1)
  assert fakes.run("gce_mig.sh", *MAIN, BUCKET, **GCE_MIG).returncode == 1
  assert fakes.verbs() == ["git", "cp", "resource-policies"]


def test_gce_mig_deletes_all_that_it_can(fakes):
  fakes.add("gcloud", delete=1)
  assert fakes.run("gce_mig.sh", "delete", **GCE_MIG).returncode == 1
  assert fakes.verbs() == DELETE_ALL


# gke.sh


def _validate(jobset):
  """Raises where a JobSet, or a Job in it, is not as Kubernetes wants it."""
  # The first has the schemas of Kubernetes itself and brings the second along.
  kubernetes = pytest.importorskip("kubernetes_validate")
  import jsonschema

  schema = (ROOT / "tests" / "jobset.schema.json").read_text()
  jsonschema.validate(jobset, json.loads(schema))
  for replicated in jobset["spec"]["replicatedJobs"]:
    job = {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "a"}}
    kubernetes.validate(job | replicated["template"], "1.31", strict=True)


def _rendered(fakes, kind, **variables):
  done = fakes.run(
    *("gke.sh", "render", kind, *MAIN, BUCKET), **{**GKE, **variables}
  )
  assert (done.returncode, done.stderr) == (0, "")
  assert fakes.calls() == []
  return yaml.safe_load(done.stdout)


@pytest.mark.parametrize("kind", ["tpu", "gpu"])
def test_gke_manifests_are_valid(fakes, kind):
  jobset = _rendered(fakes, kind)
  _validate(jobset)
  spec = jobset["spec"]
  assert jobset["metadata"]["name"] == "synguide"
  assert spec["failurePolicy"]["maxRestarts"] == 20
  job = _job(jobset)
  assert (job["completions"], job["parallelism"]) == (4, 4)
  pod = job["template"]["spec"]
  (container,) = pod["containers"]
  assert container["image"] == GKE["IMAGE"]
  # Kubernetes reads $$ as $.
  command = [a.replace("$$", "$") for a in container["command"]]
  assert command == [*TRAINS, *MAIN[1:], BUCKET]
  assert "$(" not in "".join(container["command"]).replace("$$", "")
  if kind == "tpu":
    assert container["resources"]["limits"] == {"google.com/tpu": 4}
    assert pod["nodeSelector"] == {
      "cloud.google.com/gke-tpu-accelerator": "tpu-v6e-slice",
      "cloud.google.com/gke-tpu-topology": "4x4",
    }
  else:
    assert container["resources"]["limits"] == {"nvidia.com/gpu": 4}
    values = {e["name"]: e.get("value") for e in container["env"]}
    # A pod is <set>-<job>-<number of job>-<number of pod>.<set>.
    name = spec["replicatedJobs"][0]["name"]
    coordinator = f"synguide-{name}-0-0.synguide:8482"
    assert values["JAX_COORDINATOR_ADDRESS"] == coordinator
    assert values["JAX_NUM_PROCESSES"] == "4"


@pytest.mark.parametrize("kind", ["tpu", "gpu"])
def test_gke_restarts_after_the_codes_that_continue(fakes, kind):
  jobset = _rendered(fakes, kind)
  spec = jobset["spec"]
  assert spec["failurePolicy"]["rules"] == [
    {"action": "FailJobSet", "onJobFailureReasons": ["PodFailurePolicy"]}
  ]
  job = _job(jobset)
  assert job["backoffLimit"] == 0
  evicted, hopeless = job["podFailurePolicy"]["rules"]
  assert evicted["action"] == "Count"
  assert hopeless["action"] == "FailJob"
  assert hopeless["onExitCodes"] == {
    "operator": "NotIn",
    "values": [75, 134, 137, 139, 143],
  }
  # The signals' codes are the host's.
  numbers = (signal.SIGABRT, signal.SIGKILL, signal.SIGSEGV, signal.SIGTERM)
  assert hopeless["onExitCodes"]["values"] == [75, *(128 + n for n in numbers)]


def _job(jobset):
  return jobset["spec"]["replicatedJobs"][0]["template"]["spec"]


@pytest.mark.parametrize(
  "spoil",
  [
    lambda jobset: jobset["spec"].update(replicatedJob=[]),
    lambda jobset: jobset["spec"]["failurePolicy"].update(maxRestarts="many"),
    lambda jobset: _job(jobset).update(completions="four"),
    lambda jobset: _job(jobset)["template"]["spec"].update(nodeSelectors={}),
  ],
)
def test_a_spoilt_manifest_is_not_valid(fakes, spoil):
  jobset = _rendered(fakes, "tpu")
  _validate(jobset)
  spoil(jobset)
  with pytest.raises(Exception, match="is not of type|Additional properties"):
    _validate(jobset)


def test_gke_follows_the_log_until_the_end(fakes):
  states = [(1, ""), (0, ""), (0, ""), (0, "Completed")]
  fakes.add("kubectl", get=states, logs=[1, 0])
  done = fakes.run("gke.sh", "tpu", *MAIN, BUCKET, **GKE)
  assert done.returncode == 0
  get = "kubectl get jobset synguide --output jsonpath={.status.terminalState}"
  selector = (
    "jobset.sigs.k8s.io/jobset-name=synguide,"
    "batch.kubernetes.io/job-completion-index=0"
  )
  logs = f"kubectl logs --follow --tail=100 --selector={selector}"
  manifest = f"{fakes.folder}/tmp/tmp.X/synguide.yaml"
  assert fakes.calls() == words(
    f"kubectl apply --filename {manifest}\n"
    + f"{get}\n{logs}\n" * 3
    + f"{get}\nkubectl delete jobset synguide"
  )
  applied = yaml.safe_load((fakes.folder / "synguide.yaml").read_text())
  (fakes.folder / "calls").unlink()
  assert applied == _rendered(fakes, "tpu")


def test_gke_failure(fakes):
  fakes.add("kubectl", get=(0, "Failed"))
  done = fakes.run("gke.sh", "tpu", *MAIN, BUCKET, **GKE)
  assert done.returncode == 1
  assert "Failed" in done.stderr
  assert [call[1] for call in fakes.calls()] == ["apply", "get", "delete"]


def test_gke_can_be_kept_and_refuses_line_breaks(fakes):
  fakes.add("kubectl", get=(0, "Completed"))
  fakes.run("gke.sh", "tpu", *MAIN, BUCKET, **GKE, KEEP="1")
  assert [call[1] for call in fakes.calls()] == ["apply", "get"]
  done = fakes.run("gke.sh", "tpu", *MAIN, BUCKET, "--a=b\nc", **GKE)
  assert done.returncode == 2
  assert len(fakes.calls()) == 2
