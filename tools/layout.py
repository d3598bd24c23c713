"""The published layout of a checkpoint on disk: its config.json and the head of its safetensors file."""

from __future__ import annotations

import json

import torch

from .inventory import CODEBOOKS, CODES, ModelWidths, Spec

DTYPES = {"bf16": (torch.bfloat16, "BF16", "bfloat16"), "fp32": (torch.float32, "F32", "float32")}


def config(w: ModelWidths, untied_audio: bool = False, dtype: str = "bfloat16") -> dict:
    """config.json of the published layout for these widths."""
    text = {
        "architectures": ["Qwen3ForCausalLM"],
        "model_type": "qwen3",
        "dtype": dtype,
        "hidden_size": w.hidden,
        "intermediate_size": w.ffn,
        "num_hidden_layers": w.layers,
        "num_attention_heads": w.heads,
        "num_key_value_heads": w.kv_heads,
        "head_dim": w.head_dim,
        "vocab_size": w.vocab,
        "max_position_embeddings": 32768,
        "max_window_layers": w.layers,
        "rms_norm_eps": 1e-6,
        "rope_parameters": {"rope_theta": 1000000, "rope_type": "default"},
        "tie_word_embeddings": True,
        "bos_token_id": 151643,
        "eos_token_id": 151643,
        "pad_token_id": None,
        "attention_bias": False,
        "attention_dropout": 0.0,
        "hidden_act": "silu",
        "use_cache": True,
        "use_sliding_window": False,
    }
    audio = {
        "model_type": "higgs_audio_encoder",
        "encoder_type": "discrete",
        "num_codebooks": CODEBOOKS,
        "vocab_size": CODES + 2,
        "out_dim": w.hidden,
        "mel_per_sample": 8,
        "max_chunk_size": 50,
        "tie_word_embeddings": not untied_audio,
        "use_delay_pattern": True,
    }
    return {
        "architectures": ["HiggsMultimodalQwen3ForConditionalGeneration"],
        "model_type": "higgs_multimodal_qwen3",
        "transformers_version": "5.5.0",
        "audio_token_id": -100,
        "ignore_index": -100,
        "_hidden_size": w.hidden,
        "_vocab_size": w.vocab,
        "text_config": text,
        "audio_encoder_config": audio,
    }


def header(specs: list[Spec], dtype: str) -> bytes:
    """The head of a safetensors file that holds `specs` in this order: 8 bytes of length, then JSON padded to 8."""
    entries: dict[str, dict] = {"__metadata__": {"format": "pt"}}
    end = 0
    for spec in specs:
        begin, end = end, end + spec.numel * DTYPES[dtype][0].itemsize
        entries[spec.name] = {"dtype": DTYPES[dtype][1], "shape": list(spec.shape), "data_offsets": [begin, end]}
    raw = json.dumps(entries, separators=(",", ":")).encode()
    raw += b" " * (-len(raw) % 8)
    return len(raw).to_bytes(8, "little") + raw
