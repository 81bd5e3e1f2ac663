"""Image files become 8-bit, upright, opaque pixels; what was done is noted."""

import io
import time

import numpy as np
from PIL import Image, PngImagePlugin
import pytest

from synguide_jax.data import decode
from tests import pictures
from tests.pictures import encode, pixels


def _convert(encoded, channels=3):
  """The pixels of a square image as a set stores it, and the remarks."""
  found = decode.canonical(encoded)
  assert (found.facts.width, found.facts.height) == (8, 8)
  return decode.decode(found.encoded, 8, channels), found.remarks


# Kept as they are.


@pytest.mark.parametrize("suffix", ["png", "bmp", "jpg"])
@pytest.mark.parametrize("channels", [1, 3])
def test_files_that_need_no_conversion_are_kept(suffix, channels):
  encoded = encode(pixels()[..., :channels].squeeze(), suffix)
  found = decode.canonical(encoded)
  assert found.encoded == encoded and found.remarks == ()
  assert found.facts.grey == (channels == 1) and not found.constant
  assert found.facts.format == {"jpg": "JPEG"}.get(suffix, suffix.upper())


def test_webp_is_kept_as_png():
  image = pixels()
  found = decode.canonical(encode(image, "webp", lossless=True))
  assert found.facts.format == "WEBP" and found.remarks == ()
  assert found.encoded.startswith(b"\x89PNG")
  np.testing.assert_array_equal(decode.decode(found.encoded, 8, 3), image)


def test_photos_of_phones_are_kept_as_jpeg():
  further = Image.fromarray(pixels(16, 16))
  encoded = encode(
    pixels(), "mpo", save_all=True, append_images=[further], quality=75
  )
  with Image.open(io.BytesIO(encoded)) as im:
    assert im.format == "MPO" and im.n_frames == 2
    first = np.asarray(im)
  found = decode.canonical(encoded)
  assert found.encoded == encoded and found.remarks == ()
  assert found.facts.format == "JPEG"
  plain = decode.canonical(encode(pixels(), "jpg", quality=75))
  assert found.facts.quantization == plain.facts.quantization > 0
  np.testing.assert_array_equal(decode.decode(encoded, 8, 3), first)


@pytest.mark.parametrize("channels", [1, 3])
def test_arrays(channels):
  image = pixels(5, 7, channels)
  found = decode.canonical(image)
  facts = found.facts
  assert (facts.format, facts.width, facts.height) == ("array", 7, 5)
  assert facts.grey == (channels == 1) and found.remarks == ()
  with Image.open(io.BytesIO(found.encoded)) as im:
    np.testing.assert_array_equal(np.asarray(im), image.squeeze())


@pytest.mark.parametrize(
  ("image", "constant"),
  [
    (np.zeros((4, 4, 3), np.uint8), True),
    (np.full((4, 4, 1), 7, np.uint8), True),
    (np.full((4, 4, 3), (1, 2, 3), np.uint8), True),
    (np.eye(4, dtype=np.uint8)[..., None], False),
  ],
)
def test_constant_images_are_noticed(image, constant):
  assert decode.canonical(image).constant is constant
  assert decode.canonical(encode(image.squeeze())).constant is constant


# Facts.


def test_one_hash_for_the_same_pixels():
  grey = pixels(channels=1)
  colour = pixels()
  hashes = {
    name: decode.canonical(image).facts.hash
    for name, image in {
      "png": encode(colour),
      "bmp": encode(colour, "bmp"),
      "array": colour,
      "webp": encode(colour, "webp", lossless=True),
      "palette": encode(Image.fromarray(colour).quantize(256)),
      "grey": encode(grey[..., 0]),
      "grey in RGB": np.repeat(grey, 3, axis=-1),
      "grey array": grey,
      "turned": grey.reshape(4, 16, 1),
    }.items()
  }
  same = ("png", "bmp", "array", "webp", "palette")
  assert len({hashes[name] for name in same}) == 1
  assert hashes["grey"] == hashes["grey in RGB"] == hashes["grey array"]
  assert len(set(hashes.values())) == 3
  changed = colour.copy()
  changed[3, 4, 1] ^= 1
  assert decode.canonical(changed).facts.hash != hashes["array"]


def test_quantization_grows_as_quality_falls():
  image = pixels(32, 32)
  found = [
    decode.canonical(encode(image, "jpg", quality=quality)).facts.quantization
    for quality in (100, 95, 75, 50, 10)
  ]
  assert found[0] == 1 and (np.diff(found) > 0).all()
  assert decode.canonical(encode(image)).facts.quantization == 0
  grey = decode.canonical(encode(image[..., 0], "jpg", quality=75))
  assert grey.facts.quantization == found[2]


