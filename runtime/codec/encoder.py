"""Sound to codes, once per voice: an acoustic and a semantic branch, joined and quantised residue by residue.

    S = semantic(HuBERT(sound at 16 kHz))    A = acoustic(sound)    z = fc([A, S])             [T, rvq_width]
    for each codebook q:  code = argmin_k |project_in(z) - embed[k]|^2;  z = z - project_out(embed[code])

fp32 throughout, as the codes are decided by small differences.
"""

from __future__ import annotations

from itertools import pairwise

import torch
import torch.nn as nn
import torch.nn.functional as F

from octavo.runtime.checkpoint import Weights

from .config import SAMPLE_RATE, SEMANTIC_RATE, CodecConfig, EncoderConfig
from .hubert import Hubert, Linear
from .layers import Snake, residual_units, take_conv
from .resample import resample

SEMANTIC_PAD = 160  # zeros before and after the sound at 16 kHz


class Padded(nn.Module):
    """A layer for a whole recording, with `pad` zeros before and after it."""

    def __init__(self, layer: nn.Module, pad: int):
        super().__init__()
        self.layer, self.pad = layer, pad

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(F.pad(x, (0, 0, self.pad, self.pad)))


class SemanticUnit(nn.Module):
    """x + conv1x1(elu(conv3(elu(x)))): [B, T, C] -> the same."""

    def __init__(self, weights: Weights, name: str, width: int, dtype: torch.dtype):
        super().__init__()
        self.conv1 = Padded(take_conv(weights, f"{name}.conv1", (width, width, 3), dtype, bias=False), 1)
        self.conv2 = take_conv(weights, f"{name}.conv2", (width, width, 1), dtype, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.conv2(F.elu(self.conv1(F.elu(x))))


def acoustic_encoder(weights: Weights, config: CodecConfig, encoder: EncoderConfig, dtype: torch.dtype) -> nn.Module:
    """[B, L, 1] at 24 kHz -> [B, T, latent]: conv7; per block three units, Snake, strided conv; Snake, conv3."""
    name = "acoustic_encoder"
    steps: list[nn.Module] = [Padded(take_conv(weights, f"{name}.conv1", (encoder.widths[0], 1, 7), dtype), 3)]
    for b, ((cin, cout), stride) in enumerate(zip(pairwise(encoder.widths), encoder.strides, strict=True)):
        block = f"{name}.block.{b}"
        steps += [Padded(unit, unit.pad) for unit in residual_units(weights, block, cin, dtype)]
        steps.append(Snake(weights.take(f"{block}.snake1.alpha", 1, cin, 1), dtype))
        conv = take_conv(weights, f"{block}.conv1", (cout, cin, 2 * stride), dtype, stride=stride)
        steps.append(Padded(conv, -(-stride // 2)))
    steps.append(Snake(weights.take(f"{name}.snake1.alpha", 1, encoder.widths[-1], 1), dtype))
    conv = take_conv(weights, f"{name}.conv2", (config.latent, encoder.widths[-1], 3), dtype)
    return nn.Sequential(*steps, Padded(conv, 1))


def acoustic_frames(config: EncoderConfig, samples: int) -> int:
    """How many frames the acoustic encoder makes of so many samples."""
    for stride in config.strides:
        samples = (samples + 2 * -(-stride // 2) - 2 * stride) // stride + 1
    return samples


def semantic_encoder(weights: Weights, encoder: EncoderConfig, dtype: torch.dtype) -> nn.Module:
    """[B, T, C] -> the same: conv3; per block its units, then conv3."""
    name, width = "encoder_semantic", encoder.hubert.width
    steps: list[nn.Module] = [Padded(take_conv(weights, f"{name}.conv", (width, width, 3), dtype, bias=False), 1)]
    for b in range(encoder.semantic_blocks):
        block = f"{name}.conv_blocks.{b}"
        steps += [SemanticUnit(weights, f"{block}.res_units.{u}", width, dtype) for u in range(encoder.semantic_units)]
        steps.append(Padded(take_conv(weights, f"{block}.conv", (width, width, 3), dtype), 1))
    return nn.Sequential(*steps)


class CodecEncoder(nn.Module):
    """sound [L] fp32 at 24 kHz, L >= 24,000 -> codes [codebooks, T] int64, T = L // 960 + (L % 960 >= 119)."""

    def __init__(self, weights: Weights, config: CodecConfig, dtype: torch.dtype = torch.float32):
        super().__init__()
        encoder = config.encoder
        assert encoder is not None
        self.hop, self.encoder = config.hop, encoder
        self.acoustic = acoustic_encoder(weights, config, encoder, dtype)
        self.hubert = Hubert(weights, encoder.hubert, dtype)
        self.semantic = semantic_encoder(weights, encoder, dtype)
        self.fc = Linear(weights, "fc", config.rvq_width, config.rvq_width, dtype)
        names = [f"quantizer.quantizers.{q}" for q in range(config.codebooks)]
        dim, width = config.codebook_dim, config.rvq_width
        self.project_in = nn.ModuleList(Linear(weights, f"{name}.project_in", dim, width, dtype) for name in names)
        self.project_out = nn.ModuleList(Linear(weights, f"{name}.project_out", width, dim, dtype) for name in names)
        embeds = [weights.take(f"{name}.codebook.embed", config.codebook_size, dim) for name in names]
        self.embed = nn.Parameter(torch.stack(embeds).to(dtype), requires_grad=False)

    @torch.inference_mode()
    def forward(self, sound: torch.Tensor) -> torch.Tensor:
        return self.quantise(self.features(sound))

    def features(self, sound: torch.Tensor) -> torch.Tensor:
        """What is quantised: [T, rvq_width]. Both branches see the same T frames."""
        sound = sound[None]
        at_16k = F.pad(resample(sound, SAMPLE_RATE, SEMANTIC_RATE), (SEMANTIC_PAD, SEMANTIC_PAD))
        semantic = self.semantic(self.hubert(at_16k)[:, ::2])  # 50 Hz to 25 Hz
        if acoustic_frames(self.encoder, sound.shape[1]) != semantic.shape[1]:
            sound = F.pad(sound, (self.hop // 2, self.hop // 2))
        return self.fc(torch.cat([self.acoustic(sound[:, :, None]), semantic], dim=2))[0]

    def quantise(self, z: torch.Tensor) -> torch.Tensor:
        """z [T, rvq_width] -> codes [codebooks, T]; of equally near entries the first."""
        codes = []
        for embed, project_in, project_out in zip(self.embed, self.project_in, self.project_out, strict=True):
            nearness = 2 * project_in(z) @ embed.T - embed.square().sum(1)  # |u|^2 - |u - e|^2
            code = nearness.argmax(dim=1)
            z = z - project_out(embed[code])
            codes.append(code)
        return torch.stack(codes)
