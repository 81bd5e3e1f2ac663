"""ASG: its loss, its heads, and batch normalisation that stays as it is."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from synguide_jax import config as config_lib
from synguide_jax import methods, models
from synguide_jax.errors import UserError
from synguide_jax.methods import asg, optimizers
from synguide_jax.methods.base import Batch, Info
from synguide_jax.models import pretrained
from synguide_jax.models.base import Architecture, pool
from synguide_jax.models.layers import BatchNorm, classify, numbered_stages
from synguide_jax.models.mlp import MLP
from tests import tiny

KEY = jax.random.key(0)
INFO = Info(("a", "b", "c"), (8, 8, 1), {"synthetic": (8, 8, 8)})
NAME = "two_stages"


class TwoStages(nn.Module):
  """Pixels mixed with batch normalisation: what is quick to compile."""

  num_classes: int
  width: int = 4
  dtype: Any = jnp.float32
  stages = numbered_stages(2)

  @nn.compact
  def __call__(self, images, *, train, upto=None):
    x, features = images, {}
    for n in (1, 2):
      x = nn.Dense(n * self.width, name=f"mix{n}")(x)
      x = nn.relu(BatchNorm(train, name=f"norm{n}")(x))
      features[f"stage{n}"] = x
      if upto == f"stage{n}":
        return None, features
    return classify(features, pool(x), num_classes=self.num_classes, upto=upto)


def _batch(seed=1, size=8):
  images, labels = jax.random.split(jax.random.key(seed))
  return Batch(
    images=jax.random.uniform(images, (size, 8, 8, 1)),
    labels=jax.random.randint(labels, (size,), 0, 3),
    real=jnp.zeros(size, bool),
  )


@pytest.fixture(autouse=True, scope="module")
def two_stages():
  with pytest.MonkeyPatch.context() as patch:
    patch.setitem(models.MODELS, NAME, Architecture(TwoStages))
    yield


@pytest.fixture(scope="module")
def folder(two_stages, tmp_path_factory):
  """A checkpoint of the network, of five classes."""
  model = models.create(NAME, num_classes=5, channels=1)
  variables = jax.jit(model.init)(KEY, jnp.zeros((1, 8, 8, 1)))
  path = tmp_path_factory.mktemp("asg") / "checkpoint"
  pretrained.save_pretrained(path, model, variables, (8, 8, 1))
  return str(path)


def _config(**overrides):
  return tiny.config(
    **{
      "method": "asg",
      "model.name": NAME,
      "pretrained.random_model": NAME,
      "pretrained.feature_layer": "stage2",
      "optimizer.name": "sgd",
      "optimizer.learning_rate": 0.1,
      **overrides,
    }
  )


def _make(**overrides):
  return methods.make(_config(**overrides), INFO)


def _step(method):
  """Takes a step that reuses the state's memory, as the trainer does."""
  (stage,) = method.stages
  state, frozen = jax.jit(method.init)(KEY, jnp.zeros((1, 8, 8, 1)))
  before = jax.tree.map(np.asarray, state)
  step = jax.jit(stage.step, donate_argnums=0)
  after, metrics = step(state, frozen, {"synthetic": _batch()}, KEY, 0.0)
  return before, after, metrics, frozen


def _changed(before, after):
  return jax.tree.map(lambda a, b: bool(np.any(a != b)), before, after)


def test_distillation_loss_has_the_golden_values():
  student = jnp.array([[1.0, 2, 3], [0, 0, 1]])
  teacher = jnp.array([[2.0, 1, 0], [1, 1, 1]])
  for rows, value in (
    (slice(0, 1), 1.1504207652),
    (slice(1, 2), 0.1194990919),
    (slice(0, 2), 0.6349599286),
  ):
    loss = asg.distillation_loss(student[rows], teacher[rows])
    np.testing.assert_allclose(loss, value, rtol=1e-5)


def test_distillation_moves_the_student_alone():
  student, teacher = jnp.array([[1.0, 2]]), jnp.array([[3.0, 1]])
  grads = jax.grad(asg.distillation_loss, (0, 1))(student, teacher)
  # p_S - p_T, as of a cross entropy with soft labels.
  expected = jax.nn.softmax(student) - jax.nn.softmax(teacher)
  np.testing.assert_allclose(grads[0], expected, rtol=1e-5)
  assert not grads[1].any()


def test_schedule_has_the_golden_values():
  section = config_lib.training_defaults().optimizer
  section.schedule, section.learning_rate = "asg", 1e-4
  with jax.enable_x64(True):
    rate = optimizers.schedule(section, 1000)
    rates = [rate(step) for step in (0, 50, 100, 500, 900)]
  golden = [1e-6, 2.4588298577e-5, 9.0953257608e-5]
  golden += [5.3588673127e-5, 2.3492378862e-5]
  np.testing.assert_allclose(rates, golden, rtol=1e-6)


