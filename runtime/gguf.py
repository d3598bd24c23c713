"""The GGUF container, read safely: its keys and where its tensors lie. What they mean is not its affair.

    magic, u32 version, u64 tensors, u64 keys | keys: name, u32 type, value | tensors: name, u32 rank, u64 sizes
    (fastest first), u32 type, u64 offset | padding | data, each tensor on a multiple of the alignment

Numbers are little-endian, a string is u64 length and UTF-8, an array u32 type, u64 count and its elements. Nothing is
allocated by a length before the file is known to hold that much, and values are decoded only when asked for: an
embedded tokenizer costs nothing until it is read. Source: the GGUF specification of ggml, versions 2 and 3.
"""

from __future__ import annotations

import math
import mmap
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from octavo.quant.formats.blocks import TYPES, BlockType

from .errors import CheckpointError
from .gguf_scan import U32, U64, Scan

MAGIC = b"GGUF"
PROVENANCE = "octavo.provenance"  # JSON, padded with spaces: where the file comes from, in files of octavo's own
ALIGNMENT = 32  # of tensors, where no key says otherwise
# Value types by id; 8 is a string, 9 an array.
NUMBERS = {0: "u1", 1: "i1", 2: "<u2", 3: "<i2", 4: "<u4", 5: "<i4", 6: "<f4", 7: "?", 10: "<u8", 11: "<i8", 12: "<f8"}
STRING, ARRAY = 8, 9
# Plain numbers that no weight is stored as; a file may have them beside its weights.
_PLAIN = [BlockType(f"{kind}{8 * n}", number, 1, n) for kind, number, n in
          [("I", 24, 1), ("I", 25, 2), ("I", 26, 4), ("I", 27, 8), ("F", 28, 8)]]  # fmt: skip
_TYPES = {kind.id: kind for kind in (*TYPES.values(), *_PLAIN)}
_MAX_RANK = 4
_MAX_VALUE = 1 << 30  # bytes of one value: ggml's own limit for a string
_MAX_STRINGS = 1 << 24  # of one array


@dataclass(frozen=True)
class GGUFTensor:
    """shape: slowest dimension first, as torch counts; type: ggml's name of it; begin: its first byte in the file."""

    name: str
    shape: tuple[int, ...]
    type: str
    begin: int
    nbytes: int


@dataclass(frozen=True)
class _Value:
    """Where a value lies: `count` elements from `begin` to `end`, or one that is no array."""

    kind: int
    begin: int
    end: int
    count: int | None = None


class Metadata(Mapping[str, Any]):
    """The keys of a file. A value is an int, float, bool or str; an array is a list of str, or numpy numbers."""

    def __init__(self, scan: Scan, values: dict[str, _Value]):
        self._scan, self._values = scan, values

    def __getitem__(self, key: str) -> Any:
        value = self._values[key]
        if value.kind == STRING:
            if value.count is None:
                return self._scan.strings(key, value.begin, 1)[0]
            return self._scan.strings(key, value.begin, value.count)
        numbers = np.frombuffer(self._scan.bytes[value.begin : value.end], NUMBERS[value.kind])
        if value.count is not None:
            return numbers
        # A float32 is given as the shortest decimal that rounds to it: 1e-6, not 9.999999974752427e-07.
        return float(str(numbers[0])) if NUMBERS[value.kind] == "<f4" else numbers[0].item()

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def __contains__(self, key: object) -> bool:
        return key in self._values

    def scalar(self, key: str, default: Any = None) -> Any:
        """The number or string; CheckpointError if the key has an array."""
        if key in self and self._values[key].count is not None:
            raise self._scan.damaged(f"the key {key} has an array")
        return self.get(key, default)

    def strings(self, key: str) -> list[str] | None:
        """The array of strings, None where there is no such key; CheckpointError if it has something else."""
        if key in self and (self._values[key].count is None or self._values[key].kind != STRING):
            raise self._scan.damaged(f"the key {key} has no array of strings")
        return self.get(key)

    def naturals(self, key: str) -> np.ndarray | None:
        """The array of whole numbers from 0 on, None where there is no such key; CheckpointError for anything else."""
        values = self.get(key)
        if values is None:
            return None
        if not isinstance(values, np.ndarray) or values.dtype.kind not in "iu" or values.min(initial=0) < 0:
            raise self._scan.damaged(f"the key {key} has no array of natural numbers")
        return values

    def span(self, key: str) -> tuple[int, int]:
        """First byte and length of the text of a string key: it can be overwritten in place by one as long."""
        value = self._values[key]
        assert value.kind == STRING and value.count is None, key
        return value.begin + 8, value.end - value.begin - 8


@dataclass(frozen=True)
class GGUFFile:
    """data: the first byte of the data section, `size` the length of the file."""

    path: Path
    metadata: Metadata
    tensors: dict[str, GGUFTensor]
    data: int
    size: int


