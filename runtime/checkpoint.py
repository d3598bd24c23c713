"""A checkpoint as named tensors, lazily mapped from disk: a folder of safetensors files, or one GGUF file.

Opening reads headers only (a real 9.3 GB checkpoint: milliseconds). `Weights.take` maps one tensor; its pages come from
disk when they are first read, and `Checkpoint.release` gives them back, so that copying a model into its parameters
never holds the weights twice. How a tensor is stored, and whether it is quantized, is stored.py's affair.

Names are enumerated from the headers, never from `model.safetensors.index.json`: the published index omits the
physical `tied.head.*` tensors. The index only tells which shards must be present.
"""

from __future__ import annotations

import json
import math
import mmap
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from octavo.quant.formats.grouped import Grouped

from .errors import CheckpointError
from .gguf_higgs import HiggsTensor, open_higgs
from .shards import read_header
from .stored import GGUF_NUMBERS, KINDS, Region, Stored, decode, group
from .tensor_names import BODY


class Weights:
    """The tensors under one prefix, by their names without it; remembers which were taken.

    Every way to take one is strict: a missing or misshapen tensor raises CheckpointError.
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
        """Raises CheckpointError unless `name` is there, has `shape` and holds real numbers."""
        if self.shape(name) != shape:
            raise CheckpointError(
                f"{self.prefix + name} has shape {list(self.shape(name))}, the configuration asks for {list(shape)}. "
                "The checkpoint and its config.json do not belong together."
            )
        if isinstance(self._source, Checkpoint):
            is_real = self._source.info[self.prefix + name].is_real
        else:
            is_real = self._source[self.prefix + name].dtype.is_floating_point
        if not is_real:
            raise CheckpointError(f"{self.prefix + name} does not hold floating-point numbers. Download it again.")

    def take(self, name: str, *shape: int) -> torch.Tensor:
        """The tensor as stored (its dtype, mapped, on the CPU; do not write to it); in fp32 where it is quantized."""
        self.check(name, *shape)
        self.taken.add(name)
        return self._source[self.prefix + name]

    def matrix(self, name: str, *shape: int) -> torch.Tensor | Grouped:
        """The same, quantized as it is stored."""
        self.check(name, *shape)
        self.taken.add(name)
        if isinstance(self._source, Checkpoint):
            return self._source.matrix(self.prefix + name)
        return self._source[self.prefix + name]

    def table(self, name: str, *shape: int) -> Callable[[torch.Tensor], torch.Tensor]:
        """A function from row numbers ([n] int64) to rows [n, K], which reads no others."""
        self.check(name, *shape)
        self.taken.add(name)
        if isinstance(self._source, Checkpoint):
            return self._source.table(self.prefix + name)
        whole = self._source[self.prefix + name]
        return lambda rows: F.embedding(rows, whole)

    def _require(self, name: str) -> None:
        if name not in self:
            raise CheckpointError(f"{self.prefix + name} is missing from the checkpoint. Download it again.")


class Checkpoint(Mapping[str, torch.Tensor]):
    """The model's tensors by their published names, whatever the file calls them; `info` tells how each is stored."""

    def __init__(self, path: Path, config: dict, info: dict[str, Stored], tokenizer: Callable[[], bytes] | None = None):
        self.path, self.config, self.info = path, config, info
        self._tokenizer = tokenizer  # None: beside the weights
        self._maps: dict[Path, mmap.mmap] = {}

    @classmethod
    def open(cls, path: str | os.PathLike) -> Checkpoint:
        """path: a folder with config.json and safetensors files, or a .gguf file. Reads no weights. Raises
        CheckpointError."""
        path = Path(path)
        if path.is_dir():
            return cls._open_folder(path)
        if path.suffix == ".gguf":
            return cls._open_gguf(path)
        raise CheckpointError(
            f"{path} is neither a folder nor a .gguf file. Give the folder that holds config.json and the weights."
        )

    @classmethod
    def _open_folder(cls, folder: Path) -> Checkpoint:
        config = _read_json(folder / "config.json", "Give the folder that holds it, or download the model again.")
        _check_method(config.get("quantization_config"))
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
        regions: dict[str, Region] = {}
        for shard in shards:
            tensors, _ = read_header(shard)
            if twice := regions.keys() & tensors.keys():
                raise CheckpointError(
                    f"{min(twice)} is stored twice: in {regions[min(twice)].shard.name} and {shard.name}."
                )
            regions |= tensors
        if index.exists() and (absent := sorted(weight_map.keys() - regions.keys())):
            raise CheckpointError(
                f"{absent[0]} is named by {index.name} but in none of the shards. Download them again."
            )
        checkpoint = cls(folder, config, {})
        checkpoint.info = group(regions, checkpoint._read)
        return checkpoint

    @classmethod
    def _open_gguf(cls, path: Path) -> Checkpoint:
        file = open_higgs(path)
        info = {name: _from_gguf(tensor) for name, tensor in file.tensors.items()}
        return cls(path, file.config, info, file.tokenizer)

    def __getitem__(self, name: str) -> torch.Tensor:
        """As stored and mapped, or in fp32 where it is quantized."""
        matrix = self.matrix(name)
        return matrix.dequantize() if isinstance(matrix, Grouped) else matrix

    def matrix(self, name: str) -> torch.Tensor | Grouped:
        stored = self.info[name]
        parts = {part: self._read(region) for part, region in stored.parts.items()}
        values = decode(name, stored.kind, stored.shape, parts)
        if stored.undo is None:
            return values
        return stored.undo(values.dequantize() if isinstance(values, Grouped) else values)

    def table(self, name: str) -> Callable[[torch.Tensor], torch.Tensor]:
        """rows [n] int64 -> [n, K]: as stored, or in fp32 where it is quantized."""
        stored = self.info[name]
        if any(region.shape[:1] != stored.shape[:1] for region in stored.parts.values()):  # rows are not side by side
            whole = self[name]
            return lambda rows: F.embedding(rows, whole)
        parts = {part: self._read(region) for part, region in stored.parts.items()}

        def look_up(rows: torch.Tensor) -> torch.Tensor:
            chosen = {part: tensor.index_select(0, rows) for part, tensor in parts.items()}
            values = decode(name, stored.kind, (len(rows), stored.shape[1]), chosen)
            return values.dequantize() if isinstance(values, Grouped) else values

        return look_up

    def __iter__(self) -> Iterator[str]:
        return iter(self.info)

    def __len__(self) -> int:
        return len(self.info)

    def __contains__(self, name: object) -> bool:
        return name in self.info

    @property
    def nbytes(self) -> int:
        return sum(info.nbytes for info in self.info.values())

    @property
    def numel(self) -> int:
        return sum(info.numel for info in self.info.values())

    @property
    def quantization(self) -> set[str]:
        """The formats of the language model's matrices that are quantized."""
        return {info.kind for name, info in self.info.items() if name.startswith(BODY) and not info.plain}

    def tokenizer_bytes(self) -> bytes:
        """tokenizer.json. Raises CheckpointError."""
        if self._tokenizer:
            return self._tokenizer()
        file = self.path / "tokenizer.json"
        try:
            return file.read_bytes()
        except OSError as error:
            raise CheckpointError(f"{file} cannot be read: {error.strerror}. Download the model again.") from error

    def weights(self, prefix: str = "") -> Weights:
        return Weights(self, prefix)

    def release(self) -> None:
        """Drops the pages read so far from this process's memory; tensors stay valid and are read from disk again."""
        for mapped in self._maps.values():
            if hasattr(mmap, "MADV_DONTNEED"):
                mapped.madvise(mmap.MADV_DONTNEED)

    def _read(self, region: Region) -> torch.Tensor:
        if region.nbytes == 0:
            return torch.empty(region.shape, dtype=region.dtype)
        count = math.prod(region.shape)
        mapped = torch.frombuffer(self._map(region.shard), dtype=region.dtype, count=count, offset=region.begin)
        return mapped.view(region.shape)

    def _map(self, shard: Path) -> mmap.mmap:
        if shard not in self._maps:
            with open(shard, "rb") as file:
                # A private map: torch wants writable memory, the file stays as it is.
                self._maps[shard] = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
        return self._maps[shard]


