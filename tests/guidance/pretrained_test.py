"""Tests of the pretrained guidance loss."""

import functools
import re
import subprocess
import sys

import jax
import jax.numpy as jnp
from jax.test_util import check_grads
import numpy as np
import pytest

from synguide_jax.guidance import pairwise_similarity, pretrained_guidance_loss
from synguide_jax.guidance import pretrained as pretrained_lib

METRICS = ("cosine", "dot", "euclidean", "sqeuclidean")
SIMILARITIES = ("kl", "l1", "l2", "js")
REDUCTIONS = ("batchmean", "elementmean", "sum")
DIRECTIONS = ("pretrained_to_trained", "trained_to_pretrained")
# Metrics and similarities do not depend on each other: not all of the products.
CASES = [
  *((similarity, "cosine") for similarity in SIMILARITIES),
  *(("kl", metric) for metric in METRICS[1:]),
]

PRETRAINED = [[1.0, 0, 0], [1, 1, 0], [0, 1, 1], [1, 2, 3]]
TRAINED = [[1.0, 0], [1, 1], [-1, 1], [0.5, -2]]

# Most tests share these shapes and run outside of jit, where an operation that
# has been compiled for one of them need not be for the next.
N, D, E = 8, 4, 6
value_and_grad = jax.value_and_grad(pretrained_guidance_loss)


def normal(seed, shape, dtype=jnp.float32):
  return jax.random.normal(jax.random.key(seed), shape, dtype)


def manhattan(x, y):
  return -jnp.sum(jnp.abs(x - y))


# Values computed outside of JAX, in float64, by NumPy and by PyTorch.


@pytest.mark.parametrize(
  "direction, golden",
  [
    (
      "pretrained_to_trained",
      {
        "sum": 0.5804533515,
        "batchmean": 0.1451133379,
        "elementmean": 0.0483711126,
      },
    ),
    (
      "trained_to_pretrained",
      {
        "sum": 0.5530550530,
        "batchmean": 0.1382637633,
        "elementmean": 0.0460879211,
      },
    ),
  ],
)
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_kl_golden(direction, golden, reduction):
  with jax.enable_x64(True):
    loss = pretrained_guidance_loss(
      jnp.array(TRAINED),
      jnp.array(PRETRAINED),
      direction=direction,
      reduction=reduction,
    )
    assert loss.dtype == jnp.float64
    np.testing.assert_allclose(loss, golden[reduction], rtol=1e-8)


def test_l1_golden():
  with jax.enable_x64(True):
    arrays = jnp.array(TRAINED), jnp.array(PRETRAINED)
    for reduction, golden in (
      ("sum", 8.2313579425),
      ("batchmean", 8.2313579425 / 4),
      ("elementmean", 0.6859464952),
    ):
      loss = pretrained_guidance_loss(
        *arrays, similarity="l1", reduction=reduction
      )
      np.testing.assert_allclose(loss, golden, rtol=1e-8)


def test_kl_golden_float32():
  loss = pretrained_guidance_loss(jnp.array(TRAINED), jnp.array(PRETRAINED))
  assert loss.dtype == jnp.float32
  np.testing.assert_allclose(loss, 0.1451133379, rtol=1e-5)


def reference_loss(
  features,
  pretrained_features,
  similarity,
  metric,
  reduction,
  direction,
  temperature,
):
  """One pair of rows at a time, in NumPy."""

  def delta(x, y):
    if metric == "cosine":
      return x @ y / np.linalg.norm(x) / np.linalg.norm(y)
    if metric == "dot":
      return x @ y
    distance = np.linalg.norm(x - y)
    return -distance if metric == "euclidean" else -(distance**2)

  n = len(features)
  total = 0.0
  for i in range(n):
    others = [j for j in range(n) if j != i]
    s, t = (
      np.array([delta(f[i], f[j]) for j in others]) / temperature
      for f in (features, pretrained_features)
    )
    q, p = (np.exp(x - x.max()) / np.exp(x - x.max()).sum() for x in (s, t))
    m = (p + q) / 2
    if similarity == "l1":
      total += np.abs(s - t).sum()
    elif similarity == "l2":
      total += ((s - t) ** 2).sum()
    elif similarity == "js":
      total += (p * np.log(p / m) + q * np.log(q / m)).sum() / 2
    elif direction == "pretrained_to_trained":
      total += (p * np.log(p / q)).sum()
    else:
      total += (q * np.log(q / p)).sum()
  divisors = {"batchmean": n, "elementmean": n * (n - 1), "sum": 1}
  return total / divisors[reduction]


