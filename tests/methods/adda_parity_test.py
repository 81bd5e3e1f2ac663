"""Two steps of ADDA's second stage, against PyTorch."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

torch = pytest.importorskip(
  "torch", reason="PyTorch is not installed; see the parity extra"
)
import torch.nn.functional as F  # noqa: E402

from tests.methods import twin  # noqa: E402

pytestmark = pytest.mark.parity
REAL, SYNTHETIC = twin.batch(1, 8, True), twin.batch(2, 8, False)
BATCHES = {"real": REAL, "synthetic": SYNTHETIC}
# Of weights of size 1 it would otherwise not show.
DECAY = 0.05
ENCODER_RATE, DISCRIMINATOR_RATE = 0.2, 0.5


def two_steps(method):
  """Takes two steps in JAX; returns the states before and after."""
  key, stage = jax.random.key(0), method.stages[1]
  state, frozen = jax.jit(method.init)(key, REAL.images[:1])
  state = state.replace(
    params=twin.shaken(state.params, seed=1),
    batch_stats=twin.shaken(state.batch_stats, seed=2),
  )
  state = jax.jit(stage.enter)(state, key)
  # As if M_t, but for its head, had been trained for a while.
  params = {**twin.shaken(state.params), "head": state.params["head"]}
  state = before = state.replace(
    params=params,
    batch_stats=twin.shaken(state.batch_stats),
    extra={
      **state.extra,
      "discriminator": twin.shaken(state.extra["discriminator"]),
    },
  )
  step = jax.jit(stage.step)
  for progress in (0.0, 0.5):
    state, metrics = step(state, frozen, BATCHES, key, jnp.float32(progress))
  return before, state, metrics


def judgement(params, x, slope):
  """Logits of (source, target), through one hidden layer."""
  first, second = params["Dense_0"], params["Dense_1"]
  hidden = F.leaky_relu(x @ first["kernel"] + first["bias"], slope)
  return hidden @ second["kernel"] + second["bias"]


def domain_loss(source, target, labels):
  logits = torch.cat([source, target])
  labels = torch.tensor(labels).repeat_interleave(8)
  return F.cross_entropy(logits, labels)


@pytest.mark.parametrize(
  "overrides",
  [
    {},
    {"adda.updates": "alternating", "adda.activation": "relu"},
    {"adda.features": "embedding", "adda.mapping_loss": "target"},
  ],
)
def test_two_steps_are_pytorch_s(overrides, monkeypatch):
  method = twin.make(
    monkeypatch,
    **{
      "method": "adda",
      "adda.hidden": (6,),
      "adda.discriminator_decay": DECAY,
      "adda.encoder_rate": ENCODER_RATE,
      "adda.discriminator_rate": DISCRIMINATOR_RATE,
      **overrides,
    },
  )
  before, after, metrics = two_steps(method)
  slope = 0.0 if "adda.activation" in overrides else 0.1
  at = 1 if "adda.features" in overrides else 0

  def seen(params, stats, batch, train):
    logits, features = twin.forward(params, stats, batch.images, train=train)
    return (logits, features["embedding"])[at]

  params = twin.to_torch(before.params, trained=True)
  stats = twin.to_torch(before.batch_stats)
  source = seen(
    *(
      twin.to_torch(before.extra["source"][name])
      for name in ("params", "batch_stats")
    ),
    SYNTHETIC,
    train=False,
  )
  judge = twin.to_torch(before.extra["discriminator"], trained=True)
  encoder = twin.leaves({k: v for k, v in params.items() if k != "head"})
  of_target = torch.optim.SGD(
    encoder, lr=ENCODER_RATE * twin.RATE, momentum=twin.MOMENTUM
  )
  of_judge = torch.optim.SGD(
    twin.leaves(judge),
    lr=DISCRIMINATOR_RATE * twin.RATE,
    momentum=twin.MOMENTUM,
  )
  kernels = [judge[name]["kernel"] for name in ("Dense_0", "Dense_1")]

  def judge_gradients(target):
    logits = [judgement(judge, x, slope) for x in (source, target.detach())]
    loss = domain_loss(*logits, [0, 1])
    found = (logits[0].argmax(1) == 0).double().mean() / 2
    found += (logits[1].argmax(1) == 1).double().mean() / 2
    decay = DECAY / 2 * sum((kernel**2).sum() for kernel in kernels)
    of_judge.zero_grad()
    (loss + decay).backward()
    return loss.item(), found.item()

  def target_gradients(target):
    logits = [judgement(judge, x, slope) for x in (source, target)]
    if "adda.mapping_loss" in overrides:
      loss = F.cross_entropy(logits[1], torch.zeros(8, dtype=torch.int64))
    else:
      loss = domain_loss(*logits, [1, 0])
    gradients = torch.autograd.grad(loss, encoder)
    for leaf, gradient in zip(encoder, gradients, strict=True):
      leaf.grad = gradient
    return loss.item()

  for _ in range(2):
    target = seen(params, stats, REAL, train=True)
    loss, found = judge_gradients(target)
    if "adda.updates" in overrides:
      of_judge.step()
      mapping = target_gradients(target)
    else:
      mapping = target_gradients(target)
      of_judge.step()
    of_target.step()

  np.testing.assert_allclose(metrics["discriminator_loss"], loss, rtol=1e-4)
  np.testing.assert_allclose(metrics["mapping_loss"], mapping, rtol=1e-4)
  np.testing.assert_allclose(metrics["loss"], loss + mapping, rtol=1e-4)
  assert metrics["domain_accuracy"] == found
  twin.assert_momentum_close(after.opt_state["encoder"], params, of_target)
  twin.assert_momentum_close(after.opt_state["discriminator"], judge, of_judge)
  twin.assert_tree_close(after.params, params)
  twin.assert_tree_close(after.batch_stats, stats)
  twin.assert_tree_close(after.extra["discriminator"], judge)
  jax.tree.map(
    np.testing.assert_array_equal,
    after.extra["source"],
    before.extra["source"],
  )
