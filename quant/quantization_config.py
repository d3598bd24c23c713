"""The `quantization_config` of config.json, by which transformers, vLLM and others know a quantized checkpoint.

Keys and values: AutoAWQ's of version "gemm"; bitsandbytes' as transformers writes them; compressed-tensors'
"float-quantized" with a scale per channel, inputs quantized per token while running. What only octavo reads (the text
embedding in 8 bits) stands apart, under "octavo".
"""

from __future__ import annotations

import importlib.metadata
from typing import Any

from octavo.runtime.tensor_names import TEXT_EMBEDDING

from .recipe import FLOATS, Recipe, is_linear

_TABLES_AND_CODEC = "tied"  # how all names outside the body begin


def with_quantization(config: dict[str, Any], recipe: Recipe) -> dict[str, Any]:
    """config.json of a folder that `recipe` makes of a checkpoint with `config`."""
    kept = [name.removesuffix(".weight") for name, kind in recipe.kinds.items() if is_linear(name) and kind in FLOATS]
    octavo = {
        "version": importlib.metadata.version("octavo"),
        "format": recipe.format,
        "text_embedding": recipe.kinds[TEXT_EMBEDDING],
    }
    return {**config, "quantization_config": _FORMATS[recipe.format](recipe, kept), "octavo": octavo}


def _awq(recipe: Recipe, kept: list[str]) -> dict[str, Any]:
    return {
        "quant_method": "awq",
        "bits": 4,
        "group_size": recipe.group_size,
        "zero_point": True,
        "version": "gemm",
        "modules_to_not_convert": [_TABLES_AND_CODEC, *kept],
    }


def _int8(recipe: Recipe, kept: list[str]) -> dict[str, Any]:
    return {
        "quant_method": "bitsandbytes",
        "load_in_8bit": True,
        "load_in_4bit": False,
        "llm_int8_threshold": 6.0,
        "llm_int8_has_fp16_weight": False,
        "llm_int8_skip_modules": [_TABLES_AND_CODEC, *kept],
    }


def _nf4(recipe: Recipe, kept: list[str]) -> dict[str, Any]:
    return {
        "quant_method": "bitsandbytes",
        "load_in_8bit": False,
        "load_in_4bit": True,
        "bnb_4bit_quant_type": "nf4",
        "bnb_4bit_use_double_quant": True,
        "bnb_4bit_compute_dtype": "bfloat16",
        "bnb_4bit_quant_storage": "uint8",
        "llm_int8_skip_modules": [_TABLES_AND_CODEC, *kept],
    }


def _fp8(recipe: Recipe, kept: list[str]) -> dict[str, Any]:
    eight_bits = {"num_bits": 8, "type": "float", "symmetric": True}
    return {
        "quant_method": "compressed-tensors",
        "format": "float-quantized",
        "quantization_status": "compressed",
        "config_groups": {
            "group_0": {
                "targets": ["Linear"],
                "weights": {**eight_bits, "strategy": "channel", "dynamic": False},
                "input_activations": {**eight_bits, "strategy": "token", "dynamic": True},
            }
        },
        "ignore": [f"re:{_TABLES_AND_CODEC}.*", *kept],
    }


_FORMATS = {"awq": _awq, "int8": _int8, "nf4": _nf4, "fp8": _fp8}
