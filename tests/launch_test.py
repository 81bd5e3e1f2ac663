"""Tests of the launch scripts against fakes of the tools that they call.

A fake notes its arguments and answers as it is told. What the services really
do is not tested; only local_multiprocess.sh is run for real, by the tests of
the trainer. Those for the cloud have files of their own.
"""

import os
from pathlib import Path
import re
import shlex
import shutil
import signal
import subprocess
import time
import tomllib

import pytest

from tests.launch_fakes import (
  BUCKET,
  Fakes,
  GCE_MIG,
  GKE,
  HEEDING_CTRL_C,
  LAUNCH,
  MAIN,
  ROOT,
  TPU_VM,
  TRAINS,
  until,
  without_temporary,
)

SCRIPTS = sorted([*LAUNCH.glob("*.sh"), *LAUNCH.glob("*.sbatch")])
# Scripts with what they need to be set.
NEEDS = [
  ("tpu_vm.sh", TPU_VM, MAIN + [BUCKET]),
  ("gce_mig.sh", GCE_MIG, MAIN + [BUCKET]),
  ("gke.sh", GKE, ["tpu", *MAIN, BUCKET]),
  ("local_multiprocess.sh", {"PROCESSES": "2"}, MAIN),
]


@pytest.fixture
def fakes(tmp_path):
  return Fakes(tmp_path)


@pytest.mark.parametrize(
  ("script", "variables", "args"),
  [
    *NEEDS,
    ("tpu_vm.sh", {**TPU_VM, "TYPE": "v6e-8", "SPOT": "1"}, MAIN),
    ("tpu_vm.sh", TPU_VM, ["delete"]),
    ("gce_mig.sh", {**GCE_MIG, "SPOT": "1"}, MAIN + [BUCKET]),
    ("gce_mig.sh", {**GCE_MIG, "KEEP": "1"}, MAIN + [BUCKET]),
    ("gce_mig.sh", GCE_MIG, ["delete"]),
    ("gke.sh", GKE, ["gpu", *MAIN, BUCKET]),
    ("gke.sh", GKE, ["delete"]),
    ("slurm.sbatch", {}, MAIN),
  ],
)
def test_dry_run_prints_what_is_called(fakes, script, variables, args):
  fakes.add("gcloud", exit_code=(0, "0\n"))
  fakes.add("kubectl", get=(0, "Completed"))
  fakes.add("srun")
  fakes.add("python")
  dry = fakes.run(script, "--dry-run", *args, **variables)
  assert dry.returncode == 0
  assert fakes.calls() == []
  done = fakes.run(script, *args, **variables)
  assert done.returncode == 0
  printed = [
    shlex.split(without_temporary(line))
    for line in dry.stdout.splitlines()
    if not line.startswith("# ")
  ]
  called = fakes.calls()
  if script == "local_multiprocess.sh":
    # In any order, and through env.
    called.sort()
    printed = [line[line.index("python") :] for line in printed]
  assert printed == called
  assert called
  # What a host will do.
  hosts = script == "gce_mig.sh" and args != ["delete"]
  assert hosts == ("# kill -TERM" in dry.stdout)
  assert hosts == ("--multihost" in dry.stdout.partition("# cd /root")[2])


@pytest.mark.parametrize(
  ("script", "variables", "args", "missing"),
  [(*needs, name) for needs in NEEDS for name in needs[1]],
)
def test_unset_variables_are_named(fakes, script, variables, args, missing):
  left = {k: v for k, v in variables.items() if k != missing}
  done = fakes.run(script, "--dry-run", *args, **left)
  assert done.returncode != 0
  assert done.stdout == ""
  assert f"{missing}: " in done.stderr
  assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize(("script", "variables", "args"), NEEDS)
def test_a_command_is_needed(fakes, script, variables, args):
  del args
  words = ["tpu"] if script == "gke.sh" else []
  done = fakes.run(script, *words, **variables)
  assert done.returncode != 0
  assert "a command of the package" in done.stderr
  assert fakes.calls() == []


@pytest.mark.parametrize(("script", "variables", "args"), NEEDS[:3])
def test_several_hosts_need_a_bucket(fakes, script, variables, args):
  done = fakes.run(script, *args[:-1], **variables)
  assert done.returncode == 2
  assert "--workdir=gs://" in done.stderr
  assert len(done.stderr.splitlines()) == 1
  assert fakes.calls() == []


@pytest.mark.parametrize(
  ("args", "found"),
  [
    ([BUCKET], 0),
    (["--workdir", "gs://bucket/a"], 0),
    (["--workdir=runs/a", BUCKET], 0),
    ([BUCKET, "--workdir", "runs/a"], 1),
    ([BUCKET, "--workdir=runs/a"], 1),
    (["--config=a", "gs://bucket/a"], 1),
    ([], 1),
  ],
)
def test_the_last_workdir_counts(args, found):
  lines = f"has_bucket_workdir main {shlex.join(args)}"
  assert _library(lines).returncode == found


