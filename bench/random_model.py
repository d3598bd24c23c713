"""A model of the real shape with random weights, made on the device: for speed, values do not matter.

The end token is never drawn, so that every request has as many rows as it may have.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch

from octavo.runtime.config import ModelConfig
from octavo.runtime.models.higgs_v3 import HiggsV3

from .baseline import Baseline

REAL = ModelConfig(2560, 9728, 36, 32, 8, 128, vocab_size=384)  # text by bytes
TINY = ModelConfig(96, 160, 2, 4, 2, 32, vocab_size=384)  # for tests: what runs on a GPU runs on the CPU


def widths_for(device: torch.device) -> ModelConfig:
    return REAL if device.type == "cuda" else TINY


def dtype_for(device: torch.device) -> torch.dtype:
    return torch.bfloat16 if device.type == "cuda" else torch.float32


@cache
def random_model(device: torch.device) -> HiggsV3:
    """One per device."""
    cfg, dtype = widths_for(device), dtype_for(device)
    text = torch.randn(cfg.vocab_size, cfg.hidden_size, generator=torch.Generator().manual_seed(0)).bfloat16()
    model = HiggsV3(cfg, text, device, dtype)
    model.audio_head.weight = model.audio_table
    generator = torch.Generator(device).manual_seed(0)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "norm" in name:
                weight.fill_(1)
            else:
                weight.normal_(0, cfg.hidden_size**-0.5, generator=generator)
        model.audio_table[cfg.eoc] = 0  # codebook 0's: a logit of 0 is far from the 50 largest
    return model


def baseline(model: HiggsV3, dtype: torch.dtype) -> Baseline:
    """The same weights in transformers; in the same dtype they are the same memory."""
    cfg = model.cfg
    weights: dict[str, torch.Tensor] = {}
    for number, layer in enumerate(model.body.layers):
        prefix, qkv = f"body.layers.{number}", layer.qkv_proj.weight
        parts = zip("qkv", qkv.split((cfg.q_size, cfg.kv_size, cfg.kv_size)), strict=True)
        weights |= {f"{prefix}.self_attn.{name}_proj.weight": part for name, part in parts}
        gate, up = layer.gate_up_proj.weight.chunk(2)
        weights |= {
            f"{prefix}.self_attn.o_proj.weight": layer.o_proj.weight,
            f"{prefix}.self_attn.q_norm.weight": layer.qk_norm[0],
            f"{prefix}.self_attn.k_norm.weight": layer.qk_norm[-1],
            f"{prefix}.mlp.gate_proj.weight": gate,
            f"{prefix}.mlp.up_proj.weight": up,
            f"{prefix}.mlp.down_proj.weight": layer.down_proj.weight,
            f"{prefix}.input_layernorm.weight": layer.input_norm,
            f"{prefix}.post_attention_layernorm.weight": layer.mlp_norm,
        }
    weights["body.norm.weight"] = model.body.norm
    weights["tied.embedding.text_embedding.weight"] = model.text_embedding
    weights["tied.embedding.modality_embeddings.0.embedding.weight"] = model.audio_table
    return Baseline.of(_text_config(cfg), weights, model.device, dtype)


def _text_config(cfg: ModelConfig) -> dict[str, Any]:
    return {
        "hidden_size": cfg.hidden_size,
        "intermediate_size": cfg.intermediate_size,
        "num_hidden_layers": cfg.num_layers,
        "num_attention_heads": cfg.num_heads,
        "num_key_value_heads": cfg.num_kv_heads,
        "head_dim": cfg.head_dim,
        "vocab_size": cfg.vocab_size,
        "max_position_embeddings": cfg.max_context,
        "rms_norm_eps": cfg.rms_norm_eps,
        "rope_parameters": {"rope_theta": cfg.rope_theta, "rope_type": "default"},
    }


def weight_bytes(model: HiggsV3) -> int:
    """What every row reads: the body's weights and the head's."""
    parts = [*model.body.parameters(), model.audio_head.weight]
    return sum(weight.numel() * weight.itemsize for weight in parts)


def cache_bytes(model: HiggsV3, rows: int) -> int:
    """Keys and values of so many rows."""
    cfg = model.cfg
    return rows * cfg.num_layers * 2 * cfg.kv_size * model.audio_table.itemsize
