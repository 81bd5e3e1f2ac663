"""The cache of the Hugging Face hub, as its library lays it out."""

import hashlib
from pathlib import Path

COMMIT = "0123456789abcdef0123456789abcdef01234567"


def store(cache, repository, contents, revision="main", commit=COMMIT):
  """Writes a model, or more files of it.

  Args:
    cache: The folder ``hub``.
    repository: ``<owner>/<name>``.
    contents: What is in each file, by name.
    revision: A branch or tag.
    commit: What that is.
  """
  folder = Path(cache, f"models--{repository.replace('/', '--')}")
  snapshot = folder / "snapshots" / commit
  for path in (folder / "refs", folder / "blobs", snapshot):
    path.mkdir(parents=True, exist_ok=True)
  (folder / "refs" / revision).write_text(commit)
  for name, content in contents.items():
    blob = folder / "blobs" / hashlib.sha256(content).hexdigest()
    blob.write_bytes(content)
    (snapshot / name).symlink_to(Path("../../blobs", blob.name))
  return snapshot
