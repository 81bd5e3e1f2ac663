"""Models of the Hugging Face hub: from its cache, or downloaded."""

import functools
from pathlib import Path

from synguide_jax.errors import UserError
from synguide_jax.models.weight_files import read_json
from synguide_jax.network import is_reachable

_WEIGHTS = ("model.safetensors", "pytorch_model.bin")
_PREPROCESSING = "preprocessor_config.json"


def fetch(spec: str) -> Path:
  """Returns the folder of a model of the hub, downloading what is missing.

  What the cache has is used as it is, without a call to the hub: if a branch,
  such as the default one, has moved on since, `hf download <repository>` gets
  the newer copy, which is used from then on. A commit's hash as the revision
  always means the same weights.

  Args:
    spec: ``hf:<repository>[@revision]``.

  Raises:
    UserError: if it is neither in the cache nor to be had from the hub.
  """
  repository, _, revision = spec.removeprefix("hf:").partition("@")
  cached = None
  try:
    cached, is_whole = _cached(repository, revision or None)
    return cached if is_whole else _download(repository, revision or None)
  except UserError:
    raise
  except Exception as error:
    # No such repository or revision, no access, no network, a garbled name: it
    # has an exception for each, of several libraries.
    if cached is not None:
      return cached
    from huggingface_hub import constants

    reason = " ".join(str(error).split())
    folder = f"models--{repository.replace('/', '--')}"
    version = f" --revision={revision}" if revision else ""
    raise UserError(
      f"{spec} is not in the cache of the Hugging Face hub, "
      f"{constants.HF_HUB_CACHE}, and cannot be downloaded: {reason} Where "
      f"there is a network, run this command, or hf download "
      f"{repository}{version}, and copy {folder} from the cache there into "
      "this one."
    ) from error


def _cached(repository: str, revision: str | None) -> tuple[Path | None, bool]:
  """Returns the folder of a model that can be loaded, and if it is whole.

  Of one that is not, the cache does not tell how its images were prepared.
  """
  # Not needed for local checkpoints, and slow to import.
  import huggingface_hub

  find = functools.partial(
    huggingface_hub.try_to_load_from_cache, repository, revision=revision
  )
  config = find("config.json")
  if not isinstance(config, str) or not any(
    isinstance(find(name), str) for name in _WEIGHTS
  ):
    return None, False
  # timm's config has the preprocessing in it, and ours. Of a file that the
  # repository lacks, the cache may say so, which is not None either.
  model_type = read_json(Path(config)).get("model_type")
  is_whole = (
    model_type in (None, "synguide_jax") or find(_PREPROCESSING) is not None
  )
  return Path(config).parent, is_whole


def _download(repository: str, revision: str | None) -> Path:
  import huggingface_hub
  from huggingface_hub import constants

  if not constants.HF_HUB_OFFLINE and not is_reachable(constants.ENDPOINT):
    raise ConnectionError(f"{constants.ENDPOINT} cannot be reached.")
  # A repository may have both, which are large.
  for weights in _WEIGHTS:
    folder = Path(
      huggingface_hub.snapshot_download(
        repository,
        revision=revision,
        allow_patterns=["config.json", _PREPROCESSING, weights],
      )
    )
    if (folder / weights).is_file():
      return folder
  raise FileNotFoundError(f"it has neither {' nor '.join(_WEIGHTS)}.")