# Conversions.


def test_transparency_is_put_on_white():
  image = np.zeros((8, 8, 4), np.uint8)
  image[0, :, 3] = 255
  image[1] = (255, 0, 0, 51)
  image, remarks = _convert(encode(image))
  assert remarks == ("transparency",)
  np.testing.assert_array_equal(image[0], np.zeros((8, 3)))
  np.testing.assert_array_equal(image[1], np.tile([255, 204, 204], (8, 1)))
  np.testing.assert_array_equal(image[2:], np.full((6, 8, 3), 255))


def test_grey_with_transparency():
  image = np.zeros((8, 8, 2), np.uint8)
  image[:4, :, 1] = 255
  encoded = encode(image)
  image, remarks = _convert(encoded, channels=1)
  assert remarks == ("transparency",) and decode.canonical(encoded).facts.grey
  assert image[3, 0] == 0 and image[4, 0] == 255


@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_a_transparent_colour(mode):
  black, transparent = {"L": (0, 0), "RGB": ((0, 0, 0), (0, 0, 0))}[mode]
  image = Image.new(mode, (8, 8), "grey")
  image.paste(black, (0, 0, 8, 4))
  encoded = encode(image, transparency=transparent)
  image, remarks = _convert(encoded)
  assert remarks == ("transparency",)
  assert image[0, 0].tolist() == [255] * 3 and image[7, 7].tolist() == [128] * 3
  # Other people's sets hold such files, too.
  np.testing.assert_array_equal(decode.decode(encoded, 8, 3), image)


def test_palette():
  colours = np.array([[255, 0, 0], [0, 255, 0], [0, 0, 255]], np.uint8)
  original = colours[pixels()[..., 0] % 3]
  image, remarks = _convert(encode(Image.fromarray(original).quantize(3)))
  assert remarks == ("palette",)
  np.testing.assert_array_equal(image, original)


def test_palette_with_transparency():
  image = Image.new("P", (8, 8), 1)
  image.putpalette([9, 9, 9, 50, 60, 70])
  image.paste(0, (0, 0, 8, 4))
  for transparency in (0, b"\0\xff"):
    found, remarks = _convert(encode(image, transparency=transparency))
    assert remarks == ("palette", "transparency")
    assert found[0, 0].tolist() == [255, 255, 255]
    assert found[7, 7].tolist() == [50, 60, 70]


def test_16_bit_grey():
  wide = np.arange(64, dtype=np.uint16).reshape(8, 8) * 1040
  image, remarks = _convert(encode(wide), channels=1)
  assert remarks == ("16-bit to 8-bit",)
  np.testing.assert_array_equal(image[..., 0], np.round(wide / 257))


def test_16_bit_colour():
  wide = np.stack([pixels(), pixels()], axis=-1).view(">u2")[..., 0]
  rows = b"".join(b"\0" + row.tobytes() for row in wide)
  image, remarks = _convert(pictures.png(8, 8, 16, 2, rows))
  assert remarks == ("16-bit to 8-bit",)
  np.testing.assert_array_equal(image, wide >> 8)


def test_cmyk():
  cmyk = Image.new("CMYK", (8, 8), (0, 255, 255, 0))
  image, remarks = _convert(encode(cmyk, "jpg", quality=100))
  assert remarks == ("CMYK",)
  assert np.abs(image.astype(int) - [255, 0, 0]).max() <= 3


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp"])
def test_exif_rotation(suffix):
  exif = Image.Exif()
  exif[0x0112] = 6  # the camera was turned; rotate by 90 degrees clockwise
  image = np.zeros((8, 8, 3), np.uint8)
  image[:, :4] = 255  # bright on the left, so on top after rotation
  encoded = encode(image, suffix, exif=exif, quality=100)
  image, remarks = _convert(encoded)
  assert remarks == ("EXIF rotation",)
  assert image[:3].min() > 250 and image[5:].max() < 5
  np.testing.assert_array_equal(decode.decode(encoded, 8, 3), image)


@pytest.mark.parametrize(
  "place", ["XML:com.adobe.xmp", "Raw profile type exif"]
)
def test_rotation_noted_elsewhere(place):
  exif = Image.Exif()
  exif[0x0112] = 3
  text = {
    "XML:com.adobe.xmp": '<rdf tiff:Orientation="3"/>',
    "Raw profile type exif": f"\nexif\n0\n{exif.tobytes().hex()}",
  }
  notes = PngImagePlugin.PngInfo()
  notes.add_itxt(place, text[place])
  original = pixels()
  image, remarks = _convert(encode(original, pnginfo=notes))
  assert remarks == ("EXIF rotation",)
  np.testing.assert_array_equal(image, original[::-1, ::-1])


