"""A position in a mapped GGUF file: every step is checked against the file's end before anything is allocated."""

from __future__ import annotations

import mmap
import struct
from pathlib import Path

from .errors import CheckpointError

U32, U64 = struct.Struct("<I"), struct.Struct("<Q")
_MAX_NAME = 65535  # bytes of a key or a tensor's name


class Scan:
    """path names the file in messages; `at` is the next byte to read."""

    def __init__(self, path: Path, mapped: mmap.mmap):
        self.path, self.bytes, self.size, self.at = path, mapped, len(mapped), 0

    def damaged(self, what: str) -> CheckpointError:
        return CheckpointError(f"{self.path} has a damaged GGUF header: {what}. Download it again.")

    def require(self, count: int, size: int, what: str, most: int | None = None) -> None:
        """That `count` things of at least `size` bytes can follow."""
        if count * size > self.size - self.at or (most is not None and count > most):
            raise self.damaged(f"it announces {count} {what}, more than the file can hold")

    def take(self, count: int) -> bytes:
        if count > self.size - self.at:
            raise self.damaged(f"it ends at byte {self.size}, inside its header")
        self.at += count
        return self.bytes[self.at - count : self.at]

    def number(self, form: struct.Struct) -> int:
        return form.unpack(self.take(form.size))[0]

    def name(self) -> str:
        length = self.number(U64)
        if length > _MAX_NAME:
            raise self.damaged(f"a name of {length} bytes at byte {self.at}")
        return self._decode(self.take(length), "a name")

    def skip_strings(self, count: int) -> None:
        # A vocabulary has 300,000 strings: no calls in this loop but the two it needs.
        at, size, read, data = self.at, self.size, U64.unpack_from, self.bytes
        for _ in range(count):
            if at + 8 > size:
                raise self.damaged(f"it ends at byte {size}, inside a string")
            at += 8 + read(data, at)[0]
        if at > size:
            raise self.damaged(f"a string reaches beyond byte {size}, the end of the file")
        self.at = at

    def strings(self, key: str, begin: int, count: int) -> list[str]:
        """Strings that `skip_strings` went over."""
        texts, at = [], begin
        for _ in range(count):
            end = at + 8 + U64.unpack_from(self.bytes, at)[0]
            texts.append(self._decode(self.bytes[at + 8 : end], key))
            at = end
        return texts

    def _decode(self, raw: bytes, what: str) -> str:
        try:
            return raw.decode("utf-8")
        except UnicodeDecodeError as error:
            raise self.damaged(f"{what} is not UTF-8") from error
