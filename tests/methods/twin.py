"""A tiny network with batch normalisation, in JAX and again in PyTorch.

For the parity tests of the methods' steps: what PyTorch computes shares no line
with the package. Import it only where PyTorch is installed.
"""

import jax
import numpy as np
import optax
import torch
import torch.nn.functional as F

from synguide_jax import methods, models
from synguide_jax.methods.base import Batch, Info
from tests import tiny

NAME = "twin"
INFO = Info(
  class_names=("a", "b", "c"),
  image_shape=(8, 8, 1),
  class_counts={"real": (4, 6, 2), "synthetic": (9, 8, 7)},
)
RATE, MOMENTUM = 0.1, 0.9


def batch(seed, size, real):
  """A batch of random images."""
  rng = np.random.default_rng(seed)
  return Batch(
    images=rng.random((size, 8, 8, 1), np.float32),
    labels=rng.integers(0, 3, size).astype(np.int32),
    real=np.broadcast_to(np.asarray(real), (size,)),
  )


def make(monkeypatch, **overrides):
  """A method with this network, descending by SGD with momentum."""
  monkeypatch.setitem(models.MODELS, NAME, tiny.RESNET)
  config = tiny.config(
    **{
      "model.name": NAME,
      "pretrained.random_model": NAME,
      "optimizer.name": "sgd",
      "optimizer.momentum": MOMENTUM,
      "optimizer.learning_rate": RATE,
      **overrides,
    }
  )
  return methods.make(config, INFO)


def shaken(tree, seed=0):
  """The tree with noise, so that no statistic is 0 or 1, no bias 0."""
  rng = np.random.default_rng(seed)
  return jax.tree.map(
    lambda x: np.asarray(x) + 0.1 * rng.random(x.shape, np.float32), tree
  )


def to_torch(tree, *, trained=False):
  """Nested dicts of float64 tensors; ``trained`` ones have gradients."""
  if isinstance(tree, dict):
    return {k: to_torch(v, trained=trained) for k, v in tree.items()}
  return torch.tensor(
    np.asarray(tree, np.float64), dtype=torch.float64, requires_grad=trained
  )


def leaves(tree):
  """The tensors of nested dicts, in the order of jax.tree.leaves."""
  if isinstance(tree, dict):
    return [leaf for key in sorted(tree) for leaf in leaves(tree[key])]
  return [tree]


def forward(params, batch_stats, images, *, train):
  """Runs the network.

  Args:
    params: Nested dicts of tensors, of the shapes that JAX has.
    batch_stats: Likewise; with ``train`` they are updated in place.
    images: In [0, 1], ``[N, H, W, C]``.
    train: Whether normalisation uses and updates the batch's statistics.

  Returns:
    Logits ``[N, 3]`` and the features ``{"stage1": [N, C, H, W], "stage2":
    ..., "embedding": [N, C]}``.
  """
  x = torch.tensor(np.asarray(images, np.float64)).permute(0, 3, 1, 2)
  x = (x - 0.5) / 0.5

  def conv(x, at, name, stride=1):
    kernel = at[name]["kernel"].permute(3, 2, 0, 1)
    return F.conv2d(x, kernel, stride=stride, padding=kernel.shape[-1] // 2)

  def norm(x, at, stats, name):
    return F.batch_norm(
      x,
      stats[name]["mean"],
      stats[name]["var"],
      at[name]["scale"],
      at[name]["bias"],
      training=train,
      momentum=0.1,
      eps=1e-5,
    )

  x = F.relu(
    norm(conv(x, params, "stem_conv"), params, batch_stats, "stem_norm")
  )
  features = {}
  for number in (1, 2):
    at, stats = (
      tree[f"stage{number}_block0"] for tree in (params, batch_stats)
    )
    y = F.relu(norm(conv(x, at, "conv1", number), at, stats, "norm1"))
    y = norm(conv(y, at, "conv2"), at, stats, "norm2")
    if "shortcut_conv" in at:
      x = norm(conv(x, at, "shortcut_conv", number), at, stats, "shortcut_norm")
    x = F.relu(x + y)
    features[f"stage{number}"] = x
  embedding = features["embedding"] = x.mean((2, 3))
  if "head" not in params:
    return None, features
  head = params["head"]
  return embedding @ head["kernel"] + head["bias"], features


def cross_entropy(logits, batch, reduction="mean"):
  """Of a batch's labels."""
  labels = torch.tensor(np.asarray(batch.labels), dtype=torch.int64)
  return F.cross_entropy(logits, labels, reduction=reduction)


def assert_tree_close(actual, expected, rtol=2e-4, atol=2e-6):
  """Compares a tree of arrays with nested dicts of tensors, leaf by leaf."""
  actual, expected = jax.tree.leaves(actual), leaves(expected)
  assert len(actual) == len(expected)
  for ours, theirs in zip(actual, expected, strict=True):
    np.testing.assert_allclose(
      np.asarray(ours), theirs.detach().numpy(), rtol=rtol, atol=atol
    )


def assert_momentum_close(opt_state, params, optimizer):
  """Compares SGD's momentum with PyTorch's, of all that it is kept of.

  Args:
    opt_state: Of an optimiser of ``params``, of groups of them too.
    params: Nested dicts of tensors.
    optimizer: What trained them.
  """
  traces = jax.tree.leaves(
    opt_state, is_leaf=lambda node: isinstance(node, optax.TraceState)
  )
  kept = {}
  for node in traces:
    if isinstance(node, optax.TraceState):
      kept |= {
        jax.tree_util.keystr(path): leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(node.trace)
      }
  expected = {
    jax.tree_util.keystr(path): optimizer.state[leaf]["momentum_buffer"]
    for path, leaf in jax.tree_util.tree_leaves_with_path(params)
    if "momentum_buffer" in optimizer.state.get(leaf, {})
  }
  assert kept and kept.keys() <= expected.keys()
  for path, buffer in expected.items():
    if path in kept:
      np.testing.assert_allclose(
        kept[path], buffer, rtol=2e-4, atol=2e-6, err_msg=path
      )
  return set(kept)
