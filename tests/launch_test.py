"""Tests of the launch scripts, which nothing here can run for real."""

import os
from pathlib import Path
import shlex
import shutil
import subprocess

import pytest

SCRIPT = Path(__file__).resolve().parent.parent / "launch" / "tpu_vm.sh"
VARIABLES = {
  "PROJECT": "my-project",
  "ZONE": "us-west4-a",
  "TYPE": "v5litepod-8",
  "NAME": "synguide",
}


def _run(*args, **variables):
  environment = {"PATH": os.environ["PATH"], **variables}
  return subprocess.run(
    ["bash", str(SCRIPT), *args],
    env=environment,
    capture_output=True,
    text=True,
  )


def test_dry_run_prints_every_command():
  flags = ["--config=configs/digits_lowshot.py", "--workdir=my runs/it's"]
  done = _run("--dry-run", "main", *flags, **VARIABLES)
  assert (done.returncode, done.stderr) == (0, "")
  # As a shell would read what is printed.
  commands = [shlex.split(line) for line in done.stdout.splitlines()]
  where = ["--project=my-project", "--zone=us-west4-a"]
  tpu = ["gcloud", "compute", "tpus", "tpu-vm"]
  assert [command[:5] for command in commands] == [
    [*tpu, "create"],
    ["git", "-C", str(SCRIPT.parent.parent), "archive", "--format=tar.gz"],
    [*tpu, "scp"],
    [*tpu, "ssh"],
    [*tpu, "ssh"],
    [*tpu, "scp"],
    [*tpu, "delete"],
  ]
  create, archive, upload, unpack, train, download, delete = commands
  assert create[5:] == [
    "synguide",
    *where,
    "--accelerator-type=v5litepod-8",
    "--version=v2-alpha-tpuv5-lite",
  ]
  (output,) = [a for a in archive if a.startswith("--output=")]
  assert archive[-1] == "HEAD"
  assert upload[5:] == [output.removeprefix("--output="), "synguide:", *where]
  assert unpack[5:] == [
    "synguide",
    *where,
    "--command=tar -xzf synguide_jax.tar.gz",
  ]
  # The arguments survive both the local and the remote shell.
  remote = train[-1].removeprefix("--command=")
  last = remote.split(" && ")[-1]
  assert shlex.split(last) == ["python", "-m", "synguide_jax.main", *flags]
  assert remote.startswith("cd synguide_jax && ")
  assert download[5:] == [
    "--recurse",
    "synguide:synguide_jax/runs",
    ".",
    *where,
  ]
  assert delete[5:] == ["synguide", *where, "--quiet"]


def test_image_can_be_chosen():
  done = _run("--dry-run", "main", **VARIABLES, IMAGE="v2-alpha-tpuv6e")
  assert "--version=v2-alpha-tpuv6e" in done.stdout.splitlines()[0]


@pytest.mark.parametrize("missing", VARIABLES)
def test_unset_variables_are_named(missing):
  variables = {k: v for k, v in VARIABLES.items() if k != missing}
  done = _run("--dry-run", "main", **variables)
  assert done.returncode != 0
  assert done.stdout == ""
  assert f"{missing}: " in done.stderr
  assert len(done.stderr.splitlines()) == 1


def test_a_command_is_needed():
  done = _run("--dry-run", **VARIABLES)
  assert done.returncode != 0
  assert done.stdout == ""
  assert "a command of the package" in done.stderr


def test_a_failed_command_stops_and_deletes_the_vm(tmp_path):
  # A gcloud that notes what it is asked, and cannot copy.
  fake = tmp_path / "bin" / "gcloud"
  fake.parent.mkdir()
  fake.write_text(
    f'#!/bin/bash\necho "$4" >> "{tmp_path}/log"\n[[ "$4" != scp ]]\n'
  )
  fake.chmod(0o755)
  path = f"{fake.parent}:{os.environ['PATH']}"
  git = tmp_path / "bin" / "git"
  git.write_text("#!/bin/bash\n")
  git.chmod(0o755)
  done = _run("main", **VARIABLES, PATH=path)
  assert done.returncode != 0
  log = (tmp_path / "log").read_text().split()
  assert log == ["create", "scp", "delete"]


@pytest.mark.skipif(
  not shutil.which("shellcheck"), reason="shellcheck is not installed"
)
def test_shellcheck():
  done = subprocess.run(
    ["shellcheck", str(SCRIPT)], capture_output=True, text=True
  )
  assert done.stdout == ""
  assert done.returncode == 0
