"""Tests of real guidance, A-GEM and their gradient accumulation."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from synguide_jax.guidance import (
  a_gem,
  guided_multi_steps,
  GuidedMultiStepsState,
  real_guidance,
  RealGuidanceState,
)

# Worked out by hand: dot -1.5, and all of it must be removed over both leaves.
SYNTHETIC = {"a": [1.0, -2.0], "b": 3.0}
REAL = {"a": [-1.0, 1.0], "b": 0.5}


def tree(values, dtype=None):
  return {k: jnp.array(v, dtype) for k, v in values.items()}


def random_tree(seed, dtype=jnp.float32):
  keys = jax.random.split(jax.random.key(seed))
  return {
    "kernel": jax.random.normal(keys[0], (3, 4), dtype),
    "bias": jax.random.normal(keys[1], (4,), dtype),
  }


def update(tx, synthetic, real, **extra_args):
  return tx.update(
    synthetic, tx.init(synthetic), synthetic, real_grads=real, **extra_args
  )


def flat(grads):
  leaves = [np.ravel(np.asarray(x, np.float64)) for x in jax.tree.leaves(grads)]
  return np.concatenate(leaves)


def reference(synthetic, real, real_weight=1.0, synthetic_weight=1.0):
  f, r = flat(synthetic), flat(real)
  if f @ r < 0:
    f = f - (f @ r) / (r @ r) * r
  return real_weight * r + synthetic_weight * f


def guided(tx):
  return guided_multi_steps(tx, 2)


def assert_trees_equal(actual, expected):
  assert jax.tree.structure(actual) == jax.tree.structure(expected)
  jax.tree.map(np.testing.assert_array_equal, actual, expected)


# Values.


@pytest.mark.parametrize(
  "weights, golden",
  [
    ((0.0, 1.0), [1 / 3, -4 / 3, 10 / 3]),
    ((0.5, 1.0), [-1 / 6, -5 / 6, 43 / 12]),
    ((1.0, 0.0), [-1.0, 1.0, 0.5]),
  ],
)
def test_golden(weights, golden):
  with jax.enable_x64(True):
    synthetic, real = tree(SYNTHETIC), tree(REAL)
    updates, state = update(real_guidance(*weights), synthetic, real)
    np.testing.assert_allclose(flat(updates), golden, rtol=1e-12)
    assert updates["a"].dtype == jnp.float64
    assert state.conflict
    np.testing.assert_allclose(
      state.cosine, -1.5 / np.sqrt(14 * 2.25), rtol=1e-6
    )


def test_projects_all_leaves_at_once():
  updates, _ = update(a_gem(), tree(SYNTHETIC), tree(REAL))
  # Leaf by leaf the second one, whose product is positive, would stay at 3.
  assert not np.allclose(flat(updates), [-0.5, -0.5, 3])
  np.testing.assert_allclose(flat(updates), [1 / 3, -4 / 3, 10 / 3], rtol=1e-6)


def test_never_opposes_the_real_gradient():
  step = jax.jit(functools.partial(update, a_gem()))
  conflicts = 0
  for seed in range(20):
    synthetic, real = random_tree(2 * seed), random_tree(2 * seed + 1)
    updates, state = step(synthetic, real)
    f, r, g = flat(synthetic), flat(real), flat(updates)
    assert g @ r >= -1e-6 * np.linalg.norm(g) * np.linalg.norm(r)
    np.testing.assert_allclose(
      g, reference(synthetic, real, 0.0), rtol=1e-5, atol=1e-6
    )
    assert state.conflict == (f @ r < 0)
    cosine = f @ r / np.linalg.norm(f) / np.linalg.norm(r)
    np.testing.assert_allclose(state.cosine, cosine, rtol=1e-4)
    conflicts += state.conflict
  assert 0 < conflicts < 20


def test_agreeing_gradients_are_untouched():
  synthetic = random_tree(0)
  real = jax.tree.map(lambda x: jnp.sign(x) * 0.1, synthetic)
  updates, state = update(a_gem(), synthetic, real)
  assert_trees_equal(updates, synthetic)
  assert not state.conflict and state.cosine > 0
  updates, _ = update(real_guidance(), synthetic, real)
  assert_trees_equal(updates, jax.tree.map(jnp.add, synthetic, real))


def test_orthogonal_gradients_are_untouched():
  synthetic, real = tree({"a": [7.0, 3.0]}), tree({"a": [-3.0, 7.0]})
  updates, state = update(a_gem(), synthetic, real)
  assert_trees_equal(updates, synthetic)
  assert not state.conflict and state.cosine == 0


@pytest.mark.parametrize("zero", ["real", "synthetic", "both"])
def test_zero_gradients(zero):
  synthetic, real = random_tree(0), random_tree(1)
  synthetic = jax.tree.map(lambda x: x * (zero == "real"), synthetic)
  real = jax.tree.map(lambda x: x * (zero == "synthetic"), real)
  updates, state = update(real_guidance(), synthetic, real)
  assert_trees_equal(updates, jax.tree.map(jnp.add, synthetic, real))
  assert state.cosine == 0 and not state.conflict


def test_a_gem_is_real_guidance_without_the_real_gradient():
  for seed in range(4):
    synthetic, real = random_tree(2 * seed), random_tree(2 * seed + 1)
    assert_trees_equal(
      update(a_gem(), synthetic, real),
      update(real_guidance(0.0, 1.0), synthetic, real),
    )


@pytest.mark.parametrize("real_scale", [1e-30, 1.0, 1e30])
@pytest.mark.parametrize("synthetic_scale", [1e-30, 1.0, 1e30])
def test_squares_neither_overflow_nor_vanish(synthetic_scale, real_scale):
  synthetic = jax.tree.map(lambda x: x * synthetic_scale, tree(SYNTHETIC))
  real = jax.tree.map(lambda x: x * real_scale, tree(REAL))
  updates, state = update(a_gem(), synthetic, real)
  np.testing.assert_allclose(
    flat(updates) / synthetic_scale, [1 / 3, -4 / 3, 10 / 3], rtol=1e-5
  )
  assert state.conflict


# Dtypes.


def test_half_precision_leaves_are_accumulated_in_float32():
  # In bfloat16 the sum of the products would stop growing at 256.
  n = 4096
  synthetic = {"w": jnp.ones(n, jnp.bfloat16), "b": jnp.ones(2)}
  real = {"w": -jnp.ones(n), "b": jnp.ones(2, jnp.bfloat16)}
  updates, state = update(a_gem(), synthetic, real)
  assert updates["w"].dtype == jnp.bfloat16
  assert updates["b"].dtype == jnp.float32
  assert state.cosine.dtype == jnp.float32
  cosine = (2 - n) / (2 + n)
  np.testing.assert_allclose(state.cosine, cosine, rtol=1e-6)
  np.testing.assert_allclose(updates["b"], 1 - cosine, rtol=1e-6)


def test_state_keeps_its_types():
  with jax.enable_x64(True):
    synthetic, real = tree(SYNTHETIC), tree(REAL)
    tx = real_guidance()
    state = tx.init(synthetic)
    _, new_state = tx.update(synthetic, state, real_grads=real)
    assert jax.tree.map(jax.typeof, new_state) == jax.tree.map(
      jax.typeof, state
    )


def test_complex_leaves_use_the_real_inner_product():
  synthetic, real = jnp.array([1.0 + 1.0j]), jnp.array([-1.0 + 0.0j])
  updates, state = update(a_gem(), synthetic, real)
  np.testing.assert_allclose(updates, [1.0j], atol=1e-6)
  assert state.conflict


# Gradients that are not finite.


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("weights", [(1.0, 1.0), (0.0, 1.0), (1.0, 0.0)])
@pytest.mark.parametrize("which", ["synthetic", "real"])
def test_gradients_that_are_not_finite_show(which, weights, bad):
  grads = {"synthetic": random_tree(0), "real": random_tree(1)}
  grads[which]["bias"] = grads[which]["bias"].at[2].set(bad)
  tx = real_guidance(*weights)
  updates, _ = jax.jit(functools.partial(update, tx))(**grads)
  assert not np.all(np.isfinite(flat(updates)))


def test_apply_if_finite_behind_real_guidance():
  tx = optax.chain(a_gem(), optax.apply_if_finite(optax.sgd(1.0), 3))
  params = random_tree(0)
  real = random_tree(1)
  bad = real | {"bias": real["bias"].at[0].set(jnp.nan)}
  state = tx.init(params)
  step = jax.jit(tx.update)
  updates, state = step(params, state, params, real_grads=bad)
  assert not np.any(flat(updates))
  assert optax.tree.get(state, "total_notfinite") == 1
  assert np.isnan(optax.tree.get(state, "cosine"))
  updates, state = step(params, state, params, real_grads=real)
  np.testing.assert_allclose(
    flat(updates), -reference(params, real, 0.0), rtol=1e-5, atol=1e-6
  )


def test_apply_if_finite_around_real_guidance_keeps_bad_synthetic_out():
  tx = optax.apply_if_finite(real_guidance(), 3)
  synthetic, real = random_tree(0), random_tree(1)
  updates, state = update(tx, synthetic, real)
  np.testing.assert_allclose(
    flat(updates), reference(synthetic, real), rtol=1e-5, atol=1e-6
  )
  synthetic["bias"] = synthetic["bias"].at[0].set(jnp.inf)
  updates, state = tx.update(synthetic, state, synthetic, real_grads=real)
  assert not np.any(flat(updates))


# Errors.


@pytest.mark.parametrize(
  "weights, message",
  [
    ((-1.0, 1.0), "real_weight must be nonnegative and finite; got -1.0"),
    ((1.0, -0.5), "synthetic_weight must be nonnegative .* got -0.5"),
    ((float("nan"), 1.0), "real_weight must be"),
    ((1.0, float("inf")), "synthetic_weight must be"),
    ((0, 0.0), "must not both be 0"),
  ],
)
def test_weights_are_checked(weights, message):
  with pytest.raises(ValueError, match=message):
    real_guidance(*weights)


def test_forgotten_real_grads():
  for tx in (
    real_guidance(),
    optax.chain(real_guidance(), optax.adam(1e-3)),
    guided_multi_steps(real_guidance(), 2),
  ):
    grads = random_tree(0)
    with pytest.raises(TypeError, match="'real_grads'"):
      tx.update(grads, tx.init(grads), grads)


@pytest.mark.parametrize("wrap", [lambda tx: tx, guided], ids=["once", "multi"])
def test_trees_that_do_not_match(wrap):
  tx = wrap(real_guidance())
  grads = random_tree(0)
  with pytest.raises(ValueError, match="real_grads must have the tree struct"):
    update(tx, grads, {"kernel": grads["kernel"]})
  with pytest.raises(ValueError, match=r"shapes .*\(3,\) and \(4,\).*'bias'"):
    update(tx, grads, grads | {"bias": jnp.ones(3)})


# Composition.


def test_none_leaves_and_empty_trees():
  synthetic, real = ({**tree(v), "frozen": None} for v in (SYNTHETIC, REAL))
  updates, _ = update(a_gem(), synthetic, real)
  assert updates["frozen"] is None
  np.testing.assert_allclose(flat(updates), [1 / 3, -4 / 3, 10 / 3], rtol=1e-6)
  updates, state = update(a_gem(), {}, {})
  assert updates == {} and not state.conflict
  updates, _ = update(a_gem(), {"a": jnp.ones(0)}, {"a": jnp.ones(0)})
  assert updates["a"].shape == (0,)


@pytest.mark.parametrize(
  "make",
  [
    lambda: optax.chain(real_guidance(0.5), optax.sgd(1.0)),
    lambda: optax.named_chain(
      ("guidance", real_guidance(0.5)), ("sgd", optax.sgd(1.0))
    ),
    lambda: optax.chain(
      optax.inject_hyperparams(real_guidance)(0.5, lambda step: step + 1.0),
      optax.sgd(1.0),
    ),
    lambda: optax.inject_hyperparams(
      lambda real_weight: optax.chain(
        real_guidance(real_weight), optax.sgd(1.0)
      )
    )(0.5),
  ],
  ids=["chain", "named_chain", "schedule", "inject_hyperparams"],
)
def test_composes_under_jit_without_recompiling(make):
  tx = make()
  traces = []

  @jax.jit
  def step(synthetic, real, state, params):
    traces.append(None)
    # Arguments of other transforms pass by.
    return tx.update(synthetic, state, params, real_grads=real, value=1.0)

  synthetic, real = random_tree(0), random_tree(3)
  state = tx.init(synthetic)
  updates, state = step(synthetic, real, state, synthetic)
  np.testing.assert_allclose(
    flat(updates), -reference(synthetic, real, 0.5), rtol=1e-5, atol=1e-6
  )
  assert isinstance(optax.tree.get(state, "RealGuidanceState"), tuple)
  step(real, synthetic, state, synthetic)
  assert len(traces) == 1


def test_jit_equals_eager():
  synthetic, real = tree(SYNTHETIC), tree(REAL)
  tx = real_guidance()
  eager = update(tx, synthetic, real)
  jitted = jax.jit(functools.partial(update, tx))(synthetic, real)
  jax.tree.map(
    functools.partial(np.testing.assert_allclose, rtol=1e-6), jitted, eager
  )
  assert isinstance(jitted[1], RealGuidanceState)


def test_tree_map_params():
  for tx in (
    optax.chain(real_guidance(), optax.adam(1e-3)),
    guided_multi_steps(optax.chain(real_guidance(), optax.adam(1e-3)), 2),
  ):
    state = tx.init(random_tree(0))
    mapped = optax.tree.map_params(tx, lambda x: x + 1, state)
    assert jax.tree.structure(mapped) == jax.tree.structure(state)
    assert optax.tree.get(mapped, "cosine") == 0
    assert np.all(optax.tree.get(mapped, "mu")["bias"] == 1)


def test_masked():
  synthetic, real = random_tree(0), random_tree(3)
  mask = {"kernel": True, "bias": False}
  tx = optax.masked(a_gem(), mask, mask_compatible_extra_args=True)
  updates, _ = jax.jit(functools.partial(update, tx))(synthetic, real)
  np.testing.assert_array_equal(updates["bias"], synthetic["bias"])
  np.testing.assert_allclose(
    flat(updates["kernel"]),
    reference(synthetic["kernel"], real["kernel"], 0.0),
    rtol=1e-5,
    atol=1e-6,
  )


def test_partition():
  synthetic, real = random_tree(0), random_tree(3)
  tx = optax.partition(
    {"guided": a_gem(), "plain": optax.sgd(1.0)},
    {"kernel": "guided", "bias": "plain"},
    mask_compatible_extra_args=True,
  )
  updates, _ = update(tx, synthetic, real)
  np.testing.assert_array_equal(updates["bias"], -synthetic["bias"])
  np.testing.assert_allclose(
    flat(updates["kernel"]),
    reference(synthetic["kernel"], real["kernel"], 0.0),
    rtol=1e-5,
    atol=1e-6,
  )


def test_forgotten_mask_compatible_extra_args():
  synthetic, real = random_tree(0), random_tree(1)
  labels = {"kernel": "guided", "bias": "plain"}
  for tx in (
    optax.masked(a_gem(), {"kernel": True, "bias": False}),
    optax.partition({"guided": a_gem(), "plain": optax.sgd(1.0)}, labels),
  ):
    with pytest.raises(ValueError, match="mask_compatible_extra_args=True"):
      update(tx, synthetic, real)


@pytest.mark.parametrize("wrap", [lambda tx: tx, guided], ids=["once", "multi"])
@pytest.mark.parametrize("axis_type", ["Auto", "Explicit"])
def test_sharded_equals_one_device(axis_type, wrap):
  if jax.device_count() < 8:
    pytest.skip("needs 8 devices")
  mesh = jax.make_mesh(
    (8,), ("data",), axis_types=(jax.sharding.AxisType[axis_type],)
  )
  sharding = jax.sharding.NamedSharding(mesh, jax.P("data"))
  keys = jax.random.split(jax.random.key(0), 4)
  synthetic, real = (
    {
      "kernel": jax.random.normal(k[0], (16, 4)),
      "bias": jax.random.normal(k[1], (8,)),
    }
    for k in (keys[:2], keys[2:])
  )
  real["kernel"] -= synthetic["kernel"]
  tx = wrap(real_guidance(0.5))

  @jax.jit
  def two_steps(synthetic, real):
    state = tx.init(synthetic)
    for _ in range(2):
      updates, state = tx.update(synthetic, state, real_grads=real)
    return updates, state

  updates, state = two_steps(synthetic, real)
  assert optax.tree.get(state, "conflict")
  arrays = jax.device_put((synthetic, real), sharding)
  with jax.set_mesh(mesh):
    sharded_updates, sharded_state = two_steps(*arrays)
  assert len(sharded_updates["kernel"].sharding.device_set) == 8
  jax.tree.map(
    functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6),
    (sharded_updates, sharded_state),
    (updates, state),
  )


# Gradient accumulation.


def test_multi_steps_average_both_gradients():
  synthetic = [tree({"w": w}) for w in ([1.0, 0.0], [1.0, -2.0])]
  real = [tree({"w": w}) for w in ([3.0, 3.0], [-1.0, 1.0])]

  def run(tx):
    state = tx.init(synthetic[0])
    for f, r in zip(synthetic, real, strict=True):
      updates, state = tx.update(f, state, synthetic[0], real_grads=r)
    return updates["w"]

  # The averages, [1, -1] and [1, 2], do conflict; so do [1, -1] and the last
  # real gradient [-1, 1], but along another direction.
  np.testing.assert_allclose(
    run(guided_multi_steps(a_gem(), 2)), [1.2, -0.6], rtol=1e-6
  )
  wrong = optax.MultiSteps(a_gem(), 2).gradient_transformation()
  np.testing.assert_allclose(run(wrong), [0.0, 0.0], atol=1e-6)


def test_multi_steps_equal_single_steps_of_averages():
  tx = optax.chain(
    real_guidance(), optax.adam(optax.linear_schedule(0.1, 0.0, 4))
  )
  multi = guided_multi_steps(tx, every_k=3)
  params = random_tree(100)
  state, multi_state = tx.init(params), multi.init(params)
  step = jax.jit(multi.update)
  for i in range(2):
    seeds = range(6 * i, 6 * i + 3)
    pairs = [(random_tree(seed), random_tree(seed + 3)) for seed in seeds]
    for j, (synthetic, real) in enumerate(pairs):
      assert multi_state.mini_step == j
      inner_state = multi_state.inner_state
      updates, multi_state = step(
        synthetic, multi_state, params, real_grads=real
      )
      if j < 2:
        assert not np.any(flat(updates))
        assert_trees_equal(multi_state.inner_state, inner_state)
    assert isinstance(multi_state, GuidedMultiStepsState)
    assert multi_state.mini_step == 0
    synthetic, real = jax.tree.map(lambda *x: sum(x) / 3, *pairs)
    expected, state = tx.update(synthetic, state, params, real_grads=real)
    np.testing.assert_allclose(flat(updates), flat(expected), rtol=1e-4)
  assert step._cache_size() == 1


def test_multi_steps_of_one_step():
  synthetic, real = random_tree(0), random_tree(1)
  expected, _ = update(real_guidance(), synthetic, real)
  updates, _ = update(guided_multi_steps(real_guidance(), 1), synthetic, real)
  jax.tree.map(
    functools.partial(np.testing.assert_allclose, rtol=1e-6), updates, expected
  )


@pytest.mark.parametrize("accumulator_dtype", [None, jnp.bfloat16])
def test_multi_steps_dtypes(accumulator_dtype):
  params = random_tree(0, jnp.bfloat16)
  tx = guided_multi_steps(real_guidance(), 2, accumulator_dtype)
  state = tx.init(params)
  expected = accumulator_dtype or jnp.float32
  assert state.real_grads["bias"].dtype == expected
  for mini_step in (1, 0):
    updates, state = tx.update(params, state, params, real_grads=params)
    assert updates["bias"].dtype == jnp.bfloat16
    assert state.real_grads["bias"].dtype == expected
    assert state.mini_step == mini_step
  assert_trees_equal(updates, jax.tree.map(lambda x: 2 * x, params))


def test_multi_steps_average_half_precision_in_float32():
  tx = guided_multi_steps(a_gem(), 256)
  params = jnp.zeros(1, jnp.bfloat16)
  grads = 1 + (jnp.arange(256) % 2).astype(jnp.bfloat16)[:, None]

  def step(state, grad):
    updates, state = tx.update(grad, state, params, real_grads=grad)
    return state, updates

  _, updates = jax.lax.scan(step, tx.init(params), grads)
  np.testing.assert_array_equal(updates[-1], jnp.array([1.5], jnp.bfloat16))


def test_multi_steps_recover_from_gradients_that_are_not_finite():
  tx = optax.chain(a_gem(), optax.apply_if_finite(optax.sgd(1.0), 9))
  tx = guided_multi_steps(tx, 2)
  params = random_tree(0)
  bad = jax.tree.map(lambda x: x * jnp.nan, params)
  state = tx.init(params)
  for real in (bad, params):
    updates, state = tx.update(params, state, params, real_grads=real)
    assert not np.any(flat(updates))
  for real in (params, params):
    updates, state = tx.update(params, state, params, real_grads=real)
  np.testing.assert_allclose(flat(updates), -flat(params), rtol=1e-6)


def test_multi_steps_state_can_be_donated():
  tx = guided_multi_steps(optax.chain(real_guidance(), optax.adam(0.1)), 2)
  params = random_tree(0)
  state = tx.init(params)
  step = jax.jit(
    lambda state, grads: tx.update(grads, state, params, real_grads=grads)[1],
    donate_argnums=0,
  )
  assert step(step(state, params), params).mini_step == 0


@pytest.mark.parametrize("every_k", [0, -1, 2.0, True, None])
def test_every_k_is_checked(every_k):
  with pytest.raises(ValueError, match="every_k must be"):
    guided_multi_steps(real_guidance(), every_k)
