"""Leaks are found; files are told apart by what differs and nothing else."""

from types import SimpleNamespace

import numpy as np
import pytest

from synguide_jax.data import checks


def test_copies_are_all_but_the_first_of_their_content():
  hashes = np.array([7, 5, 7, 9, 5, 7], np.uint64)
  found = checks.find_copies(hashes, np.array([0, 1, 2, 3, 5]))
  np.testing.assert_array_equal(found, [2, 5])
  assert not len(checks.find_copies(hashes, np.array([4, 3, 2])))


def test_leaks_are_the_duplicates_of_held_out_images():
  hashes = np.array([7, 8, 7, 2**64 - 1, 9, 2**64 - 1, 8], np.uint64)
  leaks = checks.find_leaks(hashes, np.array([0, 3]), np.array([6, 5, 1, 2]))
  np.testing.assert_array_equal(leaks, [5, 2])


def test_nothing_leaks_from_or_into_nothing():
  hashes, none = np.zeros(3, np.uint64), np.zeros(0, np.int32)
  assert checks.find_leaks(hashes, none, np.arange(3)).size == 0
  leaks = checks.find_leaks(hashes, np.arange(3), none)
  assert leaks.size == 0 and leaks.dtype == np.int32


def files(kind="JPEG", width=224, height=224, quantization=0.0, number=40):
  def column(value, dtype=None):
    return np.broadcast_to(np.asarray(value, dtype), number)

  return SimpleNamespace(
    formats=column(kind),
    widths=column(width),
    heights=column(height),
    quantization=column(quantization, np.float32),
  )


def test_files_of_other_format_and_size_are_told_apart():
  shortcut = checks.file_shortcut(
    files(quantization=16.5), files("PNG", 32, 32)
  )
  assert shortcut.accuracy == 1
  assert shortcut.message == (
    "files can be told apart without looking at their content (balanced "
    "accuracy 1.00): real are JPEG (100 %), 224x224 px; synthetic are PNG "
    "(100 %), 32x32 px. A classifier may learn this instead of the content; "
    "store both alike."
  )


@pytest.mark.parametrize(
  ("change", "real_is", "synthetic_is", "unmentioned"),
  [
    ({"kind": "PNG"}, "JPEG (100 %)", "PNG (100 %)", "px"),
    ({"height": 225}, "224x224 px", "224x225 px", "JPEG"),
    (
      {"height": np.arange(300, 340)},
      "224x224 px",
      "about 224x320 px",
      "JPEG",
    ),
    ({"quantization": 4.25}, "quantised by 0.0", "quantised by 4.2", "px"),
    (
      {"kind": ["JPEG"] * 4 + ["PNG"] * 36},
      "JPEG (100 %)",
      "PNG (90 %)",
      "quantised",
    ),
  ],
)
def test_only_what_differs_is_mentioned(
  change, real_is, synthetic_is, unmentioned
):
  shortcut = checks.file_shortcut(files(), files(**change))
  assert shortcut.accuracy >= 0.9
  real, synthetic = shortcut.message.split("; ")[:2]
  assert f"real are {real_is}" in real
  assert f"synthetic are {synthetic_is}" in synthetic
  assert unmentioned not in shortcut.message


def mixed(seed, number=300):
  """Files of all kinds, drawn alike."""
  rng = np.random.default_rng(seed)
  kinds = rng.choice(["JPEG", "PNG", "WEBP"], number)
  return files(
    kinds,
    rng.integers(100, 300, number),
    rng.integers(100, 300, number),
    np.where(kinds == "JPEG", rng.uniform(5, 30, number), 0),
    number,
  )


def test_files_alike_are_not_told_apart():
  assert checks.file_shortcut(files(), files(number=70)) is None
  assert checks.file_shortcut(mixed(1), mixed(2)) is None


def test_accuracy_is_balanced():
  # Guessing the larger side would be right for 400 of 420 files.
  assert checks.file_shortcut(mixed(1, 20), mixed(2, 400)) is None
  few = mixed(1, 20)
  few.widths = np.full(20, 900)
  assert checks.file_shortcut(few, mixed(2, 400)).accuracy > 0.95


def test_statistics_may_tell_only_together():
  real, synthetic = mixed(1), mixed(2)
  real.heights = real.widths * 11 // 10
  synthetic.heights = synthetic.widths * 10 // 11
  shortcut = checks.file_shortcut(real, synthetic)
  assert shortcut.accuracy > 0.95
  assert "px" in shortcut.message and "JPEG" not in shortcut.message


def test_few_files_tell_nothing():
  other = files("PNG")
  assert checks.file_shortcut(files(number=9), other) is None
  assert checks.file_shortcut(other, files(number=9)) is None
  assert checks.file_shortcut(files(number=10), other).accuracy == 1


def test_a_large_set_is_probed_by_a_subset_of_its_seed():
  # 30 % of the synthetic files differ, so the accuracy is that of the draw.
  synthetic = files(["PNG"] * 4200 + ["JPEG"] * 1800, number=6000)
  one, two, three = (
    checks.file_shortcut(files(number=6000), synthetic, seed=seed).accuracy
    for seed in (1, 1, 2)
  )
  assert one == two != three
  assert abs(one - 0.85) < 0.03
