"""Two steps of DANN against PyTorch, the reversal written as two losses."""

import jax
import numpy as np
import pytest

torch = pytest.importorskip(
  "torch", reason="PyTorch is not installed; see the parity extra"
)
import torch.nn.functional as F  # noqa: E402

from tests.methods import twin  # noqa: E402

pytestmark = pytest.mark.parity
BATCHES = {
  "real": twin.batch(1, 8, True),
  "synthetic": twin.batch(2, 8, False),
}
DECAY, WEIGHT = 0.01, 0.7


def two_steps(method):
  """Takes two steps in JAX; returns the states before and after."""
  key = jax.random.key(0)
  state, frozen = jax.jit(method.init)(key, BATCHES["real"].images[:1])
  state = before = state.replace(
    params=twin.shaken(state.params),
    batch_stats=twin.shaken(state.batch_stats),
    extra=twin.shaken(state.extra, seed=1),
  )
  step = jax.jit(method.stages[0].step)
  for progress in (0.1, 0.5):
    state, metrics = step(state, frozen, BATCHES, key, np.float32(progress))
  return before, state, metrics


def discriminate(params, embedding):
  """Logits of being synthetic, through one hidden layer."""
  first, second = params["Dense_0"], params["Dense_1"]
  hidden = F.relu(embedding @ first["kernel"] + first["bias"])
  return (hidden @ second["kernel"] + second["bias"])[:, 0]


def outputs(params, stats, overrides):
  """Logits and embeddings of the real, then of the synthetic images."""
  if overrides.get("dann.batch_norm") == "separate":
    results = []
    for name in ("real", "synthetic"):
      kept = stats
      if "two_streams.running_statistics" in overrides and name == "synthetic":
        kept = twin.to_torch(jax.tree.map(lambda x: x.numpy(), stats))
      results.append(
        twin.forward(params, kept, BATCHES[name].images, train=True)
      )
    logits, features = zip(*results, strict=True)
    return logits, [f["embedding"] for f in features]
  images = np.concatenate([BATCHES[n].images for n in ("real", "synthetic")])
  logits, features = twin.forward(params, stats, images, train=True)
  return logits.split(8), features["embedding"].split(8)


@pytest.mark.parametrize(
  "overrides",
  [
    {},
    {"dann.labels": "source", "dann.reduction": "sum"},
    {"dann.batch_norm": "separate", "dann.backbone_rate": 0.1},
    {"dann.batch_norm": "separate", "two_streams.running_statistics": "real"},
  ],
)
def test_two_steps_are_pytorch_s(overrides, monkeypatch):
  method = twin.make(
    monkeypatch,
    **{
      "method": "dann",
      "dann.hidden": (6,),
      "dann.dropout": 0.0,
      "dann.domain_weight": WEIGHT,
      "optimizer.weight_decay": DECAY,
      **overrides,
    },
  )
  before, after, metrics = two_steps(method)
  params = twin.to_torch(before.params, trained=True)
  judge = twin.to_torch(before.extra["discriminator"], trained=True)
  stats = twin.to_torch(before.batch_stats)
  head = twin.leaves(params["head"])
  backbone = twin.leaves({k: v for k, v in params.items() if k != "head"})
  groups = [
    {"params": head + twin.leaves(judge), "lr": twin.RATE},
    {
      "params": backbone,
      "lr": overrides.get("dann.backbone_rate", 1.0) * twin.RATE,
    },
  ]
  optimizer = torch.optim.SGD(
    groups, momentum=twin.MOMENTUM, weight_decay=DECAY
  )
  for progress in (0.1, 0.5):
    weight = WEIGHT * (2 / (1 + np.exp(-10 * progress)) - 1)
    logits, embeddings = outputs(params, stats, overrides)
    losses = [
      twin.cross_entropy(x, BATCHES[name])
      for name, x in zip(("real", "synthetic"), logits, strict=True)
    ]
    ce = losses[1] if "dann.labels" in overrides else sum(losses) / 2
    domains = [discriminate(judge, x) for x in embeddings]
    domain = sum(
      F.binary_cross_entropy_with_logits(x, torch.full_like(x, label))
      for x, label in zip(domains, (0.0, 1.0), strict=True)
    )
    if overrides.get("dann.reduction") != "sum":
      domain = domain / 2
    # The network descends CE - lambda L, the discriminator L.
    rest = head + backbone
    of_network = torch.autograd.grad(
      ce - weight * domain, rest, retain_graph=True
    )
    of_judge = torch.autograd.grad(domain, twin.leaves(judge))
    for leaf, gradient in zip(
      rest + twin.leaves(judge), of_network + of_judge, strict=True
    ):
      leaf.grad = gradient
    optimizer.step()
  np.testing.assert_allclose(metrics["loss"], (ce + domain).item(), rtol=1e-4)
  np.testing.assert_allclose(metrics["domain_loss"], domain.item(), rtol=1e-4)
  np.testing.assert_allclose(metrics["domain_weight"], weight, rtol=1e-5)
  found = [(domains[0] <= 0), (domains[1] > 0)]
  assert metrics["domain_accuracy"] == torch.cat(found).double().mean().item()
  twin.assert_momentum_close(
    after.opt_state, {"network": params, "discriminator": judge}, optimizer
  )
  twin.assert_tree_close(after.params, params)
  twin.assert_tree_close(after.extra["discriminator"], judge)
  twin.assert_tree_close(after.batch_stats, stats)