@pytest.mark.parametrize("similarity, metric", CASES)
def test_equals_plain_implementation(similarity, metric):
  with jax.enable_x64(True):
    features = normal(0, (N, D), jnp.float64)
    pretrained = normal(1, (N, E), jnp.float64)
    for reduction in REDUCTIONS:
      for direction in DIRECTIONS:
        for temperature in (1.0, 0.3):
          options = dict(
            similarity=similarity,
            metric=metric,
            reduction=reduction,
            direction=direction,
            temperature=temperature,
          )
          np.testing.assert_allclose(
            pretrained_guidance_loss(features, pretrained, **options),
            reference_loss(
              np.asarray(features), np.asarray(pretrained), **options
            ),
            rtol=1e-10,
          )


# Pairwise similarities.


def test_pairwise_similarity_values():
  x = jnp.array([[3.0, 4.0], [0.0, 1.0], [0.0, 0.0]])
  expected = {
    "cosine": [[1, 0.8, 0], [0.8, 1, 0], [0, 0, 0]],
    "dot": [[25, 4, 0], [4, 1, 0], [0, 0, 0]],
    "sqeuclidean": [[0, -18, -25], [-18, 0, -1], [-25, -1, 0]],
    "euclidean": [[0, -(18**0.5), -5], [-(18**0.5), 0, -1], [-5, -1, 0]],
    manhattan: [[0, -6, -7], [-6, 0, -1], [-7, -1, 0]],
  }
  for metric, value in expected.items():
    actual = pairwise_similarity(x, metric)
    assert actual.dtype == jnp.float32
    np.testing.assert_allclose(actual, value, rtol=1e-6, atol=1e-7)


def test_pairwise_similarity_of_one_row():
  np.testing.assert_allclose(
    pairwise_similarity(jnp.array([[2.0, 1.0]])), [[1]], rtol=1e-6
  )


@pytest.mark.parametrize("metric", ["cosine", "dot"])
def test_products_lower_to_matmul(metric):
  n, d = 37, 53
  text = (
    jax.jit(lambda x: pairwise_similarity(x, metric))
    .lower(jnp.ones((n, d)))
    .as_text()
  )
  assert text.count("stablehlo.dot_general") == 1
  assert f"(tensor<{n}x{d}xf32>, tensor<{n}x{d}xf32>)" in text
  assert f"tensor<{n}x{n}x{d}xf32>" not in text
  assert "HIGHEST" in text


@pytest.mark.parametrize("metric", METRICS)
def test_memory_is_quadratic(metric):
  n, d = 64, 256
  x = jax.ShapeDtypeStruct((n, d), jnp.float32)

  def loss(features, pretrained):
    return pretrained_guidance_loss(features, pretrained, metric=metric)

  memory = jax.jit(jax.grad(loss)).lower(x, x).compile().memory_analysis()
  # A few arrays [N, N] and [N, D]; one [N, N, D] would be 16 times the bound.
  assert memory.temp_size_in_bytes < n * n * d * 4 / 16


@pytest.mark.parametrize("metric", ["euclidean", "sqeuclidean"])
def test_distance_of_close_rows_is_accurate(metric):
  x = jnp.array([[1000.0, 1000.0], [1000.0, 1000.25]])
  expected = {"euclidean": -0.25, "sqeuclidean": -0.0625}
  assert pairwise_similarity(x, metric)[0, 1] == expected[metric]
  gradient = jax.grad(lambda x: pairwise_similarity(x, metric)[0, 1])(x)
  slope = {"euclidean": 1.0, "sqeuclidean": 0.5}[metric]
  np.testing.assert_allclose(
    gradient, [[0, slope], [0, -slope]], rtol=1e-3, atol=1e-3
  )


