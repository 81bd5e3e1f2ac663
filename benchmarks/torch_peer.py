"""A training step in PyTorch, as fast as we know how to write one.

What `synguide_jax` computes in methods "aug" and "guided", for one run: images
stay on the device, the frozen network stops at its feature layer and sees both
halves of a batch at once, forward pass and loss are compiled, and nothing waits
for the device.
"""

import dataclasses

import numpy as np
import torch
from torch.nn import functional as F

from benchmarks import tables, torch_networks, training


def pg_loss(features, pretrained):
  """KL(P_pretrained || P) of cosine similarities, the diagonal left out."""
  diagonal = torch.eye(len(features), dtype=torch.bool, device=features.device)

  def log_probs(rows):
    rows = F.normalize(rows, dim=1)
    # Finite, or 0 * (inf - inf) would be NaN.
    return F.log_softmax((rows @ rows.T).masked_fill(diagonal, -1e4), dim=1)

  return F.kl_div(
    log_probs(features),
    log_probs(pretrained),
    reduction="batchmean",
    log_target=True,
  )


def pool(features):
  """Averages maps ``[N, C, H, W]`` or tokens ``[N, T, C]`` over positions."""
  return features.float().mean((2, 3) if features.ndim == 4 else 1)


def combine(real, synthetic):
  """Eq. 2: g_r plus g_f, projected where their product is negative.

  Without asking the device for the sign: the projection is of length zero
  where it is not.

  Args:
    real: Gradients of the parameters, of real images.
    synthetic: Likewise.

  Returns:
    What is descended.
  """
  products = torch._foreach_mul(synthetic, real)
  dot = torch.stack([product.sum() for product in products]).sum()
  norms = torch.stack(torch._foreach_norm(real))
  square = (norms * norms).sum()
  conflict = (dot < 0) & (square > 0)
  scale = torch.where(conflict, -dot / square, torch.zeros_like(dot))
  return torch._foreach_add(torch._foreach_mul(real, 1 + scale), synthetic)


@dataclasses.dataclass(frozen=True)
class Options:
  """How a peer trains.

  Attributes:
    pg: Whether Pretrained Guidance is on, for real and for synthetic images.
    rg: Whether Real Guidance is on.
    layer: Number of the stage whose pooled map guides.
    pg_weight: Of the PG loss.
    rate: Learning rate of Adam.
    bfloat16: Whether the networks run under autocast.
    padding: Pixels of zeros around an image before a random crop, which comes
      with a random flip; 0: neither.
    mode: Of torch.compile; "": PyTorch is eager.
  """

  pg: bool
  rg: bool
  layer: int = 3
  pg_weight: float = 10.0
  rate: float = 1e-4
  bfloat16: bool = False
  padding: int = 0
  mode: str = "default"


