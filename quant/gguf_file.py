"""Writing a GGUF file tensor by tensor, in the layout of audio.cpp: upstream names, the config and tokenizer inside.

Three arrays give each tensor its name, rank and shape, since ggml reads neither names of 64 bytes nor rank 0. Side
files are strings in `audiocpp.embedded_files`: its other form, an array of bytes, is read one element at a time by the
`gguf` package and by older ggml, which for a tokenizer takes minutes or gigabytes. What audio.cpp reads where is in the
package specification that lies beside them.

The key `octavo.provenance` holds JSON, padded with spaces to a fixed length, so that it can be rewritten when the file
has been measured.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import struct
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any, Self

import numpy as np

from octavo.quant.formats.blocks import TYPES
from octavo.runtime.errors import CheckpointError
from octavo.runtime.files import AtomicFile, write_errors
from octavo.runtime.gguf import ALIGNMENT, ARRAY, MAGIC, NUMBERS, PROVENANCE, STRING, read_gguf

PROVENANCE_BYTES = 64 << 10
_MAX_NAME = 63  # bytes of a tensor's name that ggml reads
_FAMILY = "higgs_audio_tts"  # what audio.cpp calls this model
_ROLES = {
    "config": "config.json",
    "tokenizer_json": "tokenizer.json",
    "tokenizer_config": "tokenizer_config.json",
    "chat_template": "chat_template.jinja",
}


class GGUFWriter:
    """Writes the header when made, then each tensor's bytes in order; `finish` gives the file its name.

    metadata: bool, int (u32 where it fits), float (f32), str, list of str, or a numpy number or 1-D array of its type.
    tensors: (name, shape slowest dimension first, type of `TYPES`), in the order they will be written.
    files: side files by name, UTF-8 text; config.json and tokenizer.json make the file complete by itself.
    Left without `finish`, or by an exception, nothing remains. Raises RequestError when the file cannot be written,
    ValueError for a tensor that the format cannot hold.
    """

    def __init__(
        self,
        path: str | os.PathLike,
        metadata: Mapping[str, Any],
        tensors: Sequence[tuple[str, tuple[int, ...], str]],
        files: Mapping[str, bytes] | None = None,
    ):
        header, self._provenance, places = _header(metadata, tensors, files or {})
        self._parts = [(name, nbytes, _pad(nbytes)) for name, nbytes in places]
        self._at = 0  # the part that is being written
        self._written = 0  # of its bytes
        self._hash = hashlib.sha256()
        self.nbytes = len(header) + sum(nbytes + pad for _, nbytes, pad in self._parts)
        self._atomic = AtomicFile(path)
        try:
            with write_errors(path):
                self._atomic.file.write(header)
        except BaseException:
            self.abort()
            raise

    def write(self, name: str, data: Any) -> None:
        """The bytes of the next tensor, or the next piece of them: anything contiguous with the buffer protocol."""
        if not memoryview(data).nbytes:
            return  # a view of nothing cannot be cast
        raw = memoryview(data).cast("B")
        self._skip_empty()
        expected, nbytes, pad = self._parts[self._at]
        assert name == expected, (name, expected)
        assert self._written + len(raw) <= nbytes, (name, self._written + len(raw), nbytes)
        self._put(raw)
        self._written += len(raw)
        if self._written == nbytes:
            self._put(bytes(pad))
            self._at, self._written = self._at + 1, 0

    def finish(self, provenance: Mapping[str, Any]) -> str:
        """Stores `provenance`, closes and renames. Returns the SHA-256 of the data section, in hexadecimal."""
        self._skip_empty()
        assert self._at == len(self._parts), f"{self._parts[self._at][0]} is not written"
        text = _provenance_text(provenance)
        try:
            with write_errors(self._atomic.path):
                self._atomic.file.seek(self._provenance)
                self._atomic.file.write(text)
                self._atomic.commit()
        except BaseException:
            self.abort()
            raise
        return self._hash.hexdigest()

    def abort(self) -> None:
        """Removes what was written."""
        self._atomic.abort()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None) -> None:
        if not self._atomic.file.closed:
            self.abort()

    def _skip_empty(self) -> None:
        while self._at < len(self._parts) and self._parts[self._at][1] == 0:
            self._at += 1

    def _put(self, raw: bytes | memoryview) -> None:
        with write_errors(self._atomic.path):
            self._atomic.file.write(raw)
        self._hash.update(raw)


def rewrite_provenance(path: str | os.PathLike, provenance: Mapping[str, Any]) -> None:
    """Adds to what the file says of its origin, in place; keys given here replace stored ones. No data is touched.

    Raises CheckpointError when `path` was not written here, ValueError when it becomes longer than its place.
    """
    file = read_gguf(path)
    if PROVENANCE not in file.metadata:
        raise CheckpointError(f"{os.fspath(path)} has no {PROVENANCE}: it was not written by octavo.")
    text = _provenance_text({**json.loads(file.metadata[PROVENANCE]), **provenance})
    begin, length = file.metadata.span(PROVENANCE)
    assert length == len(text), (length, len(text))
    with write_errors(path), open(path, "r+b") as out:
        out.seek(begin)
        out.write(text)


def _header(
    metadata: Mapping[str, Any], tensors: Sequence[tuple[str, tuple[int, ...], str]], files: Mapping[str, bytes]
) -> tuple[bytes, int, list[tuple[str, int]]]:
    """All bytes before the data, where the provenance's text begins, and the names and sizes of the tensors."""
    names, shapes = [name for name, _, _ in tensors], [shape for _, shape, _ in tensors]
    assert len(set(names)) == len(names), "two tensors have one name"
    keys = {"general.architecture": "audiocpp", **metadata}
    keys |= {
        "audiocpp.tensor_name_format": "native",
        "audiocpp.tensor_names": names,
        "audiocpp.tensor_ranks": np.array([len(shape) for shape in shapes], np.int32),
        "audiocpp.tensor_shapes": np.array([size for shape in shapes for size in shape], np.int64),
    }
    if files:
        keys |= {
            "audiocpp.model_spec.version": 1,
            "audiocpp.model_spec.family": _FAMILY,
            "audiocpp.model_spec.json": json.dumps(_package(files)),
            "audiocpp.embedded_files.names": list(files),
            "audiocpp.embedded_files.contents": [content.decode("utf-8") for content in files.values()],
        }
    out = bytearray(MAGIC + struct.pack("<IQQ", 3, len(tensors), len(keys) + 1))
    for key, value in keys.items():
        out += _string(key) + _value(key, value)
    out += _string(PROVENANCE) + struct.pack("<I", STRING)
    begin = len(out) + 8
    out += _string(" " * PROVENANCE_BYTES)
    places, offset = [], 0
    for index, (name, shape, kind) in enumerate(tensors):
        nbytes = tensor_bytes(name, shape, kind)
        sizes = shape[::-1] or (1,)
        out += _string(name if len(name.encode()) <= _MAX_NAME else f"_audiocpp.{index}")
        out += struct.pack(f"<I{len(sizes)}QIQ", len(sizes), *sizes, TYPES[kind].id, offset)
        places.append((name, nbytes))
        offset += nbytes + _pad(nbytes)
    return bytes(out) + bytes(_pad(len(out))), begin, places