def read_gguf(path: str | os.PathLike) -> GGUFFile:
    """The keys and tensors of one file, checked against its size; reads no tensor.

    Raises CheckpointError for a file that is truncated, of another version or byte order, or in which tensors overlap,
    are misaligned, or have a type or shape that octavo does not know.
    """
    path = Path(path)
    try:
        with open(path, "rb") as file:
            if os.fstat(file.fileno()).st_size < 24:
                raise CheckpointError(f"{path} is too short to be a GGUF file. Download it again.")
            scan = Scan(path, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}.") from error
    _check_version(path, scan)
    tensor_count, key_count = scan.number(U64), scan.number(U64)
    metadata = Metadata(scan, _keys(scan, key_count))
    alignment = metadata.get("general.alignment", ALIGNMENT)
    if type(alignment) is not int or alignment < 8 or alignment & (alignment - 1):
        raise scan.damaged(f"its alignment is {alignment!r}")
    tensors = _tensors(scan, tensor_count, alignment)
    end = data = _align(scan.at, alignment)
    placed: dict[str, GGUFTensor] = {}
    for tensor in sorted(tensors, key=lambda tensor: (tensor.begin, tensor.nbytes)):
        begin = data + tensor.begin
        if begin < end:
            raise scan.damaged(f"{tensor.name} overlaps another tensor")
        end = begin + tensor.nbytes
        placed[tensor.name] = GGUFTensor(tensor.name, tensor.shape, tensor.type, begin, tensor.nbytes)
    if tensors and end > scan.size:
        raise CheckpointError(
            f"{path} is truncated: {scan.size} bytes on disk, {end} by its header. Download it again."
        )
    return GGUFFile(path, metadata, {tensor.name: placed[tensor.name] for tensor in tensors}, data, scan.size)


def _check_version(path: Path, scan: Scan) -> None:
    if scan.take(4) != MAGIC:
        raise CheckpointError(f"{path} is not a GGUF file.")
    version = scan.number(U32)
    if version and not version & 0xFFFF:
        raise CheckpointError(f"{path} is a big-endian GGUF file. Download or convert a little-endian one.")
    if version not in (2, 3):
        raise CheckpointError(f"{path} is GGUF version {version}; octavo reads 2 and 3. Convert the model again.")


def _keys(scan: Scan, count: int) -> dict[str, _Value]:
    scan.require(count, 13, "keys")  # an empty name, a type and one byte
    values: dict[str, _Value] = {}
    for _ in range(count):
        name = scan.name()
        if name in values:
            raise scan.damaged(f"it has the key {name} twice")
        values[name] = _value(scan, name)
    return values


def _value(scan: Scan, name: str) -> _Value:
    """Steps over a value; only the lengths of strings are looked at."""
    kind, count, begin = scan.number(U32), None, scan.at
    if kind == ARRAY:
        kind, count = scan.number(U32), scan.number(U64)
        begin = scan.at
    if kind in NUMBERS:
        size = np.dtype(NUMBERS[kind]).itemsize
        scan.require(1 if count is None else count, size, f"elements of {name}")
        scan.at += size * (1 if count is None else count)
    elif kind == STRING:
        scan.require(1 if count is None else count, 8, f"strings of {name}", _MAX_STRINGS)
        scan.skip_strings(1 if count is None else count)
    else:
        raise scan.damaged(f"the key {name} has the unknown type {kind}")
    if scan.at - begin > _MAX_VALUE:
        raise scan.damaged(f"the key {name} has {scan.at - begin} bytes, more than any real one")
    return _Value(kind, begin, scan.at, count)


def _tensors(scan: Scan, count: int, alignment: int) -> list[GGUFTensor]:
    """Their places, still relative to the data section."""
    scan.require(count, 24, "tensors")
    tensors: dict[str, GGUFTensor] = {}
    for _ in range(count):
        name, rank = scan.name(), scan.number(U32)
        if name in tensors:
            raise scan.damaged(f"it has the tensor {name} twice")
        if rank > _MAX_RANK:
            raise scan.damaged(f"{name} has {rank} dimensions, more than the format's {_MAX_RANK}")
        shape = tuple(scan.number(U64) for _ in range(rank))[::-1]
        number, begin = scan.number(U32), scan.number(U64)
        if (kind := _TYPES.get(number)) is None:
            raise CheckpointError(
                f"{scan.path} stores {name} as ggml's type {number}, which octavo cannot read. "
                "Download the model in another type: Q8_0, Q6_K or Q4_K, for example."
            )
        if begin % alignment:
            raise scan.damaged(f"{name} is not on a multiple of {alignment} bytes")
        columns = shape[-1] if shape else 1
        if columns % kind.weights:
            raise scan.damaged(f"{name} has rows of {columns} weights, which blocks of {kind.name} do not divide")
        nbytes = math.prod(shape) // kind.weights * kind.nbytes
        tensors[name] = GGUFTensor(name, shape, kind.name, begin, nbytes)
    return list(tensors.values())


def _align(position: int, alignment: int) -> int:
    return -(-position // alignment) * alignment
