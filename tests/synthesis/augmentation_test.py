"""Non-leaky augmentation: by value, by share, and never untold."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from synguide_jax.errors import UserError
from synguide_jax.synthesis.augmentation import (
  augment,
  CONDITIONS,
  draw,
  encode,
  Parameters,
  transform,
)

KEY = jax.random.key(0)
# Rounding of coordinates of up to some 30 px, times differences of up to 2.
ATOL = 3e-5
augmented = jax.jit(augment, static_argnames="probability")
transformed = jax.jit(transform)


def noise(*shape, seed=0):
  rng = np.random.default_rng(seed)
  return rng.uniform(-1, 1, shape).astype(np.float32)


def parameters(number=2, **given):
  """Nothing done but what is given."""
  values = dict.fromkeys(Parameters._fields, 0.0) | given
  return Parameters(
    **{k: np.full(number, v, np.float32) for k, v in values.items()}
  )


def bump(centre, covariance, height=40, width=48):
  """An image [1, H, W, 1] of a Gaussian at (x, y) from the centre, pixels."""
  y, x = np.meshgrid(
    np.arange(height) - (height - 1) / 2,
    np.arange(width) - (width - 1) / 2,
    indexing="ij",
  )
  d = np.stack([x, y], -1) - np.asarray(centre)
  exponent = np.einsum("...i,ij,...j", d, np.linalg.inv(covariance), d) / 2
  return np.exp(-exponent)[None, :, :, None].astype(np.float32)


@pytest.mark.parametrize("shape", [(2, 8, 8, 1), (2, 9, 12, 3)])
def test_a_flip_is_an_index_reversal(shape):
  images = noise(*shape)
  left_right = transformed(images, parameters(flip_x=1))
  top_bottom = transformed(images, parameters(flip_y=1))
  both = transformed(images, parameters(flip_x=1, flip_y=1))
  np.testing.assert_array_equal(left_right, images[:, :, ::-1])
  np.testing.assert_array_equal(top_bottom, images[:, ::-1])
  np.testing.assert_array_equal(both, images[:, ::-1, ::-1])
  half_turn = transformed(images, parameters(rotation=np.pi))
  np.testing.assert_allclose(half_turn, both, atol=ATOL)


def test_a_quarter_turn_is_anticlockwise():
  images = noise(2, 9, 9, 3)
  turned = transformed(images, parameters(rotation=np.pi / 2))
  np.testing.assert_allclose(turned, np.rot90(images, axes=(1, 2)), atol=ATOL)


def test_a_shift_by_whole_pixels_moves_them_and_mirrors_the_border():
  images = noise(2, 16, 24, 3)
  # By 2 px to the right, and 4 px up.
  moved = transformed(images, parameters(shift_x=2 / 3, shift_y=-2))
  rolled = np.roll(images, (-4, 2), (1, 2))
  np.testing.assert_allclose(moved[:, :-4, 2:], rolled[:, :-4, 2:], atol=ATOL)
  border = ((0, 0), (0, 4), (2, 0), (0, 0))
  mirrored = np.pad(images, border, mode="reflect")[:, 4:, :-2]
  np.testing.assert_allclose(moved, mirrored, atol=ATOL)


def test_a_shift_by_half_a_pixel_is_the_mean_of_two():
  images = noise(2, 8, 8, 1)
  moved = transformed(images, parameters(shift_x=-0.5))
  means = (images[:, :, :-1] + images[:, :, 1:]) / 2
  np.testing.assert_allclose(moved[:, :, :-1], means, atol=ATOL)


@pytest.mark.parametrize(
  "given, matrix",
  [
    ({"scale": 1}, 2**0.2 * np.eye(2)),
    ({"scale": -2}, 2**-0.4 * np.eye(2)),
    ({"stretch": 1}, np.diag([2**0.2, 2**-0.2])),
    ({"stretch": 1, "axis": np.pi / 2}, np.diag([2**-0.2, 2**0.2])),
    # Along the diagonal from the upper left to the lower right.
    (
      {"stretch": 5, "axis": np.pi / 4},
      [[1.25, 0.75], [0.75, 1.25]],
    ),
    # A third of a right angle, with y pointing down.
    (
      {"rotation": np.pi / 6},
      [[3**0.5 / 2, 1 / 2], [-1 / 2, 3**0.5 / 2]],
    ),
    # Mirrored first, then turned.
    (
      {"flip_x": 1, "rotation": np.pi / 6},
      [[-(3**0.5) / 2, 1 / 2], [1 / 2, 3**0.5 / 2]],
    ),
    # Turned first, then stretched, and shrunk.
    (
      {"scale": -2.5, "rotation": np.pi / 2, "stretch": 2.5},
      [[0, 1], [-1 / 2, 0]],
    ),
  ],
)
def test_a_gaussian_moves_by_the_matrix(given, matrix):
  centre, covariance = np.array([4.0, 1.0]), np.array([[12.0, 2.0], [2.0, 9.0]])
  before = bump(centre, covariance)
  after = transformed(before, parameters(1, **given))
  matrix = np.asarray(matrix)
  expected = bump(matrix @ centre, matrix @ covariance @ matrix.T)
  # In the middle, where no mirror image comes in, up to what bilinear
  # interpolation loses, an eighth of both curvatures.
  middle = np.s_[:, 10:30, 14:34]
  np.testing.assert_allclose(after[middle], expected[middle], atol=0.03)


def test_a_shift_comes_last():
  images = noise(2, 9, 9, 3)
  turn, shift = {"rotation": np.pi / 2}, {"shift_x": 16 / 9}
  turned = transformed(images, parameters(**turn))
  expected = transformed(turned, parameters(**shift))
  both = transformed(images, parameters(**turn, **shift))
  np.testing.assert_allclose(both, expected, atol=ATOL)


def test_the_network_is_told_what_was_done():
  angle, axis = 2.0, -1.0
  told = encode(
    Parameters(
      flip_x=np.array([1.0]),
      flip_y=np.array([0.0]),
      scale=np.array([0.3]),
      rotation=np.array([angle]),
      axis=np.array([axis]),
      stretch=np.array([-1.5]),
      shift_x=np.array([0.7]),
      shift_y=np.array([-0.2]),
    )
  )
  expected = [1, 0, 0.3, np.cos(angle) - 1, np.sin(angle)]
  expected += [-1.5 * np.cos(2 * axis), -1.5 * np.sin(2 * axis), 0.7, -0.2]
  assert told.shape == (1, CONDITIONS)
  np.testing.assert_allclose(told[0], expected, rtol=1e-6)


def test_where_nothing_is_done_the_bits_are_the_same():
  # Negative zeros, tiny and infinite values too.
  images = noise(4, 6, 5, 3) * np.float32(1e-30)
  images[:, 2, 3] = -0.0, np.inf, np.nan
  same, conditions = augmented(KEY, images, probability=1e-9)
  assert not conditions.any()
  np.testing.assert_array_equal(
    np.asarray(same).view(np.int32), images.view(np.int32)
  )


def test_an_image_is_changed_if_and_only_if_the_network_is_told():
  images = noise(300, 8, 8, 1)
  changed, conditions = augmented(KEY, images, probability=0.12)
  assert changed.shape == images.shape and changed.dtype == jnp.float32
  assert conditions.shape == (300, CONDITIONS)
  assert conditions.dtype == jnp.float32
  told = (conditions != 0).any(-1)
  np.testing.assert_array_equal(told, (changed != images).any((1, 2, 3)))
  assert 0 < told.sum() < 300
  # Between mirror images nothing is brighter, nor darker, than in the image.
  assert np.abs(changed).max() <= 1


@pytest.mark.parametrize("probability", [0.12, 0.5, 1.0])
def test_the_shares_and_the_distributions(probability):
  number = 40_000
  drawn = draw(KEY, number, probability)
  done = np.stack([drawn.flip_x, drawn.flip_y, drawn.scale, drawn.rotation])
  done = np.concatenate([done, [drawn.stretch, drawn.shift_x]]) != 0
  std = np.sqrt(probability * (1 - probability) / number)
  # An angle or a normal number is 0 by chance, once in millions.
  np.testing.assert_allclose(done.mean(1), probability, atol=5 * std + 1e-4)
  # Independent of each other: all 15 pairs occur as often as they should.
  both = (done[:, None] & done).mean(-1)[np.triu_indices(6, 1)]
  share = probability**2
  std = np.sqrt(share * (1 - share) / number)
  np.testing.assert_allclose(both, share, atol=5 * std + 1e-4)
  for normal in (drawn.scale, drawn.stretch, drawn.shift_x, drawn.shift_y):
    normal = np.asarray(normal)[normal != 0]
    error = 5 / np.sqrt(len(normal))
    np.testing.assert_allclose(normal.mean(), 0, atol=error)
    np.testing.assert_allclose(normal.std(), 1, atol=error)
  for angle in (drawn.rotation, drawn.axis):
    angle = np.asarray(angle)[angle != 0]
    error = 5 / np.sqrt(len(angle))
    assert np.abs(angle).max() <= np.float32(np.pi)
    np.testing.assert_allclose(np.cos(angle).mean(), 0, atol=error)
    np.testing.assert_allclose(np.sin(angle).mean(), 0, atol=error)
    np.testing.assert_allclose((angle**2).mean(), np.pi**2 / 3, atol=5 * error)


def test_the_parameters_are_not_correlated():
  number, probability = 40_000, 0.5
  drawn = draw(KEY, number, probability)
  assert set(np.unique(drawn.flip_x)) == {0, 1}
  correlations = np.corrcoef(np.stack(drawn)) - np.eye(8)
  # Of two that are non-zero together, such as both shifts, it varies more.
  error = 5 / np.sqrt(number * probability)
  np.testing.assert_allclose(correlations, 0, atol=error)


def test_the_key_alone_decides():
  images = noise(16, 8, 8, 3)
  first = augmented(KEY, images, probability=0.5)
  again = augmented(KEY, images, probability=0.5)
  other = augmented(jax.random.key(1), images, probability=0.5)
  for one, two in zip(first, again, strict=True):
    np.testing.assert_array_equal(one, two)
  assert (first[1] != other[1]).any()


def test_an_image_does_not_depend_on_the_others():
  images = noise(16, 8, 8, 3)
  others = noise(16, 8, 8, 3, seed=1)
  others[5] = images[5]
  first, first_conditions = augmented(KEY, images, probability=0.5)
  second, second_conditions = augmented(KEY, others, probability=0.5)
  np.testing.assert_array_equal(first_conditions, second_conditions)
  np.testing.assert_array_equal(first[5], second[5])
  assert (
    (np.delete(first, 5, 0) != np.delete(second, 5, 0)).any((1, 2, 3)).all()
  )
  # Nor do two images of a batch get the same.
  assert len(np.unique(first_conditions, axis=0)) > 12


def test_runs_are_augmented_together_as_one_by_one():
  keys = jax.random.split(KEY, 3)
  images = noise(3, 16, 8, 8, 3)
  together, told = jax.jit(
    jax.vmap(lambda key, images: augment(key, images, 0.5))
  )(keys, images)
  for run in range(3):
    alone, conditions = augmented(keys[run], images[run], probability=0.5)
    np.testing.assert_allclose(told[run], conditions, rtol=1e-6)
    np.testing.assert_allclose(together[run], alone, atol=ATOL)


@pytest.mark.parametrize("probability", [0, -0.1, 1.5, float("nan")])
def test_a_wrong_probability(probability):
  with pytest.raises(UserError, match=f"augment={probability} must be"):
    augment(KEY, noise(2, 8, 8, 1), probability)