def _package(files: Mapping[str, bytes]) -> dict:
    """The package specification of audio.cpp: it opens all files that are named, so only those that are there are."""
    roles = {role: f"model:{name}" for role, name in _ROLES.items() if name in files}
    roots = {"model": ".", "weights": "$gguf"}
    source = {"format": "gguf", "roots": roots, "files": roles, "tensors": {"weights": "weights:"}}
    return {"family": _FAMILY, "sources": [source]}


def tensor_bytes(name: str, shape: tuple[int, ...], kind: str) -> int:
    """Bytes of a tensor of `shape` in ggml's type `kind`. ValueError names a tensor that the format cannot hold."""
    if kind not in TYPES:
        raise ValueError(f"{name} cannot be stored as {kind}: choose one of {', '.join(TYPES)}.")
    if len(shape) > 4:
        raise ValueError(f"{name} has {len(shape)} dimensions; GGUF holds up to 4.")
    block, columns = TYPES[kind], shape[-1] if shape else 1
    if columns % block.weights:
        raise ValueError(
            f"{name} has rows of {columns} weights, which the blocks of {block.weights} of {kind} do not divide: "
            "keep it in 16 bits."
        )
    return math.prod(shape) // block.weights * block.nbytes


def _provenance_text(provenance: Mapping[str, Any]) -> bytes:
    text = json.dumps(provenance, ensure_ascii=False).encode()
    if len(text) > PROVENANCE_BYTES:
        raise ValueError(f"{PROVENANCE} has room for {PROVENANCE_BYTES} bytes, not {len(text)}: store less.")
    return text.ljust(PROVENANCE_BYTES)


def _value(key: str, value: Any) -> bytes:
    """Type and value of a key, as the format has them."""
    if isinstance(value, str):
        return struct.pack("<I", STRING) + _string(value)
    if isinstance(value, list):
        assert all(isinstance(text, str) for text in value), key
        return struct.pack("<IIQ", ARRAY, STRING, len(value)) + b"".join(map(_string, value))
    if isinstance(value, bool):
        value = np.bool_(value)
    elif isinstance(value, int):
        value = np.uint32(value) if 0 <= value < 1 << 32 else np.int64(value)
    elif isinstance(value, float):
        value = np.float32(value)
    kind = next(number for number, code in NUMBERS.items() if np.dtype(code) == value.dtype)
    raw = value.astype(NUMBERS[kind]).tobytes()
    if value.ndim:
        return struct.pack("<IIQ", ARRAY, kind, len(value)) + raw
    return struct.pack("<I", kind) + raw


def _string(text: str) -> bytes:
    raw = text.encode("utf-8")
    return struct.pack("<Q", len(raw)) + raw


def _pad(nbytes: int) -> int:
    return -nbytes % ALIGNMENT
