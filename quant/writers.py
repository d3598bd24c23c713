"""A checkpoint as it is written, tensor by tensor: a folder with a safetensors file, or one GGUF file.

Both tell their exact size before there are values, hash the weights as they pass, and store in the end what has become
known of the file: its provenance.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self

import torch

from octavo.runtime.errors import CheckpointError
from octavo.runtime.verify import WEIGHTS

from . import gguf_file, safetensors_file
from .encode import GGUF_FLOATS, Encoded, parts
from .gguf_file import GGUFWriter
from .quantization_config import with_quantization
from .recipe import Recipe, is_linear
from .safetensors_file import Entry, SafetensorsWriter, in_order
from .source import Source

_SIDE_FILES = ("*.json", "*.jinja", "*.txt", "LICENSE*")  # of a source folder, which the new one takes over
_NOT_COPIED = ("config.json", "tokenizer.json", "model.safetensors.index.json")  # written anew, or of no more use
_LARGEST_COPIED = 64 << 20  # bytes
_EMBEDDED = ("tokenizer_config.json", "chat_template.jinja")  # in a GGUF file, beside config.json and tokenizer.json
_FILE_TYPES = {"fp16": 1, "Q4_0": 2, "Q8_0": 7, "Q4_K": 15, "Q5_K": 17, "Q6_K": 18, "bf16": 32}  # llama.cpp's numbers


class Writer(Protocol):
    """nbytes: of all that will have been written. OSError goes through, and what was begun is the caller's to remove.
    As a context: leaving without `finish` closes what is open."""

    nbytes: int

    def write(self, name: str, encoded: Encoded) -> None:
        """The next tensor of the recipe."""

    def finish(self) -> str:
        """Closes the file; returns the SHA-256 of its weights."""

    def describe(self, provenance: Mapping[str, Any]) -> None:
        """Stores this in the finished file."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None: ...


class FolderWriter:
    """The new folder `folder`, complete: weights, config.json, tokenizer and whatever else lies beside the source."""

    def __init__(self, folder: Path, source: Source, recipe: Recipe):
        entries = [
            Entry(_part_name(name, part), dtype, shape)
            for name, kind in recipe.kinds.items()
            for part, (dtype, shape) in parts(kind, source.checkpoint.info[name].shape, recipe.group_size).items()
        ]
        files = {"config.json": _json(with_quantization(source.checkpoint.config, recipe))}
        files |= {"tokenizer.json": source.checkpoint.tokenizer_bytes()} | _side_files(source.path)
        folder.mkdir()
        for name, content in files.items():
            (folder / name).write_bytes(content)
        self._weights = folder / WEIGHTS
        self._file = SafetensorsWriter(self._weights, in_order(entries))
        self._waiting: dict[str, torch.Tensor] = {}  # whose length is odd: the file has them last
        self.nbytes = self._file.nbytes + sum(map(len, files.values()))

    def write(self, name: str, encoded: Encoded) -> None:
        self._waiting |= {_part_name(name, part): tensor for part, tensor in encoded.parts.items()}
        while (following := self._file.next) in self._waiting:
            self._file.write(following, self._waiting.pop(following))

    def finish(self) -> str:
        return self._file.finish()

    def describe(self, provenance: Mapping[str, Any]) -> None:
        safetensors_file.patch(self._weights, provenance)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None) -> None:
        self._file.__exit__(kind, exc, tb)


class GGUFFileWriter:
    """The new file `path`, complete: weights, config.json and tokenizer."""

    def __init__(self, path: Path, source: Source, recipe: Recipe):
        shapes = {name: source.checkpoint.info[name].shape for name in recipe.kinds}
        tensors = [(name, shapes[name], GGUF_FLOATS.get(kind, kind)) for name, kind in recipe.kinds.items()]
        body = [kind for name, kind in recipe.kinds.items() if is_linear(name)]
        metadata = {
            "general.name": source.name,
            "general.quantization_version": 2,
            "general.file_type": _FILE_TYPES.get(Counter(body).most_common(1)[0][0], 0),
        }
        files = {"config.json": _json(source.checkpoint.config), "tokenizer.json": source.checkpoint.tokenizer_bytes()}
        beside = _side_files(source.path)
        for name in _EMBEDDED:
            if name in beside:
                files[name] = _text(source.path / name, beside[name])
        self._path = path
        self._file = GGUFWriter(path, metadata, tensors, files)
        self.nbytes = self._file.nbytes

    def write(self, name: str, encoded: Encoded) -> None:
        (values,) = encoded.parts.values()
        self._file.write(name, values.contiguous().view(-1).view(torch.uint8).numpy())

    def finish(self) -> str:
        return self._file.finish()

    def describe(self, provenance: Mapping[str, Any]) -> None:
        gguf_file.patch(self._path, provenance)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None) -> None:
        self._file.__exit__(kind, exc, tb)


def _part_name(name: str, part: str) -> str:
    return name if part == "weight" else name.removesuffix("weight") + part


def _side_files(folder: Path) -> dict[str, bytes]:
    if not folder.is_dir():
        return {}
    found = sorted(
        {path for pattern in _SIDE_FILES for path in folder.glob(pattern)} - {folder / n for n in _NOT_COPIED}
    )
    return {path.name: path.read_bytes() for path in found if path.is_file() and path.stat().st_size <= _LARGEST_COPIED}


def _text(path: Path, content: bytes) -> bytes:
    """The same, which GGUF wants to be UTF-8. Raises CheckpointError."""
    try:
        content.decode()
    except UnicodeDecodeError as error:
        raise CheckpointError(f"{path} is not UTF-8 text. Download it again.") from error
    return content


def _json(content: dict) -> bytes:
    return (json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode()
