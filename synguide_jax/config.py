"""What every config starts from, and how a config file is loaded.

Plain data only; a file in configs/ takes these defaults and states what it
changes. Fields that hold a *spec* name data or weights:

  images     digits | letters | tfds:<name>[/config][:version] |
             folder:<path> | npz:<path> | stylegan:<path> | prepared:<path>;
             docs/data.md
  synthetic  the same | generate:<config file>[:arg]
  weights    hf:<repository>[@revision] | <folder as the hub has them> |
             <.safetensors or .pth file> | train:<config file>[:arg]
"""

from collections.abc import Iterable
import difflib
import importlib.util
from pathlib import Path
from types import ModuleType

from ml_collections import ConfigDict

from synguide_jax import generator_config, method_config, workdir
from synguide_jax.errors import UserError


def training_defaults() -> ConfigDict:
  """Returns the fields that every method needs."""
  config = ConfigDict()
  # A name in synguide_jax.methods.METHODS.
  config.method = "guided"
  # With a run's number it draws shots, weights, batches and augmentation.
  config.seed = 0
  # Runs trained side by side; results are means over them.
  config.num_runs = 5
  # Number of the first one; a run is the same alone and in company.
  config.first_run = 0
  # "vmap": all runs of a device at once; "map": one after the other inside a
  # step; "auto": by the rule of runs.choose_mode, and kept on resuming.
  config.runs_mode = "auto"

  config.mesh = ConfigDict()
  # Devices that runs are spread over; the rest splits each run's batch.
  # 0: as many as can be, see mesh.create.
  config.mesh.runs = 0
  # What is split over the devices of a run instead of copied to each of them:
  # "optimizer", "frozen". Saves memory, costs transfers.
  config.mesh.split = ()

  config.data = ConfigDict()
  # Spec of the real images.
  config.data.real = ""
  # Spec of the synthetic images; "": none. Several, as the text of a tuple, are
  # drawn in proportion to their weights: "('<spec>@2', '<spec>@1')";
  # without weights every image is equally likely.
  config.data.synthetic = ""
  # Synthetic images a class, drawn once; 0: all.
  config.data.synthetic_per_class = 0
  # Names of the classes to use, in label order; (): all.
  config.data.classes = ()
  # Synthetic classes are the real ones of the same "name", or "index".
  config.data.match_classes = "name"
  # "synthetic name=real name", for classes whose names differ.
  config.data.class_mapping = ()
  # Side of the images a network sees, pixels.
  config.data.image_size = 32
  # Side they are stored with, before a crop, pixels; 0: image_size.
  config.data.store_size = 0
  # 1: grey, 3: RGB.
  config.data.channels = 3
  # Whether grey images may be mixed with colour ones, or colour be dropped.
  config.data.convert_channels = False
  # Zeros around an image before a random crop, pixels.
  config.data.padding = 0
  # "random": a window of image_size; "random_resized": one of random area and
  # aspect ratio, resized.
  config.data.crop = "random"
  # Smallest area of the latter, as a share of the image.
  config.data.min_crop_area = 0.08
  # Whether images are mirrored at random.
  config.data.flip = False
  # RandAugment: operations an image goes through, and their strength, 0 to 30.
  config.data.randaugment_layers = 0
  config.data.randaugment_magnitude = 6
  # Real training images a class, drawn per run; -1: all, 0: none (zero-shot).
  config.data.shots = -1
  # Images split off the training images, stratified; 0: the set's own split, if
  # there is one; -1: that, or else a fifth of the training images.
  config.data.validation = 0
  config.data.test = 0
  # The set's own split that is tested on, where data.test is 0.
  config.data.test_split = "test"
  # Cross-validation: the real images in so many parts, and run r is tested on
  # part r; 0: off. Instead of data.test.
  config.data.folds = 0
  # Images that must stay on one side of every split: "pattern:<regex>", of
  # which the match in an image's name is its group, or "csv:<file>" with
  # columns file and group; "": each image for itself.
  config.data.groups = ""
  # Training or synthetic images that are, pixel for pixel, validation or test
  # images too: "warn", "drop" or "error".
  config.data.duplicates = "warn"
  # Leave out image files that cannot be read, and count them, instead of
  # stopping.
  config.data.skip_damaged = False
  # Seed of these splits; the same for all runs.
  config.data.split_seed = 2024
  # "resident": all images decoded in device memory; "stream": decoded as they
  # are needed; "auto": resident if they take no more than ...
  config.data.feed = "auto"
  # ... this share of a device's memory.
  config.data.resident_share = 0.25
  # Processes that decode the stream; 0: threads of this one, -1: threads up to
  # four cores, and above that one process less than there are cores.
  config.data.num_workers = -1

  # Images a step and run, over all devices; two streams take half of it each.
  config.batch_size = 128
  # Parts a step computes its gradients in, one after the other; their mean is
  # that of the whole. Saves memory. Batch normalisation and PG see one part.
  config.microbatches = 1
  # Steps that a device does by itself before it asks for the next ones;
  # SIGTERM waits for them. 0: by the rule of runs.choose_steps, and kept on
  # resuming.
  config.steps_per_dispatch = 0
  # Length of the training, steps; 0: num_epochs.
  config.num_steps = 0
  # Passes over the synthetic images, or the only ones there are.
  config.num_epochs = 200.0
  config.optimizer = ConfigDict()
  # "adam", "adamw" or "sgd".
  config.optimizer.name = "adam"
  # Peak learning rate.
  config.optimizer.learning_rate = 1e-4
  # "constant"; "cosine": falls to 0 at the end; those of the methods' authors,
  # "asg", "csg" and "dann" (docs/methods.md); "step": falls by ...
  config.optimizer.schedule = "constant"
  # ... this factor ...
  config.optimizer.decay_factor = 0.1
  # ... after each of these shares of the training.
  config.optimizer.decay_at = ()
  # Steps of linear rise before that.
  config.optimizer.warmup_steps = 0
  # Of sgd.
  config.optimizer.momentum = 0.9
  # Nesterov's form of it.
  config.optimizer.nesterov = False
  # Of adam and adamw, the decay of the mean of gradients.
  config.optimizer.b1 = 0.9
  # Decoupled in adamw; added to the gradient in adam and sgd, as in PyTorch.
  config.optimizer.weight_decay = 0.0

  # Which weights are tested: "best" on validation, or "last".
  config.select = "best"
  # What is best: "accuracy" or "balanced_accuracy", the mean over classes.
  config.select_metric = "accuracy"
  # Steps between validations.
  config.eval_every = 500
  # What the selected weights are evaluated on at the end, beside validation.
  config.evaluate_on = ("test", "synthetic")
  # Images a step of evaluation; memory only.
  config.eval_batch_size = 256
  # Steps between checkpoints.
  config.checkpoint_every = 1000
  return config