class Peer:
  """A network being trained.

  Args:
    network: M_u, of `torch_networks`.
    frozen: M_p, likewise, or None without PG.
    images: All images, uint8 ``[N, H, W, C]`` in numpy.
    labels: Their labels, int64 ``[N]`` in numpy.
    options: How.
    device: "cpu" or "cuda".
  """

  def __init__(self, network, frozen, images, labels, options, device):
    self.options, self.device = options, torch.device(device)
    if self.device.type == "cuda":
      torch.backends.cudnn.benchmark = True
      # As XLA's products and convolutions are by default.
      torch.set_float32_matmul_precision("high")
    layout = {"device": self.device, "memory_format": torch.channels_last}
    self.network = network.to(**layout).train()
    self._frozen = None
    if options.pg:
      self._frozen = frozen.to(**layout).eval().requires_grad_(False)
    pad = options.padding
    images = torch.from_numpy(images).to(self.device)
    self._side = images.shape[1]
    self._images = F.pad(images, (0, 0, pad, pad, pad, pad))
    self._labels = torch.from_numpy(labels).to(self.device)
    self._params = list(self.network.parameters())
    self._optimizer = _adam(self._params, options.rate)
    self._compiled = {
      "batch": self._batch,
      "target": self._target,
      "objective": self._objective,
      "combine": combine,
    }
    if options.mode:
      for name, function in self._compiled.items():
        # Whole, or not at all: a part left to Python would go unnoticed.
        self._compiled[name] = torch.compile(
          function, mode=options.mode, dynamic=False, fullgraph=True
        )

  def step(self, index):
    """Trains on some images, the first half of them real; does not wait.

    Args:
      index: Their numbers, int64 ``[B]`` in numpy.
    """
    run, pg = self._compiled, self.options.pg
    index = torch.from_numpy(index).to(self.device, non_blocking=True)
    with torch.no_grad():
      images, labels = run["batch"](index)
    target = None
    if pg:
      with torch.inference_mode():
        target = run["target"](images)
      # Autograd keeps none that were made in inference mode.
      target = target.clone()
    if self.options.rg:
      halves = zip(
        images.chunk(2),
        labels.chunk(2),
        target.chunk(2) if pg else (None, None),
        strict=True,
      )
      grads = run["combine"](*(self._gradient(*half, 1) for half in halves))
    else:
      grads = self._gradient(images, labels, target, 2)
    for parameter, grad in zip(self._params, grads, strict=True):
      parameter.grad = grad
    self._optimizer.step()

  def wait(self):
    """Returns when all that was asked for is done."""
    if self.device.type == "cuda":
      torch.cuda.synchronize()

  def _gradient(self, images, labels, target, parts):
    loss = self._compiled["objective"](images, labels, target, parts)
    return torch.autograd.grad(loss, self._params)

  def _autocast(self):
    return torch.autocast(
      self.device.type, torch.bfloat16, enabled=self.options.bfloat16
    )

  def _batch(self, index):
    """Gathers, crops and flips in one; maps to [-1, 1], channels last."""
    if self.options.padding:
      images = self._images[self._windows(index)]
    else:
      images = self._images[index]
    images = (images.float() / 255 - 0.5) / 0.5
    return images.permute(0, 3, 1, 2), self._labels[index]

  def _windows(self, index):
    count, device = len(index), self.device
    pixels = torch.arange(self._side, device=device)
    most = 2 * self.options.padding + 1
    rows, columns = (
      torch.randint(most, (count, 1), device=device) + pixels for _ in range(2)
    )
    mirrored = torch.rand(count, 1, device=device) < 0.5
    columns = torch.where(mirrored, columns.flip(1), columns)
    return index[:, None, None], rows[:, :, None], columns[:, None, :]

  def _target(self, images):
    layer = self.options.layer
    with self._autocast():
      return pool(self._frozen.maps(images, layer)[-1])

  def _objective(self, images, labels, target, parts):
    """CE, and PG of each of so many parts of the batch."""
    with self._autocast():
      maps = self.network.maps(images)
      logits = self.network.classify(maps[-1])
    loss = F.cross_entropy(logits.float(), labels)
    if target is None:
      return loss
    features = pool(maps[self.options.layer - 1])
    pairs = zip(features.chunk(parts), target.chunk(parts), strict=True)
    return loss + self.options.pg_weight * sum(pg_loss(*p) for p in pairs)


def _adam(params, rate):
  try:
    return torch.optim.Adam(params, rate, fused=True)
  except RuntimeError:  # the device has none
    return torch.optim.Adam(params, rate, foreach=True)


class Training:
  """The peer of `benchmarks.training.Training`, on the same images.

  Args:
    shape: What the step is of.
    variant: A name in `training.VARIANTS`.
    mode: Of torch.compile; "": PyTorch is eager, as it is, with a note, where
      the compiler fails.
  """

  def __init__(self, shape, variant, mode):
    torch.set_num_threads(tables.CORES)
    self._device = "cuda" if torch.cuda.is_available() else "cpu"
    self._shape, self._variant = shape, variant
    self._rng = np.random.default_rng(0)
    self._peer = self._create(mode)
    if mode:
      try:
        self.advance(1)
      except Exception as error:  # whatever a compiler may raise
        why = " ".join(str(error).split())[:200]
        print(f"The peer is eager: {type(error).__name__}: {why}", flush=True)
        self._peer = self._create("")

  def advance(self, steps):
    """Trains for so many steps; returns when they are done."""
    half, count = self._shape.batch // 2, self._shape.num_images
    for _ in range(steps):
      index = self._rng.integers(count, size=2 * half)
      index[half:] += count
      self._peer.step(index)
    self._peer.wait()

  def _create(self, mode):
    shape, data = self._shape, training.random_data(self._shape)
    pg = "PG" in self._variant
    network, frozen = (
      torch_networks.create(shape.network, shape.num_classes, shape.channels)
      for _ in range(2)
    )
    options = Options(
      pg=pg,
      rg="RG" in self._variant,
      bfloat16=shape.dtype == "bfloat16",
      padding=training.PADDING if shape.augment else 0,
      mode=mode,
    )
    return Peer(
      network,
      frozen if pg else None,
      data.pixels.read(),
      data.labels.astype(np.int64),
      options,
      self._device,
    )
