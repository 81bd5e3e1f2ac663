"""What specs ask for is made once for the same images, and never for others."""

from pathlib import Path
import re

from huggingface_hub import constants
import jax
from PIL import Image
import pytest

from synguide_jax import inputs
from synguide_jax.data import digits, tfds_sets
from synguide_jax.errors import UserError
from synguide_jax.train import train_and_evaluate
from tests import tiny

GENERATOR = "generate:configs/generators/digits.py:smoke"


def _train(config, workdir, made):
  workdir.mkdir(parents=True, exist_ok=True)
  return train_and_evaluate(
    config, workdir, tiny.Recorder(), inputs=made, devices=jax.devices()[:1]
  )


def _folder(count):
  for number, (image, label) in enumerate(digits.examples()):
    if number == count:
      return
    folder = Path("digits") / str(label)
    folder.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image[..., 0]).save(folder / f"{number}.png")


def _config(**changes):
  return tiny.config(
    **{
      "data.real": "folder:digits",
      "data.synthetic": GENERATOR,
      "data.test": 20,
      "data.validation": 20,
      **{f"data.{name}": value for name, value in changes.items()},
    }
  )


def test_other_images_get_another_generator():
  # One that has seen these images must not make those that go with others:
  # of them, some that it was trained on may be tested on.
  _folder(120)
  config = _config()
  (first,) = inputs.make(config, _train).values()
  (again,) = inputs.make(config, _train).values()
  assert first == again and first.startswith("prepared:")
  _folder(121)
  (other,) = inputs.make(config, _train).values()
  assert other != first


def test_the_rest_of_a_mixture_is_checked_before_anything_is_made():
  _folder(120)
  Image.new("L", (8, 8)).save("digits/0/constant.png")
  Path("other/cat").mkdir(parents=True)
  Image.effect_noise((8, 8), 50).save("other/cat/0.png")
  mixture = f"('{GENERATOR}@1', 'folder:other@1')"
  with pytest.raises(UserError, match="only in folder:other: 'cat'"):
    inputs.check(_config(synthetic=mixture))


def test_a_generator_would_see_what_folds_test_on():
  with pytest.raises(UserError, match="data.folds=3: generate:.* trained on"):
    inputs.check(_config(folds=3, test=0))


def test_what_would_be_made_in_vain_is_refused_before():
  config = tiny.config(method="fake", **{"model.name": "cifar_resnet18"})
  config.model.init = "train:configs/letters.py"
  with pytest.raises(UserError, match="is a small_cnn, but model.name is 'cif"):
    inputs.check(config)
  Path("asg.py").write_text(
    "from synguide_jax import config\n\n\n"
    "def get_config(arg=None):\n"
    "  c = config.classifier_defaults()\n"
    "  c.method = 'asg'\n"
    "  return c\n"
  )
  config.model.init = "train:asg.py"
  with pytest.raises(UserError, match="set asg.head='linear'"):
    inputs.check(config)


def test_a_network_that_is_not_trained_is_not_made():
  config = tiny.config(**{"model.init": "train:configs/letters.py"})
  specs = {}
  for name in ("aug", "finetune"):
    config.method = name
    specs[name] = [section for section, *_ in inputs.needed(config)]
  assert specs == {"aug": ["model"], "finetune": []}


@pytest.fixture
def nothing_here(tmp_path, monkeypatch):
  """Neither a set, nor weights, nor a network."""
  monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "tfds"))
  monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
  monkeypatch.setattr(tfds_sets, "is_reachable", lambda url: False)


@pytest.mark.parametrize(
  "fields,missing",
  [
    (
      {"data.real": "tfds:cifar10"},
      ["data.real: tfds:cifar10.*--config.data.real=folder:<path>"],
    ),
    (
      {"model.init": "hf:a/b", "pretrained.weights": "hf:a/b"},
      [
        "model.init and pretrained.weights: hf:a/b.*"
        "--config.model.init=<path> --config.pretrained.weights=<path>"
      ],
    ),
    (
      {
        "data.synthetic": "('tfds:cifar10@1', 'digits@1')",
        "pretrained.weights": "hf:a/b",
        "model.init": "hf:a/c",
      },
      [
        "data.synthetic: tfds:cifar10.*--config.data.synthetic=folder:<path>",
        "model.init: hf:a/c.*--config.model.init=<path>",
        "pretrained.weights: hf:a/b.*--config.pretrained.weights=<path>",
      ],
    ),
    # It does not use the pretrained network.
    (
      {"method": "aug", "pretrained.weights": "hf:a/b", "model.init": "hf:a/c"},
      ["model.init: hf:a/c"],
    ),
  ],
)
def test_all_that_is_missing_is_named_and_nothing_else(
  nothing_here, fields, missing
):
  with pytest.raises(UserError) as error:
    inputs.check(tiny.config(**fields))
  lines = str(error.value).splitlines()
  assert len(lines) == len(missing)
  for line, wanted in zip(lines, missing, strict=True):
    assert re.match(wanted, line)
