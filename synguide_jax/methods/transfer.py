"""The pretrained network itself as the classifier: what one tries first.

With M_p under a new linear head, on real, synthetic or mixed images,

  linear_probe  trains the head on features of the network as it is (running
                statistics, no dropout)
  finetune      trains all of it, the backbone at ``transfer.backbone_rate``
                times the learning rate

Kornblith et al., `Do Better ImageNet Models Transfer Better?
<https://arxiv.org/abs/1805.08974>`_, CVPR 2019.
"""

from typing import Any

from synguide_jax.data.feed import SETS
from synguide_jax.errors import check_known, check_not_negative
from synguide_jax.methods import networks, optimizers, supervised
from synguide_jax.methods.base import Info, Method, Stage, Stream


def make(config: Any, info: Info) -> Method:
  """Makes ``linear_probe`` or ``finetune``."""
  section, probe = config.transfer, config.method == "linear_probe"
  check_known("transfer.train_on", section.train_on, SETS)
  check_not_negative("transfer.backbone_rate", section.backbone_rate)
  stream = Stream(section.train_on, config.batch_size)
  streams = networks.check_streams(config, info, {section.train_on: stream})
  steps = supervised.num_steps(config, info, stream)
  trained = networks.create_transferred(config, info)
  tx = optimizers.create_grouped(
    config.optimizer,
    steps,
    {"head": 1.0, "backbone": 0.0 if probe else section.backbone_rate},
    networks.groups,
  )
  rate = optimizers.schedule(config.optimizer, steps)
  forward = supervised.one_stream(trained, section.train_on, train=not probe)
  step = supervised.descend(
    forward, tx, {section.train_on: 1.0}, config.microbatches
  )

  def init(key, images):
    return trained.init(key, images, tx), None

  return Method(
    stages=(Stage("train", steps, streams, step, learning_rate=rate),),
    init=init,
    predict=trained.predict,
    model=trained.model,
  )
