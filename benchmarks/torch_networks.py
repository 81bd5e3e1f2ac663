"""PyTorch peers, plain torch.nn, with torchvision's and timm's names.

For benchmarks, and for tests of weights. What `create` makes has two parts:
``maps(images)`` are the outputs of the stages, of the first ``upto`` alone if
that is given, and ``classify`` makes logits of the last one.
"""

import torch
from torch import nn
from torch.nn import functional as F


def randomise(module, seed=0):
  """Gives every tensor a value that matters, and statistics their own."""
  generator = torch.Generator().manual_seed(seed)

  def normal(tensor, std, mean=0.0):
    noise = torch.randn(tensor.shape, generator=generator)
    tensor.copy_(mean + std * noise)

  with torch.no_grad():
    for name, parameter in module.named_parameters():
      if parameter.ndim > 1:
        fan_in = max(parameter[0].numel(), 1)
        normal(parameter, min((2 / fan_in) ** 0.5, 1.0))
      else:
        normal(parameter, 0.1, 1.0 if name.endswith("weight") else 0.0)
    for name, buffer in module.named_buffers():
      if name.endswith("running_mean"):
        normal(buffer, 0.2)
      elif name.endswith("running_var"):
        buffer.copy_(0.5 + torch.rand(buffer.shape, generator=generator))
  return module.eval()


