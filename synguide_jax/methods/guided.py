r"""Real Guidance and Pretrained Guidance (Wang et al., WACV 2024), and A-GEM.

With RG on, a step draws a real and a synthetic batch of half the size each:

.. math::
  g_r &= \nabla (CE_r + \lambda_3 L_{pg}(real) [PG\text{-}R]) \\
  g_f &= \nabla (CE_f + \lambda_3 L_{pg}(synthetic) [PG\text{-}F]) \\
  g &= \lambda_1 g_r + \lambda_2 \, \mathrm{project}(g_f; g_r)

where project is Eq. 2 of the paper; without ``guidance.project_pg`` the PG
terms are left out of both, and their gradients added to g. The two forward
passes are normalised by their own batch statistics, and the running ones are
updated by the real batch first, unless ``config.two_streams`` says otherwise.
With RG off, one batch comes from the mixed stream of ``aug``,

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
  two_streams,
)
from synguide_jax.methods.base import (
  Info,
  Method,
  Stage,
  StepFn,
  Stream,
)
from synguide_jax.methods.microbatches import accumulate


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
    streams = two_streams.streams(config, info)
  else:
    only_synthetic = config.method == "guided" and (
      guidance.pg_synthetic and not guidance.pg_real and not info.size("real")
    )
    name = "synthetic" if only_synthetic else "mixed"
    streams = networks.check_streams(
      config, info, {name: Stream(name, config.batch_size)}
    )
  for stream in streams.values():
    if needs_pretrained(config) and stream.batch_size < 2 * config.microbatches:
      raise UserError(
        f"batch_size={config.batch_size} is too small for Pretrained Guidance, "
        "which compares pairs of images."
      )
  return streams


def _losses(config: Any, info: Info, trained: networks.Trained) -> Any:
  """Makes what computes M_p's features, and CE and PG of a batch.

  Returns:
    M_p, or None where no PG is wanted; ``(frozen, batches by name) -> features
    of M_p by name``; and ``(output, batch, target, rows) -> (CE, weighted PG,
    PG by name)``, where ``rows`` names the rows of each PG term, None for all.
  """
  guidance = config.guidance
  network = None
  if needs_pretrained(config):
    layer = trained.model.stage(guidance.feature_layer)
    pg_loss = _pg_loss(guidance)
    network = networks.create_frozen(config, info)
    frozen_layer = network.model.stage(config.pretrained.feature_layer)

  def targets(frozen, batches):
    # M_p sees no image beside another, so that one pass is as good as several.
    return two_streams.at_once(
      lambda images: network.features(frozen, images, frozen_layer),
      {name: batch.images for name, batch in batches.items()},
    )

  def losses(output, batch, target, rows):
    values, pg = {}, jnp.zeros(())
    if rows:
      features = models.pool(output.features[layer])
      for name, where in rows.items():
        values[f"{name}_pg"] = pg_loss(features, target, where=where)
        pg += guidance.pg_weight * values[f"{name}_pg"]
    return networks.cross_entropy(output.logits, batch), pg, values

  return network, targets, losses


def _two_stream_step(
  config: Any,
  trained: networks.Trained,
  targets: Any,
  losses: Any,
  pg: Mapping[str, bool],
  rg: optax.GradientTransformationExtraArgs,
  tx: optax.GradientTransformation,
) -> StepFn:
  """Makes the step with Real Guidance."""
  passes = two_streams.passes(trained, config)

  def objectives(outputs, batches, wanted):
    """What is differentiated, g_r and g_f's by name, and metrics."""
    found, metrics = {}, {"loss": 0.0}
    for name, output in outputs.items():
      rows = {name: None} if pg[name] else {}
      ce, guiding, values = losses(
        output, batches[name], wanted.get(name), rows
      )
      if pg[name] and not config.guidance.project_pg:
        found[name] = ce
        found["behind"] = found.get("behind", 0.0) + guiding
      else:
        found[name] = ce + guiding
      metrics["loss"] += ce + guiding
      accuracy = networks.accuracy(output.logits, batches[name])
      metrics |= {f"{name}_loss": ce, f"{name}_accuracy": accuracy, **values}
    return found, metrics

  def grad_fn(params, batch_stats, batches, key, frozen):
    """Returns g_r, g_f and what is added behind the projection, by name."""
    wanted = targets(frozen, {n: batches[n] for n in batches if pg[n]})
    grads, metrics = {}, {"loss": 0.0}
    keys = jax.random.split(key, len(passes))
    for of_pass, forward in zip(keys, passes, strict=True):

      def of_names(params, forward=forward, kept=batch_stats, of_pass=of_pass):
        outputs, kept = forward(params, kept, batches, of_pass)
        found, values = objectives(outputs, batches, wanted)
        return found, (kept, values)

      _, found, (batch_stats, values) = two_streams.gradients(of_names, params)
      for name, of in found.items():
        grads[name] = optax.tree.add(grads[name], of) if name in grads else of
      metrics |= values | {"loss": metrics["loss"] + values["loss"]}
    return grads, (batch_stats, metrics)

  # Averaged over the parts before the projection, which is not linear.
  grad_fn = accumulate(grad_fn, config.microbatches)

  def step(state, frozen, batches, key, progress):
    del progress
    grads, (batch_stats, metrics) = grad_fn(
      state.params, state.batch_stats, batches, key, frozen
    )
    combined, rg_state = rg.update(
      grads["synthetic"],
      state.opt_state["rg"],
      state.params,
      real_grads=grads["real"],
    )
    if "behind" in grads:
      combined = optax.tree.add(combined, grads["behind"])
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


