"""A checkpoint folder as named tensors, lazily mapped from disk.

Opening reads the safetensors headers only (a real 9.3 GB checkpoint: milliseconds). `Weights.take` maps one tensor;
its pages come from disk when they are first read, and `Checkpoint.release` gives them back, so that copying a model
into its parameters never holds the weights twice.

Names are enumerated from the headers, never from `model.safetensors.index.json`: the published index omits the
physical `tied.head.*` tensors. The index only tells which shards must be present.
"""

from __future__ import annotations

import json
import math
import mmap
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from .errors import CheckpointError

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


@dataclass(frozen=True)
class TensorInfo:
    """Where a tensor lies: `shard` is its file, `begin` its first byte there."""

    shard: Path
    dtype: torch.dtype
    shape: tuple[int, ...]
    begin: int
    nbytes: int


def read_header(path: Path) -> tuple[dict[str, TensorInfo], dict[str, str]]:
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


def _entry(path: Path, entry: dict, data: int) -> TensorInfo:
    dtype, shape = DTYPES[entry["dtype"]], tuple(entry["shape"])
    begin, end = entry["data_offsets"]
    if any(type(n) is not int or n < 0 for n in (*shape, begin, end)):
        raise ValueError("a shape or offset is not a natural number")
    nbytes = math.prod(shape) * dtype.itemsize
    if end - begin != nbytes:
        raise ValueError(f"{end - begin} bytes for a tensor of {nbytes}")
    return TensorInfo(path, dtype, shape, data + begin, nbytes)


class Weights:
    """The tensors under one prefix, by their names without it; remembers which were taken.

    `take` is strict: a missing or misshapen tensor raises CheckpointError.
    """

    def __init__(self, source: Checkpoint | Mapping[str, torch.Tensor], prefix: str = ""):
        self._source, self.prefix = source, prefix
        self.taken: set[str] = set()

    def __contains__(self, name: str) -> bool:
        return self.prefix + name in self._source

    def __iter__(self) -> Iterator[str]:
        return (name[len(self.prefix) :] for name in self._source if name.startswith(self.prefix))

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of `name`, without touching its data."""
        self._require(name)
        return tuple(self._source.info[self.prefix + name].shape if isinstance(self._source, Checkpoint)
                     else self._source[self.prefix + name].shape)  # fmt: skip

    def check(self, name: str, *shape: int) -> None:
        """Raises CheckpointError unless `name` is there, has `shape` and holds floating-point numbers."""
        if self.shape(name) != shape:
            raise CheckpointError(
                f"{self.prefix + name} has shape {list(self.shape(name))}, the configuration asks for {list(shape)}. "
                "The checkpoint and its config.json do not belong together."
            )
        info = self._source.info if isinstance(self._source, Checkpoint) else self._source
        if not info[self.prefix + name].dtype.is_floating_point:
            raise CheckpointError(f"{self.prefix + name} does not hold floating-point numbers. Download it again.")

    def take(self, name: str, *shape: int) -> torch.Tensor:
        """The tensor as stored (its dtype, mapped, on the CPU; do not write to it), once `check` finds it right."""
        self.check(name, *shape)
        self.taken.add(name)
        return self._source[self.prefix + name]

    def _require(self, name: str) -> None:
        if name not in self:
            raise CheckpointError(f"{self.prefix + name} is missing from the checkpoint. Download it again.")


class Checkpoint(Mapping[str, torch.Tensor]):
    """A local folder in the published layout: `config.json`, `tokenizer.json`, one or several safetensors shards."""

    def __init__(self, folder: Path, config: dict, info: dict[str, TensorInfo]):
        self.folder, self.config, self.info = folder, config, info
        self._maps: dict[Path, mmap.mmap] = {}

    @classmethod
    def open(cls, folder: str | os.PathLike) -> Checkpoint:
        """Reads config.json and the headers of all shards; no weights. Raises CheckpointError."""
        folder = Path(folder)
        if not folder.is_dir():
            raise CheckpointError(f"{folder} is not a folder. Give the folder that holds config.json and the weights.")
        config = _read_json(folder / "config.json", "Give the folder that holds it, or download the model again.")
        shards = sorted(folder.glob("*.safetensors"))
        index = folder / "model.safetensors.index.json"
        if index.exists():
            weight_map: Any = _read_json(index, "Download it again.").get("weight_map")
            if not isinstance(weight_map, dict) or not all(isinstance(name, str) for name in weight_map.values()):
                raise CheckpointError(f"{index} has no weight_map from tensor names to files. Download it again.")
            named = {folder / name for name in weight_map.values()}
            if absent := sorted(path.name for path in named if not path.is_file()):
                raise CheckpointError(f"{folder} lacks {', '.join(absent)}, named by {index.name}. Download the rest.")
            shards = sorted(named)
        if not shards:
            raise CheckpointError(f"{folder} holds no .safetensors file. Give the folder that holds the weights.")
        info: dict[str, TensorInfo] = {}
        for shard in shards:
            tensors, _ = read_header(shard)
            if twice := info.keys() & tensors.keys():
                raise CheckpointError(
                    f"{min(twice)} is stored twice: in {info[min(twice)].shard.name} and {shard.name}."
                )
            info |= tensors
        if index.exists() and (absent := sorted(weight_map.keys() - info.keys())):
            raise CheckpointError(
                f"{absent[0]} is named by {index.name} but in none of the shards. Download them again."
            )
        return cls(folder, config, info)

    def __getitem__(self, name: str) -> torch.Tensor:
        info = self.info[name]
        if info.nbytes == 0:
            return torch.empty(info.shape, dtype=info.dtype)
        count = math.prod(info.shape)
        return torch.frombuffer(self._map(info.shard), dtype=info.dtype, count=count, offset=info.begin).view(
            info.shape
        )

    def __iter__(self) -> Iterator[str]:
        return iter(self.info)

    def __len__(self) -> int:
        return len(self.info)

    def __contains__(self, name: object) -> bool:
        return name in self.info

    @property
    def nbytes(self) -> int:
        return sum(info.nbytes for info in self.info.values())

    def weights(self, prefix: str = "") -> Weights:
        return Weights(self, prefix)

    def release(self) -> None:
        """Drops the pages read so far from this process's memory; tensors stay valid and are read from disk again."""
        for mapped in self._maps.values():
            if hasattr(mmap, "MADV_DONTNEED"):
                mapped.madvise(mmap.MADV_DONTNEED)

    def _map(self, shard: Path) -> mmap.mmap:
        if shard not in self._maps:
            with open(shard, "rb") as file:
                # A private map: torch wants writable memory, the file stays as it is.
                self._maps[shard] = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
        return self._maps[shard]


def _read_json(path: Path, advice: str) -> dict:
    try:
        content = json.loads(path.read_bytes())
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}. {advice}") from error
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is not JSON ({error}). {advice}") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} holds no JSON object. {advice}")
    return content
