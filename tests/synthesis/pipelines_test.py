"""With a tiny Stable Diffusion of random weights, saved as the hub has them."""

import json
from pathlib import Path
import shutil
import string
import sys
import types

import numpy as np
import pytest

from synguide_jax import config as config_lib
from synguide_jax.errors import UserError
from synguide_jax.synthesis import pipelines

torch = pytest.importorskip(
  "torch", reason="PyTorch is not installed; see the parity extra"
)
transformers = pytest.importorskip(
  "transformers", reason="transformers is not installed; see the parity extra"
)
diffusers = pytest.importorskip(
  "diffusers", reason="diffusers is not installed; see the parity extra"
)
from huggingface_hub import constants  # noqa: E402

pytestmark = pytest.mark.parity

_CONFIG = Path(__file__).parents[2] / "configs" / "generators" / "diffusers.py"
_CLASSES = ("cat", "great_tit", "n02084071")
_SIZE = 16  # pixels, of the tiny pipeline's images.


def _tokenizer():
  """One token a letter; no merges."""
  letters = string.ascii_lowercase + string.digits
  tokens = [*letters, *(f"{letter}</w>" for letter in letters)]
  tokens += ["<|startoftext|>", "<|endoftext|>"]
  return transformers.CLIPTokenizer(
    vocab={token: number for number, token in enumerate(tokens)},
    merges=[],
    model_max_length=32,
  )


def _stable_diffusion():
  tokenizer = _tokenizer()
  torch.manual_seed(0)
  width = {"block_out_channels": (4, 8), "norm_num_groups": 2}
  return diffusers.StableDiffusionPipeline(
    unet=diffusers.UNet2DConditionModel(
      **width,
      sample_size=_SIZE // 2,
      layers_per_block=1,
      down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
      up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
      cross_attention_dim=8,
      attention_head_dim=2,
    ),
    vae=diffusers.AutoencoderKL(
      **width,
      sample_size=_SIZE,
      down_block_types=("DownEncoderBlock2D",) * 2,
      up_block_types=("UpDecoderBlock2D",) * 2,
    ),
    text_encoder=transformers.CLIPTextModel(
      transformers.CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=8,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=32,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
      )
    ),
    tokenizer=tokenizer,
    scheduler=diffusers.DDIMScheduler(clip_sample=False, steps_offset=1),
    safety_checker=None,
    feature_extractor=None,
    requires_safety_checker=False,
  )


@pytest.fixture(autouse=True, scope="module")
def one_thread():
  """Threads of tiny networks only wait for each other."""
  before = torch.get_num_threads()
  torch.set_num_threads(1)
  yield
  torch.set_num_threads(before)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  path = tmp_path_factory.mktemp("pipeline")
  _stable_diffusion().save_pretrained(path)
  return path


@pytest.fixture
def copy(folder, tmp_path):
  return shutil.copytree(folder, tmp_path / "copy")


def _edit(path, **changes):
  path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def _config(repository, **fields):
  """The shipped config, two steps, with ``section__field=value``."""
  config = config_lib.load(str(_CONFIG))
  config.pipeline.repository = str(repository)
  config.pipeline.batch_size = 3
  config.sample.num_steps = 2
  return config_lib.override(
    config, {k.replace("__", "."): v for k, v in fields.items()}
  )


def _images(repository, labels=(0, 1), indices=(0, 1), **fields):
  config = _config(repository, **fields)
  return pipelines.open_pipeline(config, _CLASSES)(labels, indices)


def test_images_are_rgb_of_the_pipelines_size(folder):
  images = _images(folder, (0, 1, 2, 0), (0, 1, 2, 3))
  assert images.shape == (4, _SIZE, _SIZE, 3)
  assert images.dtype == np.uint8
  assert images.std() > 5  # Neither black nor grey.


