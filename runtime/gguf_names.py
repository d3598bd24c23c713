"""What other converters call the tensors of Higgs TTS v3, and the shapes that ggml's own writer shortens.

llama.cpp names the body; HiggsTTS.cpp (converter of its repository) names the rest after it and shortens the parts of
the codec's names; mirek190's converter numbers the codec and keeps the upstream names in an array.
"""

from __future__ import annotations

import re

from .tensor_names import AUDIO_HEAD, AUDIO_TABLE, BODY, CODEC_PREFIX, TEXT_EMBEDDING, TEXT_HEAD

_TENSORS = {
    "token_embd.weight": TEXT_EMBEDDING,
    "output.weight": TEXT_HEAD,
    "output_norm.weight": "body.norm.weight",
    "fused_embed.weight": AUDIO_TABLE,
    "fused_head.weight": AUDIO_HEAD,
    "higgs.codebook_embd.weight": AUDIO_TABLE,
    "higgs.codebook_head.weight": AUDIO_HEAD,
}
_LAYER = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_CODEC_PARTS = {
    "ac_dec": "acoustic_decoder",
    "ac_enc": "acoustic_encoder",
    "attn_k": "attention.k_proj",
    "attn_out": "attention.out_proj",
    "attn_q": "attention.q_proj",
    "attn_v": "attention.v_proj",
    "blk": "conv_blocks",
    "cv": "conv_layers",
    "dec_sem": "decoder_semantic",
    "enc": "encoder.layers",
    "enc_sem": "encoder_semantic",
    "fe": "feature_extractor",
    "ffn1": "feed_forward.intermediate_dense",
    "ffn2": "feed_forward.output_dense",
    "fin_ln": "final_layer_norm",
    "fp": "feature_projection",
    "ln": "layer_norm",
    "orig0": "original0",
    "orig1": "original1",
    "pce": "pos_conv_embed",
    "pm": "parametrizations",
    "quant": "quantizer.quantizers",
    "ru": "res_units",
    "sem": "semantic_model",
}
_BLOCK = re.compile(r"blk\.(\d+)\.(\w+)\.weight")
# Three-dimensional in the upstream file: convolutions, their weight norm, and the snakes' alphas [1, channels, 1].
_THREE = re.compile(r"\.(conv(\d|_t\d)?\.weight|weight\.original[01]|alpha)$")


def upstream_name(name: str) -> str | None:
    """The published name of a tensor of HiggsTTS.cpp or llama.cpp; None for one that no converter here writes."""
    if name in _TENSORS:
        return _TENSORS[name]
    if name.startswith("codec."):
        return CODEC_PREFIX + ".".join(_CODEC_PARTS.get(part, part) for part in name.split(".")[1:])
    if (block := _BLOCK.fullmatch(name)) and block[2] in _LAYER:
        return f"{BODY}{block[1]}.{_LAYER[block[2]]}.weight"
    return None


def full_shape(name: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    """The upstream shape of `name`, stored as `shape`: ggml's writer drops leading ones, and one converter squeezes."""
    if not name.startswith(CODEC_PREFIX) or not _THREE.search(name) or len(shape) >= 3:
        return shape
    if name.endswith(".alpha"):
        return (1, max(shape, default=1), 1)
    return (1,) * (3 - len(shape)) + shape
