"""Tests of the paper's values: whose they are, and when they are shown."""

import pytest

from synguide_jax import config as config_lib
from synguide_jax import paper, workdir
from synguide_jax.analysis import paper_values, table
from tests.analysis import made_up

LSGM = "folder:/data/LSGM_cifar10"
IMAGES = {"pool": 45_000, "synthetic": 45_000, "test": 10_000}


def _find(config, images=IMAGES, classes=10, evaluated=("test",)):
  results = {
    "data": {
      "images": dict(images),
      "class_names": [str(label) for label in range(classes)],
    },
    **{name: {"accuracy": {}} for name in evaluated},
  }
  flat = workdir.flatten(workdir.as_json(config))
  return paper_values.find(flat, results)


def _config(file, row=None, **changed):
  config = config_lib.load(f"configs/{file}")
  changed = {"data.synthetic": LSGM, **(row or {}), **changed}
  return config_lib.override(config, changed)


def test_rows_of_table_4():
  values = {
    (row["method"], *list(row.items())[1:]): _find(
      _config("cifar_lowshot.py", row)
    )
    for row in [*paper.low_shot_rows(), {"method": "real", "data.shots": -1}]
  }
  found = {
    row: round(100 * value["value"], 2)
    for row, value in values.items()
    if value and not len(row) > 4
  }
  rg, real, fake = "guidance.rg", "guidance.pg_real", "guidance.pg_synthetic"
  assert found == {
    ("real", ("data.shots", -1)): 91.80,
    ("fake",): 85.57,
    ("adp",): 84.81,
    ("aug",): 85.71,
    ("adda",): 78.73,
    ("dada",): 83.39,
    ("dann",): 86.52,
    ("ltda",): 81.67,
    ("a_gem",): 86.91,
    ("guided",): 85.94,
    ("guided", (rg, False)): 86.25,
    ("guided", (real, False), (fake, False)): 86.91,
    ("guided", (fake, False)): 85.59,
    ("guided", (real, False)): 86.58,
  }
  # Rows as their authors train, which have more fields.
  published = {
    row[0]: round(100 * value["value"], 2)
    for row, value in values.items()
    if value and len(row) > 4
  }
  assert published == {
    "adda": 78.73,
    "dada": 83.39,
    "dann": 86.52,
    "ltda": 81.67,
  }


@pytest.mark.parametrize(
  ("file", "expected"),
  [
    ("cifar_zeroshot.py:scratch", [85.08, 80.66, 82.47, 85.58, 84.76, 90.27]),
    ("cifar_zeroshot.py:imagenet", [85.57, 82.40, 82.67, 85.74, 84.73, 91.80]),
    ("cifar32_zeroshot.py", [78.55, 76.63, 78.33, 80.11, 84.53]),
  ],
)
def test_rows_of_tables_2_and_3(file, expected):
  values = {}
  for row in config_lib.load_sweep(f"configs/{file}"):
    value = _find(_config(file, row))
    values[value["matched"]] = round(100 * value["value"], 2)
  # As published or not, a row is the same one of the paper.
  assert list(values.values()) == expected


def test_another_generator_has_other_values():
  config = _config("cifar_lowshot.py")
  for spec, value in (
    ("folder:/data/stylegan-xl", 0.8193),
    ("npz:SG_XL/cifar.npz", 0.8193),
    ("folder:sgxl", 0.8193),
    ("folder:images", None),
    ("folder:lsgm_or_sg-xl", None),
    ("generate:configs/lsgm.py", None),
    ("('folder:lsgm', 'folder:more')", None),
  ):
    found = _find(config_lib.override(config, {"data.synthetic": spec}))
    assert (found and found["value"]) == (value and pytest.approx(value))


@pytest.mark.parametrize(
  "changed",
  [
    {"data.shots": 100},
    {"data.shots": -1},
    {"method": "balanced"},
    {"method": "real"},
    {"model.init": "scratch"},
    {"model.init": "hf:timm/resnet50.a1_in21k"},
    {"model.name": "cifar_resnet18"},
    {"model.image_size": 96},
    {"pretrained.weights": "random"},
    {"guidance.similarity": "l1"},
    {"guidance.metric": "euclidean"},
    {"num_steps": 300},
    {"num_epochs": 100.0},
    {"batch_size": 64},
    {"optimizer.learning_rate": 1e-3},
    {"data.real": "tfds:cifar100"},
    {"data.real": "folder:cifar10"},
    {"data.test": 1_000},
    {"data.folds": 5},
  ],
)
def test_another_experiment_has_none(changed):
  assert _find(_config("cifar_lowshot.py")) is not None
  assert _find(_config("cifar_lowshot.py", changed)) is None


def test_other_images_have_none():
  config = _config("cifar_lowshot.py")
  assert _find(config, {**IMAGES, "synthetic": 44_999}) is None
  assert _find(config, {**IMAGES, "pool": 50_000}) is None
  assert _find(config, classes=9) is None
  assert _find(config, evaluated=("validation",)) is None


def test_subsets_of_birds_and_flowers_have_the_papers_numbers():
  spec = {"data.synthetic": "folder:projgan"}
  config = _config("flowers_lowshot.py", spec)
  subset = {"pool": 1_010, "synthetic": 1_010}
  assert _find(config, subset)["value"] == pytest.approx(0.6624)
  assert _find(config, {"pool": 1_020, "synthetic": 1_020}) is None
  config = _config("cub_zeroshot.py", spec)
  subset = {"pool": 4_521, "synthetic": 4_521}
  assert _find(config, subset)["value"] == pytest.approx(0.3450)
  assert _find(config, {"pool": 4_994, "synthetic": 4_600}) is None


def test_sdi_is_known_by_its_name():
  shots = {"data.shots": -1, "data.synthetic": "folder:dt_gan/x"}
  config = _config("cifar_lowshot.py", shots, **{"data.real": "folder:x/SDI-B"})
  found = _find(config, {"pool": 4_000, "synthetic": 8_000})
  assert found["value"] == pytest.approx(0.9580)
  assert "SDI-B" in found["matched"] and "DT-GAN" in found["matched"]


def test_tables_agree_where_they_repeat_each_other():
  # Table 4 repeats two rows of Table 2 (B).
  of_4, of_2 = (paper_values.TABLES[f"Table {n}"] for n in ("4", "2 (B)"))
  assert of_4["Baseline (Real)"] == of_2["Real"]
  assert of_4["Baseline (Fake)"] == of_2["Baseline"]
  lengths = {
    name: {len(row) for row in rows.values()}
    for name, rows in paper_values.TABLES.items()
  }
  assert lengths.pop("Table 3") == {2}
  assert set(map(tuple, lengths.values())) == {(len(paper_values.COLUMNS),)}


def test_a_table_shows_the_value_and_what_it_is_of():
  folder = made_up.write("aug", [0.5, 0.6], method="aug")
  results = workdir.results(folder)
  results["config"] = workdir.as_json(
    _config("cifar_lowshot.py", {"method": "aug"})
  )
  results["data"] = {"images": IMAGES, "class_names": list("0123456789")}
  workdir.write_json(folder / "results.json", results)
  text = table.markdown(table.gather([folder]))
  assert "the paper's |" in text
  assert (
    "* 85.71: Table 4, Baseline (Aug.): CIFAR-10, from ImageNet weights (B), "
    "10 real images a class, 45,000 images of LSGM"
  ) in text
