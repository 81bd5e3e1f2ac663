"""Images of a text-to-image pipeline of diffusers, such as Stable Diffusion.

The generator of others in place of the built-in one, asked for an image of a
class by a sentence with the class's name. It runs in PyTorch, which only the
extra installs, ``pip install "synguide-jax[diffusers]"``; nothing is imported
before :func:`open_pipeline` is called::

  config = config_lib.load("configs/generators/diffusers.py")
  config.pipeline.repository = "<repository on the hub, or a folder>"
  generate = open_pipeline(config, ("cat", "dog"))
  images = generate(labels=[0, 1], indices=[0, 1])  # uint8 [2, H, W, 3]

References:
  Rombach et al., `High-Resolution Image Synthesis with Latent Diffusion Models
  <https://arxiv.org/abs/2112.10752>`_, 2022

  Ho & Salimans, `Classifier-Free Diffusion Guidance
  <https://arxiv.org/abs/2207.12598>`_, 2022
"""

from collections.abc import Iterator, Sequence
import contextlib
import inspect
from pathlib import Path
from typing import Any
import warnings

from absl import logging
from huggingface_hub.utils import logging as hub_logging
import ml_collections
import numpy as np

from synguide_jax.errors import check_known, check_not_negative, UserError
from synguide_jax.synthesis.sampling import Generator

_DTYPES = ("auto", "float16", "bfloat16", "float32")

# The field behind each argument of a pipeline, and the value that leaves it
# out.
_FIELDS = {
  "guidance_scale": ("config.sample.guidance", 0.0),
  "height": ("config.pipeline.image_size", 0),
  "negative_prompt": ("config.pipeline.negative_prompt", ""),
}


def prompts(
  section: ml_collections.ConfigDict, class_names: Sequence[str]
) -> tuple[str, ...]:
  """Returns the text that asks for an image of each class.

  Args:
    section: ``config.pipeline``: in ``prompt`` the class's name replaces
      ``{}``, its underscores as spaces; ``class_prompts`` holds
      ``"class name=prompt"`` for classes that get a text of their own.
    class_names: In the order of the labels.

  Raises:
    UserError: If the template has no ``{}``, or a text of its own is given to
      no class of that name.
  """
  if "{}" not in section.prompt:
    raise UserError(
      f"config.pipeline.prompt={section.prompt!r} has no {{}}, where the name "
      "of the class goes: write 'a photo of a {}'."
    )
  own = {}
  for pair in section.class_prompts:
    name, equals, text = pair.partition("=")
    if not equals or not text or name not in class_names:
      raise UserError(
        f"config.pipeline.class_prompts: {pair!r} must be 'class name=prompt', "
        f"of one of the classes {', '.join(class_names)}."
      )
    own[name] = text
  return tuple(
    own.get(name) or section.prompt.replace("{}", name.replace("_", " "))
    for name in class_names
  )


def image_seed(seed: int, index: int) -> int:
  """Returns the seed, 64 bits, of one image's noise.

  Neighbouring numbers would seed PyTorch's generator with neighbouring states;
  NumPy's ``SeedSequence`` mixes both of them first.
  """
  mixed = np.random.SeedSequence([int(seed), int(index)])
  return int(mixed.generate_state(1, np.uint64)[0])


