"""Two steps of DADA's second stage, against PyTorch."""

import jax
import numpy as np
import pytest

torch = pytest.importorskip(
  "torch", reason="PyTorch is not installed; see the parity extra"
)
from tests.methods import twin  # noqa: E402

pytestmark = pytest.mark.parity
BATCHES = {
  "real": twin.batch(1, 8, True),
  "synthetic": twin.batch(2, 8, False),
}
WEIGHT, DECAY = 0.7, 0.01


def objectives(source, labels, target, weight, discriminative):
  """Written with probabilities, as the official code."""
  p, labels = source.softmax(1), torch.tensor(labels, dtype=torch.int64)
  p_y = p.gather(1, labels[:, None])[:, 0]
  d = p[:, -1]
  l_s = -((1 - d) * p_y.log() + d * (1 - p_y).log()).mean()
  classes = target[:, :-1].softmax(1)
  if discriminative:
    pairs = torch.stack([target[:, :-1], target[:, -1:].expand(-1, 3)], 2)
    not_q, q = pairs.softmax(2).unbind(2)
    l_tf = -(classes * q.log()).sum(1).mean()
    l_tg = (classes * not_q.log()).sum(1).mean()
  else:
    d = target.softmax(1)[:, -1]
    l_tf, l_tg = -d.log().mean(), (1 - d).log().mean()
  entropy = -(classes * classes.log()).sum(1).mean()
  return weight * (l_s + l_tf) + entropy, -weight * (l_s + l_tg) + entropy


@pytest.mark.parametrize(
  "overrides",
  [
    {},
    {
      "dada.discriminative": False,
      "dada.schedule": "constant",
      "two_streams.running_statistics": "real",
    },
  ],
)
def test_two_steps_are_pytorch_s(overrides, monkeypatch):
  method = twin.make(
    monkeypatch,
    **{
      "method": "dada",
      "dada.weight": WEIGHT,
      "optimizer.weight_decay": DECAY,
      **overrides,
    },
  )
  stage, key = method.stages[1], jax.random.key(0)
  state, _ = jax.jit(method.init)(key, BATCHES["real"].images[:1])
  state = state.replace(
    params=twin.shaken(state.params), batch_stats=twin.shaken(state.batch_stats)
  )
  before = after = jax.jit(stage.enter)(state, key)
  step = jax.jit(stage.step)
  for progress in (0.1, 0.2):
    after, metrics = step(after, None, BATCHES, key, progress)

  params = twin.to_torch(before.params, trained=True)
  domain = twin.to_torch(before.extra["domain_head"], trained=True)
  stats = twin.to_torch(before.batch_stats)
  head = twin.leaves(params["head"]) + twin.leaves(domain)
  features = twin.leaves({k: v for k, v in params.items() if k != "head"})
  optimizer = torch.optim.SGD(
    head + features,
    lr=twin.RATE,
    momentum=twin.MOMENTUM,
    weight_decay=DECAY,
  )
  for progress in (0.1, 0.2):
    logits = {}
    for name in ("synthetic", "real"):
      kept = stats
      if name == "synthetic" and "two_streams.running_statistics" in overrides:
        kept = twin.to_torch(before.batch_stats)
      classes, of = twin.forward(params, kept, BATCHES[name].images, train=True)
      logit = of["embedding"] @ domain["kernel"] + domain["bias"]
      logits[name] = torch.cat([classes, logit], 1)
    constant = overrides.get("dada.schedule") == "constant"
    ramp = 1 if constant else 2 / (1 + np.exp(-10 * progress)) - 1
    both = objectives(
      logits["synthetic"],
      BATCHES["synthetic"].labels,
      logits["real"],
      WEIGHT * ramp,
      overrides.get("dada.discriminative", True),
    )
    for objective, group in zip(both, (head, features), strict=True):
      grads = torch.autograd.grad(objective, group, retain_graph=True)
      for parameter, grad in zip(group, grads, strict=True):
        parameter.grad = grad
    optimizer.step()

  np.testing.assert_allclose(metrics["loss"], both[0].item(), rtol=1e-4)
  np.testing.assert_allclose(metrics["feature_loss"], both[1].item(), rtol=1e-4)
  twin.assert_tree_close(after.params, params)
  twin.assert_tree_close(after.extra["domain_head"], domain)
  twin.assert_tree_close(after.batch_stats, stats)
  buffers = {
    name: [optimizer.state[p]["momentum_buffer"] for p in twin.leaves(of)]
    for name, of in (("network", params), ("domain_head", domain))
  }
  trace = after.opt_state[1][0].trace
  for name, theirs in buffers.items():
    for a, b in zip(jax.tree.leaves(trace[name]), theirs, strict=True):
      np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-6)