def _one_stream_step(
  config: Any,
  trained: networks.Trained,
  targets: Any,
  losses: Any,
  pg: Mapping[str, bool],
  tx: optax.GradientTransformation,
) -> StepFn:
  """Makes the step without Real Guidance."""

  def loss_fn(params, batch_stats, batches, key, frozen):
    ((stream, batch),) = batches.items()
    # As in aug, so that without PG it is the same with dropout too.
    (key,) = jax.random.split(key, 1)
    rows = {"real": batch.real, "synthetic": ~batch.real}
    rows = {name: rows[name] for name in rows if pg[name]}
    output = trained.apply(params, batch_stats, batch.images, key)
    target = targets(frozen, batches if rows else {}).get(stream)
    ce, guiding, values = losses(output, batch, target, rows)
    accuracy = networks.accuracy(output.logits, batch)
    metrics = {"loss": ce + guiding, f"{stream}_accuracy": accuracy, **values}
    return ce + guiding, (output.batch_stats, metrics)

  grad_fn = accumulate(jax.grad(loss_fn, has_aux=True), config.microbatches)

  def step(state, frozen, batches, key, progress):
    del progress
    grads, (batch_stats, metrics) = grad_fn(
      state.params, state.batch_stats, batches, key, frozen
    )
    updates, opt_state = tx.update(grads, state.opt_state, state.params)
    state = state.replace(
      params=optax.apply_updates(state.params, updates),
      batch_stats=batch_stats,
      opt_state=opt_state,
    )
    return state, metrics

  return step


def make(config: Any, info: Info) -> Method:
  """Makes ``guided`` with the switches of ``config.guidance``, or ``a_gem``."""
  guidance = config.guidance
  check_not_negative("guidance.pg_weight", guidance.pg_weight)
  guided = config.method == "guided"
  pg = {
    "real": guided and guidance.pg_real,
    "synthetic": guided and guidance.pg_synthetic,
  }
  rg = _real_guidance(config) if guidance.rg or not guided else None
  streams = _streams(config, info, rg is not None)
  steps = supervised.num_steps(config, info, list(streams.values())[-1])
  trained = networks.create_trained(config, info)
  network, targets, losses = _losses(config, info, trained)
  tx = optimizers.create(config.optimizer, steps)
  rate = optimizers.schedule(config.optimizer, steps)
  if rg:
    step = _two_stream_step(config, trained, targets, losses, pg, rg, tx)
  else:
    step = _one_stream_step(config, trained, targets, losses, pg, tx)

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
    stages=(Stage("train", steps, streams, step, learning_rate=rate),),
    init=init,
    predict=trained.predict,
    model=trained.model,
    frozen_per_run=network is not None and network.per_run,
  )
