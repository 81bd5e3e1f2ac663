"""Blocks that are computed again in the backward pass change no number."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from synguide_jax import methods, models
from synguide_jax.errors import UserError
from synguide_jax.methods.base import Info
from synguide_jax.models.base import Architecture
from synguide_jax.models.mobilenet import InvertedResiduals
from synguide_jax.models.resnet import ResNet
from synguide_jax.models.vit import VisionTransformer
from synguide_jax.models.wide_resnet import WideResNet
from tests import tiny


class Inverted(InvertedResiduals):
  """Two blocks of a MobileNet, the second of which may be left out."""

  drop_path: float = 0.5
  GROUPS = ((1, 16, 1, 1, 3), (2, 16, 1, 1, 3))


SMALL = {"width": 4, "small_images": True}
# With the number of blocks.
NETWORKS = {
  "resnet": (2, tiny.RESNET),
  "bottlenecks": (2, Architecture(ResNet, {"blocks": (1, 1), **SMALL})),
  "wide": (3, Architecture(WideResNet, {"depth": 10, "widen": 1})),
  "inverted": (2, Architecture(Inverted)),
  "vit": (
    2,
    Architecture(
      VisionTransformer,
      {
        "patch_size": 4,
        "image_size": 8,
        "width": 8,
        "depth": 2,
        "heads": 2,
        "mlp_width": 16,
        "layer_scale": True,
      },
    ),
  ),
}
INFO = Info(("a", "b", "c"), (8, 8, 1), {"real": (4,) * 3})


@pytest.mark.parametrize("name", NETWORKS)
def test_values_gradients_and_statistics_stay(name, monkeypatch):
  blocks, architecture = NETWORKS[name]
  monkeypatch.setitem(models.MODELS, name, architecture)
  plain = models.create(name, num_classes=3, channels=1)
  again = plain.with_remat()
  assert again.options == plain.options
  images = jax.random.uniform(jax.random.key(0), (8, 8, 8, 1))
  labels = jnp.arange(8) % 3
  variables, of_again = (
    jax.jit(m.init)(jax.random.key(1), images) for m in (plain, again)
  )
  # The same names, and the same values for a key.
  jax.tree.map(np.testing.assert_array_equal, variables, of_again)
  kept = variables.get("batch_stats", {})

  def lower(model):
    def loss_fn(params):
      output = model.apply(
        {"params": params, "batch_stats": kept},
        images,
        train=True,
        rng=jax.random.key(2),
      )
      chosen = jax.nn.one_hot(labels, 3) * jax.nn.log_softmax(output.logits)
      return -chosen.sum(), (output.batch_stats, output.logits)

    grad_fn = jax.value_and_grad(loss_fn, has_aux=True)
    return jax.jit(grad_fn).lower(variables["params"])

  lowered = [lower(model) for model in (plain, again)]
  barriers = [low.as_text().count("optimization_barrier") for low in lowered]
  assert barriers == [0, blocks]
  expected, found = (low.compile()(variables["params"]) for low in lowered)
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-6),
    found,
    expected,
  )
  if kept:
    statistics = expected[0][1][0]
    moved = jax.tree.map(lambda a, b: np.abs(a - b).max(), statistics, kept)
    assert min(jax.tree.leaves(moved)) > 0


def test_every_network_with_blocks_can():
  without = set()
  for name in models.MODELS:
    model = models.create(name, num_classes=2)
    try:
      assert model.with_remat().module.remat
    except UserError:
      without.add(name)
  assert without == {"small_cnn"}


@pytest.mark.parametrize("init", ["scratch", "checkpoint"])
def test_the_config_s_field_reaches_the_network(init, monkeypatch):
  monkeypatch.setitem(models.MODELS, "tiny", tiny.RESNET)
  if init == "checkpoint":
    model = models.create("tiny", num_classes=5, channels=1)
    loaded = models.pretrained.Pretrained(model, {}, (8, 8, 1))
    monkeypatch.setattr(
      methods.networks, "load_pretrained", lambda *args, **kwargs: loaded
    )
  for remat in (False, True):
    config = tiny.config(
      method="real",
      **{"model.name": "tiny", "model.remat": remat, "model.init": init},
    )
    model = methods.make(config, INFO).model
    assert model.module.remat == remat
    assert "remat" not in model.options


def test_a_network_without_blocks_says_so():
  config = tiny.config(method="real", **{"model.remat": True})
  with pytest.raises(UserError, match="model.remat=True: small_cnn has no bl"):
    methods.make(config, INFO)