# Properties.


@pytest.mark.parametrize("similarity", SIMILARITIES)
def test_zero_for_scaled_and_rotated_features(similarity):
  with jax.enable_x64(True):
    pretrained = normal(0, (N, D), jnp.float64)
    rotation = jnp.linalg.qr(normal(1, (D, D), jnp.float64))[0]
    for scale in (1e-12, 3.0, 1e12):
      loss = pretrained_guidance_loss(
        scale * pretrained @ rotation, pretrained, similarity=similarity
      )
      np.testing.assert_allclose(loss, 0, atol=1e-13)


@pytest.mark.parametrize("similarity, metric", [*CASES, ("kl", manhattan)])
def test_invariant_to_order_of_batch(similarity, metric):
  features, pretrained = normal(0, (N, D)), normal(1, (N, E))
  order = jax.random.permutation(jax.random.key(2), N)
  options = dict(similarity=similarity, metric=metric)
  np.testing.assert_allclose(
    pretrained_guidance_loss(features[order], pretrained[order], **options),
    pretrained_guidance_loss(features, pretrained, **options),
    rtol=1e-4,
  )


@pytest.mark.parametrize("similarity", SIMILARITIES)
def test_positive_for_different_features(similarity):
  loss = pretrained_guidance_loss(
    normal(0, (N, D)), normal(1, (N, E)), similarity=similarity
  )
  assert loss.shape == () and loss > 0


@pytest.mark.parametrize("similarity", SIMILARITIES)
def test_no_gradient_to_pretrained_features(similarity):
  gradients = jax.grad(
    lambda *f: pretrained_guidance_loss(*f, similarity=similarity), (0, 1)
  )(normal(0, (N, D)), normal(1, (N, E)))
  assert np.any(gradients[0])
  assert not np.any(gradients[1])


def test_two_rows_have_one_distribution():
  features, pretrained = normal(0, (2, 4)), normal(1, (2, 4))
  loss, gradient = jax.jit(value_and_grad)(features, pretrained)
  assert loss == 0
  np.testing.assert_array_equal(gradient, jnp.zeros((2, 4)))


def test_js_is_symmetric_and_bounded():
  x, y = normal(0, (N, D)), normal(1, (N, E))
  loss = pretrained_guidance_loss(x, y, "js", temperature=0.01)
  np.testing.assert_allclose(
    loss,
    pretrained_guidance_loss(y, x, "js", temperature=0.01),
    rtol=1e-5,
  )
  assert 0 < loss <= np.log(2)


@pytest.mark.parametrize("similarity, metric", CASES)
def test_gradients_numerically(similarity, metric):
  with jax.enable_x64(True):
    features = normal(0, (N, D), jnp.float64)
    pretrained = normal(1, (N, E), jnp.float64)
    where = jnp.arange(N) != 2

    def loss(features):
      return pretrained_guidance_loss(
        features, pretrained, similarity=similarity, metric=metric, where=where
      )

    check_grads(loss, (features,), order=1, modes=("rev",))


@pytest.mark.parametrize("metric", METRICS)
def test_second_order_gradients_numerically(metric):
  with jax.enable_x64(True):
    features = normal(0, (N, D), jnp.float64)

    @jax.jit
    @jax.grad
    def gradient(features):
      return jnp.sum(pairwise_similarity(features, metric) ** 2)

    check_grads(gradient, (features,), order=1, modes=("rev",))


def test_gradient_of_temperature():
  features, pretrained = normal(0, (N, D)), normal(1, (N, E))
  gradient = jax.jit(
    jax.grad(
      lambda t: pretrained_guidance_loss(features, pretrained, temperature=t)
    )
  )(0.5)
  assert np.isfinite(gradient) and gradient != 0