def test_an_image_depends_on_its_index_and_label_only(folder):
  generate = pipelines.open_pipeline(_config(folder), _CLASSES)
  labels = np.array([0, 1, 2, 1, 0, 2, 1])
  indices = np.arange(7)
  images = generate(labels, indices)
  np.testing.assert_array_equal(generate(labels, indices), images)
  order = np.array([4, 1, 6, 0, 3])
  np.testing.assert_array_equal(
    generate(labels[order], indices[order]), images[order]
  )
  for n in (0, 5):
    alone = generate(labels[n : n + 1], indices[n : n + 1])
    np.testing.assert_array_equal(alone[0], images[n])


def test_index_label_and_seed_each_make_another_image(folder):
  generate = pipelines.open_pipeline(_config(folder), _CLASSES)
  image, index, label = generate((0, 0, 1), (0, 1, 0))
  reseeded = _images(folder, (0,), (0,), sample__seed=1)[0]
  for other in (index, label, reseeded):
    assert (other != image).any()


def test_image_seeds_are_64_bits_and_differ():
  seeds = [pipelines.image_seed(s, n) for s in range(30) for n in range(30)]
  assert len(set(seeds)) == 900
  # Both halves of them are uniform: 900 numbers, mean 0.5 +- 0.01.
  for shift in (0, 32):
    halves = [(seed >> shift) % 2**32 / 2**32 for seed in seeds]
    assert abs(np.mean(halves) - 0.5) < 0.05


def test_a_prompt_is_the_template_with_the_class_name():
  section = config_lib.load(str(_CONFIG)).pipeline
  section.class_prompts = ("n02084071=a photo of a dog",)
  assert pipelines.prompts(section, _CLASSES) == (
    "a photo of a cat",
    "a photo of a great tit",
    "a photo of a dog",
  )


def test_the_text_reaches_the_image(folder):
  plain = _images(folder)
  template = _images(folder, pipeline__prompt="one {} asleep")
  assert (template != plain).any(axis=(1, 2, 3)).all()
  own = _images(folder, pipeline__class_prompts=("great_tit=a bird",))
  np.testing.assert_array_equal(own[0], plain[0])
  assert (own[1] != plain[1]).any()
  negative = _images(folder, pipeline__negative_prompt="blurred")
  assert (negative != plain).any(axis=(1, 2, 3)).all()


def test_guidance_extrapolates_from_the_empty_text(folder):
  """The images are those of the noise that the formula says, by hand."""
  config = _config(folder, sample__guidance=3.0, sample__num_steps=1)
  image = pipelines.open_pipeline(config, _CLASSES)((0,), (7,))[0]
  with torch.no_grad():
    pipeline = _stable_diffusion()
    tokens = pipeline.tokenizer(
      ["a photo of a cat", ""], padding="max_length", return_tensors="pt"
    )
    text = pipeline.text_encoder(tokens.input_ids)[0]
    generator = torch.Generator().manual_seed(pipelines.image_seed(0, 7))
    noise = torch.randn((1, 4, 8, 8), generator=generator)
    pipeline.scheduler.set_timesteps(1)
    (time,) = pipeline.scheduler.timesteps
    conditional, empty = pipeline.unet(noise.tile(2, 1, 1, 1), time, text)[0]
    predicted = (1 + 3.0) * conditional - 3.0 * empty
    latents = pipeline.scheduler.step(predicted[None], time, noise)[0]
    scale = pipeline.vae.config.scaling_factor
    decoded = pipeline.vae.decode(latents / scale)[0][0]
  expected = (decoded.numpy().transpose(1, 2, 0) / 2 + 0.5).clip(0, 1) * 255
  assert np.abs(image - expected).max() < 0.6


def test_without_guidance_the_empty_text_is_not_asked(folder, monkeypatch):
  batches = []
  forward = diffusers.UNet2DConditionModel.forward

  def counted(self, sample, *args, **kwargs):
    batches.append(len(sample))
    return forward(self, sample, *args, **kwargs)

  monkeypatch.setattr(diffusers.UNet2DConditionModel, "forward", counted)
  _images(folder, sample__guidance=0.0)
  assert batches == [3, 3]  # Two steps of a padded batch.
  batches.clear()
  _images(folder, sample__guidance=1.0)
  assert batches == [6, 6]


