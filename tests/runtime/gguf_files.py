"""GGUF files for tests: the container from its specification, and a checkpoint as each converter would store it.

Written apart from octavo's own writer, so that the two can disagree.
"""

from __future__ import annotations

import json
import re
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file

from octavo.tools.inventory import AUDIO_HEAD, AUDIO_TABLE, CODEC, TEXT_TABLE

TYPE_IDS = {"F32": 0, "F16": 1, "Q8_0": 8, "BF16": 30}
ARRAY, STRING = 9, 8
_NUMBERS = {"u8": 0, "i8": 1, "i32": 5, "f32": 6, "bool": 7, "u64": 10, "i64": 11}
_CODES = {"u8": "B", "i8": "b", "u32": "I", "i32": "i", "f32": "f", "bool": "?", "u64": "Q", "i64": "q"}
Tensor = tuple[str, Sequence[int], str, bytes]  # name, shape as torch has it, type, data


def string(text: str) -> bytes:
    raw = text.encode()
    return struct.pack("<Q", len(raw)) + raw


def value(given: Any) -> bytes:
    """str, list of str, (kind, number) or (kind, list of numbers); a plain int is a u32."""
    if isinstance(given, str):
        return struct.pack("<I", STRING) + string(given)
    if isinstance(given, list):
        return struct.pack("<IIQ", ARRAY, STRING, len(given)) + b"".join(map(string, given))
    kind, number = given if isinstance(given, tuple) else ("u32", given)
    code = 4 if kind == "u32" else _NUMBERS[kind]
    if isinstance(number, list):
        return struct.pack(f"<IIQ{len(number)}{_CODES[kind]}", ARRAY, code, len(number), *number)
    return struct.pack(f"<I{_CODES[kind]}", code, number)


def container(path: Path, keys: Mapping[str, Any], tensors: Sequence[Tensor], drop_ones: bool = False) -> Path:
    """A version 3 file. `drop_ones` leaves out leading sizes of one, as ggml's writer does."""
    head = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(keys))
    head += b"".join(string(key) + value(given) for key, given in keys.items())
    body = bytearray()  # bytes would be copied whole for each tensor
    for name, shape, kind, data in tensors:
        sizes = list(shape)
        while drop_ones and len(sizes) > 1 and sizes[0] == 1:
            sizes.pop(0)
        head += string(name) + struct.pack(f"<I{len(sizes)}Q", len(sizes), *reversed(sizes))
        head += struct.pack("<IQ", TYPE_IDS[kind], len(body))
        body += data + bytes(-len(data) % 32)
    path.write_bytes(head + bytes(-len(head) % 32) + body)
    return path


def encode(tensor: torch.Tensor, kind: str) -> bytes:
    if kind == "Q8_0":
        blocks = tensor.float().reshape(-1, 32)
        scale = blocks.abs().amax(1, keepdim=True) / 127
        codes = (blocks / scale.clamp(min=1e-30)).round().to(torch.int8)
        return np.concatenate([scale.half().view(torch.uint8).numpy(), codes.view(torch.uint8).numpy()], 1).tobytes()
    dtype = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}[kind]
    return tensor.to(dtype).contiguous().flatten().view(torch.uint8).numpy().tobytes()


def checkpoint(folder: Path) -> tuple[dict[str, torch.Tensor], dict, dict]:
    """Tensors, config.json and tokenizer.json of a folder with one shard."""
    tokenizer = json.loads((folder / "tokenizer.json").read_bytes())
    return load_file(folder / "model.safetensors"), json.loads((folder / "config.json").read_bytes()), tokenizer


def audiocpp(
    path: Path, folder: Path, *, shapes: bool = True, ranks: bool = True, embed: str = "", **keys: Any
) -> Path:
    """audio.cpp: upstream names, BF16, the body's matrices Q8_0. embed: "contents", "data" or "" for no side files."""
    tensors, _, _ = checkpoint(folder)
    stored: list[Tensor] = []
    for index, (name, tensor) in enumerate(tensors.items()):
        kind = "Q8_0" if re.search(r"body.*_proj", name) else "BF16"
        short = name if len(name) < 64 else f"_audiocpp.{index}"
        stored.append((short, tensor.shape, kind, encode(tensor, kind)))
    keys = {"general.architecture": "audiocpp", "audiocpp.tensor_names": list(tensors), **keys}
    if ranks:
        keys["audiocpp.tensor_ranks"] = ("i32", [tensor.dim() for tensor in tensors.values()])
    if shapes:
        keys["audiocpp.tensor_shapes"] = ("i64", [size for tensor in tensors.values() for size in tensor.shape])
    files = {name: (folder / name).read_bytes() for name in ("config.json", "tokenizer.json")}
    if embed:
        keys["audiocpp.embedded_files.names"] = list(files)
    if embed == "contents":
        keys["audiocpp.embedded_files.contents"] = [content.decode() for content in files.values()]
    if embed == "data":
        ends = np.cumsum([0, *map(len, files.values())]).tolist()
        keys["audiocpp.embedded_files.offsets"] = ("u64", ends)
        keys["audiocpp.embedded_files.data"] = ("u8", list(b"".join(files.values())))
    return container(path, keys, stored, drop_ones=True)


