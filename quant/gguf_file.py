"""Writing a GGUF file tensor by tensor, in the layout of audio.cpp: upstream names, the config and tokenizer inside.

Three arrays give each tensor its name, rank and shape, since ggml reads neither names of 64 bytes nor rank 0. Side
files are strings in `audiocpp.embedded_files`: its other form, an array of bytes, is read one element at a time by the
`gguf` package and by older ggml, which for a tokenizer takes minutes or gigabytes. What audio.cpp reads where is in the
package specification that lies beside them.

The key `octavo.provenance` holds JSON, padded with spaces to a fixed length: `patch` puts it there when the file has
been measured.
"""

from __future__ import annotations

import json
import math
import os
import struct
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from octavo.quant.formats.blocks import TYPES
from octavo.runtime.gguf import ALIGNMENT, ARRAY, MAGIC, NUMBERS, PROVENANCE, STRING, read_gguf

from .hashed_file import HashedFile

PROVENANCE_BYTES = 64 << 10
_MAX_NAME = 63  # bytes of a tensor's name that ggml reads
_FAMILY = "higgs_audio_tts"  # what audio.cpp calls this model
_ROLES = {
    "config": "config.json",
    "tokenizer_json": "tokenizer.json",
    "tokenizer_config": "tokenizer_config.json",
    "chat_template": "chat_template.jinja",
}


class GGUFWriter(HashedFile):
    """Writes the new file `path`: the header when made, then each tensor's bytes in order.

    metadata: bool, int (u32 where it fits), float (f32), str, list of str, or a numpy number or 1-D array of its type.
    tensors: (name, shape slowest dimension first, type of `TYPES`), in the order they will be written.
    files: side files by name, UTF-8 text; config.json and tokenizer.json make the file complete by itself.
    OSError goes through; ValueError names a tensor that the format cannot hold. Left without `finish`, the file is
    incomplete, and its maker's to remove.
    """

    def __init__(
        self,
        path: str | os.PathLike,
        metadata: Mapping[str, Any],
        tensors: Sequence[tuple[str, tuple[int, ...], str]],
        files: Mapping[str, bytes] | None = None,
    ):
        header, places = _header(metadata, tensors, files or {})
        self._left = places[::-1]
        self.nbytes = len(header) + sum(nbytes + _pad(nbytes) for _, nbytes in places)
        super().__init__(path, header)

    def write(self, name: str, data: Any) -> None:
        """The next tensor's bytes: anything contiguous with the buffer protocol."""
        raw = memoryview(data)
        announced, given = self._left.pop(), (name, raw.nbytes)
        assert given == announced, (given, announced)
        for part in (raw.cast("B") if raw.nbytes else b"", bytes(_pad(raw.nbytes))):  # a view of nothing has no cast
            self._append(part)

    def finish(self) -> str:
        """Closes the file, and returns the SHA-256 of its data section."""
        assert not self._left, f"{self._left[-1][0]} is not written"
        return self._close()


def patch(path: str | os.PathLike, provenance: Mapping[str, Any]) -> None:
    """Puts `provenance` into the room that the header of a GGUFWriter's file has for it. No data is touched.

    ValueError when it is longer than that.
    """
    text = json.dumps(provenance, ensure_ascii=False).encode()
    if len(text) > PROVENANCE_BYTES:
        raise ValueError(f"{PROVENANCE} has room for {PROVENANCE_BYTES} bytes, not {len(text)}: store less.")
    begin, length = read_gguf(path).metadata.span(PROVENANCE)
    assert length == PROVENANCE_BYTES, length
    with open(path, "r+b") as file:
        file.seek(begin)
        file.write(text.ljust(length))
        file.flush()
        os.fsync(file.fileno())


def _header(
    metadata: Mapping[str, Any], tensors: Sequence[tuple[str, tuple[int, ...], str]], files: Mapping[str, bytes]
) -> tuple[bytes, list[tuple[str, int]]]:
    """All bytes before the data, and the names and sizes of the tensors."""
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
    out += _string(PROVENANCE) + struct.pack("<I", STRING) + _string("{}".ljust(PROVENANCE_BYTES))
    places, offset = [], 0
    for index, (name, shape, kind) in enumerate(tensors):
        nbytes = tensor_bytes(name, shape, kind)
        sizes = shape[::-1] or (1,)
        out += _string(name if len(name.encode()) <= _MAX_NAME else f"_audiocpp.{index}")
        out += struct.pack(f"<I{len(sizes)}QIQ", len(sizes), *sizes, TYPES[kind].id, offset)
        places.append((name, nbytes))
        offset += nbytes + _pad(nbytes)
    return bytes(out) + bytes(_pad(len(out))), places


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
