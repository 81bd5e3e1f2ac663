"""Runs: the rule for their mode, both modes on any mesh, their places."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from synguide_jax import mesh as mesh_lib
from synguide_jax import runs
from synguide_jax.errors import UserError

SMALL, LARGE = 128 * 32 * 32, 128 * 224 * 224


@pytest.mark.parametrize(
  "wanted,platform,pixels,mode",
  [
    ("auto", "cpu", SMALL, "map"),
    ("auto", "cpu", LARGE, "map"),
    ("auto", "gpu", SMALL, "vmap"),
    ("auto", "tpu", 128 * 64 * 64, "vmap"),
    ("auto", "tpu", LARGE, "map"),
    ("vmap", "tpu", LARGE, "vmap"),
    ("map", "gpu", SMALL, "map"),
  ],
)
def test_the_rule(wanted, platform, pixels, mode):
  assert runs.choose_mode(wanted, platform, pixels) == mode


def test_an_unknown_mode_is_named():
  with pytest.raises(UserError, match="'pmap'.*auto, vmap, map"):
    runs.choose_mode("pmap", "cpu", SMALL)


@pytest.mark.parametrize(
  "wanted,platform,pixels,resident,steps",
  [
    (0, "cpu", 64 * 16 * 16, True, 16),
    (0, "cpu", SMALL, True, 1),
    (0, "gpu", SMALL, True, 16),
    (0, "tpu", LARGE, True, 1),
    (0, "gpu", SMALL, False, 1),
    (5, "gpu", LARGE, True, 5),
    (1, "tpu", SMALL, False, 1),
  ],
)
def test_the_rule_of_steps(wanted, platform, pixels, resident, steps):
  found = runs.choose_steps(wanted, platform, pixels, resident=resident)
  assert found == steps


def test_steps_that_cannot_be_dispatched_together():
  with pytest.raises(UserError, match="steps_per_dispatch=-1"):
    runs.choose_steps(-1, "cpu", SMALL, resident=True)
  with pytest.raises(UserError, match="steps_per_dispatch=2, but .* streamed"):
    runs.choose_steps(2, "cpu", SMALL, resident=False)


@pytest.mark.parametrize("frozen_per_run", [False, True])
@pytest.mark.parametrize("run_axis", [1, 2, 8])
@pytest.mark.parametrize("mode", ["vmap", "map"])
def test_every_run_gets_its_own(mode, run_axis, frozen_per_run):
  mesh = mesh_lib.create(8, run_axis=run_axis)
  rng = np.random.default_rng(0)
  frozen = rng.normal(size=(8, 3) if frozen_per_run else 3)
  x, y = rng.normal(size=(8, 4, 3)), rng.normal(size=(8, 4))
  over = runs.over_runs(
    lambda frozen, x, y: {"a": x @ frozen + y["b"], "c": y["b"].sum()},
    mode,
    mesh,
    frozen_per_run=frozen_per_run,
  )
  per_run = mesh_lib.per_run(mesh)
  if frozen_per_run:
    frozen = jax.device_put(frozen, per_run)
  of_runs = jax.device_put((x, {"b": y}), per_run)
  found = jax.jit(over, out_shardings=per_run)(frozen, *of_runs)
  each = frozen if frozen_per_run else np.broadcast_to(frozen, (8, 3))
  expected = np.einsum("rnk,rk->rn", x, each) + y
  np.testing.assert_allclose(found["a"], expected, rtol=1e-5, atol=1e-6)
  np.testing.assert_allclose(found["c"], y.sum(-1), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("num_runs,count", [(1, 8), (5, 8), (8, 8), (9, 16)])
def test_copies_of_the_first_run_fill_the_places(num_runs, count):
  mesh = mesh_lib.create(num_runs, run_axis=8)
  places = runs.Places(mesh, num_runs)
  values = np.arange(num_runs, dtype=np.float32)
  placed = places.place(values)
  assert places.count == count
  assert placed.sharding.spec == jax.sharding.PartitionSpec("run")
  expected = np.concatenate([values, np.zeros(count - num_runs)])
  np.testing.assert_array_equal(placed, expected)
  tree = {"a": placed, "b": jnp.stack([placed, placed], 1)}
  fetched = places.fetch(tree)
  np.testing.assert_array_equal(fetched["a"], values)
  assert fetched["b"].shape == (num_runs, 2)


def test_a_run_axis_must_divide_the_devices():
  with pytest.raises(UserError, match="mesh.runs=3 .* devices, 8"):
    mesh_lib.create(3, run_axis=3)


def test_split_takes_the_longest_axis_that_can_be():
  mesh = mesh_lib.create(2, run_axis=2)  # (2, 4)
  tree = {
    "kernel": jnp.zeros((2, 3, 8, 16)),
    "bias": jnp.zeros((2, 7)),
    "count": jnp.zeros(2),
  }
  split = mesh_lib.split(mesh, tree, runs=True)
  spec = jax.sharding.PartitionSpec
  assert split["kernel"].spec == spec("run", None, None, ("data",))
  assert split["bias"].spec == spec("run", None)
  assert split["count"].spec == spec("run")
  # Without runs there would be a copy on every device.
  shared = mesh_lib.split(mesh, {"kernel": jnp.zeros((8, 6))}, runs=False)
  assert shared["kernel"].spec == spec(("run", "data"), None)