@pytest.mark.parametrize("metric", METRICS)
def test_temperature_scales_similarities(metric):
  features, pretrained = normal(0, (N, D)), normal(1, (N, E))
  for similarity, factor in (("l1", 2), ("l2", 4)):
    options = dict(similarity=similarity, metric=metric)
    np.testing.assert_allclose(
      factor
      * pretrained_guidance_loss(
        features, pretrained, temperature=2, **options
      ),
      pretrained_guidance_loss(features, pretrained, **options),
      rtol=1e-5,
    )


# Degenerate rows and dtypes.


@pytest.mark.parametrize("similarity, metric", [*CASES, ("kl", manhattan)])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_finite_for_degenerate_rows(dtype, similarity, metric):
  # Two zero rows and two coincident ones, at different places.
  features = normal(0, (N, D), dtype)[jnp.array([0, 1, 1, 2, 3, 4, 5, 6])]
  features = features.at[3:5].set(0)
  pretrained = normal(1, (N, E), dtype)[jnp.array([0, 1, 2, 2, 3, 4, 5, 6])]
  pretrained = pretrained.at[:2].set(0)
  for factor in (1, 0):
    value, gradient = value_and_grad(
      factor * features, pretrained, similarity=similarity, metric=metric
    )
    assert np.isfinite(value)
    assert gradient.dtype == dtype
    assert jnp.all(jnp.isfinite(gradient))


def test_zero_row_gets_no_gradient_from_cosine():
  features = normal(0, (N, D)).at[1].set(0)
  _, gradient = value_and_grad(features, normal(1, (N, E)))
  assert not np.any(gradient[1]) and np.all(np.any(gradient[2:], axis=1))


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_half_precision_is_computed_in_float32(dtype):
  features, pretrained = normal(0, (N, D), dtype), normal(1, (N, E), dtype)
  loss = pretrained_guidance_loss(features, pretrained)
  assert loss.dtype == jnp.float32
  np.testing.assert_array_equal(
    loss,
    pretrained_guidance_loss(
      features.astype(jnp.float32), pretrained.astype(jnp.float32)
    ),
  )


@pytest.mark.parametrize("similarity", SIMILARITIES)
def test_selected_rows_that_are_not_finite_show(similarity):
  features = normal(0, (N, D)).at[1, 0].set(jnp.nan)
  loss = pretrained_guidance_loss(features, normal(1, (N, E)), similarity)
  assert np.isnan(loss)


# Masks.


@pytest.mark.parametrize("similarity, metric", CASES)
def test_where_equals_loss_on_subset(similarity, metric):
  features, pretrained = normal(0, (N, D)), normal(1, (N, E))
  where = np.array([1, 0, 1, 1, 0, 0, 1, 0], bool)
  # Rows that are left out have no influence, whatever they are.
  features = features.at[1].set(jnp.nan).at[4].set(jnp.inf)
  pretrained = pretrained.at[1].set(jnp.nan)

  loss = functools.partial(value_and_grad, similarity=similarity, metric=metric)

  value, gradient = loss(features, pretrained, where=where)
  expected_value, expected_gradient = loss(features[where], pretrained[where])
  np.testing.assert_allclose(value, expected_value, rtol=1e-5)
  np.testing.assert_allclose(
    gradient[where], expected_gradient, rtol=1e-4, atol=1e-5
  )
  assert not np.any(gradient[~where])

  # Fewer than two rows have no pair.
  for few in (np.zeros(N, bool), np.arange(N) == 2):
    value, gradient = loss(features, pretrained, where=few)
    assert value == 0
    np.testing.assert_array_equal(gradient, np.zeros((N, D)))


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("direction", DIRECTIONS)
def test_where_with_every_reduction(direction, reduction):
  features, pretrained = normal(0, (N, D)), normal(1, (N, E))
  where = np.array([1, 0, 1, 1, 0, 0, 1, 0], bool)
  options = dict(reduction=reduction, direction=direction)
  np.testing.assert_allclose(
    pretrained_guidance_loss(features, pretrained, where=where, **options),
    pretrained_guidance_loss(features[where], pretrained[where], **options),
    rtol=1e-5,
  )
  for few in (np.zeros(N, bool), np.arange(N) == 2):
    loss = pretrained_guidance_loss(features, pretrained, where=few, **options)
    assert loss == 0


