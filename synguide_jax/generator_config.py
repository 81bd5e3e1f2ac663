"""The fields of generators' configs, by section."""

from ml_collections import ConfigDict


def diffusion() -> ConfigDict:
  """Returns the fields of a diffusion model's training and sampler."""
  section = ConfigDict()
  # Share of labels replaced by the null class; guidance needs more than 0.
  section.label_dropout = 0.1
  # Probability of each of EDM's geometric changes, of which the network is
  # told, so that samples show none; against copying, 0.12 is usual. 0: none.
  section.augment = 0.0
  # Assumed standard deviation of images in [-1, 1].
  section.sigma_data = 0.5
  # Mean of ln(sigma) in training.
  section.p_mean = -1.2
  # Standard deviation of ln(sigma) in training.
  section.p_std = 1.2
  # Noise level before the sampler's last step.
  section.sigma_min = 0.002
  # Noise level the sampler starts from.
  section.sigma_max = 80.0
  # Larger: more of the sampler's steps at low noise.
  section.rho = 7.0
  return section


def sample() -> ConfigDict:
  """Returns the fields of the set that a generator makes."""
  section = ConfigDict()
  # Images a class.
  section.per_class = 1_000
  # Seed of the noise; image n of a class is the same for any per_class.
  section.seed = 0
  # Steps of the sampler, at two passes each, four with guidance.
  section.num_steps = 18
  # Weight of classifier-free guidance; 0: none, more: more alike.
  section.guidance = 0.0
  # Largest noise to begin with, standard deviations; less: more alike. 0: any.
  section.truncation = 0.0
  # Modes a class: clusters of its training images, by k-means of pixels ...
  section.modes = 0
  # ... of which so many, the smallest ones, are left out of the set.
  section.dropped_modes = 0
  return section


def filtering() -> ConfigDict:
  """Returns the fields of what a classifier makes of the images."""
  section = ConfigDict()
  # A finished workdir, or the spec of weights that name their classes; "": all
  # images are kept with the labels they were made for.
  section.classifier = ""
  # Whether labels are replaced by the classifier's.
  section.relabel = False
  # Keep images whose largest probability is above this one.
  section.threshold = 0.0
  # Keep only images whose label is predicted.
  section.agree = False
  # Keep images whose cross entropy is at least this, nats ...
  section.min_loss = 0.0
  # ... and at most this; 0: any.
  section.max_loss = 0.0
  # Keep so many of a class, drawn at random; 0: all.
  section.per_class = 0
  return section
