r"""CSG (Chen et al., ICLR 2021): contrast with the frozen network's features.

M_u and M_p, of one architecture, see two augmentations of a synthetic image,
the query's :math:`x` and the key's :math:`x'`. For each layer, with :math:`u`
and :math:`v` its maps in M_u and M_p, A-Pool the attention pooling of
:func:`attention_pool`, and perceptrons :math:`g` and :math:`\bar g`,

.. math::
  q &= g(A(u(x); u(x))) / \| \cdot \| \\
  k &= \bar g(A(v(x'); u(x'))) / \| \cdot \|

The key looks where M_u would look, at what M_p sees there, and has no gradient.
:math:`\bar g` begins as :math:`g` and follows it,
:math:`\bar g \leftarrow m \bar g + (1 - m) g`, before keys are computed. Other
images' keys are in a queue, which the step's keys join after its loss:

.. math::
  L = CE(h(f(x)), y) + w \sum_{layers} InfoNCE(q, k, queue)

with :math:`w` = ``csg.weight`` and the classifying head :math:`h` on M_u's
embedding :math:`f`, as in ASG. With ``csg.pooling="average"``, A is the mean
over the positions.

Chen et al., `Contrastive Syn-to-Real Generalization
<https://arxiv.org/abs/2104.02290>`_, ICLR 2021. The official code has a queue
of 65,536 keys whatever the set; of a smaller set most of them would be of the
same images. It prepares images with RandAugment, n = 1 and m = 6, which here is
``data.randaugment_layers`` and ``data.randaugment_magnitude``.
"""

from collections.abc import Callable
import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import optax

from synguide_jax import models
from synguide_jax.errors import check_known, check_not_negative, UserError
from synguide_jax.methods import networks, new_head, optimizers, supervised
from synguide_jax.methods.base import Info, Method, Stage, Stream
from synguide_jax.models import Model
from synguide_jax.models.mlp import MLP
from synguide_jax.state import TrainState

# What the official queue holds.
_QUEUE_SIZE = 65_536
# Accelerators' default precision has errors as large as the differences between
# similarities, which a temperature magnifies.
_EXACT = jax.lax.Precision.HIGHEST


def attention_pool(values: jax.Array, attention_from: jax.Array) -> jax.Array:
  r"""A-Pool: averages a map where another one is like its own mean.

  .. math::
    a_t = u_t \cdot \bar u \Big/ \sum_s u_s \cdot \bar u, \quad
    \bar u = \frac{1}{T} \sum_t u_t, \qquad
    A(v; u) = \sum_t a_t v_t

  over positions :math:`t`. The weights add up to 1, and none is negative if no
  feature is. Where :math:`\bar u` is 0 they are all the same.

  Chen et al., ICLR 2021.

  Args:
    values: The map ``v``, ``[N, H, W, C]``, or tokens ``[N, T, C]``.
    attention_from: The map ``u``, of as many positions.

  Returns:
    Vectors ``[N, C]``, in at least float32.

  Raises:
    ValueError: for maps of other positions.

  Example:
    >>> u = jnp.array([[[1.0, 0.0], [0.0, 0.0]]])
    >>> attention_pool(jnp.array([[[5.0], [7.0]]]), u)
    Array([[5.]], dtype=float32)
  """
  if values.shape[:-1] != attention_from.shape[:-1]:
    raise ValueError(
      "values and attention_from must have the same positions; got shapes "
      f"{values.shape} and {attention_from.shape}."
    )
  values, u = (
    x.reshape(x.shape[0], -1, x.shape[-1]).astype(
      jnp.promote_types(x.dtype, jnp.float32)
    )
    for x in (values, attention_from)
  )
  attention = jnp.einsum("ntc,nc->nt", u, u.mean(1), precision=_EXACT)
  # Also of features of both signs it is not negative: T times |mean u|^2.
  total = attention.sum(1, keepdims=True)
  some = total > 0
  # The inner `where` keeps the unused branch from dividing by 0.
  weights = jnp.where(
    some, attention / jnp.where(some, total, 1), 1 / u.shape[1]
  )
  return jnp.einsum("nt,ntc->nc", weights, values, precision=_EXACT)


