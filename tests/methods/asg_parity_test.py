"""Two steps of ASG against PyTorch."""

import jax
import numpy as np
import optax
import pytest

torch = pytest.importorskip(
  "torch", reason="PyTorch is not installed; see the parity extra"
)
import torch.nn.functional as F  # noqa: E402

from tests.methods import twin  # noqa: E402

pytestmark = pytest.mark.parity
BATCH = twin.batch(1, 8, False)
KEY = jax.random.key(0)
DECAY = 0.01


def start(method):
  """A state without symmetries, and M_p's variables likewise."""
  state, frozen = jax.jit(method.init)(KEY, BATCH.images[:1])
  state = state.replace(
    params=twin.shaken(state.params), batch_stats=twin.shaken(state.batch_stats)
  )
  return state, twin.shaken(frozen, seed=1)


def two_steps(method, state, frozen, batch):
  """Takes two steps in JAX; returns the state after and the last metrics."""
  step = jax.jit(method.stages[0].step)
  for progress in (0.0, 0.5):
    state, metrics = step(state, frozen, {"synthetic": batch}, KEY, progress)
  return state, metrics


def dense(x, at):
  """A linear layer with JAX's parameters."""
  return x @ at["kernel"] + at["bias"]


def mlp(x, at):
  """Two of them with a ReLU between."""
  return dense(F.relu(dense(x, at["Dense_0"])), at["Dense_1"])


def backbone(params, stats, images, *, train):
  """The features of the twin, whatever its head."""
  params = {k: v for k, v in params.items() if k != "head"}
  return twin.forward(params, stats, images, train=train)[1]


class Descent:
  """SGD with momentum on a network, its head and other heads."""

  def __init__(self, params, heads, backbone_rate):
    rest = {k: v for k, v in params.items() if k != "head"}
    self._groups = {
      "backbone": twin.leaves(rest),
      "head": twin.leaves(params["head"]) + twin.leaves(heads),
    }
    rates = {"backbone": backbone_rate * twin.RATE, "head": twin.RATE}
    self._optimizer = torch.optim.SGD(
      [{"params": self._groups[name], "lr": rates[name]} for name in rates],
      momentum=twin.MOMENTUM,
      weight_decay=DECAY,
    )

  def descend(self, loss):
    self._optimizer.zero_grad()
    loss.backward()
    self._optimizer.step()

  def assert_state_close(self, opt_state):
    """Compares the momentum with that of optax."""
    for name, group in self._groups.items():
      state = opt_state.inner_states[name]
      ours = jax.tree.leaves(optax.tree.get(state, "trace"))
      assert len(ours) == len(group)
      for trace, leaf in zip(ours, group, strict=True):
        buffer = self._optimizer.state[leaf]["momentum_buffer"]
        np.testing.assert_allclose(trace, buffer, rtol=5e-4, atol=5e-6)


@pytest.mark.parametrize(
  "batch_norm, head, old_head, rate",
  [
    ("auto", "mlp", "auto", -1.0),
    ("frozen", "linear", "frozen", 0.5),
    ("train", "mlp", "checkpoint", 0.5),
  ],
)
def test_two_steps_are_pytorch_s(batch_norm, head, old_head, rate, monkeypatch):
  overrides = {"method": "asg", "pretrained.feature_layer": "stage2"}
  overrides |= {"asg.batch_norm": batch_norm, "asg.head": head}
  overrides |= {"asg.old_head": old_head, "asg.backbone_rate": rate}
  overrides |= {"asg.head_width": 6, "asg.kl_weight": 0.7}
  overrides |= {"optimizer.weight_decay": DECAY}
  method = twin.make(monkeypatch, **overrides)
  before, m_p = start(method)
  before = before.replace(extra=twin.shaken(before.extra, seed=2))
  after, metrics = two_steps(method, before, m_p, BATCH)

  trained = old_head in ("auto", "trainable")
  params = twin.to_torch(before.params, trained=True)
  stats = twin.to_torch(before.batch_stats)
  extra = twin.to_torch(before.extra, trained=trained)
  m_p = twin.to_torch(m_p)
  teacher, _ = twin.forward(
    m_p["params"], m_p["batch_stats"], BATCH.images, train=False
  )
  old = m_p["params"]["head"] if old_head == "checkpoint" else extra["old_head"]
  descent = Descent(params, extra if trained else {}, abs(rate))
  for _ in range(2):
    embedding = backbone(
      params, stats, BATCH.images, train=batch_norm != "frozen"
    )["embedding"]
    new = mlp if head == "mlp" else dense
    distillation = F.kl_div(
      F.log_softmax(dense(embedding, old), dim=1),
      F.softmax(teacher, dim=1),
      reduction="batchmean",
    )
    loss = twin.cross_entropy(new(embedding, params["head"]), BATCH)
    loss = loss + 0.7 * distillation
    descent.descend(loss)
  np.testing.assert_allclose(metrics["loss"], loss.item(), rtol=1e-4)
  np.testing.assert_allclose(
    metrics["distillation_loss"], distillation.item(), rtol=1e-3
  )
  twin.assert_tree_close(after.params, params)
  twin.assert_tree_close(after.batch_stats, stats)
  twin.assert_tree_close(after.extra, extra)
  descent.assert_state_close(after.opt_state)
