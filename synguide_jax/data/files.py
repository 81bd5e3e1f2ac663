"""The files of a folder or an archive, local or remote, listed and read alike.

Archives are read where they are; nothing is unpacked.
"""

import abc
import bz2
from collections.abc import Callable, Iterator
import contextlib
import gzip
import hashlib
import json
import lzma
import os
from pathlib import Path
import re
import shutil
import tarfile
import tempfile
import threading
from typing import Any, BinaryIO
import zipfile

from etils import epath

from synguide_jax import cache
from synguide_jax.errors import UserError

_UNPACK = {
  ".tar": open,
  ".tar.gz": gzip.open,
  ".tgz": gzip.open,
  ".tar.bz2": bz2.open,
  ".tar.xz": lzma.open,
}
ARCHIVES = (".zip", *_UNPACK)
# What some archivers and file managers leave.
_CLUTTER = ("__MACOSX", "Thumbs.db", "desktop.ini")


def natural(name: str) -> tuple[Any, ...]:
  """A sort key: ``img2`` before ``img10``, folder by folder."""
  return tuple(
    # Every second part is a number. The name itself tells "1" from "01".
    ([int(p) if i % 2 else p for i, p in enumerate(re.split(r"(\d+)", x))], x)
    for x in name.split("/")
  )


class Files(abc.ABC):
  """Files by name, which is the path below the root with forward slashes.

  Hidden files and folders are left out.

  Attributes:
    root: Where they are, for messages and as part of fingerprints.
    names: Their names, in natural order.
    folders: Names of the folders, those without files included.
  """

  def __init__(self, root: str):
    self.root = root
    # Size in bytes, and what changes with the content, by name.
    self._marks: dict[str, tuple[int, int]] = {}
    folders = set()
    for name, size, mark in self._list(folders):
      parts = name.split("/")
      if not any(p.startswith(".") or p in _CLUTTER for p in parts):
        self._marks[name] = size, mark
        folders.update("/".join(parts[:i]) for i in range(1, len(parts)))
    self.names = sorted(self._marks, key=natural)
    self.folders = sorted(folders, key=natural)

  @abc.abstractmethod
  def _list(self, folders: set[str]) -> Iterator[tuple[str, int, int]]:
    """Yields name, size and mark of every file; adds folders to ``folders``."""

  @abc.abstractmethod
  def read(self, name: str) -> bytes:
    """Returns a file's content; may be called from several threads."""

  def checksum(self) -> str:
    """Identifies names and contents, in 12 hexadecimal digits."""
    digest = hashlib.sha256()
    for name in self.names:
      content = self.read(name)
      digest.update(f"{name}\0{len(content)}\0".encode())
      digest.update(content)
    return digest.hexdigest()[:12]

  def marks(self) -> list[tuple[str, int, int]]:
    """Name, size and mark of every file; not the same once one changed."""
    return [(name, *self._marks[name]) for name in self.names]

  def changed(self) -> bool:
    """Whether a file has come, gone or changed since these were listed."""
    return type(self)(self.root).marks() != self.marks()


class _LocalFolder(Files):
  """A folder; links are followed."""

  def _list(self, folders: set[str]) -> Iterator[tuple[str, int, int]]:
    return self._walk("", (), folders)

  def _walk(
    self, below: str, above: tuple[str, ...], folders: set[str]
  ) -> Iterator[tuple[str, int, int]]:
    folder = Path(self.root, below)
    here = os.path.realpath(folder)
    if here in above:
      raise UserError(f"{folder} is a link to a folder that it is in.")
    with os.scandir(folder) as entries:
      for entry in entries:
        name = f"{below}/{entry.name}" if below else entry.name
        if entry.name.startswith("."):
          continue
        if entry.is_dir():
          folders.add(name)
          yield from self._walk(name, (*above, here), folders)
        else:
          try:
            status = entry.stat()
          except FileNotFoundError as error:
            raise UserError(f"{folder / entry.name} is a broken link.") from (
              error
            )
          yield name, status.st_size, status.st_mtime_ns

  def read(self, name: str) -> bytes:
    return Path(self.root, name).read_bytes()


class _RemoteFolder(Files):
  """A folder on gs:// or the like, through epath."""

  def _list(self, folders: set[str]) -> Iterator[tuple[str, int, int]]:
    pending = [("", epath.Path(self.root))]
    while pending:
      below, folder = pending.pop()
      for path in folder.iterdir():
        name = f"{below}{path.name}"
        status = path.stat()
        if status.is_directory:
          folders.add(name)
          pending.append((f"{name}/", path))
        else:
          yield name, status.length, int(status.mtime)

  def read(self, name: str) -> bytes:
    return (epath.Path(self.root) / name).read_bytes()


class _File(Files):
  """One file, which is its own root."""

  def __init__(self, root: str):
    self._status = _status(root)
    super().__init__(root)

  def _list(self, folders: set[str]) -> Iterator[tuple[str, int, int]]:
    yield self.root.rpartition("/")[-1], *self._status

  def read(self, name: str) -> bytes:
    return epath.Path(self.root).read_bytes()

  def changed(self) -> bool:
    return _status(self.root) != self._status


class _Archive(_File):
  """What zip and tar files have in common."""

  def _safe(self, name: str) -> str:
    name = name.replace("\\", "/").removeprefix("./").rstrip("/")
    if (
      name.startswith("/") or re.match("[A-Za-z]:", name) or ".." in
      name.split("/")
    ):
      raise UserError(
        f"{self.root} holds {name!r}, a path that leads out of the archive; "
        "pack it again with relative paths."
      )
    return name