def test_where_with_a_metric_that_divides_by_norms():
  def cosine(x, y):
    return x @ y / jnp.linalg.norm(x) / jnp.linalg.norm(y)

  features = normal(0, (N, D)).at[1].set(0)
  where = jnp.arange(N) != 1
  gradients = [
    value_and_grad(features, normal(1, (N, E)), metric=metric, where=where)[1]
    for metric in (cosine, "cosine")
  ]
  np.testing.assert_allclose(*gradients, rtol=1e-4, atol=1e-6)


# Errors.


@pytest.mark.parametrize(
  "options, message",
  [
    ({"similarity": "cosine"}, "similarity must be one of 'kl', .*'cosine'"),
    ({"metric": "l2"}, "metric must be one of 'cosine', .*'l2'"),
    ({"metric": None}, "metric must be one of .*None"),
    ({"reduction": "mean"}, "reduction must be one of 'batchmean', .*'mean'"),
    ({"direction": "forward"}, "direction must be one of .*'forward'"),
    ({"similarity": ["kl"]}, "similarity must be one of"),
    ({"temperature": 0}, "temperature must be positive and finite; got 0"),
    ({"temperature": -1.0}, "temperature must be positive"),
    ({"temperature": float("nan")}, "temperature must be positive"),
    ({"temperature": float("inf")}, "temperature must be positive"),
    ({"where": jnp.ones(4)}, "where must be boolean .* got float32"),
    ({"where": jnp.ones(3, bool)}, r"where must be .*\(4,\); .*\(3,\)"),
    ({"metric": lambda x, y: x}, r"metric must return a scalar .*\(3,\)"),
    ({"features": jnp.ones((4, 2, 2, 3))}, r"^features must .*\(4, 2, 2, 3\)"),
    ({"features": jnp.ones((3, 3))}, "one row per image.* 3 and 4 rows"),
    ({"pretrained_features": jnp.ones(4)}, r"^pretrained_features .*\(4,\)"),
  ],
)
def test_errors(options, message):
  arguments = {
    "features": jnp.ones((4, 3)),
    "pretrained_features": jnp.ones((4, 5)),
  }
  with pytest.raises(ValueError, match=message):
    pretrained_guidance_loss(**(arguments | options))


@pytest.mark.parametrize("n", [0, 1])
def test_too_few_rows(n):
  with pytest.raises(ValueError, match="pairs of rows; got"):
    pretrained_guidance_loss(jnp.ones((n, 3)), jnp.ones((n, 3)))


def test_pairwise_similarity_errors():
  with pytest.raises(ValueError, match="metric must be one of"):
    pairwise_similarity(jnp.ones((2, 2)), "manhattan")
  with pytest.raises(ValueError, match=r"\[N, D\]"):
    pairwise_similarity(jnp.ones(2))


# Transformations of JAX.


def test_jit_with_traced_temperature_and_where_compiles_once():
  traces = []

  @jax.jit
  def loss(features, pretrained, temperature, where):
    traces.append(None)
    return pretrained_guidance_loss(
      features, pretrained, temperature=temperature, where=where
    )

  arrays = normal(0, (N, D)), normal(1, (N, E))
  for temperature, selected in ((1.0, N), (0.5, 3)):
    where = jnp.arange(N) < selected
    np.testing.assert_allclose(
      loss(*arrays, temperature, where),
      pretrained_guidance_loss(*arrays, temperature=temperature, where=where),
      rtol=1e-5,
    )
  assert len(traces) == 1


def test_vmap_over_runs():
  features, pretrained = normal(0, (3, N, D)), normal(1, (3, N, E))
  losses = jax.jit(jax.vmap(pretrained_guidance_loss))(features, pretrained)
  expected = [
    pretrained_guidance_loss(*arrays)
    for arrays in zip(features, pretrained, strict=True)
  ]
  np.testing.assert_allclose(losses, expected, rtol=1e-5)


