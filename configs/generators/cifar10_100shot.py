"""A diffusion model of 100 images a class of CIFAR-10: the second scenario.

The generator has seen no more real images than the classifier may:

  python -m synguide_jax.main --config=configs/cifar_lowshot.py \
      --config.data.shots=100 --config.num_runs=1 \
      --config.data.synthetic=generate:configs/generators/cifar10_100shot.py

They are those that the experiment's first run draws; its other runs draw
others, which with these are more real images than they say.
--config.first_run=1 is another run, with a generator of its own.

So few are learnt by heart unless it is kept from that: EDM's augmentation, of
which samples show nothing, more dropout, a smaller network, and fewer steps.
copies.json, beside the images, says how many of them are copies.

Arguments are those of cifar10.py: "full" (the default), "tiny", "auto" and
"smoke". Hardware, wall time and result: not run.
"""

from synguide_jax import config as config_lib

ARGS = ("full", "tiny", "auto", "smoke")


def get_config(arg=None):
  """Returns the config; ``arg`` is one of ``ARGS``, "full" by default."""
  arg = config_lib.check_arg(arg, ARGS, default="full")
  if arg == "auto":
    arg = config_lib.choose_by_memory("tiny", full=8)
  base = {"full": "full", "smoke": "full", "tiny": "tiny"}[arg]
  config = config_lib.load(f"configs/generators/cifar10.py:{base}")
  config.data.shots = 100
  config.diffusion.augment = 0.15
  config.model.dropout = 0.2
  if base == "full":
    config.batch_size = 256
    config.num_steps = 30_000
    config.optimizer.warmup_steps = 1_000
    config.model.width = 64
  return config_lib.generator_smoke(config) if arg == "smoke" else config
