"""A file is there whole or not at all."""

import errno
import io
import os
import threading
from pathlib import Path

import pytest

from octavo.runtime import files
from octavo.runtime.errors import RequestError, VoiceError
from octavo.runtime.files import AtomicFile, user_folder, write_atomic

root = pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")


def test_write_and_overwrite(tmp_path: Path) -> None:
    path = tmp_path / "a"
    write_atomic(path, b"old")
    path.chmod(0o600)
    with AtomicFile(path) as atomic:
        atomic.file.write(b"new")
        atomic.file.flush()
        assert path.read_bytes() == b"old"  # until all is written
    assert path.read_bytes() == b"new" and path.stat().st_mode & 0o777 == 0o600
    assert os.listdir(tmp_path) == ["a"]


def test_a_new_file_obeys_the_umask(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        write_atomic(tmp_path / "a", b"")
    finally:
        os.umask(before)
    assert (tmp_path / "a").stat().st_mode & 0o777 == 0o640


def test_a_link_stays_a_link(tmp_path: Path) -> None:
    (tmp_path / "real").write_bytes(b"old")
    (tmp_path / "link").symlink_to("real")
    write_atomic(tmp_path / "link", b"new")
    assert (tmp_path / "link").is_symlink() and (tmp_path / "real").read_bytes() == b"new"


def test_what_is_no_regular_file_is_written_directly(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")  # not /dev/null: a mistake here, made by root, would cost the machine its device
    got: list[bytes] = []
    reader = threading.Thread(target=lambda: got.append((tmp_path / "pipe").read_bytes()), daemon=True)
    reader.start()
    write_atomic(tmp_path / "pipe", b"through")
    reader.join(5)
    assert got == [b"through"] and (tmp_path / "pipe").is_fifo() and os.listdir(tmp_path) == ["pipe"]


def test_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Full(io.FileIO):
        def write(self, data: object) -> int:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(files, "open", lambda path, mode: io.BufferedWriter(Full(path, mode)), raising=False)
    for size in (10, 1 << 20):  # noticed when the buffer is flushed, or at once
        with pytest.raises(VoiceError, match="disk is full"):
            write_atomic(tmp_path / "a", bytes(size), VoiceError)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("failure", [KeyboardInterrupt(), ValueError("x"), MemoryError()], ids=repr)
def test_failure_in_the_middle(tmp_path: Path, failure: BaseException) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"old")
    with pytest.raises(type(failure)), AtomicFile(path) as atomic:
        atomic.file.write(b"half")
        raise failure
    assert path.read_bytes() == b"old" and os.listdir(tmp_path) == ["a"]


@pytest.mark.parametrize("function", ["fsync", "replace"])
@pytest.mark.parametrize("number, sentence", [(errno.ENOSPC, "disk is full"), (errno.EIO, "Input/output")])
def test_failure_at_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, function: str, number: int, sentence: str
) -> None:
    def fail(*args: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(files.os, function, fail)
    with pytest.raises(RequestError, match=sentence):
        write_atomic(tmp_path / "a", b"data")
    assert os.listdir(tmp_path) == []


def test_interrupted_rename(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*args: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(files.os, "replace", interrupt)
    with pytest.raises(KeyboardInterrupt):
        write_atomic(tmp_path / "a", b"data")
    assert os.listdir(tmp_path) == []


def test_places_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    for path, sentence in [
        (tmp_path, "It is a folder"),
        (tmp_path / "none" / "a", "folder does not exist"),
        (tmp_path / "file" / "a", "not a folder"),
        (tmp_path / ("a" * 300), "too long"),
    ]:
        with pytest.raises(RequestError, match=sentence):
            write_atomic(path, b"")
    assert os.listdir(tmp_path) == ["file"]


def test_permission_denied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"old")
    monkeypatch.setattr(files.os, "access", lambda *args: False)  # root, who runs many a test, may write anything
    with pytest.raises(RequestError, match="Permission denied"):
        write_atomic(path, b"new")
    assert path.read_bytes() == b"old"


@root
def test_unwritable_folder(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(RequestError, match="Permission denied"):
        write_atomic(tmp_path / "a", b"")


def test_user_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_DATA_HOME", "/somewhere")
    assert user_folder("DATA", ".local/share") == Path("/somewhere/octavo")
    for void in ("", "relative"):
        monkeypatch.setenv("XDG_DATA_HOME", void)
        assert user_folder("DATA", ".local/share") == tmp_path / ".local/share/octavo"
