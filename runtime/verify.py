"""What `octavo quantize` wrote into a file about itself, and whether the file is still what was written."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from .checkpoint import Checkpoint
from .errors import CheckpointError
from .gguf import PROVENANCE, read_gguf
from .shards import read_header

METADATA_KEY = "octavo"  # of the same text, in the __metadata__ of a safetensors file
HASHES = "sha256"  # of the provenance: hexadecimal digests by the names that `digests` gives
WEIGHTS = "model.safetensors"
_PIECE = 1 << 20  # bytes


def provenance(checkpoint: Checkpoint) -> dict:
    """What is stored in the file of its source, its quality and its hashes; {} where octavo did not write it.

    Raises CheckpointError when that is damaged.
    """
    if checkpoint.path.suffix == ".gguf":
        text = read_gguf(checkpoint.path).metadata.get(PROVENANCE, "{}")
    else:
        file = checkpoint.path / WEIGHTS
        text = read_header(file)[1].get(METADATA_KEY, "{}") if file.is_file() else "{}"
    try:
        stored = json.loads(text)
        if not isinstance(stored, dict):
            raise TypeError("no object")
    except (ValueError, TypeError, RecursionError) as error:
        raise CheckpointError(
            f"{checkpoint.path} is damaged in what it says about itself ({error}). Download it again."
        ) from error
    return stored


def digests(checkpoint: Checkpoint) -> dict[str, str]:
    """SHA-256 of the weights as they lie in the file, of what the file calls them, of the configuration and of the
    tokenizer. Reads it all."""
    file, begin = _data(checkpoint.path)
    weights = hashlib.sha256()
    try:
        with open(file, "rb") as stream:
            stream.seek(begin)
            while piece := stream.read(_PIECE):
                weights.update(piece)
    except OSError as error:
        raise CheckpointError(f"{file} cannot be read: {error.strerror}.") from error
    return {"weights": weights.hexdigest(), **small_digests(checkpoint)}


def small_digests(checkpoint: Checkpoint) -> dict[str, str]:
    """Those of `digests` that read no weights."""
    config = json.dumps(checkpoint.config, sort_keys=True, separators=(",", ":"))
    return {
        "tensors": _layout_digest(checkpoint),
        "config.json": hashlib.sha256(config.encode()).hexdigest(),
        "tokenizer.json": hashlib.sha256(checkpoint.tokenizer_bytes()).hexdigest(),
    }


def _layout_digest(checkpoint: Checkpoint) -> str:
    """Of all tensors' names, types, shapes and places: the weights alone would be the same under exchanged names.

    A GGUF file may be renamed; a folder's file may not, and weights in a second one would be hashed by nobody.
    """
    layout = hashlib.sha256()
    for name, stored in sorted(checkpoint.info.items()):
        for part, at in sorted(stored.parts.items()):
            file = at.shard.name if checkpoint.path.is_dir() else ""
            layout.update(
                f"{name} {stored.kind} {stored.shape} {part} {at.dtype} {at.shape} {at.begin} {file}\n".encode()
            )
    return layout.hexdigest()


def verify(checkpoint: Checkpoint) -> dict[str, str]:
    """Compares all hashes with those stored in the file, and returns them.

    Raises CheckpointError when one differs, or when the file has none because octavo did not write it.
    """
    stored = provenance(checkpoint).get(HASHES)
    if not isinstance(stored, dict) or not stored:
        raise CheckpointError(
            f"{checkpoint.path} holds no hashes to compare with: only files that `octavo quantize` wrote do."
        )
    found = digests(checkpoint)
    if wrong := [name for name in found if stored.get(name) != found[name]]:
        raise CheckpointError(
            f"{checkpoint.path} is not what was written: the SHA-256 of its {' and '.join(wrong)} is another. "
            "Download it again, or make it anew."
        )
    return found


def _data(path: Path) -> tuple[Path, int]:
    """The file that holds the weights, and where they begin."""
    if path.suffix == ".gguf":
        return path, read_gguf(path).data
    file = path / WEIGHTS
    tensors, _ = read_header(file)
    return file, min(region.begin for region in tensors.values())