@pytest.fixture
def small_blocks(monkeypatch):
  """Takes two rows of eight at a time, or less."""
  monkeypatch.setattr(pretrained_lib, "_PAIRS_AT_ONCE", 16)


def _mesh():
  if jax.device_count() < 8:
    pytest.skip("needs 8 devices")
  return jax.make_mesh(
    (8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,)
  )


@pytest.mark.parametrize("pairs_at_once", [2**22, 64])
@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
def test_sharded_batch_equals_one_device(metric, pairs_at_once, monkeypatch):
  sharding = jax.sharding.NamedSharding(_mesh(), jax.P("data"))
  arrays = (
    normal(0, (32, 4)),
    normal(1, (32, 6)),
    jax.random.bernoulli(jax.random.key(2), 0.7, (32,)),
  )

  @jax.jit
  def loss(features, pretrained, where):
    return jax.value_and_grad(pretrained_guidance_loss)(
      features, pretrained, metric=metric, where=where
    )

  monkeypatch.setattr(pretrained_lib, "_PAIRS_AT_ONCE", pairs_at_once)
  value, gradient = loss(*arrays)
  sharded_value, sharded_gradient = loss(*jax.device_put(arrays, sharding))
  assert len(sharded_gradient.sharding.device_set) == 8
  np.testing.assert_allclose(sharded_value, value, rtol=1e-5)
  np.testing.assert_allclose(sharded_gradient, gradient, rtol=1e-4, atol=1e-6)


def test_devices_exchange_features_and_nothing_else():
  sharding = jax.sharding.NamedSharding(_mesh(), jax.P("data"))
  arrays = jax.device_put((normal(0, (32, 4)), normal(1, (32, 6))), sharding)
  compiled = jax.jit(value_and_grad).lower(*arrays).compile().as_text()
  gathered = re.findall(r"= (\S+)\{\S* all-gather\(", compiled)
  assert sorted(gathered) == ["f32[32,4]", "f32[32,6]"]


# Large batches.


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("similarity", SIMILARITIES)
def test_blocks_change_nothing(similarity, metric, monkeypatch):
  directions = DIRECTIONS if similarity == "kl" else DIRECTIONS[:1]
  with jax.enable_x64(True):
    # Of ten rows six are missing in the last of eight blocks.
    for n, where in ((8, None), (10, jnp.arange(10) % 4 != 1)):
      arrays = normal(0, (n, D), jnp.float64), normal(1, (n, E), jnp.float64)
      for direction in directions:
        for reduction in REDUCTIONS:
          loss = functools.partial(
            value_and_grad,
            *arrays,
            similarity=similarity,
            metric=metric,
            reduction=reduction,
            direction=direction,
            temperature=0.7,
            where=where,
          )
          monkeypatch.setattr(pretrained_lib, "_PAIRS_AT_ONCE", 2**22)
          expected = loss()
          monkeypatch.setattr(pretrained_lib, "_PAIRS_AT_ONCE", 16)
          value, gradient = loss()
          np.testing.assert_allclose(value, expected[0], rtol=1e-6)
          np.testing.assert_allclose(
            gradient, expected[1], rtol=1e-6, atol=1e-12
          )


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
def test_transformations_of_blocks(metric, monkeypatch):
  with jax.enable_x64(True):
    pretrained, temperature = normal(1, (N, E), jnp.float64), jnp.float64(0.7)
    features, direction, other = normal(0, (3, N, D), jnp.float64)

    def loss(features, temperature):
      return pretrained_guidance_loss(
        features, pretrained, metric=metric, temperature=temperature
      )

    def derivatives(features):
      gradient = jax.grad(lambda x: loss(x, temperature))
      return (
        jax.jvp(loss, (features, temperature), (direction, 2.0)),
        jax.grad(loss, 1)(features, temperature),
        jax.jvp(gradient, (features,), (direction,))[1],
        jax.grad(lambda x: jnp.vdot(gradient(x), direction))(features),
        jax.vmap(gradient)(jnp.stack([features, other])),
      )

    expected = jax.jit(derivatives)(features)
    monkeypatch.setattr(pretrained_lib, "_PAIRS_AT_ONCE", 16)
    # Another function, which is traced again.
    found = jax.jit(lambda x: derivatives(x))(features)
    jax.tree.map(
      functools.partial(np.testing.assert_allclose, rtol=1e-6, atol=1e-10),
      found,
      expected,
    )


