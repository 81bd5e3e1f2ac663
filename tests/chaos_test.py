"""Trainings that are stopped, disks that are full, checkpoints that are spoilt.

The long form is benchmarks/chaos.py.
"""

import copy
import errno
import json
import os
from pathlib import Path
import shutil
import signal
import subprocess
import sys
import textwrap

from etils import epath
import jax
import numpy as np
import pytest

from synguide_jax import checkpoint, models, train
from synguide_jax.errors import Preempted
from synguide_jax.models.base import Architecture
from tests import compiling, tiny

ONE = jax.devices()[:1]


def save(folder, *steps):
  """Saves checkpoints of one array each; no two are alike."""
  with checkpoint.Checkpointer(epath.Path(folder), 1) as checkpoints:
    for step in steps:
      checkpoints.save(step, arrays(step), {"step": step})


def arrays(step):
  # Too large to be stored inside of an index.
  rng = np.random.default_rng(step)
  return {"a": jax.device_put(rng.normal(size=(40, 50)).astype(np.float32))}


def restore(folder):
  """Returns the step of what is restored, after a look at its array."""
  with checkpoint.Checkpointer(epath.Path(folder), 1) as checkpoints:
    restored = checkpoints.restore(
      lambda record: jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding),
        arrays(record["step"]),
      )
    )
  if restored is None:
    return None
  found, record = restored
  np.testing.assert_array_equal(found["a"], arrays(record["step"])["a"])
  return record["step"]


def steps_in(folder):
  return sorted(path.name for path in Path(folder).iterdir())


