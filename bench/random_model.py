"""A model of the real shape with random weights, made on the device: for speed, values do not matter.

The end token is never drawn, so that every request has as many rows as it may have.
"""

from __future__ import annotations

import copy
from functools import cache
from typing import Any

import torch
import torch.nn as nn
import torch.nn.functional as F

from octavo.kernels.packed import Packed
from octavo.quant.formats.grouped import Grouped
from octavo.runtime.config import ModelConfig
from octavo.runtime.layers.linear import Linear
from octavo.runtime.models.higgs_v3 import HiggsV3

from .baseline import Baseline

REAL = ModelConfig(2560, 9728, 36, 32, 8, 128, vocab_size=384)  # text by bytes
TINY = ModelConfig(96, 160, 2, 4, 2, 32, vocab_size=384)  # for tests: what runs on a GPU runs on the CPU


def widths_for(device: torch.device) -> ModelConfig:
    return REAL if device.type == "cuda" else TINY


def dtype_for(device: torch.device) -> torch.dtype:
    return torch.bfloat16 if device.type == "cuda" else torch.float32


def random_matrix(rows: int, columns: int, kind: str) -> Grouped:
    """[rows, columns] as a format has it, of about the size that random weights have: `int4` in groups of 128, as AWQ;
    `int8` and `fp8` with a scale for each row."""
    draw, std = torch.Generator().manual_seed(rows + columns), columns**-0.5
    if kind == "int4":
        groups = columns // min(128, columns & -columns)
        codes = torch.randint(0, 16, (rows, columns), dtype=torch.uint8, generator=draw)
        scale = torch.rand(rows, groups, generator=draw).add_(0.5).mul_(std / 5)
        return Grouped(codes, scale, scale * -7.5)
    codes = torch.randint(-127, 128, (rows, columns), dtype=torch.int8, generator=draw)
    scale = torch.rand(rows, 1, generator=draw).add_(0.5).mul_(std / 73)
    return Grouped(codes.to(torch.float8_e4m3fn) if kind == "fp8" else codes, scale)


@cache
def quantized_model(device: torch.device, kind: str) -> HiggsV3:
    """Like `random_model`, with matrices of `random_matrix`: all layers have the same, each in memory of its own."""
    plain = random_model(device)
    model = HiggsV3(plain.cfg, plain.text_rows, device, plain.dtype)
    model.audio_table, model.audio_head = plain.audio_table, plain.audio_head
    model.body.norm.fill_(1)
    for name in ("qkv_proj", "o_proj", "gate_up_proj", "down_proj"):
        linears: list[Linear] = [getattr(layer, name) for layer in model.body.layers]
        matrix = random_matrix(linears[0].outputs, linears[0].inputs, kind)
        for linear in linears:
            if device.type == "cuda" and linear is not linears[0]:
                linear.weight = copy.deepcopy(linears[0].weight)  # to lay it out takes as long as to load it
            else:
                linear.load(matrix)
    for layer in model.body.layers:
        layer.qk_norm.fill_(1)
        layer.input_norm = nn.Parameter(torch.ones(plain.cfg.hidden_size, device=device), requires_grad=False)
        layer.mlp_norm = nn.Parameter(torch.ones(plain.cfg.hidden_size, device=device), requires_grad=False)
    return model


@cache
def random_model(device: torch.device) -> HiggsV3:
    """One per device."""
    cfg, dtype = widths_for(device), dtype_for(device)
    text = torch.randn(cfg.vocab_size, cfg.hidden_size, generator=torch.Generator().manual_seed(0)).bfloat16()
    generator = torch.Generator(device).manual_seed(0)

    def normal(*shape: int) -> torch.Tensor:
        weight = torch.empty(*shape, device=device, dtype=dtype)
        return weight.normal_(0, cfg.hidden_size**-0.5, generator=generator)

    def fixed(weight: torch.Tensor) -> nn.Parameter:
        return nn.Parameter(weight, requires_grad=False)

    model = HiggsV3(cfg, lambda ids: F.embedding(ids, text), device, dtype)
    model.audio_table = fixed(normal(*model.audio_table.shape))
    model.audio_table[cfg.eoc] = 0  # codebook 0's: a logit of 0 is far from the 50 largest
    model.audio_head.weight = model.audio_table
    model.body.norm.fill_(1)
    for layer in model.body.layers:
        layer.qk_norm.fill_(1)
        layer.input_norm = fixed(torch.ones(cfg.hidden_size, device=device, dtype=dtype))
        layer.mlp_norm = fixed(torch.ones(cfg.hidden_size, device=device, dtype=dtype))
        for linear in (layer.qkv_proj, layer.o_proj, layer.gate_up_proj, layer.down_proj):
            linear.weight = fixed(normal(linear.outputs, linear.inputs))
    return model


def dense(linear: Linear) -> torch.Tensor:
    """The weight of a model that is not quantized."""
    assert isinstance(linear.weight, torch.Tensor)
    return linear.weight


def baseline(model: HiggsV3, dtype: torch.dtype) -> Baseline:
    """The same weights in transformers; in the same dtype they are the same memory."""
    cfg = model.cfg
    weights: dict[str, torch.Tensor] = {}
    for number, layer in enumerate(model.body.layers):
        prefix, qkv = f"body.layers.{number}", dense(layer.qkv_proj)
        parts = zip("qkv", qkv.split((cfg.q_size, cfg.kv_size, cfg.kv_size)), strict=True)
        weights |= {f"{prefix}.self_attn.{name}_proj.weight": part for name, part in parts}
        gate, up = dense(layer.gate_up_proj).chunk(2)
        weights |= {
            f"{prefix}.self_attn.o_proj.weight": dense(layer.o_proj),
            f"{prefix}.self_attn.q_norm.weight": layer.qk_norm[0],
            f"{prefix}.self_attn.k_norm.weight": layer.qk_norm[-1],
            f"{prefix}.mlp.gate_proj.weight": gate,
            f"{prefix}.mlp.up_proj.weight": up,
            f"{prefix}.mlp.down_proj.weight": dense(layer.down_proj),
            f"{prefix}.input_layernorm.weight": layer.input_norm,
            f"{prefix}.post_attention_layernorm.weight": layer.mlp_norm,
        }
    weights["body.norm.weight"] = model.body.norm
    weights["tied.embedding.text_embedding.weight"] = model.text_rows(torch.arange(cfg.vocab_size))
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
    tensors = [*model.body.parameters(), *model.audio_head.parameters()]
    nbytes = sum(weight.numel() * weight.itemsize for weight in tensors)
    packed = [module.weight for module in model.body.modules() if isinstance(module, Linear)]
    return nbytes + sum(weight.nbytes for weight in packed if isinstance(weight, Packed))


def cache_bytes(model: HiggsV3, rows: int) -> int:
    """Keys and values of so many rows."""
    cfg = model.cfg
    return rows * cfg.num_layers * 2 * cfg.kv_size * model.audio_table.itemsize