def open_pipeline(
  config: ml_collections.ConfigDict, class_names: Sequence[str]
) -> Generator:
  r"""Loads a text-to-image pipeline; returns the function that calls it.

  Image n depends on the config, its label and its index only: its noise comes
  from a generator of its own, seeded from ``config.sample.seed`` and the index
  and on the CPU, so that it is the same noise on every device; and all calls
  of the pipeline are of ``config.pipeline.batch_size`` images, the last one
  padded. Another ``batch_size``, device or type changes rounding.

  Guidance has the weight :math:`w` of Ho & Salimans, as the built-in
  generator's has,

  .. math:: \tilde\epsilon = (1 + w) \epsilon(x, c) - w \epsilon(x)

  which pipelines call a ``guidance_scale`` of :math:`1 + w`.

  Weights are read from safetensors, and code that comes with a repository is
  never run. A pipeline's own safety filter stays on: images that it has
  blackened are returned black, and counted in a warning.

  Args:
    config: Reads ``pipeline``; of ``sample`` the fields ``seed``, ``guidance``
      and ``num_steps``; ``truncation`` must be 0. See
      configs/generators/diffusers.py.
    class_names: In the order of the labels.

  Returns:
    A function of labels ``[N]`` and indices ``[N]`` in [0, 2**32), N > 0, that
    returns RGB images, uint8 ``[N, H, W, 3]``, of the pipeline's own size or
    ``config.pipeline.image_size``. It raises ``UserError`` if the pipeline
    refuses a setting, runs out of memory or makes values that are not finite.

  Raises:
    UserError: If a field is wrong, a package is missing, or the repository is
      no text-to-image pipeline or cannot be had.
  """
  section, sample = config.pipeline, config.sample
  _check(config)
  texts = prompts(section, class_names)
  with _quiet():
    pipeline = _load(section)
  settings = _settings(config, type(pipeline))
  batch_size = section.batch_size

  def generate(labels, indices):
    labels = np.asarray(labels, np.int32)
    indices = np.asarray(indices, np.uint32)
    padding = (0, -len(labels) % batch_size)
    batches = [
      _run(
        pipeline,
        [texts[label] for label in batch_labels],
        [image_seed(sample.seed, index) for index in batch_indices],
        settings,
        section,
      )
      for batch_labels, batch_indices in zip(
        np.pad(labels, padding).reshape(-1, batch_size),
        np.pad(indices, padding).reshape(-1, batch_size),
        strict=True,
      )
    ]
    images, flagged = map(np.concatenate, zip(*batches, strict=True))
    if count := flagged[: len(labels)].sum():
      logging.warning(
        "The safety filter of %s blackened %d of %d images; another "
        "config.pipeline.prompt may avoid that.",
        *(section.repository, count, len(labels)),
      )
    return images[: len(labels)]

  return generate


def _check(config: ml_collections.ConfigDict) -> None:
  section, sample = config.pipeline, config.sample
  if not section.repository:
    raise UserError(
      "config.pipeline.repository is empty: name a text-to-image pipeline on "
      "the Hugging Face hub, or a folder that holds one."
    )
  check_known("config.pipeline.dtype", section.dtype, _DTYPES)
  check_not_negative("config.pipeline.image_size", section.image_size)
  check_not_negative("config.sample.guidance", sample.guidance)
  check_not_negative("config.sample.seed", sample.seed)
  for field, value in (
    ("config.pipeline.batch_size", section.batch_size),
    ("config.sample.num_steps", sample.num_steps),
  ):
    if value < 1:
      raise UserError(f"{field}={value} must be at least 1.")
  if sample.truncation:
    raise UserError(
      f"config.sample.truncation={sample.truncation} is for diffusion models "
      "trained here: set it to 0."
    )
  if section.negative_prompt and not sample.guidance:
    raise UserError(
      f"config.pipeline.negative_prompt={section.negative_prompt!r} does "
      "nothing without guidance: set config.sample.guidance above 0."
    )


def _import() -> tuple[Any, Any, Any]:
  try:
    import diffusers
    import torch
    import transformers
  except ImportError as error:
    raise UserError(
      'config.method="diffusers" needs diffusers, PyTorch and transformers '
      f'({error}): pip install "synguide-jax[diffusers]".'
    ) from error
  return diffusers, torch, transformers


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
  """Keeps the libraries' warnings and progress bars off the terminal.

  What a user can do something about is raised, and in a message of ours.
  """
  diffusers, _, transformers = _import()
  with_bars = (diffusers.utils.logging, transformers.utils.logging)
  logs = (*with_bars, hub_logging)
  verbosities = [log.get_verbosity() for log in logs]
  bars = [log.is_progress_bar_enabled() for log in with_bars]
  with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    try:
      for log in logs:
        log.set_verbosity(log.CRITICAL)
      for log in with_bars:
        log.disable_progress_bar()
      yield
    finally:
      for log, verbosity in zip(logs, verbosities, strict=True):
        log.set_verbosity(verbosity)
      for log, enabled in zip(with_bars, bars, strict=True):
        if enabled:
          log.enable_progress_bar()