def info_nce(
  queries: jax.Array,
  keys: jax.Array,
  queue: jax.Array,
  temperature: float = 0.07,
) -> jax.Array:
  r"""Cross entropy of telling a query's own key from those in a queue.

  .. math::
    -\log \frac{e^{q_n \cdot k_n / \tau}}
      {e^{q_n \cdot k_n / \tau} + \sum_j e^{q_n \cdot z_j / \tau}}

  van den Oord et al., `Representation Learning with Contrastive Predictive
  Coding <https://arxiv.org/abs/1807.03748>`_, 2018, with the queue of He et
  al., `Momentum Contrast <https://arxiv.org/abs/1911.05722>`_, CVPR 2020.

  Args:
    queries: Vectors ``q`` ``[N, D]``, of length 1 as are all others.
    keys: The queries' own, ``k``, ``[N, D]``.
    queue: Keys of other images, ``z``, ``[K, D]``.
    temperature: Divides the products.

  Returns:
    Losses ``[N]``, in nats.

  Example:
    >>> one, other = jnp.array([[1.0, 0.0]]), jnp.array([[0.0, 1.0]])
    >>> [round(float(x), 4) for x in info_nce(one, one, other, 1.0)]
    [0.3133]
  """
  own, others = _products(queries, keys, queue)
  others = jax.nn.logsumexp(others / temperature, axis=1)
  return jax.nn.softplus(others - own / temperature)


def _products(queries, keys, queue):
  own = (queries * keys).sum(1)
  return own, jnp.dot(queries, queue.T, precision=_EXACT)


def _contrastive_accuracy(queries, keys, queue):
  """Share of queries that are closer to their own key than to any other."""
  own, others = _products(queries, keys, queue)
  return (own > others.max(1)).mean(dtype=jnp.float32)


def enqueue(
  queue: jax.Array, keys: jax.Array, position: jax.Array
) -> jax.Array:
  """Puts keys in the place of the oldest ones.

  Args:
    queue: ``[K, D]``.
    keys: ``[N, D]``, with N at most K.
    position: Row of the oldest key, an integer in [0, K).

  Returns:
    The queue, the keys from ``position`` on and, behind the last row, from the
    first.
  """
  rows = (position + jnp.arange(len(keys))) % len(queue)
  return queue.at[rows].set(keys, unique_indices=True)