def _library(lines):
  source = f". {shlex.quote(str(LAUNCH / 'lib.sh'))}"
  return subprocess.run(
    ["bash", "-uc", f"{source}; {lines}"], capture_output=True, text=True
  )


# slurm.sbatch
def test_slurm_command(fakes):
  fakes.add("srun")
  variables = {"SLURM_CPUS_PER_TASK": "6", "GRACE": "30"}
  assert fakes.run("slurm.sbatch", *MAIN, **variables).returncode == 0
  srun = "srun --gpu-bind=none --cpus-per-task=6 --kill-on-bad-exit=0 --wait=30"
  assert fakes.calls() == [[*shlex.split(srun), *TRAINS, *MAIN[1:]]]


@pytest.mark.parametrize(
  ("code", "count", "requeued"),
  [
    *((75, 0, True), (75, 19, True), (75, 20, False), (137, 3, True)),
    *((1, 0, False), (2, 0, False), (130, 0, False), (0, 0, False)),
  ],
)
def test_slurm_requeues(fakes, code, count, requeued):
  fakes.add("srun", python=code)
  fakes.add("squeue", jobs=(0, "RUNNING\n"))
  fakes.add("scontrol")
  variables = {"SLURM_JOB_ID": "7", "SLURM_RESTART_COUNT": str(count)}
  done = fakes.run("slurm.sbatch", *MAIN, **variables)
  assert done.returncode == code
  expected = [["scontrol", "requeue", "7"]] if requeued else []
  assert [c for c in fakes.calls()[1:] if c[0] != "squeue"] == expected


@pytest.mark.parametrize("state", [(0, "COMPLETING\n"), (1, "Invalid job")])
def test_slurm_leaves_cancelled_jobs_alone(fakes, state):
  fakes.add("srun", python=75)
  fakes.add("squeue", jobs=state)
  fakes.add("scontrol")
  done = fakes.run("slurm.sbatch", *MAIN, SLURM_JOB_ID="7")
  assert done.returncode == 75
  look = shlex.split("squeue --noheader --jobs=7 --format=%T")
  assert fakes.calls()[1:] == [look]


def test_slurm_asks_for_a_warning_and_a_place_in_the_queue():
  lines = (LAUNCH / "slurm.sbatch").read_text().splitlines()
  options = [*(line.split()[1] for line in lines if line.startswith("#SBATCH"))]
  assert {"--signal=TERM@120", "--requeue", "--open-mode=append"} <= set(
    options
  )
  # Each process must see all GPUs of its node.
  assert not any("gpus-per-task" in option for option in options)
  # Slurm reads no further than the first command.
  first = next(i for i, x in enumerate(lines) if x and not x.startswith("#"))
  assert not any(line.startswith("#SBATCH") for line in lines[first:])


# local_multiprocess.sh
LOCAL = "local_multiprocess.sh"


def test_local_processes_know_each_other(fakes):
  fakes.script("python", 'env | grep ^JAX_ >"$JAX_PROCESS_ID.env"')
  done = fakes.run(LOCAL, "main", PROCESSES="3", DEVICES="2")
  assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
  found = [
    dict(line.split("=") for line in path.read_text().splitlines())
    for path in sorted(fakes.folder.glob("*.env"))
  ]
  assert [f.pop("JAX_PROCESS_ID") for f in found] == ["0", "1", "2"]
  assert found[0] == found[1] == found[2]
  host, port = found[0].pop("JAX_COORDINATOR_ADDRESS").split(":")
  assert host == "127.0.0.1"
  assert 1024 < int(port) < 32768
  assert found[0] == {
    "JAX_NUM_PROCESSES": "3",
    "JAX_PLATFORMS": "cpu",
    "JAX_NUM_CPU_DEVICES": "2",
  }
  fakes.run(LOCAL, "main", PROCESSES="2")
  text = (fakes.folder / "1.env").read_text()
  assert "JAX_LOCAL_DEVICE_IDS=1\n" in text
  assert "PLATFORMS" not in text and "CPU" not in text


def test_local_arguments_and_output(fakes):
  say = 'printf "%s\\n" "$@" | tail -n 2; echo bad $JAX_PROCESS_ID >&2'
  fakes.script("python", say)
  done = fakes.run(LOCAL, *MAIN, PROCESSES="2")
  assert done.returncode == 0
  first = MAIN[1:]
  assert sorted(done.stdout.splitlines()) == sorted(
    [*first, *(f"[1] {line}" for line in first)]
  )
  assert sorted(done.stderr.splitlines()) == ["[1] bad 1", "bad 0"]


def test_local_others_end_by_themselves(fakes):
  # The first to fail says how it ended, here the last one.
  body = "case $JAX_PROCESS_ID in 2) exit 3 ;; *) sleep 0.5; echo end; esac"
  fakes.script("python", body)
  done = fakes.run(LOCAL, "main", PROCESSES="3")
  assert done.returncode == 3
  assert sorted(done.stdout.splitlines()) == ["[1] end", "end"]


