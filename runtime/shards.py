"""One safetensors file: where its tensors lie."""

from __future__ import annotations

import json
import math
from pathlib import Path

import torch

from .errors import CheckpointError
from .stored import Region

DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
_MAX_HEADER = 100_000_000  # bytes; the format's own limit


def read_header(path: Path) -> tuple[dict[str, Region], dict[str, str]]:
    """The tensors of one safetensors file and its metadata, checked against the file's size.

    Layout: 8 bytes little-endian header length, that many bytes of JSON, then the data; offsets are relative to the
    data. Raises CheckpointError when the file is truncated or the header is not what the format says.
    """
    try:
        size = path.stat().st_size
        with open(path, "rb") as file:
            prefix = file.read(8)
            length = int.from_bytes(prefix, "little")
            if len(prefix) < 8 or length > min(size - 8, _MAX_HEADER):
                raise CheckpointError(
                    f"{path} is truncated or not a safetensors file: its header does not fit into it."
                )
            raw = file.read(length)
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}.") from error
    try:
        header = json.loads(raw)
        metadata = header.pop("__metadata__", None) or {}
        tensors = {name: _entry(path, entry, 8 + length) for name, entry in header.items()}
        if not all(isinstance(value, str) for value in metadata.values()):
            raise TypeError("metadata values are strings")
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise CheckpointError(f"{path} has a damaged safetensors header ({error}). Download the file again.") from error
    end = 8 + length
    for name, info in sorted(tensors.items(), key=lambda item: item[1].begin):
        if info.begin != end:
            raise CheckpointError(f"{path} has a damaged safetensors header: {name} overlaps or leaves a gap.")
        end += info.nbytes
    if end != size:
        raise CheckpointError(f"{path} is truncated: {size} bytes on disk, {end} by its header. Download it again.")
    return tensors, metadata


def _entry(path: Path, entry: dict, data: int) -> Region:
    dtype, shape = DTYPES[entry["dtype"]], tuple(entry["shape"])
    begin, end = entry["data_offsets"]
    if any(type(n) is not int or n < 0 for n in (*shape, begin, end)):
        raise ValueError("a shape or offset is not a natural number")
    nbytes = math.prod(shape) * dtype.itemsize
    if end - begin != nbytes:
        raise ValueError(f"{end - begin} bytes for a tensor of {nbytes}")
    return Region(path, dtype, shape, data + begin, nbytes)
