"""The files of a folder or an archive, local or remote, listed and read alike.

Archives are read where they are; nothing is unpacked.
"""

import abc
import bz2
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
import contextlib
import gzip
import hashlib
import itertools
import json
import lzma
import os
from pathlib import Path
import posixpath
import re
import shutil
import stat
import tarfile
import tempfile
import threading
from typing import Any, BinaryIO, TypeVar
import zipfile

from etils import epath

from synguide_jax import cache
from synguide_jax.errors import UserError

T, R = TypeVar("T"), TypeVar("R")

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
_CHUNK = 2**20  # bytes
_REMOTE_THREADS = 32  # which wait for a network, most of the time


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

  _file: BinaryIO | None = None

  def __init__(self, root: str):
    self.root = root
    # Size in bytes, and what changes with the content, by name.
    self._marks: dict[str, tuple[int, int]] = {}
    found, folders = set(), set()
    for name, size, mark in self._list(found):
      if _is_wanted(name):
        self._marks[name] = size, mark
        found.add(posixpath.dirname(name))
    for name in filter(_is_wanted, found):
      parts = name.split("/")
      folders.update("/".join(parts[:i]) for i in range(1, len(parts) + 1))
    self.names = sorted(self._marks, key=natural)
    self.folders = sorted(folders, key=natural)
    for name in (*self.names, *self.folders):
      try:
        name.encode()
      except UnicodeEncodeError as error:
        raise UserError(
          f"{root}: the name {name!r} is not UTF-8; rename it."
        ) from error

  def __enter__(self) -> "Files":
    return self

  def __exit__(self, *_: object) -> None:
    self.close()

  def close(self) -> None:
    """Closes an archive; nothing can be read from it any more."""
    if self._file:
      self._file.close()

  @abc.abstractmethod
  def _list(self, folders: set[str]) -> Iterator[tuple[str, int, int]]:
    """Yields name, size and mark of every file; adds folders to ``folders``."""

  @abc.abstractmethod
  def read(self, name: str) -> bytes:
    """Returns a file's content; may be called from several threads."""

  def checksum(self) -> str:
    """Identifies names and contents, in 12 hexadecimal digits."""
    digest = hashlib.sha256("\0".join([*self.folders, ""]).encode())
    contents = self._contents()
    for name, content in zip(self.names, contents, strict=True):
      digest.update(f"{name}\0{len(content)}\0".encode())
      digest.update(content)
    return digest.hexdigest()[:12]

  def _contents(self) -> Iterator[bytes]:
    """Yields the content of every file."""
    return map(self.read, self.names)

  def marks(self) -> list[tuple[str, int, int]]:
    """Name, size and mark of all files; not the same once one changed."""
    names = (*self.folders, *self.names)
    return [(name, *self._marks.get(name, (0, 0))) for name in names]


class _LocalFolder(Files):
  """A folder; links are followed."""

  def _list(self, folders: set[str]) -> Iterator[tuple[str, int, int]]:
    with _readable(self.root):
      yield from self._walk("", (), folders)

  def _walk(
    self, below: str, above: tuple[str, ...], folders: set[str]
  ) -> Iterator[tuple[str, int, int]]:
    folder = Path(self.root, below)
    here = os.path.realpath(folder)
    if here in above:
      raise UserError(f"{folder} is a link to a folder it is in; remove it.")
    with os.scandir(folder) as entries:
      for entry in entries:
        name = f"{below}/{entry.name}" if below else entry.name
        if not _is_wanted(entry.name):
          continue
        if entry.is_dir():
          folders.add(name)
          yield from self._walk(name, (*above, here), folders)
        elif entry.is_file():
          status = entry.stat()
          yield name, status.st_size, status.st_mtime_ns
        else:
          raise UserError(
            f"{folder / entry.name} is a broken link, or neither a file nor a "
            "folder; remove it."
          )

  def read(self, name: str) -> bytes:
    with _readable(f"{self.root}/{name}"):
      return Path(self.root, name).read_bytes()


class _RemoteFolder(Files):
  """A folder on gs:// or the like, through epath."""

  def _list(self, folders: set[str]) -> Iterator[tuple[str, int, int]]:
    level = [("", epath.Path(self.root))]
    while level:
      listed = _in_threads(
        lambda at: [(f"{at[0]}{path.name}", path) for path in at[1].iterdir()],
        level,
      )
      level = []
      for name, path, status in _in_threads(
        lambda entry: (*entry, entry[1].stat()),
        itertools.chain.from_iterable(listed),
      ):
        if status.is_directory:
          folders.add(name)
          level.append((f"{name}/", path))
        else:
          yield name, status.length, int(status.mtime)

  def read(self, name: str) -> bytes:
    return (epath.Path(self.root) / name).read_bytes()

  def _contents(self) -> Iterator[bytes]:
    return _in_threads(self.read, self.names)


def _in_threads(function: Callable[[T], R], items: Iterable[T]) -> Iterator[R]:
  """Yields ``function(item)`` in order; takes only a few items ahead."""
  with ThreadPoolExecutor(_REMOTE_THREADS) as pool:
    pending = deque()
    for item in items:
      pending.append(pool.submit(function, item))
      if len(pending) > 2 * _REMOTE_THREADS:
        yield pending.popleft().result()
    while pending:
      yield pending.popleft().result()


