"""Files that are written whole or not at all: one mechanism for sound, codes, subtitles and voices."""

import errno
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Self

from .errors import RequestError

_ADVICE = {
    errno.ENOSPC: "The disk is full: make room, or write elsewhere.",
    errno.EDQUOT: "Your disk quota is used up: make room, or write elsewhere.",
    errno.EFBIG: "The file would be larger than is allowed: write elsewhere.",
    errno.EACCES: "Permission denied: choose a place where you may write.",
    errno.EPERM: "Permission denied: choose a place where you may write.",
    errno.EROFS: "The file system is read-only: write elsewhere.",
    errno.ENOENT: "Its folder does not exist: create the folder first.",
    errno.ENOTDIR: "A part of its path is a file, not a folder: correct the path.",
    errno.EISDIR: "It is a folder: give the name of a file.",
    errno.ENAMETOOLONG: "The name is too long: choose a shorter one.",
    errno.EPIPE: "Whoever was reading it has gone.",
}


@contextmanager
def write_errors(label: str | os.PathLike, error: type[RequestError] = RequestError) -> Iterator[None]:
    """Inside, an OSError becomes an `error` whose sentence names `label` and says what to do."""
    try:
        yield
    except OSError as exc:
        advice = _ADVICE.get(exc.errno or 0, f"{exc.strerror or exc}: write elsewhere.")
        raise error(f"{os.fspath(label)} cannot be written. {advice}") from exc


class AtomicFile:
    """A binary file that gets its name only once it is complete.

    `file` is open for writing on a hidden file in the same folder. `commit` renames it over `path`, `abort` removes it;
    as a context manager, leaving normally commits and any exception aborts. What exists and is no regular file (a pipe,
    `/dev/null`) is written directly, since there is nothing to rename. Only opening turns OSError into `error`: wrap
    the rest in `write_errors`.
    """

    def __init__(self, path: str | os.PathLike, error: type[RequestError] = RequestError) -> None:
        self.path = Path(path)
        self._target = Path(os.path.realpath(path))  # a symbolic link stays one: what it points to is replaced
        self._hidden: Path | None = self._target.with_name(f".octavo-{secrets.token_hex(8)}.tmp")
        with write_errors(path, error):
            if self._target.is_dir():
                raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
            exists = self._target.exists()
            if exists and not os.access(self._target, os.W_OK):  # a rename would ignore that the file is protected
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
            if exists and not self._target.is_file():
                self._hidden = None
            self.file = open(self._hidden, "xb") if self._hidden else open(self._target, "wb")
            if exists and self._hidden:
                os.chmod(self._hidden, self._target.stat().st_mode & 0o7777)

    def commit(self) -> None:
        """Close, and rename into place. If that fails, nothing is left behind and the error goes on."""
        try:
            self.file.flush()
            if self._hidden:
                os.fsync(self.file.fileno())  # else a crash soon after the rename may leave an empty file
            self.file.close()
            if self._hidden:
                os.replace(self._hidden, self._target)
        except BaseException:
            self.abort()
            raise

    def abort(self) -> None:
        """Close and remove what was written; whatever stood at `path` before is untouched."""
        try:
            self.file.close()
        except OSError:
            pass  # the disk may be full: what was still buffered is unwanted anyway
        if self._hidden:
            self._hidden.unlink(missing_ok=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None) -> None:
        if kind is None:
            self.commit()
        else:
            self.abort()


def write_atomic(path: str | os.PathLike, data: bytes, error: type[RequestError] = RequestError) -> None:
    """Write `data` as the file `path`, or raise `error` and leave everything as it was."""
    with write_errors(path, error), AtomicFile(path, error) as atomic:
        atomic.file.write(data)


def user_folder(kind: str, fallback: str) -> Path:
    """Where octavo keeps the user's things of a kind: `octavo` in `$XDG_<kind>_HOME`, else in `~/<fallback>`."""
    base = os.environ.get(f"XDG_{kind}_HOME", "")
    return Path(base if os.path.isabs(base) else os.path.expanduser(f"~/{fallback}"), "octavo")  # XDG: absolute or void
