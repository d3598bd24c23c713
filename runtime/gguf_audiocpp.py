"""The layout of audio.cpp, its Studio fork and octavo: upstream names, config and tokenizer inside or beside the file.

audiocpp.tensor_names    strings, one upstream name per tensor: ggml reads none of 64 bytes
audiocpp.tensor_ranks    int32, how many sizes each has: ggml drops leading ones
audiocpp.tensor_shapes   int64, all sizes one after the other; the Studio fork leaves them out
audiocpp.embedded_files  .names, and either .contents (strings) or .offsets and .data (bytes)
"""

from __future__ import annotations

import json

from .errors import CheckpointError
from .gguf import GGUFFile
from .gguf_model import HiggsGGUF, HiggsTensor, place
from .gguf_names import full_shape
from .tensor_names import AUDIO_TABLE


def read_audiocpp(file: GGUFFile) -> HiggsGGUF:
    """Raises CheckpointError, also for another model of audio.cpp."""
    tensors = _tensors(file)
    if AUDIO_TABLE not in tensors:
        family = file.metadata.get("audiocpp.model_spec.family", file.metadata.get("general.architecture"))
        raise CheckpointError(f"{file.path} holds a model of the family {family!r:.60}; octavo runs Higgs TTS v3.")
    try:
        config = json.loads(_side_file(file, "config.json"))
        if not isinstance(config, dict):
            raise TypeError("it is no object")
    except (ValueError, TypeError, RecursionError) as error:
        raise CheckpointError(f"config.json of {file.path} is damaged ({error}). Download it again.") from error
    return HiggsGGUF(config, tensors, (file,), lambda: _side_file(file, "tokenizer.json"))


def _tensors(file: GGUFFile) -> dict[str, HiggsTensor]:
    """By upstream name, in the file's order. Of the three arrays each may be absent."""
    stored = list(file.tensors.values())
    names = file.metadata.strings("audiocpp.tensor_names")
    names = list(file.tensors) if names is None else names
    ranks, sizes = (file.metadata.naturals(f"audiocpp.tensor_{what}") for what in ("ranks", "shapes"))
    if not len(names) == len(set(names)) == len(stored) or (ranks is not None and len(ranks) != len(stored)):
        raise CheckpointError(f"{file.path} does not name its {len(stored)} tensors one by one. Download it again.")
    tensors, at = {}, 0
    for number, (name, tensor) in enumerate(zip(names, stored, strict=True)):
        if ranks is None:
            shape = full_shape(name, tensor.shape)
        elif sizes is None:
            shape = _of_rank(tensor.shape, int(ranks[number]))
        else:
            shape = tuple(sizes[at : at + int(ranks[number])].tolist())
            at += len(shape)
        tensors[name] = place(file, name, tensor, shape)
    return tensors


def _of_rank(shape: tuple[int, ...], rank: int) -> tuple[int, ...]:
    """`shape` with `rank` sizes: leading ones are put before it, or taken away."""
    while len(shape) > rank and shape[0] == 1:
        shape = shape[1:]
    return (1,) * (min(rank, 4) - len(shape)) + shape


def _side_file(file: GGUFFile, name: str) -> bytes:
    """An embedded file; else the one of that name beside the GGUF file. Raises CheckpointError."""
    key = "audiocpp.embedded_files."
    names = file.metadata.strings(key + "names") or []
    if name not in names:
        try:
            return (file.path.parent / name).read_bytes()
        except OSError as error:
            raise CheckpointError(
                f"{file.path} has no {name} inside, and none lies beside it. Put the model's {name} into its folder."
            ) from error
    number, contents = names.index(name), file.metadata.strings(key + "contents")
    if contents is not None and len(contents) == len(names):
        return contents[number].encode()
    offsets, data = file.metadata.naturals(key + "offsets"), file.metadata.naturals(key + "data")
    if offsets is None or data is None or data.itemsize != 1 or len(offsets) != len(names) + 1:
        raise CheckpointError(f"{file.path} has damaged embedded files. Download it again.")
    begin, end = int(offsets[number]), int(offsets[number + 1])
    if not begin <= end <= len(data):
        raise CheckpointError(f"{file.path} has a damaged {name} inside. Download it again.")
    return data[begin:end].tobytes()