class _File(Files):
  """One file, which is its own root."""

  def _list(self, folders: set[str]) -> Iterator[tuple[str, int, int]]:
    yield self.root.rpartition("/")[-1], *status(self.root)

  def read(self, name: str) -> bytes:
    with _readable(self.root):
      return epath.Path(self.root).read_bytes()

  def checksum(self) -> str:
    # As of a folder with this file, but never all of it in memory.
    (name,) = self.names
    digest = hashlib.sha256(f"{name}\0{self._marks[name][0]}\0".encode())
    with _readable(self.root), epath.Path(self.root).open("rb") as file:
      while chunk := file.read(_CHUNK):
        digest.update(chunk)
    return digest.hexdigest()[:12]


class _Archive(Files):
  """What zip and tar files have in common."""

  def __init__(self, root: str):
    with _readable(root):
      self._file = epath.Path(root).open("rb")
    try:
      super().__init__(root)
    except Exception as error:  # of many types for a damaged archive
      self.close()
      if isinstance(error, UserError):
        raise
      raise UserError(f"{root} is not a readable archive: {error}.") from error

  def _safe(self, name: str, is_link: bool) -> str:
    path = name.replace("\\", "/")
    if re.match("/|[A-Za-z]:", path) or ".." in path.split("/"):
      raise UserError(
        f"{self.root} holds {name!r}, a path that leads out of the archive; "
        "pack it again with relative paths."
      )
    if is_link:
      raise UserError(
        f"{self.root} holds {name!r}, a link; pack the file itself instead."
      )
    return posixpath.normpath(path)


class _Zip(_Archive):
  def _list(self, folders: set[str]) -> Iterator[tuple[str, int, int]]:
    self._zip, self._members = zipfile.ZipFile(self._file), {}
    for info in self._zip.infolist():
      is_link = stat.S_ISLNK(info.external_attr >> 16)
      name = self._safe(info.filename, is_link)
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
    except Exception as error:  # of many types for a damaged archive
      raise UserError(f"{self.root}: {name} is damaged: {error}.") from error

  def checksum(self) -> str:
    # The archive has a checksum of every file.
    return cache.fingerprint({"files": self.marks()})


class _Tar(_Archive):
  """A tar file; a compressed one is first unpacked into one without."""

  def _list(self, folders: set[str]) -> Iterator[tuple[str, int, int]]:
    self._lock, self._members = threading.Lock(), {}
    self._unpack()
    with tarfile.open(fileobj=self._file, mode="r:") as tar:
      for info in tar:
        name = self._safe(info.name, info.issym() or info.islnk())
        if info.isdir():
          folders.add(name)
        elif info.isfile():
          self._members[name] = info.offset_data, info.size
          yield name, info.size, int(info.mtime)
    # tarfile takes whatever it does not understand for the end.
    self._file.seek(tar.offset)
    if self._file.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
      raise UserError(
        f"{self.root} is damaged or truncated after {len(self._members)} files."
      )

  def _unpack(self) -> None:
    root = self.root.lower()
    unpack = next(f for end, f in _UNPACK.items() if root.endswith(end))
    if unpack is not open:
      packed, self._file = self._file, tempfile.TemporaryFile()
      with packed, unpack(packed) as content:
        shutil.copyfileobj(content, self._file)
      self._file.seek(0)

  def read(self, name: str) -> bytes:
    offset, size = self._members[name]
    with self._lock:
      self._file.seek(offset)
      return self._file.read(size)


@contextlib.contextmanager
def _readable(path: str) -> Iterator[None]:
  """Says which file or folder cannot be read."""
  try:
    yield
  except OSError as error:
    raise UserError(
      f"{error.filename or path} cannot be read: {error.strerror or error}."
    ) from error


def _is_wanted(name: str) -> bool:
  return all(
    part and not part.startswith(".") and part not in _CLUTTER
    for part in name.split("/")
  )


def status(path: str) -> tuple[int, int]:
  """Returns size and time of a file."""
  if is_remote(path):
    found = epath.Path(path).stat()
    return found.length, int(found.mtime)
  found = os.stat(path)
  return found.st_size, found.st_mtime_ns


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
      {"file": status(root) if epath.Path(root).exists() else None}
    )
  place = cache.fingerprint({"root": root})
  memory = cache.cache_dir() / "checksums" / f"{place}.json"
  with contextlib.suppress(OSError, ValueError, KeyError):
    known = json.loads(memory.read_text())
    if known["stamp"] == stamp:
      return known["checksum"]
  with tree or opened(root) as tree:
    found = tree.checksum()
  with contextlib.suppress(OSError):  # It only saves time.
    memory.parent.mkdir(parents=True, exist_ok=True)
    partial = memory.with_suffix(f".{os.getpid()}")
    partial.write_text(json.dumps({"stamp": stamp, "checksum": found}))
    partial.replace(memory)
  return found
