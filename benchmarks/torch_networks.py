"""The networks of `benchmarks.models` in PyTorch, from plain torch.nn."""

import torch
from torch import nn
from torch.nn import functional as F

from synguide_jax import models


def _conv_norm(before, features, kernel_size, stride):
  padding = kernel_size // 2
  conv = nn.Conv2d(before, features, kernel_size, stride, padding, bias=False)
  return nn.Sequential(conv, nn.BatchNorm2d(features))


class Block(nn.Module):
  """`synguide_jax.models.resnet.Block`."""

  def __init__(self, before, width, stride, bottleneck):
    super().__init__()
    if bottleneck:
      after = 4 * width
      self.layers = nn.Sequential(
        _conv_norm(before, width, 1, 1),
        nn.ReLU(),
        _conv_norm(width, width, 3, stride),
        nn.ReLU(),
        _conv_norm(width, after, 1, 1),
      )
    else:
      after = width
      self.layers = nn.Sequential(
        _conv_norm(before, width, 3, stride),
        nn.ReLU(),
        _conv_norm(width, width, 3, 1),
      )
    self.shortcut = nn.Identity()
    if before != after or stride != 1:
      self.shortcut = _conv_norm(before, after, 1, stride)

  def forward(self, x):
    return F.relu(self.layers(x) + self.shortcut(x))


def resnet(num_classes, blocks, bottleneck, width=64, small_images=False):
  """`synguide_jax.models.resnet.ResNet`."""
  stem = _conv_norm(3, width, *((3, 1) if small_images else (7, 2)))
  layers = [stem, nn.ReLU()]
  if not small_images:
    layers.append(nn.MaxPool2d(3, 2, 1))
  before = width
  for stage, count in enumerate(blocks):
    for block in range(count):
      stride = 2 if stage and not block else 1
      layers.append(Block(before, width * 2**stage, stride, bottleneck))
      before = width * 2**stage * (4 if bottleneck else 1)
  pool = [nn.AdaptiveAvgPool2d(1), nn.Flatten()]
  return nn.Sequential(*layers, *pool, nn.Linear(before, num_classes))


def create(name, num_classes):
  """The registered network of that name, a ResNet, channels last."""
  network = resnet(num_classes, **models.MODELS[name].options)
  return network.to(memory_format=torch.channels_last)