def queue_state(
  num_batches: jax.Array, batch_size: int, queue_size: int
) -> dict[str, jax.Array]:
  """Describes a queue into which batches have been put, one a step.

  Args:
    num_batches: How many.
    batch_size: Keys of each.
    queue_size: Keys it holds, at first none of images.

  Returns:
    ``queue_filled``, the share of it that are keys of images, and
    ``queue_age``, the mean number of steps since these were computed, seen from
    the step that will add the next batch.
  """
  num_batches = jnp.minimum(num_batches, -(-queue_size // batch_size))
  filled = jnp.minimum(num_batches * batch_size, queue_size)
  # Whole batches have ages 1, 2, ..., and what is left of one the next.
  whole = (filled // batch_size).astype(jnp.float32)
  rest = filled - whole * batch_size
  ages = (whole + 1) * (whole * batch_size / 2 + rest)
  return {
    "queue_age": ages / jnp.maximum(filled, 1),
    "queue_filled": filled / jnp.float32(queue_size),
  }


def _normalised(vectors: jax.Array) -> jax.Array:
  # As in cosine similarity, a vector of zeros stays one and gets no gradient.
  square = (vectors * vectors).sum(-1, keepdims=True)
  zero = square == 0
  return jnp.where(zero, 0, vectors * jax.lax.rsqrt(jnp.where(zero, 1, square)))


# (values, attention_from) -> vectors.
_POOLINGS = {
  "attention": attention_pool,
  "average": lambda values, attention_from: models.pool(values),
}


def _check(section: Any) -> None:
  check_not_negative("csg.weight", section.weight)
  check_known("csg.pooling", section.pooling, _POOLINGS)
  for field in ("dimension", "temperature"):
    if section[field] <= 0:
      raise UserError(f"csg.{field}={section[field]} must be positive.")
  if not 0 <= section.momentum <= 1:
    raise UserError(f"csg.momentum={section.momentum} must be in [0, 1].")
  if section.views not in (1, 2):
    raise UserError(f"csg.views={section.views} must be 1 or 2.")


def _queue_size(config: Any, info: Info) -> int:
  size, batch_size = config.csg.queue_size, config.batch_size
  if size == -1:
    batches = info.size("synthetic") // batch_size
    return max(min(_QUEUE_SIZE, batches * batch_size), batch_size)
  if size < batch_size:
    raise UserError(
      f"csg.queue_size={size} must be at least batch_size={batch_size}, the "
      "keys that join it in a step, or -1."
    )
  return size


def _layers(config: Any, trained: networks.Trained) -> tuple[str, ...]:
  """Returns the stages to compare, in the order in which they are computed."""
  maps = tuple(x for x in trained.model.stages if x != "embedding")
  layers = config.csg.layers or maps[-2:]
  if not set(layers) <= set(maps):
    raise UserError(
      f"csg.layers={config.csg.layers!r} are not maps of "
      f"{trained.model.name}; it has {', '.join(maps)}."
    )
  return tuple(x for x in maps if x in layers)


def _check_networks(
  config: Any,
  info: Info,
  m_u: Model,
  m_p: Model,
  layers: tuple[str, ...],
) -> dict[str, tuple[int, ...]]:
  """Returns the shapes of M_u's features, if those of M_p will do."""
  if not new_head.same_architecture(m_u, m_p):
    raise UserError(
      "Method 'csg' needs identical architectures, but M_u is a "
      f"{new_head.describe(m_u)} and M_p a {new_head.describe(m_p)}; change "
      "model.name, or pretrained.weights (random: pretrained.random_model)."
    )
  shapes, frozen = (
    new_head.feature_shapes(model, info) for model in (m_u, m_p)
  )
  for layer in layers:
    if config.csg.pooling == "attention" and shapes[layer] != frozen[layer]:
      raise UserError(
        f"csg.pooling='attention' needs maps of equal size, but {layer} is "
        f"{shapes[layer][1:]} in M_u and {frozen[layer][1:]} in M_p; make "
        "model.image_size and pretrained.image_size the same, or use "
        "csg.pooling='average'."
      )
  return shapes


@dataclasses.dataclass(frozen=True)
class _Contrast:
  """The contrastive part of the loss.

  Attributes:
    heads: The perceptron of each layer, of queries and keys alike.
    pool: One of ``_POOLINGS``.
    temperature: Of InfoNCE.
  """

  heads: dict[str, MLP]
  pool: Callable[[jax.Array, jax.Array], jax.Array]
  temperature: float

  def init(self, key: jax.Array) -> Any:
    """Returns the parameters of the heads."""
    return {
      layer: head.init(jax.random.fold_in(key, n), jnp.zeros(head.widths[:1]))
      for n, (layer, head) in enumerate(self.heads.items())
    }

  def vectors(self, heads: Any, values: Any, attention_from: Any) -> Any:
    """Maps features to vectors ``[N, D]`` of length 1, by layer."""
    return {
      layer: _normalised(
        head.apply(
          heads[layer], self.pool(values[layer], attention_from[layer])
        )
      )
      for layer, head in self.heads.items()
    }

  def loss(self, queries: Any, keys: Any, queue: Any) -> Any:
    """Returns the sum of the layers' losses, and metrics."""
    loss = sum(
      info_nce(queries[x], keys[x], queue[x], self.temperature).mean()
      for x in self.heads
    )
    accuracy = sum(
      _contrastive_accuracy(queries[x], keys[x], queue[x]) for x in self.heads
    )
    return loss, {
      "contrastive_loss": loss,
      "contrastive_accuracy": accuracy / len(self.heads),
    }


def make(config: Any, info: Info) -> Method:
  """Makes ``csg``."""
  section = config.csg
  _check(section)
  stream = Stream("synthetic", config.batch_size, views=section.views)
  streams = networks.check_streams(config, info, {"synthetic": stream})
  steps = supervised.num_steps(config, info, stream)
  queue_size = _queue_size(config, info)
  trained = networks.create_trained(config, info)
  network = networks.create_frozen(config, info)
  layers = _layers(config, trained)
  shapes = _check_networks(config, info, trained.model, network.model, layers)
  pool = _POOLINGS[section.pooling]
  classifier = new_head.create_classifier(config, info, trained)
  tx = new_head.create_optimizer(config, steps, trained)
  rate = optimizers.schedule(config.optimizer, steps)
  heads = {x: MLP((shapes[x][-1], section.dimension)) for x in layers}
  contrast = _Contrast(heads, pool, section.temperature)

  def init(key, images):
    variables = classifier.init(key, images)
    query_heads = contrast.init(jax.random.fold_in(key, 3))
    queue_keys = jax.random.split(jax.random.fold_in(key, 4), len(layers))
    shape = (queue_size, section.dimension)
    extra = {
      "query_heads": query_heads,
      "key_heads": jax.tree.map(jnp.copy, query_heads),
      "queue": {
        x: _normalised(jax.random.normal(k, shape))
        for x, k in zip(layers, queue_keys, strict=True)
      },
      "num_batches": jnp.int32(0),
    }
    params = {"network": variables["params"], "query_heads": query_heads}
    state = TrainState(
      params=variables["params"],
      batch_stats=variables.get("batch_stats", {}),
      opt_state=tx.init(params),
      extra=extra,
    )
    return state, network.init(jax.random.fold_in(key, 1), images)

  def loss_fn(params, batch_stats, frozen, key_heads, queue, batch, key):
    first_key, second_key = jax.random.split(key)
    two = section.views == 2
    images, key_images = batch.images if two else (batch.images, batch.images)
    output = classifier.apply(params["network"], batch_stats, images, first_key)
    seen = output
    if two:
      seen = classifier.apply(
        params["network"], batch_stats, key_images, second_key
      )
    values = network.model.apply(
      frozen, key_images, train=False, upto=layers[-1]
    ).features
    queries = contrast.vectors(
      params["query_heads"], output.features, output.features
    )
    keys = contrast.vectors(
      key_heads, values, jax.lax.stop_gradient(seen.features)
    )
    contrastive, metrics = contrast.loss(queries, keys, queue)
    loss = networks.cross_entropy(output.logits, batch)
    loss += section.weight * contrastive
    metrics["synthetic_accuracy"] = networks.accuracy(output.logits, batch)
    return loss, (output.batch_stats, keys, {"loss": loss, **metrics})

  def step(state, frozen, batches, key, progress):
    del progress
    extra = state.extra
    key_heads = optax.incremental_update(
      extra["query_heads"], extra["key_heads"], 1 - section.momentum
    )
    params = {"network": state.params, "query_heads": extra["query_heads"]}
    grads, (batch_stats, keys, metrics) = jax.grad(loss_fn, has_aux=True)(
      params,
      state.batch_stats,
      frozen,
      key_heads,
      extra["queue"],
      batches["synthetic"],
      key,
    )
    updates, opt_state = tx.update(grads, state.opt_state, params)
    params = optax.apply_updates(params, updates)
    size, done = config.batch_size, extra["num_batches"]
    metrics |= queue_state(done, size, queue_size)
    # Without a product that grows with the training.
    position = done % queue_size * size % queue_size
    state = state.replace(
      params=params["network"],
      batch_stats=batch_stats,
      opt_state=opt_state,
      extra={
        "query_heads": params["query_heads"],
        "key_heads": key_heads,
        "queue": {
          x: enqueue(extra["queue"][x], keys[x], position) for x in layers
        },
        "num_batches": done + 1,
      },
    )
    return state, metrics

  return Method(
    stages=(Stage("train", steps, streams, step, learning_rate=rate),),
    init=init,
    predict=classifier.predict,
    model=classifier.model,
    frozen_per_run=network.per_run,
  )