def test_degenerate_rows_in_blocks(small_blocks):
  features = normal(0, (N, D)).at[1].set(0).at[4].set(jnp.nan)
  pretrained = normal(1, (N, E)).at[2].set(0)
  where = jnp.arange(N) != 4
  for metric in METRICS:
    value, gradient = value_and_grad(
      features, pretrained, metric=metric, where=where
    )
    assert np.isfinite(value) and np.all(np.isfinite(gradient))
    assert not np.any(gradient[4])
    assert np.any(gradient[1]) == (metric != "cosine")
  for few in (jnp.zeros(N, bool), jnp.arange(N) == 2):
    value, gradient = value_and_grad(features, pretrained, where=few)
    assert value == 0 and not np.any(gradient)
  assert np.isnan(pretrained_guidance_loss(features, pretrained))


def test_blocks_compile_once(small_blocks, caplog):
  arrays = normal(0, (N, D)), normal(1, (N, E))
  value_and_grad(*arrays)
  with jax.log_compiles():
    value_and_grad(*arrays)
  assert not [text for text in caplog.messages if "Compiling" in text]


@pytest.mark.parametrize("pairs_at_once", [2**22, 16])
def test_device_compares_its_own_pairs_in_shard_map(pairs_at_once, monkeypatch):
  monkeypatch.setattr(pretrained_lib, "_PAIRS_AT_ONCE", pairs_at_once)
  arrays = normal(0, (8, N, D)), normal(1, (8, N, E))
  argnums = 0, 2

  def loss(features, pretrained, temperature):
    return pretrained_guidance_loss(
      features, pretrained, temperature=temperature
    )

  def on_device(features, pretrained, temperature):
    value, (gradient, slope) = jax.value_and_grad(loss, argnums)(
      features[0], pretrained[0], temperature
    )
    tangent = jax.jvp(
      lambda t: loss(features[0], pretrained[0], t), (temperature,), (1.0,)
    )[1]
    return value[None], gradient[None], slope, tangent[None]

  spec = jax.P("data")
  found = jax.jit(
    jax.shard_map(
      on_device,
      mesh=_mesh(),
      in_specs=(spec, spec, jax.P()),
      out_specs=(spec, spec, jax.P(), spec),
    )
  )(*arrays, 0.7)
  value, (gradient, slope) = jax.vmap(
    jax.value_and_grad(loss, argnums), (0, 0, None)
  )(*arrays, 0.7)
  # JAX adds up what the devices find of an argument that they share.
  for actual, expected in zip(
    found, (value, gradient, jnp.sum(slope), slope), strict=True
  ):
    np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("similarity", ["kl", "js"])
def test_memory_of_large_batch(similarity, metric):
  x = jax.ShapeDtypeStruct((8192, 2048), jnp.float32)

  def loss(features, pretrained):
    return value_and_grad(features, pretrained, similarity, metric)

  memory = jax.jit(loss).lower(x, x).compile().memory_analysis()
  # One array [N, N] and no more would be 268 MB; of [N, D] each is 67 MB.
  assert memory.temp_size_in_bytes < 0.6e9


def test_import_needs_jax_and_optax_only():
  code = """
import sys
import synguide_jax.guidance
heavy = {"flax", "tensorflow", "tensorflow_datasets", "clu", "orbax", "grain"}
print(sorted(heavy & set(sys.modules)))
"""
  done = subprocess.run(
    [sys.executable, "-c", code], capture_output=True, text=True, check=True
  )
  assert done.stdout.strip() == "[]"
