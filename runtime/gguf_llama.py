"""The two layouts that name tensors as llama.cpp does: HiggsTTS.cpp's one file, and mirek190's pair of files.

HiggsTTS.cpp stores transposed convolutions as [out * taps, in] and alphas as [channels]; its head is always there.
mirek190's backbone is a qwen3 model that llama.cpp runs; codebooks and codec lie in a companion beside it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

from .errors import CheckpointError
from .gguf import GGUFFile, GGUFTensor, read_gguf
from .gguf_model import HiggsGGUF, HiggsTensor, config, place, required
from .gguf_names import full_shape, upstream_name
from .gguf_tokenizer import rebuild_tokenizer
from .tensor_names import AUDIO_HEAD, AUDIO_TABLE, CODEC_PREFIX, TEXT_EMBEDDING

_SAMPLE = 1 << 20  # bytes that tell whether two tables are one
_HIGGSTTS_CPP = {
    "num_hidden_layers": "n_layers",
    "hidden_size": "d_model",
    "head_dim": "head_dim",
    "num_attention_heads": "n_heads",
    "num_key_value_heads": "n_kv_heads",
    "intermediate_size": "ff_dim",
    "vocab_size": "vocab_size",
    "max_position_embeddings": "max_pos",
    "rms_norm_eps": "rms_norm_eps",
    "rope_theta": "rope_theta",
}
_QWEN3 = {
    "num_hidden_layers": "block_count",
    "hidden_size": "embedding_length",
    "num_attention_heads": "attention.head_count",
    "num_key_value_heads": "attention.head_count_kv",
    "intermediate_size": "feed_forward_length",
    "rms_norm_eps": "attention.layer_norm_rms_epsilon",
}
_QWEN3_OPTIONAL = {
    "head_dim": "attention.key_length",
    "max_position_embeddings": "context_length",
    "rope_theta": "rope.freq_base",
}


def read_higgstts_cpp(file: GGUFFile) -> HiggsGGUF:
    """Raises CheckpointError."""
    tensors = _renamed(file, file.tensors.items())
    text = {name: required(file, f"higgs.text.{key}") for name, key in _HIGGSTTS_CPP.items()}
    audio = {
        "num_codebooks": required(file, "higgs.codec.n_codebooks"),
        "vocab_size": required(file, "higgs.codec.vocab_size"),
        "tie_word_embeddings": _same_table(tensors),
    }
    return HiggsGGUF(config(text, audio), tensors, (file,), lambda: rebuild_tokenizer(file))


def read_pair(file: GGUFFile) -> HiggsGGUF:
    """Given either of mirek190's two files, finds the other in its folder. Raises CheckpointError."""
    other = _partner(file)
    backbone, companion = (other, file) if _is_companion(file) else (file, other)
    if companion.metadata.scalar("higgs_audio.format") != "higgs-audio-v3-tts":
        raise CheckpointError(f"{companion.path} is not the companion file of a Higgs TTS v3 model.")
    if (codes := [companion.metadata.scalar(f"higgs_audio.{name}_id") for name in ("boc", "eoc")]) != [1024, 1025]:
        raise CheckpointError(f"{companion.path} begins and ends codes with {codes}; Higgs TTS v3 has 1024 and 1025.")
    text = {name: required(backbone, f"qwen3.{key}") for name, key in _QWEN3.items()}
    text |= {name: backbone.metadata.scalar(f"qwen3.{key}") for name, key in _QWEN3_OPTIONAL.items()}
    if (scaling := backbone.metadata.scalar("qwen3.rope.scaling.type", "none")) != "none":
        text["rope_parameters"] = {"rope_type": scaling, "rope_theta": text["rope_theta"]}
    audio = {
        "num_codebooks": required(companion, "higgs_audio.num_codebooks"),
        "vocab_size": required(companion, "higgs_audio.codebook_size"),
        "tie_word_embeddings": companion.metadata.scalar("higgs_audio.tie_codebook_embeddings", True),
    }
    if companion.metadata.scalar("higgs_audio.hidden_size") != text["hidden_size"]:
        raise CheckpointError(f"{backbone.path} and {companion.path} are of different widths: they do not fit.")
    tensors = _renamed(backbone, backbone.tensors.items()) | _companion_tensors(companion)
    text["vocab_size"] = tensors[TEXT_EMBEDDING].shape[0] if TEXT_EMBEDDING in tensors else None
    return HiggsGGUF(config(text, audio), tensors, (file, other), lambda: rebuild_tokenizer(backbone))