def test_local_others_are_killed_in_the_end(fakes):
  # With what they have started, such as processes that decode.
  body = """
if ((JAX_PROCESS_ID)); then
  until [[ -s pid ]]; do sleep 0.05; done
  exit 2
fi
sleep 60 &
echo $! >pid
wait"""
  fakes.script("python", body)
  started = time.monotonic()
  done = fakes.run(LOCAL, "main", PROCESSES="2", GRACE="0")
  assert done.returncode == 2
  assert time.monotonic() - started < 20
  child = int((fakes.folder / "pid").read_text())
  until(lambda: not _alive(child))


def _alive(pid):
  try:
    # A zombie that nobody waits for has ended, too.
    return Path(f"/proc/{pid}/stat").read_text().split()[2] != "Z"
  except OSError:
    return False


@pytest.mark.parametrize(
  ("number", "code"), [(signal.SIGTERM, 75), (signal.SIGINT, 130)]
)
def test_local_signals_go_to_all(fakes, number, code):
  body = """
trap 'echo stopped; exit 75' TERM
trap 'echo stopped; exit 130' INT
touch "$JAX_PROCESS_ID.ready"
while :; do sleep 0.05; done"""
  fakes.script("python", body)
  process = subprocess.Popen(
    [*HEEDING_CTRL_C, "bash", str(LAUNCH / LOCAL), "main"],
    env={**fakes.environment, "PROCESSES": "2", "RESTARTS": "3"},
    cwd=fakes.folder,
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
    start_new_session=True,
  )
  until(lambda: len(list(fakes.folder.glob("*.ready"))) == 2)
  os.killpg(process.pid, number)
  output, _ = process.communicate(timeout=20)
  # It was asked to stop, so it does not start again.
  assert process.returncode == code
  assert sorted(output.splitlines()) == ["[1] stopped", "stopped"]


@pytest.mark.parametrize(
  ("codes", "restarts", "code", "runs"),
  [
    (["75", "0"], "2", 0, 2),
    (["137", "75", "75"], "2", 75, 3),
    (["75"], "0", 75, 1),
    (["1"], "2", 1, 1),
    (["2"], "2", 2, 1),
    (["130"], "2", 130, 1),
  ],
)
def test_local_restarts(fakes, codes, restarts, code, runs):
  body = f"""
codes=({" ".join(codes)})
count=$(cat count.$JAX_PROCESS_ID 2>/dev/null || echo 0)
echo $((count + 1)) >count.$JAX_PROCESS_ID
exit ${{codes[$count]}}"""
  fakes.script("python", body)
  done = fakes.run(LOCAL, "main", PROCESSES="2", RESTARTS=restarts)
  assert done.returncode == code
  counts = [(fakes.folder / f"count.{i}").read_text() for i in range(2)]
  assert counts == [f"{runs}\n"] * 2


# All of them
def test_exit_codes_after_which_a_command_continues():
  lines = "for i in {0..255}; do if continues_after $i; then echo $i; fi; done"
  done = _library(lines)
  expected = [75, 128, 129, *range(131, 256)]
  assert [int(line) for line in done.stdout.split()] == expected


@pytest.mark.skipif(
  not shutil.which("shellcheck"), reason="shellcheck is not installed"
)
def test_shellcheck(fakes):
  fakes.add("gcloud", cat=(0, "0\n"))
  fakes.run("gce_mig.sh", *MAIN, BUCKET, **GCE_MIG)
  written = [fakes.folder / "startup.sh", fakes.folder / "shutdown.sh"]
  done = subprocess.run(
    ["shellcheck", "--external-sources", *SCRIPTS],
    capture_output=True,
    text=True,
    cwd=ROOT,
  )
  assert (done.returncode, done.stdout) == (0, "")
  # It changes folders in subshells, and there is no venv to look into.
  done = subprocess.run(
    ["shellcheck", "--exclude=SC1091,SC2164", *written],
    capture_output=True,
    text=True,
  )
  assert (done.returncode, done.stdout) == (0, "")


def test_every_file_says_whether_it_was_tried():
  readme = (LAUNCH / "README.md").read_text()
  for path in LAUNCH.iterdir():
    if path.name not in ("README.md", "lib.sh"):
      assert f"`{path.name}`" in readme, path
      text = path.read_text()
      assert re.search("Never (run|built)", text) or path.name == LOCAL, path


def test_the_image_has_an_extra_of_the_package():
  project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
  lines = (LAUNCH / "Dockerfile").read_text().splitlines()
  (extra,) = [x.split("=")[1] for x in lines if x.startswith("ARG EXTRA=")]
  (named,) = [x for x in lines if x.endswith(": an extra of pyproject.toml.")]
  extras = re.findall(r"\b(tpu|cuda\d+)\b", named)
  assert extra in extras
  assert set(extras) < set(project["optional-dependencies"])
