r"""Real Guidance and Pretrained Guidance (Wang et al., WACV 2024), and A-GEM.

With RG on, a step draws a real and a synthetic batch of half the size each:

.. math::
  g_r &= \nabla (CE_r + \lambda_3 L_{pg}(real) [PG\text{-}R]) \\
  g_f &= \nabla (CE_f + \lambda_3 L_{pg}(synthetic) [PG\text{-}F]) \\
  g &= \lambda_1 g_r + \lambda_2 \, \mathrm{project}(g_f; g_r)

where project is Eq. 2 of the paper. The two forward passes are normalised by
their own batch statistics; the running ones are updated by the real batch
first. With RG off, one batch comes from the mixed stream of ``aug``,

.. math::
  g = \nabla (CE + \lambda_3 (L_{pg}(real\ rows) [PG\text{-}R]
      + L_{pg}(synthetic\ rows) [PG\text{-}F]))

``a_gem`` is RG with weights (0, 1) and no PG (Chaudhry et al., ICLR 2019).
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import optax

from synguide_jax import models
from synguide_jax.errors import UserError
from synguide_jax.guidance import (
  a_gem,
  pretrained_guidance_loss,
  real_guidance,
)
from synguide_jax.methods import (
  needs_pretrained,
  networks,
  optimizers,
  supervised,
)
from synguide_jax.methods.base import Info, Method, Stage, Stream


def _check(guidance: Any) -> None:
  if guidance.pg_weight < 0:
    raise UserError(
      f"guidance.pg_weight={guidance.pg_weight} must not be negative."
    )


def _pg_loss(guidance: Any) -> Any:
  """Returns the configured PG loss, after trying its options on two rows."""
  loss = functools.partial(
    pretrained_guidance_loss,
    similarity=guidance.similarity,
    metric=guidance.metric,
    reduction=guidance.reduction,
    direction=guidance.direction,
    temperature=guidance.temperature,
  )
  try:
    jax.eval_shape(loss, jnp.zeros((2, 1)), jnp.zeros((2, 1)))
  except ValueError as error:
    raise UserError(f"guidance: {error}") from error
  return loss


def _real_guidance(config: Any) -> optax.GradientTransformationExtraArgs:
  if config.method == "a_gem":
    return a_gem()
  try:
    return real_guidance(
      config.guidance.real_weight, config.guidance.synthetic_weight
    )
  except ValueError as error:
    raise UserError(f"guidance: {error}") from error


def make(config: Any, info: Info) -> Method:
  """Makes ``guided`` with the switches of ``config.guidance``, or ``a_gem``."""
  guidance = config.guidance
  _check(guidance)
  guided = config.method == "guided"
  rg = guidance.rg or not guided
  pg = {
    "real": guided and guidance.pg_real,
    "synthetic": guided and guidance.pg_synthetic,
  }
  if rg:
    streams = supervised.half_streams(config, info)
  elif pg["synthetic"] and not pg["real"] and not info.size("real"):
    streams = {"mixed": Stream("synthetic", config.batch_size)}
  else:
    streams = {"mixed": Stream("mixed", config.batch_size)}
  supervised.check_streams(config, info, streams)
  steps = supervised.num_steps(config, info, list(streams.values())[-1])

  trained = networks.create_trained(config, info)
  layer = trained.model.stage(guidance.feature_layer)
  pg_loss = _pg_loss(guidance)
  network = None
  if needs_pretrained(config):
    network = networks.create_frozen(config, info)
  tx = optimizers.create(config.optimizer, steps)
  if rg:
    tx = optax.named_chain(("rg", _real_guidance(config)), ("optimizer", tx))

  def loss_fn(params, batch_stats, frozen, batch, key, rows):
    """CE of a batch plus PG over each of the sets of rows."""
    output = trained.apply(params, batch_stats, batch.images, key)
    loss = networks.cross_entropy(output.logits, batch)
    values = {}
    if rows:
      features = models.pool(output.features[layer])
      target = network.features(frozen, batch.images)
      for name, where in rows.items():
        values[f"{name}_pg"] = pg_loss(features, target, where=where)
        loss += guidance.pg_weight * values[f"{name}_pg"]
    return loss, (output, values)

  grad_fn = jax.value_and_grad(loss_fn, has_aux=True)

  def two_stream_step(state, frozen, batches, key, progress):
    del progress
    grads, metrics, batch_stats = {}, {"loss": 0.0}, state.batch_stats
    keys = jax.random.split(key)
    for stream_key, name in zip(keys, ("real", "synthetic"), strict=True):
      rows = {name: None} if pg[name] else {}
      (loss, (output, values)), grads[name] = grad_fn(
        state.params, batch_stats, frozen, batches[name], stream_key, rows
      )
      batch_stats = output.batch_stats
      metrics["loss"] += loss
      metrics[f"{name}_accuracy"] = networks.accuracy(
        output.logits, batches[name]
      )
      metrics |= values
    updates, opt_state = tx.update(
      grads["synthetic"],
      state.opt_state,
      state.params,
      real_grads=grads["real"],
    )
    metrics["gradient_cosine"] = opt_state["rg"].cosine
    metrics["conflict_rate"] = opt_state["rg"].conflict.astype(jnp.float32)
    state = state.replace(
      params=optax.apply_updates(state.params, updates),
      batch_stats=batch_stats,
      opt_state=opt_state,
    )
    return state, metrics

  def mixed_step(state, frozen, batches, key, progress):
    del progress
    batch = batches["mixed"]
    rows = {"real": batch.real, "synthetic": ~batch.real}
    (loss, (output, values)), grads = grad_fn(
      state.params,
      state.batch_stats,
      frozen,
      batch,
      key,
      {name: rows[name] for name in rows if pg[name]},
    )
    updates, opt_state = tx.update(grads, state.opt_state, state.params)
    accuracy = networks.accuracy(output.logits, batch)
    state = state.replace(
      params=optax.apply_updates(state.params, updates),
      batch_stats=output.batch_stats,
      opt_state=opt_state,
    )
    return state, {"loss": loss, "mixed_accuracy": accuracy, **values}

  def init(key, images):
    # The key itself initialises M_u, so that methods share their runs' starts.
    frozen_key = jax.random.fold_in(key, 1)
    frozen = network.init(frozen_key, images) if network else None
    return trained.init(key, images, tx), frozen

  step = two_stream_step if rg else mixed_step
  return Method(
    stages=(Stage("train", steps, streams, step),),
    init=init,
    predict=trained.predict,
    model=trained.model,
    frozen_per_run=network is not None and network.per_run,
  )
