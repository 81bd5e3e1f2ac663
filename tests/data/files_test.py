"""Folders and archives, local and remote, are listed and read alike."""

from concurrent.futures import ThreadPoolExecutor
import os
from pathlib import Path
import stat
import tarfile
import threading
import time
import tracemalloc
import zipfile

from etils import epath
import pytest

from synguide_jax.data import files
from synguide_jax.errors import UserError
from tests import pictures

_CONTENTS = {
  "cat/10.png": b"ten",
  "cat/9.png": b"nine",
  "cat/kätzchen 1.png": b"kitten",
  "dog/1.png": bytes(3000),
  "readme.md": b"hello",
}
_ORDER = [
  "cat/9.png",
  "cat/10.png",
  "cat/kätzchen 1.png",
  "dog/1.png",
  "readme.md",
]
_KINDS = ["folder", "zip", "tar", "tar.gz", "tgz", "tar.bz2", "tar.xz"]


def _make(root, kind, contents=_CONTENTS):
  if kind == "folder":
    return pictures.write(root / "pets", contents)
  return pictures.pack(root / f"pets.{kind}", contents)


@pytest.fixture
def bucket(tmp_path):
  return pictures.bucket(tmp_path / "bucket")


@pytest.mark.parametrize("where", ["local", "remote"])
@pytest.mark.parametrize("kind", _KINDS)
def test_the_same_files_from_folder_and_archive(where, kind, bucket):
  path = _make(bucket, kind)
  if where == "remote":
    path = f"bucket://{path.name}"
  with files.open_files(str(path)) as tree:
    assert tree.names == _ORDER
    assert tree.folders == ["cat", "dog"]
    with ThreadPoolExecutor(8) as pool:
      read = list(pool.map(tree.read, _ORDER * 20))
  assert read == [_CONTENTS[name] for name in _ORDER] * 20


def test_one_file(bucket):
  for name in ("a.npz", "b.npz"):
    (bucket / name).write_bytes(name.encode())
  for path in (str(bucket / "a.npz"), "bucket://a.npz"):
    tree = files.open_file(path)
    assert tree.names == ["a.npz"]
    assert tree.read("a.npz") == b"a.npz"
  with pytest.raises(UserError, match="bucket is a folder, not a file"):
    files.open_file(str(bucket))
  with pytest.raises(UserError, match="bucket://c.npz does not exist"):
    files.open_file("bucket://c.npz")


@pytest.mark.parametrize("kind", ["folder", "zip", "tar"])
def test_hidden_files_and_clutter_are_left_out(tmp_path, kind):
  clutter = {
    "__MACOSX/cat/._1.png": b"x",
    "cat/.DS_Store": b"x",
    ".git/config": b"x",
    "cat/Thumbs.db": b"x",
  }
  path = _make(tmp_path, kind, {"./cat/1.png": b"one", **clutter})
  with files.open_files(str(path)) as tree:
    assert tree.names == ["cat/1.png"] and tree.folders == ["cat"]


@pytest.mark.parametrize("kind", ["zip", "tar"])
def test_folders_of_archives(tmp_path, kind):
  made = dict.fromkeys(("./", "__MACOSX/", ".git/", "./cat/", "dog/old/"), b"")
  path = _make(tmp_path, kind, made)
  with files.open_files(str(path)) as tree:
    assert tree.folders == ["cat", "dog", "dog/old"] and tree.names == []


def test_empty_folders_are_listed(tmp_path):
  (tmp_path / "dog" / "old").mkdir(parents=True)
  (tmp_path / "__MACOSX").mkdir()
  tree = files.open_files(str(tmp_path))
  assert tree.folders == ["dog", "dog/old"] and tree.names == []


def test_home(tmp_path, monkeypatch):
  monkeypatch.setenv("HOME", str(tmp_path))
  _make(tmp_path, "folder")
  assert files.open_files("~/pets/").root == str(tmp_path / "pets")


def test_what_is_neither_folder_nor_archive(tmp_path):
  with pytest.raises(UserError, match="nowhere does not exist"):
    files.open_files(str(tmp_path / "nowhere"))
  (tmp_path / "pets.rar").write_bytes(b"")
  with pytest.raises(UserError, match="neither a folder nor an archive .*.zip"):
    files.open_files(str(tmp_path / "pets.rar"))


# Links.


def test_links_are_followed(tmp_path):
  pets = _make(tmp_path, "folder")
  (tmp_path / "all").mkdir()
  (tmp_path / "all" / "cats").symlink_to(pets / "cat")
  (tmp_path / "all" / "1.png").symlink_to(pets / "dog" / "1.png")
  tree = files.open_files(str(tmp_path / "all"))
  assert tree.names[:2] == ["1.png", "cats/9.png"]
  assert tree.read("cats/9.png") == b"nine"