def _load(section: ml_collections.ConfigDict) -> Any:
  diffusers, torch, _ = _import()
  source, revision = section.repository, section.revision or None
  folder = Path(source).expanduser()
  if folder.is_dir():
    source = str(folder)
  device, dtype = _placement(torch, section.dtype)
  logging.info("Loading %s, from the hub if it is not here yet.", source)
  try:
    # A few bytes, which tell what the gigabytes would be.
    index = diffusers.DiffusionPipeline.load_config(source, revision=revision)
    _check_kind(index, section.repository)
    pipeline = diffusers.DiffusionPipeline.from_pretrained(
      source, revision=revision, dtype=dtype, use_safetensors=True
    )
    pipeline = pipeline.to(device)
  except UserError:
    raise
  except torch.OutOfMemoryError as error:
    raise _out_of_memory(section) from error
  except Exception as error:
    # No such repository or revision, no access, no network and nothing in the
    # cache, files missing or damaged: an exception for each, of four libraries.
    at = f" at revision {revision!r}" if revision else ""
    raise UserError(
      f"config.pipeline.repository={section.repository!r}{at} cannot be loaded "
      f"from a folder, the Hugging Face hub or its cache ({_reason(error)}): "
      "check the name, or download the pipeline with its safetensors on a "
      "machine that has access (hf download) and name the folder."
    ) from error
  pipeline.set_progress_bar_config(disable=True)
  return pipeline


def _check_kind(index: dict[str, Any], repository: str) -> None:
  """Raises UserError for what cannot be asked for an image by a text alone."""
  from diffusers.pipelines import auto_pipeline

  kinds = auto_pipeline.AUTO_TEXT2IMAGE_PIPELINES_MAPPING.values()
  # A list, where code of the repository would be run.
  name = index.get("_class_name")
  if name not in [kind.__name__ for kind in kinds]:
    raise UserError(
      f"config.pipeline.repository={repository!r} is of class {name}, not one "
      "of diffusers' text-to-image pipelines: name another one, such as a "
      "StableDiffusionPipeline."
    )


def _placement(torch: Any, dtype: str) -> tuple[str, Any]:
  if torch.cuda.is_available():
    device = "cuda"
  elif torch.backends.mps.is_available():
    device = "mps"
  else:
    device = "cpu"
  if dtype == "auto":
    dtype = "float16" if device == "cuda" else "float32"
  return device, getattr(torch, dtype)


def _settings(config: ml_collections.ConfigDict, kind: type) -> dict[str, Any]:
  """Returns the arguments that all calls of the pipeline share."""
  section, sample = config.pipeline, config.sample
  settings = {"num_inference_steps": sample.num_steps}
  known = inspect.signature(kind.__call__).parameters
  if sample.guidance or "guidance_scale" in known:
    settings["guidance_scale"] = 1.0 + sample.guidance
  if section.image_size:
    settings["height"] = settings["width"] = section.image_size
  if section.negative_prompt:
    settings["negative_prompt"] = [section.negative_prompt] * section.batch_size
  for name, (field, default) in _FIELDS.items():
    if name in settings and name not in known:
      raise UserError(
        f"{field} has no effect, for a {kind.__name__} takes no {name}: set it "
        f"to {default!r}."
      )
  return settings


def _run(
  pipeline: Any,
  texts: list[str],
  seeds: list[int],
  settings: dict[str, Any],
  section: ml_collections.ConfigDict,
) -> tuple[np.ndarray, np.ndarray]:
  """Returns images, uint8 ``[N, H, W, 3]``, and which ones were blackened."""
  _, torch, _ = _import()
  try:
    with _quiet():
      output = pipeline(
        prompt=texts,
        generator=[torch.Generator().manual_seed(seed) for seed in seeds],
        output_type="np",
        **settings,
      )
  except torch.OutOfMemoryError as error:
    raise _out_of_memory(section) from error
  except (TypeError, ValueError) as error:
    raise UserError(
      f"config.pipeline.repository={section.repository!r} refuses these "
      f"settings of config.pipeline and config.sample: {_reason(error)}"
    ) from error
  images = np.asarray(output.images)
  if not np.isfinite(images).all():
    raise UserError(
      f"{section.repository} made values that are not finite, with "
      f"config.pipeline.dtype={section.dtype!r}: set it to bfloat16 or float32."
    )
  flagged = getattr(output, "nsfw_content_detected", None)
  flagged = [False] * len(texts) if flagged is None else flagged
  return np.round(images * 255).astype(np.uint8), np.asarray(flagged, bool)


def _out_of_memory(section: ml_collections.ConfigDict) -> UserError:
  return UserError(
    f"{section.repository} does not fit in the GPU's memory with "
    f"config.pipeline.batch_size={section.batch_size}: make it smaller, or "
    "config.pipeline.image_size."
  )


def _reason(error: Exception) -> str:
  return " ".join(str(error).split()).rstrip(".")