def _from_gguf(tensor: HiggsTensor) -> Stored:
    kind, rows = tensor.stored.type, tensor.stored.shape
    if kind in GGUF_NUMBERS:
        dtype, kind = GGUF_NUMBERS[kind], KINDS[GGUF_NUMBERS[kind]]
    else:
        dtype, count = torch.uint8, math.prod(rows[:-1])
        rows = (count, tensor.stored.nbytes // max(count, 1))
    moved = tensor.swapped or (dtype == torch.uint8 and tensor.shape != tensor.stored.shape)
    rows = rows if moved or dtype == torch.uint8 else tensor.shape
    region = Region(tensor.file, dtype, rows, tensor.stored.begin, tensor.stored.nbytes)
    return Stored(kind, tensor.shape, {"": region}, tensor.restore if moved else None)


def _check_method(config: Any) -> None:
    """Raises CheckpointError for a `quantization_config` whose tensors octavo would misread, or not know at all."""
    if not isinstance(config, Mapping):
        return
    method, version = config.get("quant_method"), config.get("version", "gemm")
    if method == "awq" and str(version).lower() != "gemm":
        raise CheckpointError(
            f"Its AWQ weights are in the layout {version!r}; octavo reads 'gemm'. Convert them to that."
        )
    if method not in (None, "awq", "bitsandbytes", "compressed-tensors"):
        raise CheckpointError(
            f"Its weights are quantized by {method!r}; octavo reads awq, bitsandbytes, compressed-tensors' fp8, "
            "and GGUF."
        )


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