def _loop(folder):
  (folder / "loop").symlink_to(folder.parent)


def _itself(folder):
  (folder / "me").symlink_to("me")


def _broken(folder):
  (folder / "gone.png").symlink_to("nowhere")


def _pipe(folder):
  os.mkfifo(folder / "pipe.png")


@pytest.mark.parametrize(
  ("spoil", "message"),
  [
    (_loop, "cat/loop is a link to a folder it is in"),
    (_itself, "cat/me cannot be read: Too many levels of symbolic links"),
    (_broken, "cat/gone.png is a broken link"),
    (_pipe, "cat/pipe.png is .* neither a file nor a folder"),
  ],
)
def test_links_that_lead_nowhere(tmp_path, spoil, message):
  spoil(_make(tmp_path, "folder") / "cat")
  with pytest.raises(UserError, match=message):
    files.open_files(str(tmp_path / "pets"))


def test_links_in_archives(tmp_path):
  with tarfile.open(tmp_path / "pets.tar", "w") as archive:
    link = tarfile.TarInfo("cat/2.png")
    link.type, link.linkname = tarfile.LNKTYPE, "cat/1.png"
    archive.addfile(link)
  link = zipfile.ZipInfo("cat/2.png")
  link.external_attr = (stat.S_IFLNK | 0o777) << 16
  with zipfile.ZipFile(tmp_path / "pets.zip", "w") as archive:
    archive.writestr(link, "1.png")
  for name in ("pets.tar", "pets.zip"):
    with pytest.raises(UserError, match=f"{name} holds 'cat/2.png', a link"):
      files.open_files(str(tmp_path / name))


def test_a_file_that_goes_away(tmp_path):
  pets = _make(tmp_path, "folder")
  tree = files.open_files(str(pets))
  (pets / "cat" / "9.png").unlink()
  with pytest.raises(UserError, match="cat/9.png cannot be read: No such file"):
    tree.read("cat/9.png")


def test_names_that_are_not_utf8(tmp_path):
  path = os.fsencode(tmp_path) + b"/k\xe4tzchen.png"
  with open(path, "wb"):
    pass
  with pytest.raises(UserError, match=r"'k\\udce4tzchen.png' is not UTF-8"):
    files.open_files(str(tmp_path))


# Archives that are damaged or dangerous.


@pytest.mark.parametrize("kind", ["zip", "tar"])
@pytest.mark.parametrize(
  "name", ["/etc/1.png", "../1.png", "a/../../1.png", "C:\\1.png", "..\\1.png"]
)
def test_paths_that_lead_out_of_an_archive(tmp_path, kind, name):
  path = _make(tmp_path, kind, {"cat/1.png": b"", name: b""})
  with pytest.raises(UserError, match=f"pets.{kind} holds .*leads out of the"):
    files.open_files(str(path))


def test_encrypted_archive(tmp_path):
  path = _make(tmp_path, "zip")
  content = bytearray(path.read_bytes())
  entry = content.index(b"PK\1\2")  # in the table at the end
  content[entry + 8] |= 1
  path.write_bytes(content)
  with pytest.raises(UserError, match="pets.zip is encrypted; unpack it"):
    files.open_files(str(path))


def _read_all(path):
  with files.open_files(str(path)) as tree:
    return {name: tree.read(name) for name in tree.names}