_LLAMA = [
    ("tied.embedding.text_embedding.", "token_embd."), ("tied.head.text_head.", "output."),
    ("body.norm.", "output_norm."), ("body.layers.", "blk."),
    (".self_attn.q_proj.", ".attn_q."), (".self_attn.k_proj.", ".attn_k."),
    (".self_attn.v_proj.", ".attn_v."), (".self_attn.o_proj.", ".attn_output."),
    (".self_attn.q_norm.", ".attn_q_norm."), (".self_attn.k_norm.", ".attn_k_norm."),
    (".input_layernorm.", ".attn_norm."),
    (".post_attention_layernorm.", ".ffn_norm."), (".mlp.gate_proj.", ".ffn_gate."), (".mlp.up_proj.", ".ffn_up."),
    (".mlp.down_proj.", ".ffn_down."),
]  # fmt: skip
# In HiggsTTS.cpp's order: each rule sees what the ones before it left.
_HIGGSTTS_CPP = [
    *_LLAMA,
    ("tied.embedding.modality_embeddings.0.embedding.", "fused_embed."), ("tied.head.modality_heads.0.", "fused_head."),
    (CODEC, "codec."), ("acoustic_encoder.", "ac_enc."), ("acoustic_decoder.", "ac_dec."), ("semantic_model.", "sem."),
    ("encoder_semantic.", "enc_sem."), ("decoder_semantic.", "dec_sem."), ("quantizer.quantizers.", "quant."),
    ("feature_extractor.", "fe."), ("feature_projection.", "fp."), ("conv_layers.", "cv."), ("encoder.layers.", "enc."),
    ("feed_forward.intermediate_dense", "ffn1"), ("feed_forward.output_dense", "ffn2"), ("attention.q_proj", "attn_q"),
    ("attention.k_proj", "attn_k"), ("attention.v_proj", "attn_v"), ("attention.out_proj", "attn_out"),
    (".layer_norm.", ".ln."), (".final_layer_norm.", ".fin_ln."), (".conv_blocks.", ".blk."), ("res_units.", "ru."),
    ("parametrizations.", "pm."), ("original", "orig"), ("encoder.layer_norm.", "enc.ln."), ("pos_conv_embed.", "pce."),
]  # fmt: skip


def short_name(name: str, rules: Sequence[tuple[str, str]] = _HIGGSTTS_CPP) -> str:
    for long, short in rules:
        name = name.replace(long, short)
    return name


def higgstts_cpp(path: Path, folder: Path, *, drop_ones: bool = True, change: Mapping[str, Any] | None = None) -> Path:
    """HiggsTTS.cpp: F16 and F32, as its quantizer leaves them 2-D matrices in Q8_0, the codec's included.

    change: keys to add or replace; those with the value None are left out.
    """
    tensors, config, tokenizer = checkpoint(folder)
    stored: list[Tensor] = []
    for name, tensor in tensors.items():
        kind = "F32" if tensor.dim() == 1 else "F16"
        if name.endswith(".alpha"):
            tensor, kind = tensor.flatten(), "F32"
        elif ".conv_t1.weight" in name:
            tensor, kind = tensor.reshape(len(tensor), -1).T, "F32"
        elif tensor.dim() == 2 and tensor.shape[1] % 32 == 0:
            kind = "Q8_0"
        stored.append((short_name(name), tensor.shape, kind, encode(tensor, kind)))
    text, audio = config["text_config"], config["audio_encoder_config"]
    keys: dict[str, Any] = {
        "general.architecture": "higgs-tts",
        "higgs.text.n_layers": text["num_hidden_layers"],
        "higgs.text.d_model": text["hidden_size"],
        "higgs.text.head_dim": text["head_dim"],
        "higgs.text.n_heads": text["num_attention_heads"],
        "higgs.text.n_kv_heads": text["num_key_value_heads"],
        "higgs.text.ff_dim": text["intermediate_size"],
        "higgs.text.vocab_size": text["vocab_size"],
        "higgs.text.max_pos": text["max_position_embeddings"],
        "higgs.text.rope_theta": ("f32", 1e6),
        "higgs.text.rms_norm_eps": ("f32", 1e-6),
        "higgs.codec.n_codebooks": audio["num_codebooks"],
        "higgs.codec.vocab_size": audio["vocab_size"],
        "tokenizer.ggml.tokens": list(tokenizer["model"]["vocab"]),
        "tokenizer.ggml.merges": [" ".join(merge) for merge in tokenizer["model"]["merges"]],
    }
    for token in tokenizer["added_tokens"]:
        if token["content"] in ("<|tts|>", "<|text|>", "<|audio|>", "<|ref_text|>", "<|ref_audio|>"):
            keys[f"higgs.token.{token['content'].strip('<|>')}"] = token["id"]
    keys = {key: given for key, given in (keys | dict(change or {})).items() if given is not None}
    return container(path, keys, stored, drop_ones)


