r"""Real Guidance and Pretrained Guidance (Wang et al., WACV 2024), and A-GEM.

With RG on, a step draws a real and a synthetic batch of half the size each:

.. math::
  g_r &= \nabla (CE_r + \lambda_3 L_{pg}(real) [PG\text{-}R]) \\
  g_f &= \nabla (CE_f + \lambda_3 L_{pg}(synthetic) [PG\text{-}F]) \\
  g &= \lambda_1 g_r + \lambda_2 \, \mathrm{project}(g_f; g_r)

where project is Eq. 2 of the paper; without ``guidance.project_pg`` the PG
terms are left out of both, and their gradients added to g. The two forward
passes are normalised by their own batch statistics; the running ones are
updated by the real batch first. With RG off, one batch comes from the mixed
stream of ``aug``,

.. math::
  g = \nabla (CE + \lambda_3 (L_{pg}(real\ rows) [PG\text{-}R]
      + L_{pg}(synthetic\ rows) [PG\text{-}F]))

``a_gem`` is RG with weights (0, 1) and no PG (Chaudhry et al., ICLR 2019).
"""

from collections.abc import Mapping
import functools
from typing import Any

import jax
import jax.numpy as jnp
import optax

from synguide_jax import models
from synguide_jax.errors import check_not_negative, UserError
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
from synguide_jax.methods.base import (
  Info,
  Method,
  Stage,
  StepFn,
  Stream,
)


def _check(guidance: Any) -> None:
  check_not_negative("guidance.pg_weight", guidance.pg_weight)


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


def _streams(config: Any, info: Info, rg: bool) -> dict[str, Stream]:
  guidance = config.guidance
  if rg:
    return supervised.half_streams(config, info)
  only_synthetic = config.method == "guided" and (
    guidance.pg_synthetic and not guidance.pg_real and not info.size("real")
  )
  stream = Stream("synthetic" if only_synthetic else "mixed", config.batch_size)
  return supervised.check_streams(config, info, {"mixed": stream})


def _losses(config: Any, info: Info, trained: networks.Trained) -> Any:
  """Makes what computes CE, and PG over sets of rows, of a batch.

  Returns:
    M_p, or None where no PG is wanted, and ``(params, batch_stats, frozen,
    batch, key, rows) -> ((CE, weighted PG), (output, PG by name))``, where
    ``rows`` names the rows of each PG term, None for all.
  """
  guidance = config.guidance
  network = None
  if needs_pretrained(config):
    layer = trained.model.stage(guidance.feature_layer)
    pg_loss = _pg_loss(guidance)
    network = networks.create_frozen(config, info)
    frozen_layer = network.model.stage(config.pretrained.feature_layer)

  def losses(params, batch_stats, frozen, batch, key, rows):
    output = trained.apply(params, batch_stats, batch.images, key)
    values, pg = {}, jnp.zeros(())
    if rows:
      features = models.pool(output.features[layer])
      target = network.features(frozen, batch.images, frozen_layer)
      for name, where in rows.items():
        values[f"{name}_pg"] = pg_loss(features, target, where=where)
        pg += guidance.pg_weight * values[f"{name}_pg"]
    ce = networks.cross_entropy(output.logits, batch)
    return (ce, pg), (output, values)

  return network, losses


def _gradients(losses: Any) -> Any:
  """Makes ``args -> (loss, aux, gradient)`` of CE and PG together."""

  def total(params, *args):
    (ce, pg), aux = losses(params, *args)
    return ce + pg, aux

  def gradients(params, *args):
    (loss, aux), grads = jax.value_and_grad(total, has_aux=True)(params, *args)
    return loss, aux, grads

  return gradients


def _gradients_apart(losses: Any) -> Any:
  """Makes ``args -> (loss, aux, gradient of CE, gradient of PG)``."""

  def gradients(params, *args):
    (ce, pg), pull_back, aux = jax.vjp(
      lambda params: losses(params, *args), params, has_aux=True
    )
    one, zero = jnp.ones_like(ce), jnp.zeros_like(ce)
    (of_ce,), (of_pg,) = pull_back((one, zero)), pull_back((zero, one))
    return ce + pg, aux, of_ce, of_pg

  return gradients