@pytest.mark.parametrize("kind", _KINDS[1:])
def test_truncated_archives(tmp_path, kind):
  path = _make(tmp_path, kind)
  content = path.read_bytes()
  # A tar file ends in blocks of zeros; without all of them it is complete.
  end = len(content.rstrip(b"\0")) + 512 if kind == "tar" else len(content)
  for length in range(0, end, max(1, end // 100)):
    path.write_bytes(content[:length])
    with pytest.raises(UserError, match=f"pets.{kind} is"):
      _read_all(path)


@pytest.mark.parametrize("kind", _KINDS[1:])
def test_archives_with_a_wrong_byte(tmp_path, kind):
  path = _make(tmp_path, kind)
  content, noticed = path.read_bytes(), 0
  for place in range(0, len(content), max(1, len(content) // 150)):
    wrong = bytearray(content)
    wrong[place] ^= 0x55
    path.write_bytes(wrong)
    try:
      _read_all(path)
    except UserError as error:
      noticed += 1
      assert f"pets.{kind}" in str(error)
  assert noticed > 20


def test_damaged_file_in_an_archive(tmp_path):
  path = tmp_path / "pets.zip"
  with zipfile.ZipFile(path, "w") as archive:
    archive.writestr("cat/1.png", b"abcdefgh")
    archive.writestr("cat/2.png", b"ijklmnop")
  path.write_bytes(path.read_bytes().replace(b"abcd", b"abxd"))
  with files.open_files(str(path)) as tree:
    assert tree.read("cat/2.png") == b"ijklmnop"
    with pytest.raises(
      UserError, match="pets.zip: cat/1.png is damaged: .*CRC"
    ):
      tree.read("cat/1.png")


# Checksums.


def _rename(pets):
  (pets / "cat" / "9.png").rename(pets / "cat" / "8.png")


def _change(pets):
  (pets / "cat" / "9.png").write_bytes(b"NINE")


def _add(pets):
  (pets / "cat" / "11.png").write_bytes(b"")


def _remove(pets):
  (pets / "cat" / "9.png").unlink()


def _move_a_byte(pets):
  (pets / "cat" / "9.png").write_bytes(b"ninet")
  (pets / "cat" / "10.png").write_bytes(b"en")


def _new_folder(pets):
  (pets / "owl").mkdir()


@pytest.mark.parametrize(
  "change", [_rename, _change, _add, _remove, _move_a_byte, _new_folder]
)
def test_checksum_tells_contents_apart(tmp_path, change):
  pets = _make(tmp_path, "folder")
  before = files.checksum(files.open_files, str(pets))
  change(pets)
  assert files.checksum(files.open_files, str(pets)) != before


@pytest.mark.parametrize("where", ["local", "remote"])
def test_checksum_of_one_file(bucket, where):
  # As of a folder with only this file; it is read in several pieces.
  content = bytes(range(256)) * 10_000
  pictures.write(bucket / "dumps", {"a.npz": content})
  root = str(bucket) if where == "local" else "bucket:/"
  found = files.open_file(f"{root}/dumps/a.npz").checksum()
  assert found == files.open_files(f"{root}/dumps").checksum()
  pictures.write(bucket / "dumps", {"a.npz": content[:-1] + b"x"})
  assert found != files.open_file(f"{root}/dumps/a.npz").checksum()


def test_a_large_file_is_not_read_at_once(tmp_path):
  (tmp_path / "a.npz").write_bytes(bytes(20_000_000))
  tree = files.open_file(str(tmp_path / "a.npz"))
  tracemalloc.start()
  try:
    tree.checksum()
    _, most = tracemalloc.get_traced_memory()
  finally:
    tracemalloc.stop()
  assert most < 5_000_000


def test_remote_folders_are_read_by_many_threads(bucket, monkeypatch):
  contents = {f"{c}/{i}.png": b"%d" % i for c in "ab" for i in range(100)}
  local = files.open_files(str(pictures.write(bucket / "pets", contents)))
  expected = local.checksum()

  def threads_of(cls, method):
    original, threads = getattr(cls, method), set()

    def noted(self):
      threads.add(threading.get_ident())
      time.sleep(0.001)
      return original(self)

    monkeypatch.setattr(cls, method, noted)
    return threads

  stat = threads_of(type(epath.Path("bucket://pets")), "stat")
  read = threads_of(Path, "read_bytes")
  tree = files.open_files("bucket://pets")
  assert tree.names == local.names and tree.folders == ["a", "b"]
  assert tree.checksum() == expected
  assert len(stat) > 2 and len(read) > 2


@pytest.mark.parametrize("kind", ["folder", "zip", "tar", "tar.gz"])
def test_checksum_is_of_the_content(tmp_path, kind):
  for place in ("here", "there"):
    (tmp_path / place).mkdir()
  here, there = (_make(tmp_path / p, kind) for p in ("here", "there"))
  found = files.checksum(files.open_files, str(here))
  assert found == files.checksum(files.open_files, str(there))
  os.utime(here, (1, 1))
  assert found == files.checksum(files.open_files, str(here))
  other = tmp_path / "other"
  other.mkdir()
  other = _make(other, kind, _CONTENTS | {"cat/9.png": b"NINE"})
  assert found != files.checksum(files.open_files, str(other))


def test_checksum_is_remembered_while_nothing_changed(tmp_path, monkeypatch):
  pets = _make(tmp_path, "folder")
  found = files.checksum(files.open_files, str(pets))

  def no_file(*_):
    raise AssertionError("a file was read")

  with monkeypatch.context() as patch:
    patch.setattr(Path, "read_bytes", no_file)
    assert files.checksum(files.open_files, str(pets)) == found
    os.utime(pets / "cat" / "9.png")
    with pytest.raises(AssertionError, match="a file was read"):
      files.checksum(files.open_files, str(pets))
  assert files.checksum(files.open_files, str(pets)) == found
