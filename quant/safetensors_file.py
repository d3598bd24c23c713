"""Write one safetensors file front to back, without holding it: names, types and shapes are known before the values.

The head reserves room for a JSON text, the file's provenance, which is known only at the end: `patch` puts it there.
Tensors are hashed as they pass. Whatever the writer is given is aligned: tensors of an odd length come last.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from octavo.runtime.shards import DTYPES
from octavo.runtime.verify import METADATA_KEY

from .hashed_file import HashedFile

RESERVED = 128 * 1024  # bytes for the provenance, quotes escaped
_NAMES = {dtype: name for name, dtype in DTYPES.items()}
_BEFORE = f'{{"__metadata__":{{"{METADATA_KEY}":"'.encode()  # how the head begins, up to the reserved room


@dataclass(frozen=True)
class Entry:
    """A tensor of the file to be."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


def in_order(entries: Iterable[Entry]) -> list[Entry]:
    """As the file holds them: as given, but for lengths that would leave the next one unaligned."""
    return sorted(entries, key=lambda entry: (entry.nbytes % 8 > 0) * (9 - entry.dtype.itemsize))


class SafetensorsWriter(HashedFile):
    """Writes `entries`, which `in_order` has sorted, to the new file `path`: the head when made, then each tensor.

    OSError goes through. Left without `finish`, the file is incomplete, and its maker's to remove.
    """

    def __init__(self, path: str | os.PathLike, entries: list[Entry]):
        self._left = entries[::-1]
        head = _head(entries)
        self.nbytes = len(head) + sum(entry.nbytes for entry in entries)
        super().__init__(path, head)

    @property
    def next(self) -> str | None:
        """The name of the tensor to write, None behind the last one."""
        return self._left[-1].name if self._left else None

    def write(self, name: str, tensor: torch.Tensor) -> None:
        """The next tensor, of the type and shape that were announced."""
        entry = self._left.pop()
        announced, given = (entry.name, entry.dtype, entry.shape), (name, tensor.dtype, tuple(tensor.shape))
        assert given == announced, (given, announced)
        data = tensor.detach().contiguous().view(-1).view(torch.uint8).numpy().data
        self._append(data)

    def finish(self) -> str:
        """Closes the file, and returns the SHA-256 of all behind its head."""
        assert not self._left, self.next
        return self._close()


def patch(path: Path, provenance: Mapping[str, Any]) -> None:
    """Puts `provenance` into the room that the head of a SafetensorsWriter's file reserves for it."""
    text = json.dumps(json.dumps(provenance, separators=(",", ":")))[1:-1].encode()
    assert len(text) <= RESERVED, len(text)
    with open(path, "r+b") as file:
        file.seek(8)
        assert file.read(len(_BEFORE)) == _BEFORE, path
        file.write(text.ljust(RESERVED))
        file.flush()
        os.fsync(file.fileno())


def _head(entries: list[Entry]) -> bytes:
    """8 bytes of length, then JSON padded to 8 with spaces."""
    tensors: dict[str, dict] = {}
    end = 0
    for entry in entries:
        begin, end = end, end + entry.nbytes
        tensors[entry.name] = {"dtype": _NAMES[entry.dtype], "shape": entry.shape, "data_offsets": [begin, end]}
    after = b'","format":"pt"},' + json.dumps(tensors, separators=(",", ":")).encode()[1:]
    raw = _BEFORE + b" " * RESERVED + after
    raw += b" " * (-len(raw) % 8)
    return len(raw).to_bytes(8, "little") + raw