def classifier_defaults() -> ConfigDict:
  """Returns `training_defaults` and what classifiers need besides.

  The fields of single methods are in synguide_jax/method_config.py.
  """
  config = training_defaults()
  # The trained network, M_u.
  config.model = ConfigDict()
  # A name in synguide_jax.models.MODELS.
  config.model.name = "cifar_resnet18"
  # "scratch", or the spec of weights of the same network; its head is new.
  config.model.init = "scratch"
  # Type to compute in, "float32" or "bfloat16"; parameters are float32.
  config.model.dtype = "float32"
  # Compute blocks again in the backward pass: less is kept for it, at the price
  # of up to a forward pass; no use on the CPU. See docs/networks.md.
  config.model.remat = False
  # Side that images are resized to for the network, pixels; 0: they are not,
  # or, with init, to what the checkpoint expects.
  config.model.image_size = 0
  # Subtracted from, and divided by, in units of [0, 1] images, per channel;
  # with init, the checkpoint's own are used.
  config.model.mean = (0.5,)
  config.model.std = (0.5,)

  # The frozen pretrained network, M_p.
  config.pretrained = ConfigDict()
  # Spec of its weights; "random": untrained ones, as a control; "": none.
  config.pretrained.weights = ""
  # Type to compute in, "float32" or "bfloat16".
  config.pretrained.dtype = "float32"
  # Side that images are resized to for it, pixels; 0: what the checkpoint
  # expects. Smaller ones are faster.
  config.pretrained.image_size = 0
  # What "random" is a network of.
  config.pretrained.random_model = "cifar_resnet18"
  # Stage whose pooled map guides.
  config.pretrained.feature_layer = "stage3"

  for name, section in method_config.sections().items():
    config[name] = section
  return config


def generator_defaults() -> ConfigDict:
  """Returns `training_defaults` and what diffusion models need besides.

  The network, config.model, is the config's own.
  """
  # There is no accuracy to select by.
  training = {"method": "diffusion", "num_runs": 1, "select": "last"}
  config = override(training_defaults(), training)
  # Largest decay a step of the parameters' moving average.
  config.ema = 0.999
  config.diffusion = generator_config.diffusion()
  config.sample = generator_config.sample()
  config.filter = generator_config.filtering()
  return config


# What a smoke variant changes, by field.
_SMOKE = {
  "num_runs": 1,
  # Digits of two classes, resized, stand in for both sets.
  "data.real": "digits",
  "data.synthetic": "digits",
  "data.classes": ("0", "1"),
  "data.validation": 8,
  "data.test": 8,
  "data.groups": "",
  "data.num_workers": 0,
  # Networks without weights; the trained one is the config's own.
  "model.init": "scratch",
  "pretrained.weights": "random",
  "pretrained.random_model": "small_cnn",
  "pretrained.image_size": 32,
  "batch_size": 8,
  "num_steps": 2,
  "eval_every": 2,
  "evaluate_on": ("test",),
  "eval_batch_size": 8,
  "checkpoint_every": 2,
}


