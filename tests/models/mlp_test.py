"""The small network on feature vectors, against NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from synguide_jax.models.mlp import MLP

KEY = jax.random.key(0)
FEATURES = jax.random.normal(KEY, (5, 3))


def _hidden(params, slope):
  layer = jax.tree.map(np.asarray, params["Dense_0"])
  x = np.asarray(FEATURES) @ layer["kernel"] + layer["bias"]
  return np.where(x > 0, x, slope * x)


def _output(params, hidden):
  layer = jax.tree.map(np.asarray, params["Dense_1"])
  return hidden @ layer["kernel"] + layer["bias"]


@pytest.mark.parametrize(
  "activation,slope", [("relu", 0.0), ("leaky_relu", 0.1)]
)
def test_it_is_two_products_with_the_activation_between(activation, slope):
  mlp = MLP((8, 2), activation)
  params = mlp.init(KEY, FEATURES)
  params = jax.tree.map(lambda x: x + 0.1, params)
  np.testing.assert_allclose(
    mlp.apply(params, FEATURES),
    _output(params, _hidden(params, slope)),
    rtol=1e-4,
    atol=1e-5,
  )


def test_dropout_needs_a_key_and_keeps_the_mean():
  mlp = MLP((64, 2), dropout=0.5)
  params = mlp.init(KEY, FEATURES)
  plain = mlp.apply(params, FEATURES)
  np.testing.assert_allclose(
    plain, _output(params, _hidden(params, 0.0)), rtol=1e-4, atol=1e-5
  )
  keys = jax.random.split(KEY, 500)
  dropped = jax.jit(jax.vmap(lambda key: mlp.apply(params, FEATURES, key)))(
    keys
  )
  spread = dropped.std(0)
  assert spread.min() > 0
  # Six standard errors.
  error = np.abs(dropped.mean(0) - plain)
  assert (error < 6 * spread / np.sqrt(len(keys))).all()


def test_no_hidden_layer_is_a_linear_map_and_bfloat16_is_computed_in_float32():
  mlp = MLP((2,))
  params = mlp.init(KEY, FEATURES)
  features = FEATURES.astype(jnp.bfloat16)
  output = mlp.apply(params, features)
  assert output.dtype == jnp.float32
  np.testing.assert_allclose(
    output,
    features.astype(jnp.float32) @ params["Dense_0"]["kernel"],
    rtol=1e-5,
    atol=1e-6,
  )
