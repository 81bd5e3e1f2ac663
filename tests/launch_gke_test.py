"""Tests of gke.sh and its manifests; see launch_test.py."""

import json
import signal

import pytest
import yaml

from tests.launch_fakes import (
  BUCKET,
  Fakes,
  GKE,
  MAIN,
  OFFLINE,
  ROOT,
  TRAINS,
  words,
)


@pytest.fixture
def fakes(tmp_path):
  return Fakes(tmp_path)


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
    "values": [75, *sorted(128 + n for n in _FATAL)],
  }


# The signals that end a process, with the host's numbers.
_FATAL = [
  *(signal.SIGILL, signal.SIGABRT, signal.SIGBUS, signal.SIGFPE),
  *(signal.SIGKILL, signal.SIGSEGV, signal.SIGTERM),
]


def test_gke_manifests_differ_only_where_the_devices_do(fakes):
  tpu, gpu = _rendered(fakes, "tpu"), _rendered(fakes, "gpu")
  assert list(tpu["metadata"].pop("annotations")) == [
    "alpha.jobset.sigs.k8s.io/exclusive-topology"
  ]
  pods = [_job(jobset)["template"]["spec"] for jobset in (tpu, gpu)]
  for pod in pods:
    (container,) = pod["containers"]
    for field in ("env", "volumeMounts", "ports"):
      # What both have is the same, and comes in the same order.
      container[field] = [
        item
        for item in container[field]
        if all(item in p["containers"][0][field] for p in pods)
      ]
    pod["volumes"] = [v for v in pod["volumes"] if v["name"] == "cache"]
    del pod["nodeSelector"], container["resources"]["limits"]
  assert tpu == gpu
  (container,) = pods[0]["containers"]
  assert container["env"] == [{"name": "SYNGUIDE_CACHE", "value": "/cache"}]
  assert [m["name"] for m in container["volumeMounts"]] == ["cache"]
  assert container["ports"] == [{"containerPort": 8482}]


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
    f"kubectl create --filename {manifest}\n"
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
  assert [call[1] for call in fakes.calls()] == ["create", "get", "delete"]


def test_gke_leaves_what_it_did_not_make(fakes):
  fakes.add("kubectl", create=(1, "already exists"))
  done = fakes.run("gke.sh", "tpu", *MAIN, BUCKET, **GKE)
  assert done.returncode == 1
  assert "already exists" in done.stderr
  assert [call[1] for call in fakes.calls()] == ["create"]


@pytest.mark.parametrize(
  ("state", "looks"),
  [(OFFLINE, 3), ((1, "Error from server (NotFound): jobsets"), 1)],
)
def test_gke_does_not_look_for_ever(fakes, state, looks):
  fakes.add("kubectl", get=state)
  done = fakes.run("gke.sh", "tpu", *MAIN, BUCKET, **GKE, FAILURES="3")
  assert done.returncode == 1
  assert state[1] in done.stderr
  verbs = [call[1] for call in fakes.calls()]
  assert [verb for verb in verbs if verb != "logs"] == [
    *("create", *["get"] * looks, "delete")
  ]


def test_gke_can_be_kept_and_refuses_line_breaks(fakes):
  fakes.add("kubectl", get=(0, "Completed"))
  fakes.run("gke.sh", "tpu", *MAIN, BUCKET, **GKE, KEEP="1")
  assert [call[1] for call in fakes.calls()] == ["create", "get"]
  done = fakes.run("gke.sh", "tpu", *MAIN, BUCKET, "--a=b\nc", **GKE)
  assert done.returncode == 2
  assert len(fakes.calls()) == 2