# What a generator's smoke variant changes, by field.
_GENERATOR_SMOKE = {
  "data.real": "digits",
  "data.classes": ("0", "1"),
  "data.validation": 8,
  "data.test": 8,
  "data.groups": "",
  "data.shots": -1,
  "num_steps": 2,
  "batch_size": 8,
  "eval_every": 2,
  "checkpoint_every": 2,
  "sample.per_class": 20,
  "sample.num_steps": 2,
  "model.width": 8,
  "model.blocks": 1,
}
_UNET_SMOKE = {"model.multipliers": (1, 1), "model.attention": ()}


def generator_smoke(config: ConfigDict) -> ConfigDict:
  """Returns a diffusion model's config cut down to a test of two steps.

  Digits stand in for the images, whose side stays; the network is a tiny one
  of its kind.
  """
  of_network = _UNET_SMOKE if config.model.name == "unet" else {}
  return override(config, _GENERATOR_SMOKE | of_network)


def smoke(config: ConfigDict) -> ConfigDict:
  """Returns a classifier's config cut down to a test of two steps.

  It needs neither data nor network: digits and a random pretrained network
  stand in. The trained network and the side of the images stay.
  """
  return override(config, _SMOKE)


def check_arg(arg: str | None, known: Iterable[str], default: str) -> str:
  """Returns the argument of a config file, or its default.

  Raises:
    UserError: if it is none of the ``known`` ones.
  """
  if arg and arg not in known:
    raise UserError(f"Unknown argument {arg!r}; known: {', '.join(known)}.")
  return arg or default


def choose_by_memory(otherwise: str, **smallest: float) -> str:
  """Returns the argument for the devices here.

  Args:
    otherwise: That for a CPU, or too little memory.
    **smallest: The memory that an argument needs, gigabytes of all GPUs or TPUs
      together; the one that needs most of what there is is chosen.
  """
  # Other configs are loaded without it.
  import jax

  if jax.default_backend() == "cpu":
    return otherwise
  found = [device.memory_stats() or {} for device in jax.local_devices()]
  each = min(stats.get("bytes_limit", 0) for stats in found) / 1e9
  enough = {a: m for a, m in smallest.items() if m <= each * jax.device_count()}
  return max(enough, key=enough.get, default=otherwise)


def find(spec: str) -> tuple[Path, str | None]:
  """Splits ``<config file>[:arg]`` and finds the file.

  Args:
    spec: A path relative to the current folder, or to the folder that holds
      the package (a checkout), or absolute.

  Returns:
    The path and the argument.

  Raises:
    UserError: if there is no such file.
  """
  name, _, arg = spec.partition(":")
  checkout = Path(__file__).resolve().parent.parent
  for path in (Path(name), checkout / name):
    if path.is_file():
      return path, arg or None
  raise UserError(f"No config file {name!r} in {Path.cwd()} or {checkout}.")


def _module(path: Path) -> ModuleType:
  spec = importlib.util.spec_from_file_location(f"config_{path.stem}", path)
  if spec is None or spec.loader is None:
    raise UserError(f"{path} is not a Python file.")
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module


def load(spec: str) -> ConfigDict:
  """Returns the config of ``<config file>[:arg]``.

  Raises:
    UserError: if there is no such file, or it does not know the argument.
  """
  path, arg = find(spec)
  try:
    return _module(path).get_config(arg)
  # A field got a value of another type.
  except (TypeError, ValueError) as error:
    raise UserError(f"{path}: {error}") from error


def load_sweep(spec: str) -> list[dict[str, object]]:
  """Returns the rows of the config file's sweep, each a dict of overrides."""
  path, arg = find(spec)
  module = _module(path)
  if not hasattr(module, "get_sweep"):
    raise UserError(
      f"{path} has no get_sweep(); see configs/digits_lowshot.py."
    )
  return module.get_sweep(arg)


def override(config: ConfigDict, overrides: dict[str, object]) -> ConfigDict:
  """Returns a copy of ``config`` with ``{"data.shots": 5, ...}`` applied.

  Raises:
    UserError: if the config has no such field, or one of another type.
  """
  check_fields(config, overrides)
  changed = config.copy_and_resolve_references()
  for field, value in overrides.items():
    try:
      changed.update_from_flattened_dict({field: value})
    except TypeError as error:
      raise UserError(f"{field}={value!r}: {error}.") from error
  return changed


def check_fields(config: ConfigDict, fields: Iterable[str]) -> None:
  """Raises UserError if the config lacks one, naming the nearest it has."""
  nested = config.to_dict()
  known = list({**nested, **workdir.flatten(nested)})
  for field in fields:
    if field not in known:
      near = difflib.get_close_matches(field, known, n=3, cutoff=0.5)
      hint = f" Did you mean {' or '.join(near)}?" if near else ""
      raise UserError(f"The config has no field {field!r}.{hint}")