def pair(
    into: Path, folder: Path, backbone: Mapping[str, Any] | None = None, companion: Mapping[str, Any] | None = None
) -> tuple[Path, Path]:
    """mirek190's two files, with keys replaced or (None) left out: a qwen3 backbone in Q8_0, a companion in F16."""
    tensors, config, tokenizer = checkpoint(folder)
    text, audio = config["text_config"], config["audio_encoder_config"]
    body = {name: tensor for name, tensor in tensors.items() if name.startswith("body.") or name == TEXT_TABLE}
    kinds = {name: "F32" if tensor.dim() == 1 else "Q8_0" for name, tensor in body.items()}
    stored = [(short_name(n, _LLAMA), t.shape, kinds[n], encode(t, kinds[n])) for n, t in body.items()]
    tokens = [*tokenizer["model"]["vocab"], *(token["content"] for token in tokenizer["added_tokens"])]
    types = [1] * len(tokenizer["model"]["vocab"]) + [3 if t["special"] else 4 for t in tokenizer["added_tokens"]]
    padding = text["vocab_size"] - len(tokens)
    keys = {
        "general.architecture": "qwen3",
        "qwen3.block_count": text["num_hidden_layers"],
        "qwen3.context_length": text["max_position_embeddings"],
        "qwen3.embedding_length": text["hidden_size"],
        "qwen3.feed_forward_length": text["intermediate_size"],
        "qwen3.attention.head_count": text["num_attention_heads"],
        "qwen3.attention.head_count_kv": text["num_key_value_heads"],
        "qwen3.attention.key_length": text["head_dim"],
        "qwen3.attention.layer_norm_rms_epsilon": ("f32", 1e-6),
        "qwen3.rope.freq_base": ("f32", 1e6),
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "qwen2",
        "tokenizer.ggml.tokens": tokens + [f"[PAD{len(tokens) + n}]" for n in range(padding)],
        "tokenizer.ggml.token_type": ("i32", types + [5] * padding),
        "tokenizer.ggml.merges": [" ".join(merge) for merge in tokenizer["model"]["merges"]],
    }
    keys = {key: given for key, given in (keys | dict(backbone or {})).items() if given is not None}
    first = container(into / "higgs-qwen3-backbone-Q8_0.gguf", keys, stored, drop_ones=True)
    codec = sorted(name for name in tensors if name.startswith(CODEC))
    numbered = [f"higgs.codec.{n:04d}" for n in range(len(codec))]
    names = dict(zip(codec, numbered, strict=True)) | {
        AUDIO_TABLE: "higgs.codebook_embd.weight",
        AUDIO_HEAD: "higgs.codebook_head.weight",
    }
    keys = {
        "general.architecture": "higgs_audio",
        "higgs_audio.format": "higgs-audio-v3-tts",
        "higgs_audio.backbone_arch": "qwen3",
        "higgs_audio.num_codebooks": audio["num_codebooks"],
        "higgs_audio.codebook_size": audio["vocab_size"],
        "higgs_audio.hidden_size": text["hidden_size"],
        "higgs_audio.boc_id": 1024,
        "higgs_audio.eoc_id": 1025,
        "higgs_audio.tie_codebook_embeddings": ("bool", True),
        "higgs_audio.codec_tensor_count": len(codec),
        "higgs_audio.codec_tensor_names": numbered,
        "higgs_audio.codec_original_tensor_names": [name.removeprefix(CODEC) for name in codec],
    }
    keys = {key: given for key, given in (keys | dict(companion or {})).items() if given is not None}
    stored = [(short, tensors[name].shape, "F16", encode(tensors[name], "F16")) for name, short in names.items()]
    return first, container(into / "higgs-audio-f16.gguf", keys, stored)
