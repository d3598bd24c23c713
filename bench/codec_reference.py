"""The tokenizer class of transformers with random weights: what octavo's codec is compared with and measured against.

Its module imports torchaudio, for one resampling call, and torchaudio does not exist for every torch. Where it is
absent a stand-in with that one function, written from the published formula, takes its place.
"""

from __future__ import annotations

import importlib
import math
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from types import ModuleType
from typing import Any

import numpy as np
import torch

REAL = {"decoder": 1024, "latent": 256, "encoder": 64, "hubert": 768, "ffn": 3072, "layers": 12, "conv": 512}
NARROW = {"decoder": 64, "latent": 16, "encoder": 4, "hubert": 32, "ffn": 48, "layers": 3, "conv": 16}
DECODER = REAL | {"encoder": 4, "ffn": 48, "layers": 1, "conv": 16}  # the decoder of the published codec alone
STRIDES = [8, 5, 4, 2, 3]


def reference_tokenizer(widths: dict[str, int] = NARROW, seed: int = 0, dtype: torch.dtype = torch.float32) -> Any:
    """HiggsAudioV2TokenizerModel of the given widths, in eval mode, with weights that hide no slip.

    The library's own initialisation would: alphas of one, biases of zero, codebooks of zeros. The 1x1 convolutions of
    the residual units are small, so that the activations do not explode. All values fit bf16, as in the checkpoint.
    """
    with _torchaudio():
        name = "transformers.models.higgs_audio_v2_tokenizer"
        Config = importlib.import_module(f"{name}.configuration_higgs_audio_v2_tokenizer").HiggsAudioV2TokenizerConfig
        Model = importlib.import_module(f"{name}.modeling_higgs_audio_v2_tokenizer").HiggsAudioV2TokenizerModel
        config = Config(
            target_bandwidths=[0.5, 1, 1.5, 2],
            acoustic_model_config={
                "model_type": "dac", "encoder_hidden_size": widths["encoder"], "decoder_hidden_size": widths["decoder"],
                "hidden_size": widths["latent"], "downsampling_ratios": STRIDES, "upsampling_ratios": STRIDES,
            },
            semantic_model_config={
                "model_type": "hubert", "hidden_size": widths["hubert"], "intermediate_size": widths["ffn"],
                "num_hidden_layers": widths["layers"], "num_attention_heads": max(1, widths["hubert"] // 64),
                "conv_dim": [widths["conv"]] * 7,
            },
        )  # fmt: skip
        model = Model(config).eval()
    randomise(model, seed)
    return model.to(dtype)


@torch.no_grad()
def randomise(model: Any, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for name, tensor in model.state_dict().items():
        noise = torch.randn(tensor.shape, generator=generator)
        fan_in = math.prod(tensor.shape[1:])
        if name.endswith("alpha"):
            value = 0.3 + 1.7 * torch.rand(tensor.shape, generator=generator)
        elif name.endswith("codebook.embed") or name.endswith("weight.original0"):
            value = noise.abs() + 0.5 if name.endswith("original0") else noise
        elif name.endswith("norm.weight"):
            value = 1 + 0.2 * noise
        elif name.endswith("bias"):
            value = 0.1 * noise
        elif "conv_t1" in name:
            value = noise / math.sqrt(2 * tensor.shape[0])  # two taps meet each sample
        elif tensor.dim() > 1:
            value = noise / math.sqrt(fan_in) * (0.3 if ".res_unit" in name and ".conv2" in name else 1.0)
        else:
            value = noise
        tensor.copy_(value.bfloat16())


def hann_sinc_resample(x: np.ndarray, rate_in: int, rate_out: int) -> np.ndarray:
    """[..., L] -> [..., ceil(L * out / in)], float64: one output sample at a time in the formula of codec.md 4."""
    divisor = math.gcd(rate_in, rate_out)
    o, n = rate_in // divisor, rate_out // divisor
    base = 0.99 * min(o, n)
    width = math.ceil(6 * o / base)
    j = np.arange(-width, width + o)
    padded = np.concatenate([np.zeros((*x.shape[:-1], width)), x, np.zeros((*x.shape[:-1], width + o))], axis=-1)
    out = np.zeros((*x.shape[:-1], -(-x.shape[-1] * n // o)))
    for i in range(n):
        t = np.clip((-i / n + j / o) * base, -6, 6)
        taps = np.sinc(t) * np.cos(np.pi * t / 12) ** 2 * base / o
        count = len(range(i, out.shape[-1], n))
        windows = np.lib.stride_tricks.sliding_window_view(padded, len(j), axis=-1)[..., ::o, :][..., :count, :]
        out[..., i::n] = windows @ taps
    return out


@contextmanager
def _torchaudio() -> Iterator[None]:
    """torchaudio, or for the time being a stand-in with `functional.resample`."""
    if find_spec("torchaudio") is not None:
        yield
        return
    available = importlib.import_module("transformers.utils.import_utils").is_torchaudio_available
    stand_in, functional = ModuleType("torchaudio"), ModuleType("torchaudio.functional")
    stand_in.__spec__, stand_in.__version__ = ModuleSpec("torchaudio", None), "0"  # type: ignore[attr-defined]
    stand_in.functional, functional.resample = functional, _resample  # type: ignore[attr-defined]
    sys.modules["torchaudio"] = stand_in
    available.cache_clear()
    try:
        yield
    finally:
        del sys.modules["torchaudio"]
        available.cache_clear()


def _resample(x: torch.Tensor, rate_in: int, rate_out: int) -> torch.Tensor:
    return torch.from_numpy(hann_sinc_resample(x.double().numpy(), rate_in, rate_out)).to(x.dtype)