def _renamed(file: GGUFFile, stored: Iterable[tuple[str, GGUFTensor]]) -> dict[str, HiggsTensor]:
    """The tensors under their upstream names, in their upstream shapes."""
    renamed = {}
    for given, tensor in stored:
        if (name := upstream_name(given)) is None:
            raise CheckpointError(f"{given} of {file.path} belongs to no part of Higgs TTS v3 that octavo knows.")
        renamed[name] = tensor
    tensors = {}
    for name, tensor in renamed.items():
        shape, swapped = full_shape(name, tensor.shape), False
        bias = renamed.get(name.removesuffix("weight") + "bias")
        if name.endswith(".conv_t1.weight") and len(tensor.shape) == 2 and bias is not None:
            rows, cin = tensor.shape
            channels = max(math.prod(bias.shape), 1)
            shape, swapped = (cin, channels, rows // channels), True
        tensors[name] = place(file, name, tensor, shape, swapped)
    return tensors


def _same_table(tensors: Mapping[str, HiggsTensor]) -> bool:
    """Whether the audio head is the audio table. No key says so; the head of an untied model would differ at once."""
    if AUDIO_HEAD not in tensors or AUDIO_TABLE not in tensors:
        return True
    starts = []
    for tensor in (tensors[AUDIO_HEAD], tensors[AUDIO_TABLE]):
        with open(tensor.file, "rb") as file:
            file.seek(tensor.stored.begin)
            starts.append((tensor.stored.type, tensor.shape, file.read(min(_SAMPLE, tensor.stored.nbytes))))
    return starts[0] == starts[1]


def _companion_tensors(file: GGUFFile) -> dict[str, HiggsTensor]:
    """Codebooks by their fixed names, the codec's by the array of their upstream names."""
    stored = file.metadata.strings("higgs_audio.codec_tensor_names") or []
    upstream = file.metadata.strings("higgs_audio.codec_original_tensor_names") or []
    if len(stored) != len(upstream) or not file.tensors.keys() >= set(stored):
        raise CheckpointError(f"{file.path} does not name its codec tensors. Download it again.")
    codec = set(stored)
    tensors = _renamed(file, ((name, tensor) for name, tensor in file.tensors.items() if name not in codec))
    for number, original in zip(stored, upstream, strict=True):
        tensor, name = file.tensors[number], CODEC_PREFIX + original
        tensors[name] = place(file, name, tensor, full_shape(name, tensor.shape))
    return tensors


def _is_companion(file: GGUFFile) -> bool:
    return "higgs_audio.format" in file.metadata


def _partner(file: GGUFFile) -> GGUFFile:
    """The one file in the same folder that makes `file` whole."""
    found = []
    for path in sorted(file.path.parent.glob("*.gguf")):
        try:
            candidate = read_gguf(path)
        except CheckpointError:
            continue  # another model's file, or half of a download
        if _is_companion(file):
            fits = candidate.metadata.scalar("general.architecture") == "qwen3"
        else:
            fits = _is_companion(candidate)
        if fits and candidate.path != file.path:
            found.append(candidate)
    if len(found) == 1:
        return found[0]
    if _is_companion(file):
        what, advice = "backbone (higgs-qwen3-backbone-*.gguf)", "Give the one you want."
    else:
        what, advice = "companion (higgs-audio-*.gguf)", "Leave one of them there."
    if not found:
        raise CheckpointError(f"{file.path} is one half of a Higgs TTS v3 model: put its {what} into the same folder.")
    names = ", ".join(candidate.path.name for candidate in found)
    raise CheckpointError(f"Beside {file.path} lie {len(found)} files that may be its {what}: {names}. {advice}")
