"""Two steps of CSG against PyTorch."""

import jax
import numpy as np
import pytest

torch = pytest.importorskip(
  "torch", reason="PyTorch is not installed; see the parity extra"
)
import torch.nn.functional as F  # noqa: E402

from tests.methods import asg_parity_test as asg  # noqa: E402
from tests.methods import twin  # noqa: E402

pytestmark = pytest.mark.parity
BATCH_SIZE, QUEUE_SIZE = 8, 12
TEMPERATURE, MOMENTUM, WEIGHT = 0.5, 0.7, 0.6
LAYERS = ("stage1", "stage2")


def a_pool(values, u):
  """Attention pooling of ``[N, C, H, W]``."""
  attention = (u * u.mean((2, 3), keepdim=True)).sum(1, keepdim=True)
  attention = attention / attention.sum((2, 3), keepdim=True)
  return (attention * values).sum((2, 3))


def average(values, u):
  return values.mean((2, 3))


def batch_of(views):
  """Images of which the key's views are others, where there are two."""
  one = asg.BATCH
  if views == 1:
    return one, one.images, one.images
  other = twin.batch(7, BATCH_SIZE, False).images
  images = np.stack([one.images, other])
  return one.replace(images=images), one.images, other


@pytest.mark.parametrize(
  "batch_norm, head, pooling, views",
  [
    ("auto", "mlp", "attention", 2),
    ("frozen", "linear", "attention", 1),
    ("train", "mlp", "average", 2),
  ],
)
def test_two_steps_are_pytorch_s(batch_norm, head, pooling, views, monkeypatch):
  overrides = {"method": "csg", "pretrained.feature_layer": "stage2"}
  overrides |= {"csg.batch_norm": batch_norm, "csg.head": head}
  overrides |= {"csg.pooling": pooling, "csg.views": views}
  overrides |= {"csg.queue_size": QUEUE_SIZE, "csg.dimension": 5}
  overrides |= {"csg.temperature": TEMPERATURE, "csg.momentum": MOMENTUM}
  overrides |= {"csg.weight": WEIGHT, "csg.head_width": 6}
  overrides |= {"csg.backbone_rate": 0.5, "batch_size": BATCH_SIZE}
  overrides |= {"optimizer.weight_decay": asg.DECAY}
  method = twin.make(monkeypatch, **overrides)
  batch, images, key_images = batch_of(views)
  before, m_p = asg.start(method)
  shaken = {
    name: twin.shaken(before.extra[name], seed)
    for seed, name in enumerate(("query_heads", "key_heads"), start=2)
  }
  before = before.replace(extra=before.extra | shaken)
  after, metrics = asg.two_steps(method, before, m_p, batch)

  params = twin.to_torch(before.params, trained=True)
  heads = twin.to_torch(before.extra["query_heads"], trained=True)
  stats, key_heads, queue, m_p = map(
    twin.to_torch,
    (
      before.batch_stats,
      before.extra["key_heads"],
      before.extra["queue"],
      m_p,
    ),
  )
  train = batch_norm != "frozen"
  pool = a_pool if pooling == "attention" else average
  descent = asg.Descent(params, heads, 0.5)
  for step in range(2):
    with torch.no_grad():
      for ours, theirs in zip(
        twin.leaves(key_heads), twin.leaves(heads), strict=True
      ):
        ours.mul_(MOMENTUM).add_(theirs, alpha=1 - MOMENTUM)
      # Its statistics are thrown away.
      copies = twin.to_torch(jax.tree.map(lambda x: x.numpy(), stats))
      attending = asg.backbone(params, copies, key_images, train=train)
      values = asg.backbone(
        m_p["params"], m_p["batch_stats"], key_images, train=False
      )
    features = asg.backbone(params, stats, images, train=train)
    contrastive, correct = 0.0, []
    for layer in LAYERS:
      u = features[layer]
      q = F.normalize(asg.mlp(pool(u, u), heads[layer]))
      with torch.no_grad():
        pooled = pool(values[layer], attending[layer])
        k = F.normalize(asg.mlp(pooled, key_heads[layer]))
      logits = torch.cat([(q * k).sum(1, keepdim=True), q @ queue[layer].T], 1)
      target = torch.zeros(BATCH_SIZE, dtype=torch.int64)
      contrastive = contrastive + F.cross_entropy(logits / TEMPERATURE, target)
      correct += (logits.argmax(1) == 0).tolist()
      queue[layer] = queue[layer].clone()
      for row, key in enumerate(k, start=step * BATCH_SIZE):
        queue[layer][row % QUEUE_SIZE] = key
    seen = features["embedding"]
    new = asg.mlp if head == "mlp" else asg.dense
    loss = twin.cross_entropy(new(seen, params["head"]), batch)
    loss = loss + WEIGHT * contrastive
    descent.descend(loss)

  expected = {"loss": loss.item(), "contrastive_loss": contrastive.item()}
  expected |= {"contrastive_accuracy": np.mean(correct)}
  expected |= {"queue_filled": BATCH_SIZE / QUEUE_SIZE, "queue_age": 1.0}
  for name, value in expected.items():
    np.testing.assert_allclose(metrics[name], value, rtol=1e-4)
  twin.assert_tree_close(after.params, params)
  twin.assert_tree_close(after.batch_stats, stats)
  for name, tree in (
    ("query_heads", heads),
    ("key_heads", key_heads),
    ("queue", queue),
  ):
    twin.assert_tree_close(after.extra[name], tree, rtol=5e-4, atol=5e-6)
  descent.assert_state_close(after.opt_state)