def truncate(file):
  content = file.read_bytes()
  file.write_bytes(content[: len(content) // 2])


def empty(file):
  file.write_bytes(b"")


def change_a_bit(file):
  content = bytearray(file.read_bytes())
  content[len(content) // 2] ^= 16
  file.write_bytes(content)


@pytest.fixture(scope="module")
def two(tmp_path_factory):
  folder = tmp_path_factory.mktemp("two") / "checkpoints"
  save(folder, 3, 4)
  return folder


@pytest.mark.parametrize("spoil", [truncate, empty, Path.unlink, change_a_bit])
def test_no_spoilt_file_gives_other_numbers(two, tmp_path, caplog, spoil):
  files = sorted(p.relative_to(two) for p in two.glob("4/**/*") if p.is_file())
  read = [file for file in files if file.parts[1] in ("arrays", "record")]
  assert len(read) > 8
  for file in read:
    folder = tmp_path / "checkpoints"
    shutil.copytree(two, folder)
    spoil(folder / file)
    assert restore(folder) == 3, file
    assert steps_in(folder) == ["3"]
    relative = Path(*file.parts[1:])
    assert f"step 4 is damaged: {relative} is" in caplog.messages[-1]
    shutil.rmtree(folder)
  # What else is there is not needed.
  others = {file.name for file in files if file not in read}
  assert others == {
    "_CHECKPOINT_METADATA",
    "checksums.json",
    "commit_success.txt",
  }


@pytest.mark.parametrize("spoil", [truncate, empty, Path.unlink])
def test_without_checksums_a_damaged_array_is_noticed(two, tmp_path, spoil):
  # Those of older versions; Orbax has an exception of its own for them.
  folder = tmp_path / "checkpoints"
  shutil.copytree(two, folder)
  (folder / "4" / "checksums.json").unlink()
  spoil(max(folder.glob("4/arrays/**/d/*"), key=lambda p: p.stat().st_size))
  assert restore(folder) == 3


def test_a_checkpoint_without_checksums_is_read(two, tmp_path):
  folder = tmp_path / "checkpoints"
  shutil.copytree(two, folder)
  (folder / "4" / "checksums.json").unlink()
  assert restore(folder) == 4


def test_a_checkpoint_that_was_half_deleted_is_passed_over(two, tmp_path):
  folder = tmp_path / "checkpoints"
  for emptied in ("4", "4/arrays", "4/record"):
    shutil.copytree(two, folder)
    shutil.rmtree(folder / emptied)
    (folder / emptied).mkdir()
    assert restore(folder) == 3
    shutil.rmtree(folder)


def test_what_a_killed_save_leaves_is_removed(two, tmp_path):
  folder = tmp_path / "checkpoints"
  shutil.copytree(two, folder)
  # Killed before the old one was deleted, and in the middle of the next.
  shutil.copytree(folder / "3", folder / "2")
  unfinished = folder / "5.orbax-checkpoint-tmp"
  shutil.copytree(folder / "4", unfinished)
  assert restore(folder) == 4
  assert {"3", "4"} <= set(steps_in(folder)) <= {"3", "4", unfinished.name}
  save(folder, 5)
  assert steps_in(folder) == ["4", "5"]


def test_a_full_disk_in_the_thread_that_saves_is_an_oserror(
  two, tmp_path, caplog, monkeypatch
):
  def full(path, content):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), os.fspath(path))

  folder = tmp_path / "checkpoints"
  shutil.copytree(two, folder)
  with monkeypatch.context() as patched:
    patched.setattr(checkpoint, "write_whole", full)
    with pytest.raises(OSError, match="checkpoints") as raised:
      save(folder, 5)
  assert raised.value.errno == errno.ENOSPC
  # Orbax would have logged pages of them.
  assert not any(record.exc_info for record in caplog.records)
  assert restore(folder) == 4
  save(folder, 5)
  assert steps_in(folder) == ["4", "5"]


@pytest.fixture(autouse=True, scope="module")
def dense():
  with pytest.MonkeyPatch.context() as patched:
    patched.setitem(models.MODELS, "dense", Architecture(tiny.Dense))
    yield


# Compiles in no time.
FAST = {"method": "real", "model.name": "dense"}


def config(**overrides):
  return tiny.config(**FAST, **overrides)


def run(config, workdir, **kwargs):
  kwargs.setdefault("devices", ONE)
  return train.train_and_evaluate(config, workdir, tiny.Recorder(), **kwargs)


def without_times(results):
  results = copy.deepcopy(results)
  del results["seconds"]
  return results


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
  return run(config(), tmp_path_factory.mktemp("uninterrupted"))


def test_sigterm_saves_the_very_step(uninterrupted, tmp_path):
  def terminate(step):
    if step == 3:
      os.kill(os.getpid(), signal.SIGTERM)

  before = signal.getsignal(signal.SIGTERM)
  with pytest.raises(Preempted, match="after step 3 of 6"):
    run(config(), tmp_path, hooks=[terminate])
  assert signal.getsignal(signal.SIGTERM) == before
  assert steps_in(tmp_path / "checkpoints") == ["2", "3"]
  assert not (tmp_path / "results.json").exists()
  # What a process leaves that is killed while it writes results.json.
  partial = tmp_path / ".results.json.1.partial"
  partial.touch()
  steps = []
  results = run(config(), tmp_path, hooks=[steps.append])
  assert steps == [4, 5, 6]
  assert without_times(results) == without_times(uninterrupted)
  assert not partial.exists()


def test_after_a_full_disk_it_continues(uninterrupted, tmp_path, monkeypatch):
  original = checkpoint.write_whole

  def full(path, content):
    if "4.orbax" in os.fspath(path):
      raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    original(path, content)

  with monkeypatch.context() as patched:
    patched.setattr(checkpoint, "write_whole", full)
    with pytest.raises(OSError) as raised:
      run(config(), tmp_path)
  assert raised.value.errno == errno.ENOSPC
  steps = []
  results = run(config(), tmp_path, hooks=[steps.append])
  assert steps == [3, 4, 5, 6]
  assert without_times(results) == without_times(uninterrupted)


def start(code, *arguments, root, **env):
  return subprocess.run(
    [sys.executable, *code, *map(str, arguments)],
    cwd=root,
    env={**os.environ, "PYTHONPATH": str(root), **env},
    capture_output=True,
    text=True,
  )


KILLED = """
  import json, os, pathlib, signal, sys, time
  from synguide_jax import models, train
  from synguide_jax.models.base import Architecture
  from tests import tiny

  models.MODELS["dense"] = Architecture(tiny.Dense)

  def kill(step):
    while step == 5 and not pathlib.Path(sys.argv[1], "checkpoints/4").exists():
      time.sleep(0.01)
    if step == 5:
      os.kill(os.getpid(), signal.SIGKILL)

  config = tiny.config(**json.loads(sys.argv[2]))
  train.train_and_evaluate(config, sys.argv[1], tiny.Recorder(), [kill])
"""


@pytest.mark.slow
def test_killed_on_eight_devices_resumed_on_others(tmp_path, pytestconfig):
  five = config(num_runs=5)
  whole = run(five, tmp_path / "whole", devices=jax.devices())
  _, expected = train.load_trained(five, tmp_path / "whole")
  killed = start(
    ["-c", textwrap.dedent(KILLED)],
    tmp_path / "8",
    json.dumps({**FAST, "num_runs": 5}),
    root=pytestconfig.rootpath,
  )
  assert killed.returncode == -signal.SIGKILL, killed.stderr
  record = tmp_path / "8" / "checkpoints" / "4" / "record" / "metadata"
  assert json.loads(record.read_text())["places"] == 8
  for count, mesh in ((1, [1, 1]), (4, [4, 1])):
    workdir, devices = tmp_path / str(count), jax.devices()[:count]
    shutil.copytree(tmp_path / "8", workdir)
    steps = []
    results = run(five, workdir, hooks=[steps.append], devices=devices)
    assert steps == [5, 6]
    assert list(results["mesh"].values()) == mesh
    _, state = train.load_trained(five, workdir, devices=devices)
    jax.tree.map(
      lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5),
      (state, losses(results)),
      (expected, losses(whole)),
    )


def losses(results):
  return [record["train"]["loss"] for record in results["history"]]


@pytest.mark.slow
def test_the_command_survives_chaos(tmp_path, pytestconfig):
  file = tmp_path / "config.py"
  file.write_text(
    textwrap.dedent("""
      from tests import tiny

      def get_config(arg=None):
        return tiny.config(num_steps=300, eval_every=20, checkpoint_every=10)
    """)
  )
  found = start(
    ["-m", "benchmarks.chaos"],
    f"--config={file}",
    "--overrides=",
    "--early=start",
    "--middle=write,term,damage,full",
    root=pytestconfig.rootpath,
    XLA_FLAGS=compiling.CHEAPLY,
  )
  assert not found.returncode, found.stdout + found.stderr
  assert "lost, different or left over: 0" in found.stdout
  if " full " not in found.stdout:
    pytest.skip("All but a full disk: no tmpfs can be mounted.")
