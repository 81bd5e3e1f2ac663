"""Stand-ins for the tools that the launch scripts call, and what they need."""

import os
from pathlib import Path
import re
import shlex
import subprocess
import sys
import time

ROOT = Path(__file__).resolve().parent.parent
# Bash cannot trap what was ignored when it began, as Ctrl-C is where the tests
# run in the background.
HEEDING_CTRL_C = (
  sys.executable,
  "-c",
  "import os, signal, sys; signal.signal(signal.SIGINT, signal.SIG_DFL); "
  "os.execvp(sys.argv[1], sys.argv[1:])",
)
LAUNCH = ROOT / "launch"
# Two shells and a YAML parser must leave this alone.
ODD = '--config.name=it\'s "$HOME" $(NAME) \\n a  b'
MAIN = ["main", "--config=configs/digits_lowshot.py", ODD]
BUCKET = "--workdir=gs://bucket/runs/first"

# What the tools say of a thing that there is not.
MISSING = (1, "NOT_FOUND")
OFFLINE = (1, "the login has expired")

TRAINS = ["python", "-m", "synguide_jax.main", "--multihost"]

# Scripts with what they need to be set.
TPU_VM = {
  "PROJECT": "my-project",
  "ZONE": "us-west4-a",
  "TYPE": "v5litepod-16",
  "NAME": "synguide",
}
GCE_MIG = {
  "PROJECT": "my-project",
  "ZONE": "us-east5-a",
  "NAME": "synguide",
  "STAGING": "gs://bucket/stage",
  "MACHINE": "ct6e-standard-4t",
  "TOPOLOGY": "4x4",
  "HOSTS": "4",
}
GKE = {
  "NAME": "synguide",
  "IMAGE": "us-docker.pkg.dev/my-project/images/synguide:tpu",
  "HOSTS": "4",
  "CHIPS": "4",
  "ACCELERATOR": "tpu-v6e-slice",
  "TOPOLOGY": "4x4",
}

# The verbs of the calls, in parts.
START = ["describe", "git", "create", "scp", "ssh", "ssh"]
LOOK = ["resource-policies", "instance-templates", "instance-groups"]
UPLOAD = ["git", "cp", "ls"]
PREPARE = [*LOOK, *UPLOAD, "resource-policies", "instance-templates"]
CREATE_GROUP = ["rm", "rm", "instance-groups"]
DELETE_ALL = ["instance-groups", "instance-templates", "resource-policies"]

# Bash, which starts faster than Python: a test calls many.
_FAKE = """
trap 'exit 1' INT
printf -v line '%q ' {name} "$@"
echo "$line" >>{folder}/calls
for part in ${{*//[=,]/ }}; do
  [[ ! -f $part ]] || cp "$part" {folder}
done
"""
_RULE = """
if [[ "$*" == *{pattern}* ]]; then
  echo >>{counter}
  mapfile -t lines <{counter}
  count=$((${{#lines[@]}} - 1))
  codes=({codes}) texts=({texts})
  ((count < {last})) || count={last}
  printf %s "${{texts[count]}}" >&"$((codes[count] ? 2 : 1))"
  (({seconds} == 0)) || sleep {seconds}
  exit "${{codes[count]}}"
fi
"""


class Fakes:
  """Tools on the path that note their calls and answer by rules."""

  def __init__(self, folder: Path):
    self.folder = folder
    (folder / "bin").mkdir()
    (folder / "tmp").mkdir()
    self.environment = {
      "PATH": f"{folder / 'bin'}:{os.environ['PATH']}",
      "TMPDIR": str(folder / "tmp"),
      "WAIT": "0",
    }
    self.add("git")
    self.add("gcloud")

  def script(self, name: str, text: str) -> None:
    """Puts a script of bash on the path."""
    path = self.folder / "bin" / name
    path.write_text(f"#!/bin/bash\n{text}\n")
    path.chmod(0o755)

  def add(self, name: str, **rules) -> None:
    """Adds a tool; its rules are part=[answer, ...], the last one stays.

    An answer is an exit code, or (exit code, output), which is an error's where
    the code is one; the part is one of the arguments put together. What gcloud
    describes is not there, unless a rule says so.
    """
    if name == "gcloud":
      rules.setdefault("describe", MISSING)
    for count in self.folder.glob(f"{name}.[0-9]*"):
      count.unlink()
    folder = shlex.quote(str(self.folder))
    text = _FAKE.format(name=name, folder=folder)
    for i, (part, answers) in enumerate(rules.items()):
      answers = answers if isinstance(answers, list) else [answers]
      answers = [a if isinstance(a, tuple) else (a, "") for a in answers]
      text += _RULE.format(
        pattern=shlex.quote(part),
        counter=f"{folder}/{name}.{i}",
        codes=" ".join(str(a[0]) for a in answers),
        texts=" ".join(shlex.quote(a[1]) for a in answers),
        last=len(answers) - 1,
        seconds=answers[0][2] if len(answers[0]) > 2 else 0,
      )
    self.script(name, text)

  def run(self, script: str, *args: str, **variables: str):
    return subprocess.run(
      ["bash", str(LAUNCH / script), *args],
      env={**self.environment, **variables},
      cwd=self.folder,
      capture_output=True,
      text=True,
      timeout=60,
    )

  def calls(self) -> list[list[str]]:
    """Returns what was called so far, without the names of temporary files."""
    path = self.folder / "calls"
    lines = path.read_text().splitlines() if path.exists() else []
    return [shlex.split(without_temporary(line)) for line in lines]

  def verbs(self) -> list[str]:
    """Returns the calls' verbs, the commands of gcloud without their groups."""
    groups = ("compute", "tpus", "tpu-vm", "storage", "managed")
    calls = [[a for a in call if a not in groups] for call in self.calls()]
    return [call[1] if call[0] == "gcloud" else call[0] for call in calls]


def without_temporary(text: str) -> str:
  """Gives temporary folders one name."""
  return re.sub(r"/tmp\.\w+", "/tmp.X", text)


def words(text: str) -> list[list[str]]:
  """Reads lines as a shell would."""
  lines = text.replace("\\\n", "").strip().splitlines()
  return [shlex.split(line) for line in lines]


def until(condition) -> None:
  """Waits until a condition holds, 20 seconds at most."""
  deadline = time.monotonic() + 20
  while not condition():
    assert time.monotonic() < deadline
    time.sleep(0.02)