def test_another_size_type_or_number_of_steps_is_heeded(folder):
  plain = _images(folder)
  assert _images(folder, pipeline__image_size=24).shape == (2, 24, 24, 3)
  assert (_images(folder, sample__num_steps=3) != plain).any()
  rounded = _images(folder, pipeline__dtype="bfloat16")
  assert (rounded != plain).any()
  assert np.abs(rounded.astype(int) - plain).mean() < 8


def test_a_repository_is_read_from_the_hubs_cache(
  folder, tmp_path, monkeypatch, capfd, caplog
):
  """In the layout that huggingface_hub leaves, without network or a word."""
  repository = tmp_path / "hub" / "models--someone--tiny"
  (repository / "refs").mkdir(parents=True)
  commits = {"main": f"{1:040x}", "v2": f"{2:040x}"}
  for name, commit in commits.items():
    (repository / "refs" / name).write_text(commit)
    shutil.copytree(folder, repository / "snapshots" / commit)
  changed = repository / "snapshots" / commits["v2"] / "vae" / "config.json"
  _edit(changed, scaling_factor=0.5)
  monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
  monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
  expected = _images(folder)
  capfd.readouterr()
  np.testing.assert_array_equal(_images("someone/tiny"), expected)
  second = _images("someone/tiny", pipeline__revision="v2")
  assert (second != expected).any()
  by_commit = _images("someone/tiny", pipeline__revision=commits["v2"])
  np.testing.assert_array_equal(by_commit, second)
  assert capfd.readouterr() == ("", "")
  assert not [r for r in caplog.records if r.name != "absl"]
  with pytest.raises(UserError, match="repository='someone/other'.*hf down"):
    _images("someone/other")
  with pytest.raises(UserError, match="someone/tiny.* revision 'v3'"):
    _images("someone/tiny", pipeline__revision="v3")


def test_the_libraries_settings_are_left_as_they_were(folder):
  logs = (diffusers.utils.logging, transformers.utils.logging)
  for log in logs:
    log.set_verbosity_info()
    log.enable_progress_bar()
  try:
    pipelines.open_pipeline(_config(folder), _CLASSES)
    for log in logs:
      assert log.get_verbosity() == log.INFO
      assert log.is_progress_bar_enabled()
  finally:
    for log in logs:
      log.set_verbosity_warning()


@pytest.mark.parametrize(
  ("fields", "message"),
  [
    ({"pipeline__repository": ""}, "config.pipeline.repository is empty"),
    ({"pipeline__repository": "a/b/c"}, "repository='a/b/c'.*cannot be loaded"),
    ({"pipeline__prompt": "a cat"}, "config.pipeline.prompt='a cat'.*{}"),
    ({"pipeline__class_prompts": ("cat",)}, "class_prompts: 'cat' must be"),
    ({"pipeline__class_prompts": ("cow=a",)}, "class_prompts: 'cow=a'.*cat"),
    ({"pipeline__dtype": "int8"}, "config.pipeline.dtype='int8' is unknown"),
    ({"pipeline__batch_size": 0}, "config.pipeline.batch_size=0"),
    ({"pipeline__image_size": -8}, "config.pipeline.image_size=-8"),
    ({"pipeline__image_size": 17}, "refuses.*divisible by"),
    ({"sample__num_steps": 0}, "config.sample.num_steps=0"),
    ({"sample__guidance": -1.0}, "config.sample.guidance=-1"),
    ({"sample__truncation": 2.0}, "config.sample.truncation=2"),
    ({"sample__seed": -1}, "config.sample.seed=-1"),
    (
      {"pipeline__negative_prompt": "blur", "sample__guidance": 0.0},
      "negative_prompt='blur' does nothing without guidance",
    ),
  ],
)
def test_wrong_fields_are_named(folder, fields, message):
  with pytest.raises(UserError, match=message):
    _images(**{"repository": folder, **fields})