def _two_stream_step(
  config: Any,
  losses: Any,
  pg: Mapping[str, bool],
  rg: optax.GradientTransformationExtraArgs,
  tx: optax.GradientTransformation,
) -> StepFn:
  """Makes the step with Real Guidance."""
  updates_statistics = supervised.updates_statistics(config)
  together, apart = _gradients(losses), _gradients_apart(losses)

  def step(state, frozen, batches, key, progress):
    del progress
    grads, behind = {}, []
    metrics, batch_stats = {"loss": 0.0}, state.batch_stats
    keys = jax.random.split(key)
    for stream_key, name in zip(keys, ("real", "synthetic"), strict=True):
      separate = pg[name] and not config.guidance.project_pg
      loss, (output, values), grads[name], *of_pg = (
        apart if separate else together
      )(
        state.params,
        batch_stats,
        frozen,
        batches[name],
        stream_key,
        {name: None} if pg[name] else {},
      )
      behind += of_pg
      if updates_statistics(name):
        batch_stats = output.batch_stats
      metrics["loss"] += loss
      metrics[f"{name}_accuracy"] = networks.accuracy(
        output.logits, batches[name]
      )
      metrics |= values
    combined, rg_state = rg.update(
      grads["synthetic"],
      state.opt_state["rg"],
      state.params,
      real_grads=grads["real"],
    )
    combined = functools.reduce(optax.tree.add, behind, combined)
    updates, tx_state = tx.update(
      combined, state.opt_state["optimizer"], state.params
    )
    metrics["gradient_cosine"] = rg_state.cosine
    metrics["conflict_rate"] = rg_state.conflict.astype(jnp.float32)
    state = state.replace(
      params=optax.apply_updates(state.params, updates),
      batch_stats=batch_stats,
      opt_state={"rg": rg_state, "optimizer": tx_state},
    )
    return state, metrics

  return step


def _mixed_step(
  losses: Any, pg: Mapping[str, bool], tx: optax.GradientTransformation
) -> StepFn:
  """Makes the step without Real Guidance."""
  together = _gradients(losses)

  def step(state, frozen, batches, key, progress):
    del progress
    batch = batches["mixed"]
    rows = {"real": batch.real, "synthetic": ~batch.real}
    rows = {name: rows[name] for name in rows if pg[name]}
    loss, (output, values), grads = together(
      state.params, state.batch_stats, frozen, batch, key, rows
    )
    updates, opt_state = tx.update(grads, state.opt_state, state.params)
    accuracy = networks.accuracy(output.logits, batch)
    state = state.replace(
      params=optax.apply_updates(state.params, updates),
      batch_stats=output.batch_stats,
      opt_state=opt_state,
    )
    return state, {"loss": loss, "mixed_accuracy": accuracy, **values}

  return step


def make(config: Any, info: Info) -> Method:
  """Makes ``guided`` with the switches of ``config.guidance``, or ``a_gem``."""
  guidance = config.guidance
  _check(guidance)
  guided = config.method == "guided"
  pg = {
    "real": guided and guidance.pg_real,
    "synthetic": guided and guidance.pg_synthetic,
  }
  rg = _real_guidance(config) if guidance.rg or not guided else None
  streams = _streams(config, info, rg is not None)
  steps = supervised.num_steps(config, info, list(streams.values())[-1])
  trained = networks.create_trained(config, info)
  network, losses = _losses(config, info, trained)
  tx = optimizers.create(config.optimizer, steps)
  if rg:
    step = _two_stream_step(config, losses, pg, rg, tx)
  else:
    step = _mixed_step(losses, pg, tx)

  def init(key, images):
    # The key itself initialises M_u, so that methods share their runs' starts.
    frozen_key = jax.random.fold_in(key, 1)
    frozen = network.init(frozen_key, images) if network else None
    state = trained.init(key, images, tx)
    if rg:
      opt_state = {"rg": rg.init(state.params), "optimizer": state.opt_state}
      state = state.replace(opt_state=opt_state)
    return state, frozen

  return Method(
    stages=(Stage("train", steps, streams, step),),
    init=init,
    predict=trained.predict,
    model=trained.model,
    frozen_per_run=network is not None and network.per_run,
  )
