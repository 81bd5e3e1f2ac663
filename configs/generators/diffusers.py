r"""A text-to-image pipeline of diffusers, asked for every class by its name.

Name one, on the Hugging Face hub or in a folder, and the set whose classes it
is asked for:

  pip install "synguide-jax[diffusers]"
  python -m synguide_jax.synthesize --config=configs/generators/diffusers.py \
      --config.pipeline.repository=<repository or folder> \
      --config.data.real=folder:<path>

The first call downloads the pipeline, several gigabytes; with HF_HUB_OFFLINE=1
it is read from the hub's cache alone. A class whose name says nothing needs a
text of its own:

      --config.pipeline.class_prompts="('n02102040=a photo of a spaniel',)"

`diffusers.py:smoke` takes one step for each of four images a class.

Hardware, wall time and result: not run. Meant for one GPU of 8 GB or more; on a
CPU an image of 512 px takes minutes.
"""

from synguide_jax import config as config_lib
from synguide_jax import generator_config

ARGS = ("full", "smoke")


def get_config(arg=None):
  """Returns the config; ``arg`` is one of ``ARGS``, "full" by default."""
  arg = config_lib.check_arg(arg, ARGS, default="full")
  config = config_lib.training_defaults()
  config.method = "diffusers"
  # An experiment that asks for images puts its own sets and splits into
  # config.data.

  config.pipeline = config_lib.ConfigDict()
  # Of a text-to-image pipeline: its repository on the hub, or a folder.
  config.pipeline.repository = ""
  # Branch, tag or commit of the repository; "": its main branch.
  config.pipeline.revision = ""
  # Text that asks for a class, whose name replaces {}.
  config.pipeline.prompt = "a photo of a {}"
  # What guidance leads away from; "": from the empty text.
  config.pipeline.negative_prompt = ""
  # "class name=prompt", for classes whose names say nothing.
  config.pipeline.class_prompts = ()
  # Side of the images it makes, pixels; 0: the one it was trained for.
  config.pipeline.image_size = 0
  # Type to compute in, "float16", "bfloat16" or "float32"; "auto": float16 on
  # an NVIDIA GPU, float32 elsewhere.
  config.pipeline.dtype = "auto"
  # Images generated at a time; memory, and rounding.
  config.pipeline.batch_size = 8

  config.sample = generator_config.sample()
  config.sample.per_class = 200
  # One pass each, two with guidance.
  config.sample.num_steps = 50
  # The guidance_scale of pipelines less 1; 6.5 is usual for single images, to
  # look at.
  config.sample.guidance = 1.0
  config.filter = generator_config.filtering()

  if arg == "smoke":
    config.pipeline.batch_size = 4
    config.sample.per_class = 4
    config.sample.num_steps = 1
  return config