def _from_checkpoint(folder, **overrides):
  weights = {"model.init": folder, "pretrained.weights": folder}
  return _step(_make(**weights, **overrides))


@pytest.fixture(scope="module")
def official(folder):
  """A step from M_p's weights, as published."""
  return _from_checkpoint(folder)


def test_a_student_that_is_the_teacher_has_nothing_to_keep(official):
  before, after, metrics, _ = official
  assert before.extra == {}
  np.testing.assert_allclose(metrics["distillation_loss"], 0, atol=1e-6)
  # Statistics stay; scale and bias of batch normalisation do not.
  jax.tree.map(
    np.testing.assert_array_equal, after.batch_stats, before.batch_stats
  )
  changed = _changed(before.params, after.params)
  assert changed["norm2"] == {"bias": True, "scale": True}
  assert set(changed["head"]) == {"Dense_0", "Dense_1"}


def test_the_backbone_of_a_checkpoint_has_a_tenth_of_the_rate(official, folder):
  slow, fast = (
    jax.tree.map(np.subtract, after.params, before.params)
    for before, after, _, _ in (
      official,
      _from_checkpoint(folder, **{"asg.backbone_rate": 1.0}),
    )
  )
  fast = {
    name: jax.tree.map(lambda x, name=name: x if name == "head" else x / 10, of)
    for name, of in fast.items()
  }
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-7),
    slow,
    fast,
  )


def test_without_weight_it_is_fake():
  """The networks of both begin alike, too."""
  linear = {"asg.head": "linear", "asg.kl_weight": 0.0}
  ours, fake = _make(**linear), _make(method="fake")
  assert ours.model == fake.model
  ours, fake = _step(ours), _step(fake)
  for a, b in zip(ours[:2], fake[:2], strict=True):
    for x, y in ((a.params, b.params), (a.batch_stats, b.batch_stats)):
      jax.tree.map(
        lambda v, w: np.testing.assert_allclose(v, w, rtol=1e-5, atol=1e-6),
        x,
        y,
      )
  assert ours[2]["distillation_loss"] > 0


def test_frozen_parts_stay_as_they_are():
  overrides = {"asg.old_head": "frozen", "asg.batch_norm": "frozen"}
  before, after, _, _ = _step(_make(**overrides))
  for a, b in zip(
    (after.batch_stats, after.extra),
    (before.batch_stats, before.extra),
    strict=True,
  ):
    jax.tree.map(np.testing.assert_array_equal, a, b)


def test_predictions_are_the_new_head_s_in_evaluation_mode():
  method = _make()
  assert method.model is None
  before, after, _, frozen = _step(method)
  # From scratch, M_p's classes have a head that is trained as well.
  changed = _changed(before.extra, after.extra)
  assert changed == {"old_head": {"bias": True, "kernel": True}}
  state, images = after.for_prediction(), _batch(5).images
  logits = jax.jit(method.predict)(state, frozen, images)
  network = models.create(NAME, num_classes=3, channels=1)
  variables = {"params": state.params, "batch_stats": state.batch_stats}
  features = jax.jit(
    lambda v: network.apply(v, images, train=False, upto="embedding").features
  )(variables)
  expected = MLP((512, 3)).apply(state.params["head"], features["embedding"])
  np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
  "field, value, message",
  [
    ("kl_weight", -1.0, "asg.kl_weight=-1.0 must not be negative"),
    ("batch_norm", "eval", "batch_norm='eval' is unknown; known: frozen, tra"),
    ("head", "deep", "asg.head='deep' is unknown; known: mlp, linear"),
    ("head_width", 0, "asg.head_width=0 must be positive"),
    ("old_head", "new", "asg.old_head='new' is unknown; known: auto, check"),
    ("backbone_rate", -2.0, "asg.backbone_rate=-2.0 must not be negative"),
  ],
)
def test_bad_values_are_named(field, value, message):
  with pytest.raises(UserError, match=message):
    _make(**{f"asg.{field}": value})


def test_an_old_head_must_fit(folder, tmp_path):
  overrides = {"pretrained.weights": folder, "asg.old_head": "checkpoint"}
  with pytest.raises(
    UserError, match="M_p is a two_stages and M_u a small_cnn"
  ):
    _make(**{"model.name": "small_cnn", **overrides})
  model = models.create(NAME, num_classes=0, channels=1)
  variables = jax.jit(model.init)(KEY, jnp.zeros((1, 8, 8, 1)))
  pretrained.save_pretrained(tmp_path, model, variables, (8, 8, 1))
  with pytest.raises(UserError, match="needs the logits of M_p.*has no head"):
    _make(**{"pretrained.weights": str(tmp_path)})


def test_synthetic_images_are_needed():
  info = Info(INFO.class_names, INFO.image_shape, {"real": (4, 4, 4)})
  for name in ("asg", "csg"):
    with pytest.raises(UserError, match=f"'{name}' needs synthetic training"):
      methods.make(_config(method=name), info)
