"""Two steps of LTDA's second stage, against PyTorch.

There the conditional weights are the gradient through the virtual step.
"""

import jax
import numpy as np
import pytest

torch = pytest.importorskip(
  "torch", reason="PyTorch is not installed; see the parity extra"
)
from tests.methods import twin  # noqa: E402

pytestmark = pytest.mark.parity
BATCHES = {"train": twin.batch(1, 8, False), "dev": twin.batch(2, 6, True)}
# Large enough to be seen in every parameter.
EXAMPLE_RATE, DECAY, BETA = 2.0, 0.01, 0.9
# Of a quarter of 20 steps.
RATES = [twin.RATE * (1 + np.cos(np.pi * step / 5)) / 2 for step in range(2)]


def subtract(tree, grads, rate):
  """``tree - rate * grads``; ``grads`` in the order of the tree's leaves."""
  if isinstance(tree, dict):
    return {key: subtract(tree[key], grads, rate) for key in sorted(tree)}
  return tree - rate * next(grads)


@pytest.mark.parametrize(
  "overrides, counts",
  [
    # The learning rate of the moment, and the sum of the losses.
    ({"optimizer.schedule": "cosine"}, (9, 8, 7)),
    (
      {
        "ltda.train_on": "real",
        "ltda.inner_rate": 0.5,
        "ltda.inner_reduction": "mean",
      },
      (4, 6, 2),
    ),
  ],
)
def test_two_steps_are_pytorch_s(overrides, counts, monkeypatch):
  method = twin.make(
    monkeypatch,
    **{
      "method": "ltda",
      "num_steps": 20,
      "optimizer.weight_decay": DECAY,
      "ltda.example_rate": EXAMPLE_RATE,
      "ltda.beta": BETA,
      **overrides,
    },
  )
  stage, key = method.stages[1], jax.random.key(0)
  state, _ = jax.jit(method.init)(key, BATCHES["dev"].images[:1])
  state = state.replace(
    params=twin.shaken(state.params), batch_stats=twin.shaken(state.batch_stats)
  )
  before = after = stage.enter(state, key)
  step = jax.jit(stage.step)
  for progress in (0.0, 0.2):
    after, metrics = step(after, None, BATCHES, key, progress)

  params = twin.to_torch(before.params, trained=True)
  stats, leaves = twin.to_torch(before.batch_stats), twin.leaves(params)
  of_class = (1 - BETA) / (1 - BETA ** np.array(counts))
  weights = of_class * 3 / of_class.sum()
  weights = torch.tensor(weights[BATCHES["train"].labels])
  optimizer = torch.optim.SGD(
    leaves, lr=twin.RATE, momentum=twin.MOMENTUM, weight_decay=DECAY
  )

  def loss_of(params, name, stats, reduction):
    logits, _ = twin.forward(params, stats, BATCHES[name].images, train=True)
    return twin.cross_entropy(logits, BATCHES[name], reduction)

  mean = "ltda.inner_reduction" in overrides
  for rate in RATES:
    # The copy's statistics are not kept.
    copies = [twin.to_torch(jax.tree.map(np.asarray, stats)) for _ in range(2)]
    epsilon = torch.zeros(8, dtype=torch.float64, requires_grad=True)
    inner = (weights + epsilon) * loss_of(params, "train", copies[0], "none")
    inner = inner.mean() if mean else inner.sum()
    grads = torch.autograd.grad(inner, leaves, create_graph=True)
    inner_rate = overrides.get("ltda.inner_rate", rate)
    virtual = subtract(params, iter(grads), inner_rate)
    dev_loss = loss_of(virtual, "dev", copies[1], "mean")
    (gradient,) = torch.autograd.grad(dev_loss, epsilon)
    conditional = -EXAMPLE_RATE * gradient
    total = weights + conditional

    loss = (total * loss_of(params, "train", stats, "none")).mean()
    optimizer.zero_grad()
    loss.backward()
    if "optimizer.schedule" in overrides:
      optimizer.param_groups[0]["lr"] = rate
    optimizer.step()

  for name, expected in {
    "loss": loss,
    "dev_loss": dev_loss,
    "example_weight_mean": total.mean(),
    "example_weight_std": total.std(correction=0),
    "example_weight_change": conditional.abs().mean(),
  }.items():
    np.testing.assert_allclose(
      metrics[name], expected.item(), rtol=1e-3, err_msg=name
    )
  assert metrics["example_weight_change"] > 0.05
  twin.assert_tree_close(after.params, params)
  twin.assert_tree_close(after.batch_stats, stats)
  buffers = [optimizer.state[p]["momentum_buffer"] for p in leaves]
  trace = jax.tree.leaves(after.opt_state[1][0].trace)
  for ours, theirs in zip(trace, buffers, strict=True):
    np.testing.assert_allclose(ours, theirs, rtol=5e-4, atol=5e-6)
