"""Resident and streamed images: the same bytes, wherever and whenever."""

import functools
import multiprocessing
import os
from pathlib import Path
import socket
import subprocess
import sys

import jax
import numpy as np
import pytest

import synguide_jax
from synguide_jax import images
from synguide_jax import mesh as mesh_lib
from synguide_jax.data import experiment_data
from synguide_jax.data.feed import Feed, Stream
from synguide_jax.errors import UserError
from tests import compiling, tiny

STREAMS = {"real": Stream("real", 8), "other": Stream("mixed", 16)}


@pytest.fixture(scope="module")
def drawing():
  config = tiny.config()
  data = experiment_data.load(config.data, seed=3, runs=(0, 1))
  feed = Feed(data.members, data.labels, seed=3, runs=(0, 1))
  return data.pixels, functools.partial(feed, 0, STREAMS)


def _bytes(where, draw, start, stop):
  """What the steps see: images by step and stream, on the host."""
  stored = where.stored
  return [
    {name: np.asarray(d.look_up(stored)) for name, d in steps.drawn.items()}
    for steps in where.batches(draw, start, stop)
  ]


def _check_equal(found, expected):
  assert len(found) == len(expected)
  for ours, theirs in zip(found, expected, strict=True):
    assert set(ours) == set(STREAMS)
    for name in STREAMS:
      np.testing.assert_array_equal(ours[name], theirs[name])


@pytest.mark.parametrize("devices", [1, 8])
def test_both_show_the_same(drawing, devices):
  pixels, draw = drawing
  mesh = mesh_lib.create(2, jax.devices()[:devices])
  expected = _bytes(images.Resident(pixels, mesh), draw, 0, 7)
  everything = pixels.read()
  for step, drawn in enumerate(expected):
    for name, index in draw(step).items():
      np.testing.assert_array_equal(drawn[name], everything[index])
  streamed = images.Streamed(pixels, mesh, 0)
  assert streamed.stored is None
  _check_equal(_bytes(streamed, draw, 0, 7), expected)
  # Resumed at any step.
  for start in (1, 4, 6, 7):
    _check_equal(_bytes(streamed, draw, start, 7), expected[start:])


def test_worker_processes_show_the_same(drawing):
  pixels, draw = drawing
  mesh = mesh_lib.create(2, jax.devices()[:2])
  expected = _bytes(images.Resident(pixels, mesh), draw, 0, 9)
  found = _bytes(images.Streamed(pixels, mesh, 2), draw, 2, 9)
  _check_equal(found, expected[2:])
  # Whoever stops in the middle leaves no process behind.
  batches = images.Streamed(pixels, mesh, 1).batches(draw, 0, 1000)
  next(batches)
  assert multiprocessing.active_children()
  batches.close()
  assert not multiprocessing.active_children()


def test_listed_batches(drawing):
  pixels, _ = drawing
  mesh = mesh_lib.create(1)
  batches = [np.arange(16), np.arange(16)[::-1] * 7]
  sharding = mesh_lib.over_images(mesh)
  for where in (
    images.Resident(pixels, mesh),
    images.Streamed(pixels, mesh, 1),
  ):
    found = list(where.listed(batches, sharding))
    for drawn, batch in zip(found, batches, strict=True):
      np.testing.assert_array_equal(drawn.index, batch)
      np.testing.assert_array_equal(
        drawn.look_up(where.stored), pixels.read(batch)
      )


def test_the_shapes_that_steps_are_compiled_for(drawing):
  pixels, draw = drawing
  mesh = mesh_lib.create(2)
  for where in (
    images.Resident(pixels, mesh),
    images.Streamed(pixels, mesh, 0),
  ):
    drawn = next(where.batches(draw, 0, 1)).drawn
    for name, stream in STREAMS.items():
      expected = where.abstract((2, stream.batch_size))
      assert jax.tree.map(lambda x: (x.shape, x.dtype), drawn[name]) == (
        jax.tree.map(lambda x: (x.shape, x.dtype), expected)
      )


