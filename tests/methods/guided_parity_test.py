"""Two steps of Real and Pretrained Guidance, and A-GEM, against PyTorch."""

import itertools

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
REAL, SYNTHETIC = twin.batch(1, 8, True), twin.batch(2, 8, False)
MIXED = twin.batch(3, 16, np.array([True, False, False, True] * 4))
WEIGHT = 3.0


def pg_loss(features, pretrained):
  """KL between the rows of cosine similarities, the diagonal left out."""
  count = len(features)
  log_p, log_q = (
    F.log_softmax(
      (unit @ unit.T)[~torch.eye(count, dtype=bool)].view(count, -1), dim=1
    )
    for unit in (F.normalize(pretrained), F.normalize(features))
  )
  return F.kl_div(log_q, log_p, reduction="batchmean", log_target=True)


def losses(params, stats, m_p, batch, rows):
  """CE of a batch and the sum of PG over sets of rows."""
  logits, maps = twin.forward(params, stats, batch.images, train=True)
  with torch.no_grad():
    _, frozen_maps = twin.forward(*m_p, batch.images, train=False)
  features, pretrained = (
    of["stage2"].mean((2, 3)) for of in (maps, frozen_maps)
  )
  pg = sum((pg_loss(features[r], pretrained[r]) for r in rows), 0.0)
  return twin.cross_entropy(logits, batch), WEIGHT * pg


def gradient(loss, params):
  if not torch.is_tensor(loss):
    return torch.zeros(sum(leaf.numel() for leaf in twin.leaves(params)))
  leaves = twin.leaves(params)
  grads = torch.autograd.grad(
    loss, leaves, retain_graph=True, allow_unused=True, materialize_grads=True
  )
  return torch.cat([g.flatten() for g in grads])


def jointly(params, stats, m_p, pg_real, pg_synthetic):
  """CE and PG of the two batches, in one pass."""
  images = np.concatenate([REAL.images, SYNTHETIC.images])
  logits, maps = twin.forward(params, stats, images, train=True)
  with torch.no_grad():
    _, frozen_maps = twin.forward(*m_p, images, train=False)
  parts = []
  for at, batch, on in (
    (slice(None, 8), REAL, pg_real),
    (slice(8, None), SYNTHETIC, pg_synthetic),
  ):
    features, pretrained = (
      of["stage2"][at].mean((2, 3)) for of in (maps, frozen_maps)
    )
    pg = pg_loss(features, pretrained) if on else 0.0
    parts.append((twin.cross_entropy(logits[at], batch), WEIGHT * pg))
  return parts


def direction(
  params,
  stats,
  m_p,
  *,
  pg_real,
  pg_synthetic,
  rg,
  project_pg,
  joint,
  weights,
):
  """What is descended, as one vector."""
  everything = torch.ones(8, dtype=bool)
  if not rg:
    real = torch.tensor(MIXED.real)
    rows = [real] * pg_real + [~real] * pg_synthetic
    return gradient(sum(losses(params, stats, m_p, MIXED, rows)), params), {}
  if joint:
    parts = jointly(params, stats, m_p, pg_real, pg_synthetic)
  else:
    parts = [
      losses(params, stats, m_p, batch, [everything] * on)
      for batch, on in ((REAL, pg_real), (SYNTHETIC, pg_synthetic))
    ]
  behind = 0.0
  (g_r, pg_r), (g_f, pg_f) = (
    [gradient(value, params) for value in part] for part in parts
  )
  if project_pg:
    g_r, g_f = g_r + pg_r, g_f + pg_f
  else:
    behind = pg_r + pg_f
  dot, parts_norm = g_f @ g_r, g_f.norm()
  if dot < 0:
    g_f = g_f - dot / (g_r @ g_r) * g_r
  metrics = {
    "gradient_cosine": (dot / g_r.norm() / parts_norm).item(),
    "conflict_rate": float(dot < 0),
  }
  return weights[0] * g_r + weights[1] * g_f + behind, metrics


@pytest.mark.parametrize(
  "rg, pg_real, pg_synthetic, project_pg, joint, method_name",
  [
    *(
      (*switches, True, False, "guided")
      for switches in itertools.product([False, True], repeat=3)
    ),
    (True, True, True, False, False, "guided"),
    (True, False, True, False, False, "guided"),
    (True, True, True, True, True, "guided"),
    (True, True, True, False, True, "guided"),
    (True, False, False, True, False, "a_gem"),
  ],
)
def test_two_steps(
  rg, pg_real, pg_synthetic, project_pg, joint, method_name, monkeypatch
):
  method = twin.make(
    monkeypatch,
    **{
      "method": method_name,
      "guidance.rg": rg,
      "guidance.pg_real": pg_real,
      "guidance.pg_synthetic": pg_synthetic,
      "guidance.project_pg": project_pg,
      "two_streams.batch_norm": "joint" if joint else "separate",
      "guidance.real_weight": 0.5,
      "guidance.synthetic_weight": 2.0,
      "guidance.pg_weight": WEIGHT,
      "guidance.feature_layer": "stage2",
      "pretrained.feature_layer": "stage2",
    },
  )
  key = jax.random.key(0)
  state, frozen = jax.jit(method.init)(key, REAL.images[:1])
  state = state.replace(
    params=twin.shaken(state.params), batch_stats=twin.shaken(state.batch_stats)
  )
  params = twin.to_torch(state.params, trained=True)
  stats = twin.to_torch(state.batch_stats)
  m_p = None, None
  if pg_real or pg_synthetic:
    frozen = twin.shaken(frozen, seed=1)
    m_p = tuple(twin.to_torch(frozen[c]) for c in ("params", "batch_stats"))
  else:
    # It guides nothing.
    m_p = params, stats
  (stage,) = method.stages
  batches = {"real": REAL, "synthetic": SYNTHETIC, "mixed": MIXED}
  step, buffer = jax.jit(stage.step), 0.0
  for progress in (0.0, 0.5):
    state, metrics = step(
      state,
      frozen,
      {name: batches[name] for name in stage.streams},
      key,
      progress,
    )
    descended, expected = direction(
      params,
      stats,
      m_p,
      pg_real=pg_real,
      pg_synthetic=pg_synthetic,
      rg=rg,
      project_pg=project_pg,
      joint=joint,
      weights=(0.0, 1.0) if method_name == "a_gem" else (0.5, 2.0),
    )
    for metric, value in expected.items():
      np.testing.assert_allclose(metrics[metric], value, rtol=1e-3, atol=1e-5)
    buffer = twin.MOMENTUM * buffer + descended
    parts = buffer.split([leaf.numel() for leaf in twin.leaves(params)])
    with torch.no_grad():
      for leaf, part in zip(twin.leaves(params), parts, strict=True):
        leaf -= twin.RATE * part.view_as(leaf)
  twin.assert_tree_close(state.params, params)
  twin.assert_tree_close(state.batch_stats, stats)
  trace = optax.tree.get(state.opt_state, "trace")
  np.testing.assert_allclose(
    np.concatenate([leaf.ravel() for leaf in jax.tree.leaves(trace)]),
    buffer,
    rtol=2e-4,
    atol=1e-5,
  )
