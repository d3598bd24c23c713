"""What the writers of GGUF and of safetensors files have in common: a new file, its data hashed as they are written."""

from __future__ import annotations

import hashlib
import os
from types import TracebackType
from typing import Self


class HashedFile:
    """A file that must not exist yet: its head, then data. As a context manager, leaving closes it."""

    def __init__(self, path: str | os.PathLike, head: bytes):
        self._hash = hashlib.sha256()
        self._file = open(path, "xb")
        self._file.write(head)

    def _append(self, data: bytes | memoryview) -> None:
        self._hash.update(data)
        self._file.write(data)

    def _close(self) -> str:
        """Returns the SHA-256 of the data."""
        self._file.flush()
        os.fsync(self._file.fileno())  # else a crash soon after the file gets its name may leave holes in it
        self._file.close()
        return self._hash.hexdigest()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None) -> None:
        self._file.close()