def test_weights_that_are_not_safetensors_are_refused(copy, capfd):
  for part in ("unet", "text_encoder"):
    broken = shutil.copytree(copy, copy.parent / f"no_{part}")
    (weights,) = (broken / part).glob("*.safetensors")
    state = {"weight": torch.zeros(1)}
    torch.save(state, weights.with_suffix(".bin"))
    torch.save(state, weights.with_name("pytorch_model.bin"))
    weights.unlink()
    with pytest.raises(UserError, match="cannot be loaded.*safetensors"):
      _images(broken)
  assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
  "name", ["DDPMPipeline", "DiTPipeline", "StableDiffusionInpaintPipeline"]
)
def test_other_kinds_of_pipelines_are_refused(copy, name):
  _edit(copy / "model_index.json", _class_name=name)
  with pytest.raises(UserError, match=f"of class {name}.*text-to-image"):
    _images(copy)


def test_code_in_a_repository_is_not_run(copy):
  code = f"open({str(copy / 'was_run')!r}, 'w')\n"
  code += "from diffusers import UNet2DConditionModel as Net\n"
  code += "from diffusers import StableDiffusionPipeline as Pipe\n"
  (copy / "pipeline.py").write_text(code)
  (copy / "unet" / "net.py").write_text(code)
  for changes in (
    {"unet": ["net", "Net"]},
    {"_class_name": ["pipeline", "Pipe"]},
  ):
    _edit(copy / "model_index.json", **changes)
    with pytest.raises(UserError, match="cannot be loaded|text-to-image"):
      _images(copy)
  assert not (copy / "was_run").exists()


def test_missing_packages_are_named(folder, monkeypatch):
  monkeypatch.setitem(sys.modules, "diffusers", None)
  with pytest.raises(UserError, match=r"pip install \"synguide-jax\[diffus"):
    _images(folder)


def _replace_call(monkeypatch, call):
  monkeypatch.setattr(diffusers.StableDiffusionPipeline, "__call__", call)


def _output(images, flagged=None):
  return types.SimpleNamespace(images=images, nsfw_content_detected=flagged)


def test_settings_a_pipeline_does_not_take_are_named(folder, monkeypatch):
  def distilled(self, prompt, num_inference_steps, generator, output_type):
    assert num_inference_steps == 2 and len(prompt) == len(generator) == 3
    return _output(np.full((3, 4, 4, 3), 0.5))

  _replace_call(monkeypatch, distilled)
  assert (_images(folder, sample__guidance=0.0) == 128).all()
  with pytest.raises(UserError, match=r"sample.guidance.*guidance_.*to 0\.0"):
    _images(folder)
  with pytest.raises(UserError, match="pipeline.image_size.*height: set it t"):
    _images(folder, sample__guidance=0.0, pipeline__image_size=8)


def test_values_that_are_not_finite_are_an_error(folder, monkeypatch):
  def overflowing(self, guidance_scale, **_):
    return _output(np.full((3, 4, 4, 3), np.nan))

  _replace_call(monkeypatch, overflowing)
  with pytest.raises(UserError, match="config.pipeline.dtype='auto'.*bfloat1"):
    _images(folder)


def test_a_full_memory_names_the_batch_size(folder, monkeypatch):
  def large(self, guidance_scale, **_):
    raise torch.OutOfMemoryError("CUDA out of memory.")

  _replace_call(monkeypatch, large)
  with pytest.raises(UserError, match="config.pipeline.batch_size=3"):
    _images(folder)


def test_blackened_images_are_counted(folder, monkeypatch, caplog):
  def filtered(self, guidance_scale, **_):
    return _output(np.zeros((3, 4, 4, 3)), [True, False, True])

  _replace_call(monkeypatch, filtered)
  _images(folder)  # The third one is padding.
  assert "blackened 1 of 2 images" in caplog.text


def test_smoke_is_the_same_config_but_shorter():
  full, smoke = (config_lib.load(f"{_CONFIG}{a}") for a in ("", ":smoke"))
  assert smoke.keys() == full.keys()
  assert smoke.sample.num_steps < full.sample.num_steps
  with pytest.raises(UserError, match="Unknown argument 'tiny'"):
    config_lib.load(f"{_CONFIG}:tiny")
