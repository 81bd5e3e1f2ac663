"""How fast networks train on the CPU: ours, on lax convolutions, in PyTorch.

  python -m benchmarks.models [--networks=cifar_resnet50] [--batch=128]

A step is the cross-entropy of a batch in training mode and its gradient in the
parameters, in float32. The candidates take turns, so that what else runs on the
machine slows all of them; ratios are medians over rounds. PyTorch is eager and
channels last. Numbers in brackets are the slowest and the fastest round.
"""

import os
import platform
import statistics
import time
from unittest import mock

from absl import app, flags
import jax
import jax.numpy as jnp

from synguide_jax import console, models
from synguide_jax.models import layers

# Side of the images and batch size.
NETWORKS = {
  "cifar_resnet50": (32, 128),
  "cifar_resnet_narrow50": (32, 128),
  "resnet50": (224, 16),
}
NUM_CLASSES = 10
THREADS = len(os.sched_getaffinity(0))

_NETWORKS = flags.DEFINE_list("networks", list(NETWORKS), "Networks to time.")
_BATCH = flags.DEFINE_integer("batch", 0, "Images in a batch; 0: its own.")
_ROUNDS = flags.DEFINE_integer("rounds", 5, "Timed steps of each candidate.")


def lax_conv2d(images, kernel, *, strides, padding, groups):
  """What `layers.conv2d` is on other platforms."""
  return jax.lax.conv_general_dilated(
    images,
    kernel,
    strides,
    padding,
    dimension_numbers=("NHWC", "HWIO", "NHWC"),
    feature_group_count=groups,
  )


def jax_step(name, size, batch):
  """Returns a step, and the memory it needs, in GiB."""
  model = models.create(name, num_classes=NUM_CLASSES)
  images = jax.random.uniform(jax.random.key(0), (batch, size, size, 3))
  labels = jnp.arange(batch) % NUM_CLASSES
  variables = jax.jit(model.init)(jax.random.key(1), images[:1])

  def loss(params, batch_stats, images):
    variables = {"params": params, "batch_stats": batch_stats}
    output = model.apply(variables, images, train=True)
    log_probs = jax.nn.log_softmax(output.logits)
    return -log_probs[jnp.arange(batch), labels].mean(), output.batch_stats

  arguments = variables["params"], variables["batch_stats"], images
  compiled = (
    jax.jit(jax.value_and_grad(loss, has_aux=True)).lower(*arguments).compile()
  )
  memory = compiled.memory_analysis().temp_size_in_bytes / 2**30
  return lambda: jax.block_until_ready(compiled(*arguments)), memory


def torch_step(name, size, batch):
  """Returns a step in PyTorch."""
  import torch

  from benchmarks import torch_networks

  torch.set_num_threads(THREADS)
  network = torch_networks.ResNet(NUM_CLASSES, **models.MODELS[name].options)
  network = network.to(memory_format=torch.channels_last)
  images = torch.rand(batch, 3, size, size)
  images = images.to(memory_format=torch.channels_last)
  labels = torch.arange(batch) % NUM_CLASSES

  def step():
    network.zero_grad()
    torch.nn.functional.cross_entropy(network(images), labels).backward()

  return step


def measure(steps, batch, rounds):
  """Returns images per second of each step, by name, a list over rounds."""
  for step in steps.values():
    step()
  speeds = {name: [] for name in steps}
  for _ in range(rounds):
    for name, step in steps.items():
      start = time.perf_counter()
      step()
      speeds[name].append(batch / (time.perf_counter() - start))
  return speeds


def ratio(own, other):
  """Median over rounds, as text; empty without the other."""
  if other is None:
    return ""
  ratios = [a / b for a, b in zip(own, other, strict=True)]
  return f"{statistics.median(ratios):.2f}"


def main(argv):
  """Prints a table."""
  del argv
  console.quiet()
  versions = [f"Python {platform.python_version()}", f"jax {jax.__version__}"]
  try:
    import torch

    versions.append(f"torch {torch.__version__}")
  except ImportError:
    torch = None
    print("PyTorch is left out: it is not installed (extra 'parity').")
  print(f"{', '.join(versions)}; {THREADS} threads; n = {_ROUNDS.value}\n")
  print("| network | batch | candidate | images/s | to lax | to torch | GiB |")
  print("| --- | ---: | --- | ---: | ---: | ---: | ---: |")
  for name in _NETWORKS.value:
    size, batch = NETWORKS[name]
    batch = _BATCH.value or batch
    steps, memory = {}, {}
    steps["ours"], memory["ours"] = jax_step(name, size, batch)
    with mock.patch.object(layers, "conv2d", lax_conv2d):
      steps["lax"], memory["lax"] = jax_step(name, size, batch)
    if torch is not None:
      steps["torch"] = torch_step(name, size, batch)
    speeds = measure(steps, batch, _ROUNDS.value)
    for candidate, own in speeds.items():
      ratios = [ratio(own, speeds.get(to)) for to in ("lax", "torch")]
      gib = f"{memory[candidate]:.2f}" if candidate in memory else ""
      speed = f"{statistics.median(own):.1f} [{min(own):.1f}, {max(own):.1f}]"
      cells = (name, str(batch), candidate, speed, *ratios, gib)
      print(f"| {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
  app.run(main)
