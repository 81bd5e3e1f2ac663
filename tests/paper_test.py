"""What the paper states about its experiments, in its configs."""

import itertools

import pytest

from synguide_jax import config as config_lib
from synguide_jax import methods, paper
from synguide_jax.data import feed
from synguide_jax.methods.base import Info

LOW_SHOT = ("cifar", "cub", "flowers", "defects")


@pytest.mark.parametrize(
  "spec",
  [
    f"configs/{name}_{kind}.py"
    for name in LOW_SHOT
    for kind in ("lowshot", "zeroshot")
  ],
)
def test_every_experiment_trains_as_the_paper_says(spec):
  config = config_lib.load(spec)
  assert config.model.name == "resnet50"
  assert (config.model.image_size, config.batch_size) == (224, 128)
  assert (config.num_epochs, config.num_steps) == (200, 0)
  assert config.optimizer.learning_rate == 1e-4
  assert config.num_runs == 5
  # Random crop and random flip only.
  data = config.data
  assert data.flip and data.crop == "random" and not data.randaugment_layers
  assert (data.store_size or data.image_size) + 2 * data.padding > (
    data.image_size
  )


def test_rows_switch_guidance_as_the_tables_do():
  config = config_lib.load("configs/cifar_lowshot.py")
  switches = [
    (row.guidance.rg, row.guidance.pg_real, row.guidance.pg_synthetic)
    for row in (config_lib.override(config, r) for r in paper.low_shot_rows())
    if row.method == "guided"
  ]
  on = (False, True)
  assert sorted(switches) == sorted(
    [(False, True, True), *itertools.product([True], on, on)]
  )


@pytest.mark.parametrize("name", (*LOW_SHOT, "cifar32"))
def test_zero_shot_guides_synthetic_images_alone(name):
  config = config_lib.load(f"configs/{name}_zeroshot.py")
  guidance = config.guidance
  assert (guidance.rg, guidance.pg_real, guidance.pg_synthetic) == (
    False,
    False,
    True,
  )
  # Nothing but the test sees a real image.
  assert (config.data.shots, config.select) == (0, "last")
  rows = [
    config_lib.override(config, row)
    for row in config_lib.load_sweep(f"configs/{name}_zeroshot.py")
  ]
  methods_of_table = ["fake", "asg", "csg", "guided", "guided", "real"]
  if name == "cifar32":
    # Of Table 3, where M_p is another network.
    methods_of_table.remove("csg")
  seen = dict.fromkeys((row.method, row.guidance.similarity) for row in rows)
  assert [method for method, _ in seen] == methods_of_table
  for row in rows:
    guides = row.method in ("asg", "csg", "guided")
    assert methods.needs_pretrained(row) == guides


def test_every_baseline_of_table_4_has_a_row():
  rows = paper.low_shot_rows()
  table = {"real", "fake", "aug", "adp", "adda", "dada", "dann", "ltda"}
  assert table | {"a_gem", "guided"} <= {row["method"] for row in rows}


@pytest.mark.parametrize(
  "rows", [paper.low_shot_rows(), paper.zero_shot_rows()], ids=["low", "zero"]
)
def test_every_row_can_be_trained(rows):
  info = Info(("a", "b"), (32, 32, 3), {n: (90, 90) for n in feed.SETS[:2]})
  config = config_lib.load("configs/cifar_lowshot.py:smoke")
  for row in rows:
    config.update({"num_steps": 0})
    changed = config_lib.override(config, row)
    # Small networks instead of its ResNet-50.
    changed.model.update(name="small_cnn", image_size=32)
    method = methods.make(changed, info)
    assert all(stage.num_steps > 0 for stage in method.stages)


def test_initialisations_of_table_2():
  scratch = config_lib.load("configs/cub_zeroshot.py:scratch")
  imagenet = config_lib.load("configs/cub_zeroshot.py:imagenet")
  assert scratch.model.init == "scratch"
  # From what guides it.
  assert imagenet.model.init == imagenet.pretrained.weights
  scratch.model.init = imagenet.model.init
  assert scratch.to_dict() == imagenet.to_dict()