def _create(pixels, **changes):
  config = tiny.config(**{f"data.{k}": v for k, v in changes.items()})
  return images.create(config.data, pixels, mesh_lib.create(1))


def test_what_fits_is_resident(drawing, monkeypatch):
  pixels, _ = drawing
  assert _create(pixels).name == "resident"
  assert _create(pixels, feed="stream").name == "stream"
  # Exactly at the share, and just above it, with a copy on each of 8 devices.
  monkeypatch.setattr(images, "_memory", lambda device: pixels.nbytes * 32)
  assert _create(pixels, resident_share=0.25).name == "resident"
  monkeypatch.setattr(images, "_memory", lambda device: pixels.nbytes * 32 - 32)
  assert _create(pixels, resident_share=0.25).name == "stream"
  assert _create(pixels, feed="resident").name == "resident"


_PROCESS = """
import functools, os, sys
import jax
import numpy as np
jax.config.update("jax_num_cpu_devices", 2)
jax.distributed.initialize(sys.argv[1], 2, int(sys.argv[2]))
from synguide_jax import hosts, images
from synguide_jax import mesh as mesh_lib
from synguide_jax.data import prepared, records
from synguide_jax.data.pixels import Pixels

def examples():
  with open(sys.argv[3], "a") as file:
    print(jax.process_index(), file=file)
  return ((np.full((4, 4, 1), i, np.uint8), 0) for i in range(40))

with hosts.in_turn("set"):
  if jax.process_index():
    assert prepared.is_prepared("synguide_hosts", "abc")
  folder = prepared.prepare(
    "synguide_hosts", "abc", examples, ["a"], provenance={}
  )
split = records.of_prepared(folder)["train"]
pixels = Pixels([(split, np.arange(len(split)))], 4, 1)
mesh = mesh_lib.create(1)
assert mesh.size == 4 and jax.process_count() == 2
decoded, read = [], pixels.read
pixels.read = lambda index=None, **options: (
  decoded.append(np.size(index)), read(index, **options))[1]
draw = lambda step: {"a": np.arange(8)[None] + 3 * step}
for where in (images.Resident(pixels, mesh), images.Streamed(pixels, mesh, 0)):
  for step, steps in enumerate(where.batches(draw, 0, 5)):
    seen = jax.jit(lambda d, stored: d["a"].look_up(stored).astype(np.int32))(
      steps.drawn, where.stored)
    for shard in seen.addressable_shards:
      rows = draw(step)["a"][shard.index[:2]]
      np.testing.assert_array_equal(shard.data[..., 0, 0, 0], rows)
# All of it once; then half of every batch.
assert decoded == [1, *[4] * 5], decoded
print("done")
"""


def test_two_processes_decode_half_each(tmp_path, monkeypatch):
  monkeypatch.setenv("SYNGUIDE_CACHE", str(tmp_path / "cache"))
  with socket.socket() as free:
    free.bind(("localhost", 0))
    address = f"localhost:{free.getsockname()[1]}"
  environment = os.environ | {
    "XLA_FLAGS": compiling.CHEAPLY,
    "PYTHONPATH": str(Path(synguide_jax.__file__).parents[1]),
  }
  calls = tmp_path / "calls"
  processes = [
    subprocess.Popen(
      [sys.executable, "-c", _PROCESS, address, str(number), str(calls)],
      env=environment,
      stdout=subprocess.PIPE,
      stderr=subprocess.PIPE,
      text=True,
    )
    for number in range(2)
  ]
  outputs = [process.communicate() for process in processes]
  assert all(out.endswith("done\n") for out, _ in outputs), outputs
  assert calls.read_text() == "0\n"


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    ({"feed": "disk"}, "data.feed='disk' is unknown; known: auto, resident"),
    ({"resident_share": 0.0}, "data.resident_share=0.0 must be"),
    ({"num_workers": -2}, "data.num_workers=-2 must be"),
  ],
)
def test_bad_settings(drawing, changes, message):
  with pytest.raises(UserError, match=message):
    _create(drawing[0], **changes)
