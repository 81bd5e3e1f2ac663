"""What pretrained features are worth: a linear probe, and a random network's.

  SYNGUIDE_SHARED=<folder> python -m benchmarks.linear_probe

Logistic regression on standardised embeddings of CIFAR-10 (JPEG) images, 2,000
to train and 2,000 of the official test images, for a published checkpoint and
for the same network with random weights. Nothing is chosen on the test images.
"""

import io
import os
from pathlib import Path
import zipfile

from absl import app, flags
import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from synguide_jax import console
from synguide_jax.models import pretrained

_WEIGHTS = flags.DEFINE_string(
  "weights", "weights/mobilenet_v2_imagenet", "Folder in $SYNGUIDE_SHARED."
)
_IMAGE_SIZE = flags.DEFINE_integer("image_size", 96, "Side, pixels.")


def cifar10_jpeg(archive, split, per_class):
  """Returns the first images of each class, uint8 [N, 32, 32, 3], and labels.

  Args:
    archive: Zip file of <split>/<class>/<image>.jpg.
    split: "train" or "test".
    per_class: Number of images.
  """
  images, labels = [], []
  with zipfile.ZipFile(archive) as files:
    names = sorted(n for n in files.namelist() if n.startswith(f"{split}/"))
    classes = sorted({name.split("/")[1] for name in names})
    for label, of_class in enumerate(classes):
      chosen = [n for n in names if n.split("/")[1:2] == [of_class]]
      for name in [n for n in chosen if n.endswith(".jpg")][:per_class]:
        image = Image.open(io.BytesIO(files.read(name))).convert("RGB")
        images.append(np.asarray(image))
        labels.append(label)
  return np.stack(images), np.array(labels)


def probe(model, variables, train, test, batch_size=100):
  """Test accuracy of a linear classifier of a frozen network's embeddings.

  Args:
    model: A `synguide_jax.models.Model`.
    variables: Its weights.
    train: uint8 images and labels.
    test: Likewise.
    batch_size: Images embedded at once; divides their numbers.
  """

  @jax.jit
  def embed(images):
    images = images.astype(jnp.float32) / 255
    output = model.apply(variables, images, train=False, upto="embedding")
    return output.features["embedding"]

  (features, labels), (test_features, test_labels) = (
    (
      np.concatenate(
        [embed(b) for b in np.split(images, len(images) // batch_size)]
      ),
      labels,
    )
    for images, labels in (train, test)
  )
  classifier = make_pipeline(
    StandardScaler(), LogisticRegression(C=0.01, max_iter=300)
  )
  return classifier.fit(features, labels).score(test_features, test_labels)


def main(argv):
  """Prints two accuracies."""
  del argv
  console.quiet()
  root = Path(os.environ["SYNGUIDE_SHARED"])
  archive = root / "data" / "cifar10_jpeg.zip"
  train, test = (
    cifar10_jpeg(archive, split, 200) for split in ("train", "test")
  )
  checkpoint = pretrained.load_pretrained(
    root / _WEIGHTS.value, image_size=_IMAGE_SIZE.value
  )
  model = checkpoint.model
  for seed in (None, 0, 1, 2):
    if seed is None:
      variables = checkpoint.variables
    else:
      variables = jax.jit(model.init)(jax.random.key(seed), train[0][:1] / 255)
    accuracy = probe(model, variables, train, test)
    kind = "published" if seed is None else f"random, seed {seed}"
    print(f"{model.name} {kind}: {100 * accuracy:.2f} %", flush=True)


if __name__ == "__main__":
  app.run(main)
