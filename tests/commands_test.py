"""Tests of the commands, as somebody types them, on one CPU device."""

import json
import os
from pathlib import Path
import re
import shutil
import subprocess
import sys

import jax
import jax.export
import numpy as np
from PIL import Image
import pytest

from synguide_jax.data import digits
from synguide_jax.models import pretrained
from tests import compiling

ROOT = Path(__file__).resolve().parent.parent
DIGITS = "--config=configs/digits_lowshot.py"
SMOKE = f"{DIGITS}:smoke"

# Runs several commands in one process, since TensorFlow takes ten seconds to
# import, each with flags of its own. Reports what each printed and returned.
_RUN_COMMANDS = """
import contextlib, json, os, runpy, sys, tempfile, traceback
from absl import flags

@contextlib.contextmanager
def captured():
  saved = os.dup(1), os.dup(2)
  with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
    os.dup2(out.fileno(), 1), os.dup2(err.fileno(), 2)
    texts = []
    try:
      yield texts
    finally:
      sys.stdout.flush(), sys.stderr.flush()
      os.dup2(saved[0], 1), os.dup2(saved[1], 2)
      for file in (out, err):
        file.seek(0)
        texts.append(file.read().decode())

own = {"config", "workdir", "methods", "workdirs", "output", "formats", "run"}
own |= {"source", "skip_damaged", "classifier", "split", "match_classes"}
own |= {"class_mapping", "relabel", "threshold", "agree", "min_loss"}
own |= {"max_loss", "per_class", "balance_with", "seed"}
own |= {"also", "grid", "jobs", "gpus", "print_commands"}
own |= {"multihost", "profile"}
done = []
for command, *args in json.loads(sys.stdin.read()):
  sys.argv = [command, *args]
  with captured() as texts:
    try:
      runpy.run_module(f"synguide_jax.{command}", run_name="__main__")
      code = None
    except SystemExit as end:
      code = end.code
    except BaseException:
      traceback.print_exc()
      code = 1
  for name in list(flags.FLAGS):
    if name.partition(".")[0] in own:
      delattr(flags.FLAGS, name)
  done.append([code, *texts])
print(json.dumps(done))
"""