def test_exif_without_rotation_is_kept():
  exif = Image.Exif()
  exif[0x010F] = "a camera"
  encoded = encode(pixels(), "jpg", exif=exif)
  found = decode.canonical(encoded)
  assert found.encoded == encoded and found.remarks == ()


def test_bilevel():
  original = pixels()[..., 0] > 127
  image, remarks = _convert(encode(original), channels=1)
  assert remarks == ()
  np.testing.assert_array_equal(image[..., 0], original * 255)


# What is no image.

_DAMAGED = {
  "a bomb": (pictures.png(20_000, 20_000, 8, 2, b""), "decompression bomb"),
  "text": (b"hello", "not an image"),
  "nothing": (b"", "not an image"),
  "a truncated JPEG": (encode(pixels(64, 64), "jpg")[:-500], "truncated"),
  "a truncated PNG": (encode(pixels(64, 64))[:-500], "."),
}


@pytest.mark.parametrize("name", _DAMAGED)
def test_damaged_files(name):
  content, message = _DAMAGED[name]
  with pytest.raises(ValueError, match=message):
    decode.canonical(content)
  with pytest.raises(ValueError, match=message):
    decode.decode(content, 8, 3)


def test_a_smaller_bomb_is_refused_too(monkeypatch):
  # Pillow only warns up to twice the limit.
  monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 40)
  with pytest.raises(ValueError, match="decompression bomb"):
    decode.canonical(encode())


@pytest.mark.parametrize("suffix", ["png", "jpg", "bmp", "webp"])
def test_wrong_bytes_raise_one_type(suffix):
  encoded = encode(pixels(16, 16), suffix)
  raised = 0
  for place in range(len(encoded) - 1, -1, -max(1, len(encoded) // 100)):
    for wrong in (encoded[:place], bytearray(encoded)):
      if len(wrong) == len(encoded):
        wrong[place] ^= 0x55
      try:
        decode.canonical(bytes(wrong))
      except ValueError:
        raised += 1
  assert raised > 50


# Decoding.


@pytest.mark.parametrize("suffix", ["png", "bmp"])
def test_grey_and_colour(suffix):
  image = pixels()
  grey = decode.decode(encode(image, suffix), 8, 1)
  assert grey.shape == (8, 8, 1)
  luma = image @ [0.299, 0.587, 0.114]
  assert np.abs(grey[..., 0] - luma).max() <= 1
  colour = decode.decode(encode(image[..., 0], suffix), 8, 3)
  np.testing.assert_array_equal(colour, np.tile(image[..., :1], 3))


def test_resizing_cuts_the_central_square():
  image = np.zeros((20, 40, 3), np.uint8)
  image[:, 10:30, 0] = 200  # the central square is red, the rest is black
  image[:10, 10:30, 1] = 100
  for turned in (image, image.swapaxes(0, 1)):
    found = decode.decode(encode(np.ascontiguousarray(turned)), 8, 3)
    assert found.shape == (8, 8, 3) and found.dtype == np.uint8
    found = found if turned is image else found.swapaxes(0, 1)
    # The filter reaches a little beyond the cut.
    assert (found[:, 2:-2, 0] == 200).all() and found[..., 0].min() > 180
    assert (found[:2, 2:-2, 1] == 100).all() and (found[6:, :, 1] == 0).all()


def test_shrinking_is_antialiased():
  image = np.indices((64, 64)).sum(axis=0) % 2 * 255  # a chessboard
  found = decode.decode(encode(image.astype(np.uint8)), 8, 1)
  assert np.abs(found - 127.5).max() < 8


def test_enlarging_is_bicubic():
  image = pixels()
  found = decode.decode(encode(image), 16, 3)
  expected = Image.fromarray(image).resize((16, 16), Image.Resampling.BICUBIC)
  np.testing.assert_array_equal(found, np.asarray(expected))


# Threads.


@pytest.mark.parametrize("threads", [1, 3, None])
def test_threads_keep_the_order(threads):
  def slow(i):
    time.sleep(0.002 * (i % 7 == 0))
    return i * i

  found = list(decode.in_threads(slow, range(500), threads))
  assert found == [i * i for i in range(500)]
  assert list(decode.in_threads(slow, [], threads)) == []


def test_threads_take_only_a_few_items_ahead():
  taken = []
  items = (taken.append(i) or i for i in range(100_000))
  found = decode.in_threads(abs, items, 2)
  assert next(found) == 0 and len(taken) < 1000
  found.close()


@pytest.mark.parametrize("threads", [1, 3])
def test_errors_come_through_threads(threads):
  found = decode.in_threads(lambda i: 1 // (100 - i), range(200), threads)
  with pytest.raises(ZeroDivisionError):
    list(found)