class _Zip(_Archive):
  def __init__(self, root: str):
    try:
      self._zip = zipfile.ZipFile(_open(root))
      super().__init__(root)
    except (zipfile.BadZipFile, EOFError) as error:
      raise UserError(f"{root} is not a readable zip archive: {error}.") from (
        error
      )

  def _list(self, folders: set[str]) -> Iterator[tuple[str, int, int]]:
    self._members = {}
    for info in self._zip.infolist():
      name = self._safe(info.filename)
      if info.is_dir():
        folders.add(name)
        continue
      if info.flag_bits & 1:
        raise UserError(f"{self.root} is encrypted; unpack it.")
      self._members[name] = info
      yield name, info.file_size, info.CRC

  def read(self, name: str) -> bytes:
    try:
      return self._zip.read(self._members[name])
    except (zipfile.BadZipFile, EOFError, NotImplementedError) as error:
      raise UserError(f"{self.root}: {name} is damaged: {error}.") from error

  def checksum(self) -> str:
    # The archive has a checksum of every file.
    return cache.fingerprint({"files": self.marks()})


class _Tar(_Archive):
  """A tar file; a compressed one is first unpacked into one without."""

  def __init__(self, root: str):
    self._lock = threading.Lock()
    unpack = next(f for end, f in _UNPACK.items() if root.lower().endswith(end))
    try:
      self._file = _open(root)
      if unpack is not open:
        packed, self._file = self._file, tempfile.TemporaryFile()
        with packed, unpack(packed) as content:
          shutil.copyfileobj(content, self._file)
        self._file.seek(0)
      super().__init__(root)
    except (tarfile.TarError, EOFError, OSError, lzma.LZMAError) as error:
      raise UserError(f"{root} is not a readable tar archive: {error}.") from (
        error
      )

  def _list(self, folders: set[str]) -> Iterator[tuple[str, int, int]]:
    self._members = {}
    with tarfile.open(fileobj=self._file, mode="r:") as tar:
      for info in tar:
        name = self._safe(info.name)
        if info.isdir():
          folders.add(name)
        elif info.isfile():
          self._members[name] = info.offset_data, info.size
          yield name, info.size, int(info.mtime)

  def read(self, name: str) -> bytes:
    offset, size = self._members[name]
    with self._lock:
      self._file.seek(offset)
      content = self._file.read(size)
    if len(content) < size:
      raise UserError(f"{self.root} ends in the middle of {name}.")
    return content


def _status(root: str) -> tuple[int, int]:
  if is_remote(root):
    status = epath.Path(root).stat()
    return status.length, int(status.mtime)
  status = os.stat(root)
  return status.st_size, status.st_mtime_ns


def _open(root: str) -> BinaryIO:
  return epath.Path(root).open("rb")


def is_remote(path: str) -> bool:
  """Whether a path has a scheme, such as ``gs://``."""
  return "://" in path


def expand(path: str) -> str:
  """Returns an absolute local path, or the remote one."""
  if is_remote(path):
    return path.rstrip("/")
  return os.path.abspath(os.path.expanduser(path))


def open_file(path: str) -> Files:
  """Opens a single file.

  Raises:
    UserError: there is none.
  """
  root = expand(path)
  if not epath.Path(root).exists():
    raise UserError(f"{root} does not exist.")
  if epath.Path(root).is_dir():
    raise UserError(f"{root} is a folder, not a file.")
  return _File(root)


def open_files(path: str) -> Files:
  """Lists a folder or an archive (zip, tar, tar.gz, tar.bz2, tar.xz).

  Args:
    path: A local path, or a remote one such as ``gs://bucket/folder``.

  Returns:
    The :class:`Files`.

  Raises:
    UserError: it does not exist, is neither, is damaged, links to itself, or
      has members with absolute paths or ``..``.
  """
  root = expand(path)
  found = epath.Path(root)
  if not found.exists():
    raise UserError(f"{root} does not exist.")
  if found.is_dir():
    return _RemoteFolder(root) if is_remote(root) else _LocalFolder(root)
  if root.lower().endswith(".zip"):
    return _Zip(root)
  if root.lower().endswith(tuple(_UNPACK)):
    return _Tar(root)
  raise UserError(
    f"{root} is neither a folder nor an archive ({', '.join(ARCHIVES)})."
  )


def checksum(opened: Callable[[str], Files], path: str) -> str:
  """Returns ``opened(path).checksum()``, from memory while nothing changed.

  What was found is kept in the cache folder for as long as the file, or names,
  sizes and times of all files of a folder, stay as they are.

  Args:
    opened: :func:`open_files` or :func:`open_file`.
    path: See there.
  """
  root = expand(path)
  if epath.Path(root).is_dir():
    tree = opened(root)
    stamp = cache.fingerprint({"files": tree.marks()})
  else:
    tree = None
    stamp = cache.fingerprint(
      {"file": _status(root) if epath.Path(root).exists() else None}
    )
  place = cache.fingerprint({"root": root})
  memory = cache.cache_dir() / "checksums" / f"{place}.json"
  with contextlib.suppress(OSError, ValueError, KeyError):
    known = json.loads(memory.read_text())
    if known["stamp"] == stamp:
      return known["checksum"]
  found = (tree or opened(root)).checksum()
  with contextlib.suppress(OSError):  # It only saves time.
    memory.parent.mkdir(parents=True, exist_ok=True)
    partial = memory.with_suffix(f".{os.getpid()}")
    partial.write_text(json.dumps({"stamp": stamp, "checksum": found}))
    partial.replace(memory)
  return found