def _environment(**changes):
  return {
    **os.environ,
    "XLA_FLAGS": compiling.CHEAPLY,
    "PYTHONPATH": os.pathsep.join(
      [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    ),
    **changes,
  }


def _python(*args, stdin=None, **changes):
  return subprocess.run(
    [sys.executable, *args],
    input=stdin,
    env=_environment(**changes),
    capture_output=True,
    text=True,
  )


def _run_commands(commands, **changes):
  """Runs commands; returns (exit code, stdout, stderr) of each."""
  stdin = json.dumps(commands)
  done = _python("-c", _RUN_COMMANDS, stdin=stdin, **changes)
  assert done.returncode == 0, done.stderr
  return json.loads(done.stdout)


def _results(folder):
  return json.loads((Path(folder) / "results.json").read_text())


def test_main_as_a_newcomer_starts_it():
  command = ("-m", "synguide_jax.main", SMOKE)
  # The folder is not the checkout: the config file is found in it.
  done = _python(*command)
  assert (done.returncode, done.stderr) == (0, "")
  folder = Path("runs/digits_lowshot_smoke/guided")
  results = _results(folder)
  assert {file.name.partition(".")[0] for file in folder.glob("[!.]*")} == {
    "checkpoints",
    "config",
    "events",
    "results",
    "splits",
  }
  assert results["config"]["data"]["shots"] == 10
  assert len(results["devices"]) == 1
  lines = done.stdout.splitlines()
  assert len(lines) <= 30
  accuracy = results["test"]["accuracy"]
  balanced = results["test"]["balanced_accuracy"]
  said, also = (
    f"{100 * of['mean']:.2f} +- {100 * of['std']:.2f} (n=2)"
    for of in (accuracy, balanced)
  )
  summary = next(line for line in lines if "test accuracy" in line)
  assert summary == f"guided: test accuracy {said}, balanced {also}"
  assert "  on 697 test images, looked at once" in lines
  assert any(line.startswith("  by class: 0 ") for line in lines)
  assert any(re.match(r"  step 3/6 .* left$", line) for line in lines)
  assert str(folder) in lines[-1]

  # Started again, it only shows the result.
  before = (folder / "results.json").stat().st_mtime_ns
  again = _python("-X", "importtime", *command)
  assert again.returncode == 0
  assert f"Finished before; delete {folder}" in again.stdout
  assert summary in again.stdout.splitlines()
  assert (folder / "results.json").stat().st_mtime_ns == before
  modules = {
    line.split("|")[-1].strip().partition(".")[0]
    for line in again.stderr.splitlines()
  }
  assert "synguide_jax" in modules
  assert not modules & {"jax", "tensorflow", "flax", "clu", "orbax"}


FILES = sorted(
  file.relative_to(ROOT).as_posix() for file in ROOT.glob("configs/**/*.py")
)
CONFIGS = [file for file in FILES if "generators/" not in file]
# They take a minute and more; in one process those whose smoke variants store
# the same images.
_STORED_AT_256 = [
  file for file in CONFIGS if re.search("cub|flowers|defects|folder", file)
]
_LARGE = [
  _STORED_AT_256,
  *([file] for file in CONFIGS if re.search("cifar|imagenet|wrn", file)),
]


@pytest.mark.parametrize(
  "files",
  [
    # In one process. The test above trains the digits.
    [
      file
      for file in CONFIGS
      if file not in (*sum(_LARGE, []), "configs/digits_lowshot.py")
    ],
    *(pytest.param(files, marks=pytest.mark.slow) for files in _LARGE),
  ],
  ids=" ".join,
)
def test_every_smoke_config_trains(files):
  commands = [
    ["main", f"--config={file}:smoke", f"--workdir=work/{number}"]
    for number, file in enumerate(files)
  ]
  if files == _STORED_AT_256:
    # The first trains its ResNet-50, which takes a minute to compile; all have
    # the same.
    for command in commands[1:]:
      command.append("--config.model.name=resnet18")
  done = _run_commands(
    commands,
    JAX_COMPILATION_CACHE_DIR=jax.config.jax_compilation_cache_dir,
  )
  for number, (file, (code, out, err)) in enumerate(
    zip(files, done, strict=True)
  ):
    assert code == 0, (file, err)
    # Where one set stands in for both, held-out images are in the other.
    noise = [x for x in err.splitlines() if not x.startswith("warning: ")]
    assert not noise, file
    results = _results(f"work/{number}")
    assert f"{results['method']}: " in out
    assert Path(f"work/{number}/checkpoints").is_dir()


@pytest.mark.slow
def test_generators_make_images():
  # CIFAR-10's for 20 steps, with digits of two classes in the place of images.
  cifar10 = "configs/generators/cifar10.py"
  commands = [
    [f"--config={cifar10}:smoke", "--config.num_steps=20"],
    ["--config=configs/generators/digits.py:smoke"],
    ["--config=configs/generators/defects.py:smoke"],
  ]
  done = _run_commands([["synthesize", *flags] for flags in commands])
  for flags, (code, out, err) in zip(commands, done, strict=True):
    assert (code, err) == (0, ""), flags
    folder = Path(out.splitlines()[-1].partition("prepared:")[2])
    with Image.open(folder / "contact_sheet.png") as sheet:
      assert sheet.size[0] > 20 * 8
    assert len(list((folder / "contact_sheets").iterdir())) == 2
  losses = re.findall(r"step +\d+/20 +loss ([\d.]+)", done[0][1])
  assert float(losses[-1]) < 0.9 * float(losses[0])


@pytest.mark.slow
def test_sweep_table_and_export():
  # As cheap as it gets, but for the method: 2 steps, no generated images.
  overrides = [
    "--config.data.synthetic=digits",
    "--config.num_steps=2",
    "--config.eval_every=2",
  ]
  sweep = ["sweep", SMOKE, *overrides, "--methods=real,fake"]
  fails = "--config.dann.domain_weight=-1"
  real = ["main", SMOKE, *overrides, "--config.method=real", "--workdir=real"]
  export = ["export", "--workdir=real", "--output=out"]
  first, again, table, _, exported, failing, *wrong = _run_commands(
    [
      sweep,
      sweep,
      ["table", "--workdirs=runs/digits_lowshot_smoke/*", "--output=out/a.b"],
      real,
      export,
      ["sweep", SMOKE, *overrides, fails, "--methods=dann,fake"],
      ["table", "--workdirs=nowhere/*,runs"],
      ["sweep", SMOKE, "--methods=real,cycle"],
      ["sweep", "--config=configs/letters.py:smoke"],
      [*export, "--run=7"],
      [*export, "--formats=onnx"],
      [*export, "--formats=transformers"],
      ["export", "--workdir=nowhere", "--output=out"],
    ]
  )
  code, out, err = first
  assert code == 0
  # The digits stand in for the synthetic images, held-out ones included.
  leak = "warning: 897 validation or test images are also among the synthetic"
  assert [line[: len(leak)] for line in err.splitlines()] == [leak] * 3
  lines = [line for line in out.splitlines() if line.startswith("[")]
  # Of the sweep's two rows "real", one has all images of the pool.
  assert [line[:6] for line in lines] == ["[ 1/3]", "[ 2/3]", "[ 3/3]"]
  assert [line[7:].split(": ")[0].strip() for line in lines] == [
    "real",
    "fake",
    "real, data.shots=-1",
  ]
  real = map(_results, Path("runs/digits_lowshot_smoke").glob("real-*"))
  (whole_pool,) = [r for r in real if r["config"]["data"]["shots"] == -1]
  accuracy = whole_pool["test"]["accuracy"]
  assert f"test accuracy {100 * accuracy['mean']:.2f} +- " in lines[2]
  assert "| real, data.shots=-1 |" in out

  code, out, err = again
  assert (code, err) == (0, "")
  lines = [line for line in out.splitlines() if line.startswith("[")]
  assert [line.endswith("(finished before)") for line in lines] == [True] * 3

  code, out, err = table
  assert (code, err) == (0, "")
  assert re.search(r"^\| real +\|", out, re.MULTILINE)
  assert re.search(r"^\| fake +\|", out, re.MULTILINE)
  assert out.startswith(Path("out/a.b.md").read_text().rstrip("\n"))
  (only,) = json.loads(Path("out/a.b.json").read_text())
  assert {row["label"] for row in only["rows"]} == {
    "fake",
    "real",
    "real, data.shots=-1",
  }

  code, out, err = failing
  assert code == 1
  lines = [line for line in out.splitlines() if line.startswith("[")]
  (failed,) = [line for line in lines if "failed" in line]
  assert "failed: dann.domain_weight=-1.0 must not be negative" in failed
  (trained,) = [line for line in lines if "failed" not in line]
  assert "test accuracy" in trained and len(lines) == 2

  code, out, err = exported
  assert (code, err) == (0, "")
  assert "small_cnn of run" in out
  loaded = pretrained.load_pretrained("out/synguide_jax")
  exported = json.loads(Path("out/synguide_jax/config.json").read_text())
  assert list(exported["id2label"].values()) == list("0123456789")
  program = Path("out/stablehlo/classifier.stablehlo").read_bytes()
  program = jax.export.deserialize(bytearray(program))
  images = np.random.default_rng(0).random((5, 8, 8, 1), np.float32)
  logits = loaded.model.apply(loaded.variables, images, train=False).logits
  np.testing.assert_allclose(program.call(images), logits, rtol=1e-4, atol=1e-5)

  messages = (
    "No finished experiment",
    "--methods=cycle: ",
    "letters.py has no get_sweep",
    "no run 7, only [0, 1]",
    "'onnx'; known: transformers, torchvision",
    "transformers has no network like this small_cnn",
    "nowhere is not finished",
  )
  for (code, _, err), message in zip(wrong, messages, strict=True):
    assert code == 2
    assert err.startswith("error: ") and message in err
    assert len(err.splitlines()) == 1


@pytest.mark.slow
def test_a_trace_is_of_the_steps_asked_for():
  command = ["main", SMOKE, "--config.method=real", "--config.eval_every=20"]
  # Steps, and how many of them are dispatched together.
  trainings = {"enough": (20, 1), "cut": (13, 1), "whole": (20, 6)}
  trainings |= {"short": (4, 1), "last": (12, 12)}
  ran = _run_commands(
    [
      [
        *command,
        f"--config.num_steps={steps}",
        f"--config.steps_per_dispatch={together}",
        "--profile=5",
        f"--workdir={workdir}",
      ]
      for workdir, (steps, together) in trainings.items()
    ]
  )
  lines = (
    "traced 5 steps into enough",
    "traced 3 steps into cut",
    "traced 6 steps into whole",
    "no trace: there were not more than 10 steps",
    "traced 0 steps into last: none was left",
  )
  for (_, said, _), line in zip(ran, lines, strict=True):
    assert f"  {line}" in said.splitlines()
  traces = "plugins/profile/*/*.xplane.pb"
  found = [len([*Path(w).glob(traces)]) for w in trainings]
  assert found == [1, 1, 1, 0, 1]


@pytest.mark.slow
def test_label():
  train = ["main", SMOKE, "--config.num_steps=2", "--config.eval_every=2"]
  real = ["--config.data.synthetic=digits", "--config.method=real"]
  fake = ["--config.data.synthetic=prepared:labeled", "--config.method=fake"]
  label = ["label", "--classifier=work", "--threshold=0"]
  (trained,) = _run_commands([[*train, *real, "--workdir=work"]])
  assert trained[0] == 0
  # Those the experiment was tested on, for their labels to agree with.
  images, labels = zip(*digits.examples(), strict=True)
  with np.load("work/splits.npz") as splits:
    rows = splits["test"]
  images, labels = np.stack(images)[rows], np.asarray(labels)[rows]
  np.savez("test.npz", images=images, labels=labels)
  tested, again, labeled, on_labeled, *wrong = _run_commands(
    [
      [*label, "--source=npz:test.npz", "--output=right", "--agree"],
      [*label, "--source=npz:test.npz", "--output=right", "--agree"],
      [*label, "--source=digits", "--output=labeled"],
      [*train, *fake, "--workdir=on_labeled"],
      [*label, "--source=npz:test.npz", "--output=labeled"],
      [*label, "--source=digits", "--output=out", "--classifier=nowhere"],
      [*label, "--source=digits", "--output=out", "--threshold=2"],
    ]
  )
  code, out, _ = tested
  assert code == 0
  totals = next(x for x in out.splitlines() if x.startswith("all")).split()
  results = _results("work")
  best = np.argmax(results["validation"]["accuracy"]["runs"])
  accuracy = results["test"]["accuracy"]["runs"][best]
  assert totals[1:4] == ["697", str(round(accuracy * 697)), "0"]
  assert out.endswith("--config.data.synthetic=prepared:right\n")
  code, repeated, err = again
  assert (code, err) == (0, "")
  assert repeated == f"Finished before; delete right to do it again.\n{out}"

  assert (labeled[0], labeled[2]) == (0, "")
  assert on_labeled[0] == 0
  assert _results("on_labeled")["data"]["images"]["synthetic"] == 1797

  messages = ("other settings: ", "nowhere is neither", "threshold=2.0")
  for (code, _, err), message in zip(wrong, messages, strict=True):
    assert code == 2
    assert err.startswith("error: ") and message in err
    assert len(err.splitlines()) == 1


# What is typed, and what the message must name.
_BAD = [
  ([], "--config"),
  (["--config=configs/nothing.py"], "configs/nothing.py"),
  (["--config", "configs/nothing.py"], "configs/nothing.py"),
  ([f"{DIGITS}:huge"], "'huge'; known: narrow"),
  ([DIGITS, "guided"], "argument 'guided'"),
  ([DIGITS, "--methd=aug"], "methd"),
  (
    [DIGITS, "--config.guidance.metrik=dot"],
    "guidance.metrik.*guidance.metric",
  ),
  (["--config", DIGITS[9:], "--config.sead=1"], "sead.*seed"),
  ([DIGITS, "--config.seed=abc"], "config.seed.*abc"),
  ([DIGITS, "--config.method=cycle"], "'cycle'; known.*guided"),
  ([DIGITS, "--config.data.real=digitz"], "'digitz'.*folder:<path>"),
  ([DIGITS, "--config.data.real=folder:/missing"], "/missing does not exist"),
  ([DIGITS, "--config.data.synthetic=x"], "Unknown set 'x'"),
  ([DIGITS, "--config.data.synthetic=generate:x.py"], "x.py"),
  ([DIGITS, "--config.data.synthetic="], "data.synthetic"),
  ([DIGITS, "--config.data.shots=89"], "89"),
  ([DIGITS, "--config.data.test=1797"], "data.test"),
  ([DIGITS, "--config.guidance.metric=coisne"], "cosine.*'coisne'"),
  ([DIGITS, "--config.guidance.similarity=kI"], "js.*'kI'"),
  ([DIGITS, "--config.guidance.real_weight=-1"], "real_weight.*-1"),
  ([DIGITS, "--config.guidance.synthetic_weight=-1"], "synthetic_weight.*-1"),
  ([DIGITS, "--config.guidance.pg_weight=-1"], "guidance.pg_weight=-1"),
  ([DIGITS, "--config.guidance.pg_weight=nan"], "guidance.pg_weight=nan"),
  ([DIGITS, "--config.guidance.feature_layer=stage9"], "stage9"),
  ([DIGITS, "--config.pretrained.feature_layer=stage9"], "stage9"),
  ([DIGITS, "--config.pretrained.weights="], "pretrained.weights"),
  ([DIGITS, "--config.pretrained.weights=missing"], "missing"),
  ([DIGITS, "--config.pretrained.weights=train:x.py"], "x.py"),
  ([DIGITS, "--config.model.init=missing"], "missing"),
  ([DIGITS, "--config.model.name=vit"], "'vit'; known"),
  ([DIGITS, "--config.model.dtype=half"], "dtype='half'"),
  ([DIGITS, "--config.pretrained.weights=hf:no/net"], "hf:no/net.*hub.*cache"),
  ([DIGITS, "--config.runs_mode=pmap"], "runs_mode='pmap'.*auto, vmap, map"),
  ([DIGITS, "--config.batch_size=7"], "batch_size=7"),
  ([DIGITS, "--config.num_runs=0"], "num_runs=0"),
  ([DIGITS, "--config.optimizer.name=lion"], "lion"),
  ([DIGITS, "--config.optimizer.schedule=linear"], "linear"),
  (
    [DIGITS, "--config.method=weighted", "--config.weighted.real_weight=2"],
    "2",
  ),
  ([DIGITS, "--workdir=file/workdir"], "workdir"),
  ([DIGITS, "--workdir=other"], "other belongs to another config"),
]


def test_bad_input_is_told_before_anything_is_made(tmp_path):
  Path("file").write_text("")
  other = Path("other")
  (other / "checkpoints").mkdir(parents=True)
  (other / "config.json").write_text('{"seed": 1}')
  # A cache of its own with the digits, to see that nothing is added.
  prepared = digits.prepare()
  relative = prepared.relative_to(os.environ["SYNGUIDE_CACHE"])
  cache = tmp_path / "cache"
  shutil.copytree(prepared, cache / relative)
  before = sorted(cache.rglob("*"))

  done = _run_commands(
    [["main", *args] for args, _ in _BAD],
    SYNGUIDE_CACHE=str(cache),
    JAX_ENABLE_COMPILATION_CACHE="false",
  )
  told = {
    " ".join(args): (code, err.splitlines())
    for (args, _), (code, _, err) in zip(_BAD, done, strict=True)
  }
  unclear = {}
  for args, names in _BAD:
    code, lines = told[" ".join(args)]
    # Only a workdir of another config lists every field that differs.
    clear = len(lines) == 1 or args[-1] == "--workdir=other"
    if code != 2 or not clear or not re.match(f"error: .*{names}", lines[0]):
      unclear[" ".join(args)] = code, lines
  assert unclear == {}
  assert "  seed: 1 there, 0 now" in told[f"{DIGITS} --workdir=other"][1]

  assert sorted(cache.rglob("*")) == before
  assert not list(tmp_path.rglob("results.json"))
  assert list(tmp_path.rglob("checkpoints")) == [tmp_path / "other/checkpoints"]
  assert list(other.rglob("events*")) == []


def test_prepare_says_what_is_in_the_sets():
  rng = np.random.default_rng(0)
  for label, number in enumerate((3, 5)):
    folder = Path("photos", f"class{label}")
    folder.mkdir(parents=True)
    for i in range(number):
      pixels = rng.integers(0, 256, (8, 8, 3), np.uint8)
      Image.fromarray(pixels).save(folder / f"{i}.png")
  np.savez("samples.npz", images=rng.integers(0, 256, (4, 8, 8), np.uint8))
  damaged = Path("photos/class1/5.png")
  damaged.write_bytes(b"not an image")
  command = ["prepare", "--source=folder:photos"]
  skipping = [*command, "--source=npz:samples.npz", "--skip_damaged"]
  before, done, again, *wrong = _run_commands(
    [
      command,
      skipping,
      skipping,
      ["prepare"],
      ["prepare", "--source=folder:nowhere"],
    ]
  )

  code, out, err = before
  assert (code, out) == (2, "") and len(err.splitlines()) == 1
  assert "class1/5.png" in err and "skip_damaged" in err

  code, out, err = done
  assert (code, err) == (0, "")
  assert again == done
  photos, samples = out.split("\n\n")
  assert "images: 8 train" in photos and "left out: 1 damaged" in photos
  assert [line.split() for line in photos.splitlines()[-2:]] == [
    ["class0", "3"],
    ["class1", "5"],
  ]
  assert "channels: 4 grey" in samples and "no labels" in samples
  (stored,) = re.findall("stored in: (.*)", photos)
  assert Path(stored).is_dir()
  assert Path(os.environ["SYNGUIDE_CACHE"]) in Path(stored).parents

  for (code, _, err), message in zip(
    wrong, ("--source", "nowhere does not exist"), strict=True
  ):
    assert code == 2
    assert err.startswith("error: ") and message in err
    assert len(err.splitlines()) == 1


@pytest.mark.parametrize(
  "command",
  [
    *("main", "sweep", "table", "export", "prepare", "label", "synthesize"),
    *("predict", "analyze"),
  ],
)
def test_help_shows_the_flags(command):
  done = _python("-m", f"synguide_jax.{command}", "--help")
  assert done.stderr == ""
  assert "python -m synguide_jax." in done.stdout
  flags = {
    "table": "--workdirs",
    "export": "--workdir",
    "prepare": "--source",
    "label": "--source",
    "predict": "--workdir",
  }
  assert flags.get(command, "--config") in done.stdout
