"""One step of the methods that descend cross entropies, against PyTorch."""

import jax
import numpy as np
import pytest

torch = pytest.importorskip(
  "torch", reason="PyTorch is not installed; see the parity extra"
)
from tests.methods import twin  # noqa: E402

pytestmark = pytest.mark.parity
REAL, SYNTHETIC = twin.batch(1, 8, True), twin.batch(2, 8, False)
BATCHES = {
  "real": REAL,
  "synthetic": SYNTHETIC,
  "mixed": twin.batch(3, 16, True),
}


def two_steps(method, number=0):
  """Takes two steps in JAX; returns the states before and after."""
  stage = method.stages[number]
  key = jax.random.key(0)
  state, frozen = jax.jit(method.init)(key, REAL.images[:1])
  state = state.replace(
    params=twin.shaken(state.params), batch_stats=twin.shaken(state.batch_stats)
  )
  state = before = stage.enter(state, key)
  batches = {name: BATCHES[s.set] for name, s in stage.streams.items()}
  step = jax.jit(stage.step)
  for progress in (0.0, 0.5):
    state, metrics = step(state, frozen, batches, key, progress)
  return before, state, batches, metrics


@pytest.mark.parametrize(
  "overrides, stage, weights",
  [
    ({"method": "real"}, 0, {"real": 1.0}),
    ({"method": "fake"}, 0, {"synthetic": 1.0}),
    ({"method": "aug"}, 0, {"mixed": 1.0}),
    ({"method": "balanced"}, 0, {"real": 1.0, "synthetic": 1.0}),
    ({"method": "weighted"}, 0, {"real": 0.8, "synthetic": 0.2}),
    (
      {"method": "balanced", "two_streams.running_statistics": "real"},
      0,
      {"real": 1.0, "synthetic": 1.0},
    ),
    (
      {"method": "weighted", "two_streams.batch_norm": "joint"},
      0,
      {"real": 0.8, "synthetic": 0.2},
    ),
    ({"method": "adp"}, 0, {"synthetic": 1.0}),
    ({"method": "adp"}, 1, {"real": 1.0}),
    ({"method": "finetune"}, 0, {"mixed": 1.0}),
    ({"method": "linear_probe"}, 0, {"mixed": 1.0}),
  ],
)
def test_two_steps_are_pytorch_s(overrides, stage, weights, monkeypatch):
  overrides = {
    "num_steps": 20,
    "optimizer.weight_decay": 0.01,
    "transfer.backbone_rate": 0.5,
    **overrides,
  }
  method = twin.make(monkeypatch, **overrides)
  before, after, batches, metrics = two_steps(method, stage)
  params = twin.to_torch(before.params, trained=True)
  stats = twin.to_torch(before.batch_stats)
  name = overrides["method"]
  head = twin.leaves(params["head"])
  rest = twin.leaves({k: v for k, v in params.items() if k != "head"})
  rate = {"finetune": 0.5, "linear_probe": 0.0}.get(name, 1.0)
  groups = [
    {"params": head, "lr": twin.RATE},
    {"params": rest, "lr": rate * twin.RATE},
  ]
  optimizer = torch.optim.SGD(groups, momentum=twin.MOMENTUM, weight_decay=0.01)
  for _ in range(2):
    optimizer.zero_grad()
    loss = 0.0
    joint = "two_streams.batch_norm" in overrides
    if joint:
      images = np.concatenate([batches[stream].images for stream in weights])
      logits, _ = twin.forward(params, stats, images, train=True)
      together = dict(zip(weights, logits.split(8), strict=True))
    for stream, weight in weights.items():
      if joint:
        loss += weight * twin.cross_entropy(together[stream], batches[stream])
        continue
      kept = stats
      if (
        "two_streams.running_statistics" in overrides and stream == "synthetic"
      ):
        kept = twin.to_torch(jax.tree.map(lambda x: x.numpy(), stats))
      logits, _ = twin.forward(
        params, kept, batches[stream].images, train=name != "linear_probe"
      )
      loss += weight * twin.cross_entropy(logits, batches[stream])
    loss.backward()
    optimizer.step()
  np.testing.assert_allclose(metrics["loss"], loss.item(), rtol=1e-4)
  twin.assert_tree_close(after.params, params)
  twin.assert_tree_close(after.batch_stats, stats)
  kept = twin.assert_momentum_close(after.opt_state, params, optimizer)
  assert len(kept) == len(head if name == "linear_probe" else head + rest)