class ResNetBlock(nn.Module):
  def __init__(self, before, width, stride, bottleneck):
    super().__init__()
    self.count = 3 if bottleneck else 2
    after = 4 * width if bottleneck else width
    shapes = (
      [(before, width, 1, 1), (width, width, 3, stride), (width, after, 1, 1)]
      if bottleneck
      else [(before, width, 3, stride), (width, width, 3, 1)]
    )
    for i, (c, d, k, s) in enumerate(shapes, start=1):
      setattr(self, f"conv{i}", nn.Conv2d(c, d, k, s, k // 2, bias=False))
      setattr(self, f"bn{i}", nn.BatchNorm2d(d))
    if before != after or stride > 1:
      self.downsample = nn.Sequential(
        nn.Conv2d(before, after, 1, stride, bias=False), nn.BatchNorm2d(after)
      )

  def forward(self, x):
    y = x
    for i in range(1, self.count + 1):
      y = getattr(self, f"bn{i}")(getattr(self, f"conv{i}")(y))
      y = F.relu(y) if i < self.count else y
    return F.relu(
      y + (self.downsample(x) if hasattr(self, "downsample") else x)
    )


class ResNet(nn.Module):
  """torchvision's and timm's, with the fields of `synguide_jax`'s ResNet."""

  def __init__(
    self, num_classes, blocks, bottleneck, width=64, small_images=False
  ):
    super().__init__()
    self.small_images, self.stages = small_images, len(blocks)
    kernel_size, stride = (3, 1) if small_images else (7, 2)
    self.conv1 = nn.Conv2d(
      3, width, kernel_size, stride, kernel_size // 2, bias=False
    )
    self.bn1 = nn.BatchNorm2d(width)
    before = width
    for stage, count in enumerate(blocks):
      layers = []
      for block in range(count):
        stride = 2 if stage and not block else 1
        layers.append(ResNetBlock(before, width * 2**stage, stride, bottleneck))
        before = width * 2**stage * (4 if bottleneck else 1)
      setattr(self, f"layer{stage + 1}", nn.Sequential(*layers))
    self.fc = nn.Linear(before, num_classes)

  def maps(self, x, upto=None):
    x = F.relu(self.bn1(self.conv1(x)))
    if not self.small_images:
      x = F.max_pool2d(x, 3, 2, 1)
    found = []
    for stage in range(upto or self.stages):
      x = getattr(self, f"layer{stage + 1}")(x)
      found.append(x)
    return found

  def classify(self, x):
    return self.fc(x.mean((2, 3)))

  def forward(self, x):
    return self.classify(self.maps(x)[-1])


class SmallCNN(nn.Module):
  """The digits' network, with the names that its layers have here."""

  def __init__(self, num_classes, channels=3, widths=(16, 32, 64), groups=8):
    super().__init__()
    self.stages, before = len(widths), channels
    for i, width in enumerate(widths):
      stride = 2 if i else 1
      conv = nn.Conv2d(before, width, 3, stride, 1, bias=False)
      setattr(self, f"Conv_{i}", conv)
      setattr(self, f"GroupNorm_{i}", nn.GroupNorm(groups, width, 1e-6))
      before = width
    self.head = nn.Linear(before, num_classes)

  def maps(self, x, upto=None):
    found = []
    for i in range(upto or self.stages):
      x = getattr(self, f"Conv_{i}")(x)
      x = F.relu(getattr(self, f"GroupNorm_{i}")(x))
      found.append(x)
    return found

  def classify(self, x):
    return self.head(x.mean((2, 3)))

  def forward(self, x):
    return self.classify(self.maps(x)[-1])


def _pad_same(x, conv):
  """TensorFlow's padding of a convolution without padding of its own."""
  k, s = conv.kernel_size[0], conv.stride[0]
  total = [max((-(-n // s) - 1) * s + k - n, 0) for n in x.shape[-2:]]
  (top, left) = (t // 2 for t in total)
  return F.pad(x, (left, total[1] - left, top, total[0] - top))


class _Conv(nn.Conv2d):
  def __init__(self, before, after, k, s=1, groups=1, bias=False, same=False):
    padding = 0 if same else k // 2
    super().__init__(before, after, k, s, padding, groups=groups, bias=bias)
    self.same = same

  def forward(self, x):
    return super().forward(_pad_same(x, self) if self.same else x)


class _SqueezeExcite(nn.Module):
  def __init__(self, width, squeeze):
    super().__init__()
    self.conv_reduce = _Conv(width, squeeze, 1, bias=True)
    self.conv_expand = _Conv(squeeze, width, 1, bias=True)

  def forward(self, x):
    gate = F.silu(self.conv_reduce(x.mean((2, 3), keepdim=True)))
    return x * torch.sigmoid(self.conv_expand(gate))


class _InvertedResidual(nn.Module):
  def __init__(self, before, after, k, s, expand, se, act, norm, same):
    super().__init__()
    width, self.act, self.expand = before * expand, act, expand > 1
    self.skip = before == after and s == 1
    depthwise = _Conv(width, width, k, s, groups=width, same=same)
    if self.expand:
      self.conv_pw, self.bn1 = _Conv(before, width, 1), norm(width)
      self.conv_dw, self.bn2 = depthwise, norm(width)
      self.conv_pwl, self.bn3 = _Conv(width, after, 1), norm(after)
    else:
      self.conv_dw, self.bn1 = depthwise, norm(width)
      self.conv_pw, self.bn2 = _Conv(width, after, 1), norm(after)
    self.se = _SqueezeExcite(width, before // 4) if se else nn.Identity()

  def forward(self, x):
    if self.expand:
      y = self.act(self.bn1(self.conv_pw(x)))
      y = self.se(self.act(self.bn2(self.conv_dw(y))))
      y = self.bn3(self.conv_pwl(y))
    else:
      y = self.se(self.act(self.bn1(self.conv_dw(x))))
      y = self.bn2(self.conv_pw(y))
    return x + y if self.skip else y


class InvertedResiduals(nn.Module):
  """timm's MobileNetV2 and EfficientNet.

  Groups are (expansion, channels, blocks, stride, kernel size), as in the
  papers' tables.
  """

  def __init__(self, num_classes, groups, se, act, epsilon=1e-5, same=False):
    super().__init__()

    def norm(channels):
      return nn.BatchNorm2d(channels, epsilon)

    self.act = act
    self.conv_stem, self.bn1 = _Conv(3, 32, 3, 2, same=same), norm(32)
    self.blocks, before = nn.Sequential(), 32
    for expand, after, count, stride, k in groups:
      group = nn.Sequential()
      for i in range(count):
        s = stride if i == 0 else 1
        group.append(
          _InvertedResidual(before, after, k, s, expand, se, act, norm, same)
        )
        before = after
      self.blocks.append(group)
    self.conv_head, self.bn2 = _Conv(before, 1280, 1), norm(1280)
    self.classifier = nn.Linear(1280, num_classes)

  def forward(self, x):
    x = self.blocks(self.act(self.bn1(self.conv_stem(x))))
    x = self.act(self.bn2(self.conv_head(x)))
    return self.classifier(x.mean((2, 3)))


class _Attention(nn.Module):
  def __init__(self, width, heads):
    super().__init__()
    self.heads = heads
    self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)

  def forward(self, x):
    n, t, c = x.shape
    qkv = self.qkv(x).reshape(n, t, 3, self.heads, c // self.heads)
    q, k, v = qkv.permute(2, 0, 3, 1, 4)
    y = F.scaled_dot_product_attention(q, k, v)
    return self.proj(y.transpose(1, 2).reshape(n, t, c))


class _Mlp(nn.Module):
  def __init__(self, width):
    super().__init__()
    self.fc1 = nn.Linear(width, 4 * width)
    self.fc2 = nn.Linear(4 * width, width)

  def forward(self, x):
    return self.fc2(F.gelu(self.fc1(x)))


class _LayerScale(nn.Module):
  def __init__(self, width):
    super().__init__()
    self.gamma = nn.Parameter(torch.ones(width))

  def forward(self, x):
    return x * self.gamma


class _VitBlock(nn.Module):
  def __init__(self, width, heads, layer_scale):
    super().__init__()
    self.ls1, self.ls2 = (
      _LayerScale(width) if layer_scale else nn.Identity() for _ in range(2)
    )
    self.norm1, self.norm2 = (nn.LayerNorm(width, 1e-6) for _ in range(2))
    self.attn, self.mlp = _Attention(width, heads), _Mlp(width)

  def forward(self, x):
    x = x + self.ls1(self.attn(self.norm1(x)))
    return x + self.ls2(self.mlp(self.norm2(x)))


class _PatchEmbed(nn.Module):
  def __init__(self, width, patch):
    super().__init__()
    self.proj = nn.Conv2d(3, width, patch, patch)

  def forward(self, x):
    return self.proj(x).flatten(2).transpose(1, 2)


class VisionTransformer(nn.Module):
  """timm's; without classes, the class token is what it returns."""

  def __init__(
    self, num_classes, width, depth, heads, patch=16, side=224, dinov2=False
  ):
    super().__init__()
    self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
    tokens = 1 + (side // patch) ** 2
    self.pos_embed = nn.Parameter(torch.zeros(1, tokens, width))
    self.patch_embed = _PatchEmbed(width, patch)
    self.blocks = nn.Sequential(
      *(_VitBlock(width, heads, dinov2) for _ in range(depth))
    )
    self.norm = nn.LayerNorm(width, 1e-6)
    self.head = nn.Linear(width, num_classes) if num_classes else nn.Identity()

  def maps(self, x, upto=None):
    """The tokens after each quarter of the blocks."""
    x = self.patch_embed(x)
    x = torch.cat([self.cls_token.expand(len(x), -1, -1), x], 1)
    x, found = x + self.pos_embed, []
    depth = len(self.blocks)
    ends = [-(-depth * quarter // 4) for quarter in (1, 2, 3, 4)]
    for number, block in enumerate(self.blocks[: ends[(upto or 4) - 1]], 1):
      x = block(x)
      if number in ends:
        found.append(x)
    return found

  def classify(self, x):
    return self.head(self.norm(x)[:, 0])

  def forward(self, x):
    return self.classify(self.maps(x)[-1])


def create(name, num_classes, channels=3, **options):
  """Makes the peer of a network of `synguide_jax.models`, for photographs.

  Args:
    name: Its registered name: a ResNet, "small_cnn" or "vit_small_patch16".
    num_classes: Number of logits.
    channels: Of the images; 3 but for "small_cnn".
    **options: Fields in which the network differs from that name's.

  Returns:
    A module in training mode, with PyTorch's initial weights.
  """
  from synguide_jax import models
  from synguide_jax.models.resnet import ResNet as OurResNet

  architecture = models.MODELS[name]
  if name == "small_cnn":
    return SmallCNN(num_classes, channels, **options)
  if name == "vit_small_patch16":
    return VisionTransformer(num_classes, 384, 12, 6, **options)
  if architecture.module is OurResNet:
    return ResNet(num_classes, **architecture.options | options)
  raise ValueError(f"{name} has no peer in PyTorch.")
