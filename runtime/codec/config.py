"""What the codec's tensors say about it: widths, strides, codebooks. Read off their shapes, so any width loads.

`config.json` of the checkpoint does not describe the codec. Kernel sizes, dilations and strides that leave no trace in
a shape are constants here, from the published model.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from octavo.runtime.checkpoint import Weights
from octavo.runtime.errors import CheckpointError

SAMPLE_RATE = 24000  # Hz, of the sound
SEMANTIC_RATE = 16000  # Hz, of HuBERT's input
FRAME_RATE = 25  # frames per second
DILATIONS = (1, 3, 9)  # of the residual units of a decoder or encoder block
HUBERT_STRIDES = (5, 2, 2, 2, 2, 2, 2)  # one HuBERT feature per 320 samples, two per codec frame
HUBERT_HEAD = 64  # width of an attention head


@dataclass(frozen=True)
class HubertConfig:
    """HuBERT, the semantic model. Published: 768 wide, 3072 inside, 12 layers of 12 heads."""

    width: int
    ffn: int
    layers: int
    conv_width: int
    conv_kernels: tuple[int, ...]  # 10, 3, 3, 3, 3, 2, 2
    pos_kernel: int  # 128
    pos_groups: int  # 16

    @property
    def heads(self) -> int:
        return max(1, self.width // HUBERT_HEAD)


@dataclass(frozen=True)
class EncoderConfig:
    """Sound to codes. Published: widths 64, 128, ..., 2048 and strides 8, 5, 4, 2, 3."""

    widths: tuple[int, ...]
    strides: tuple[int, ...]
    semantic_blocks: int
    semantic_units: int
    hubert: HubertConfig


@dataclass(frozen=True)
class CodecConfig:
    """The whole codec. Published: 8 codebooks of 1024 x 64, RVQ 1024 wide, latent 256, widths 1024, 512, ..., 32."""

    codebooks: int
    codebook_size: int
    codebook_dim: int
    rvq_width: int
    latent: int
    widths: tuple[int, ...]
    strides: tuple[int, ...]
    encoder: EncoderConfig | None  # None: the checkpoint holds the decoder alone

    @property
    def hop(self) -> int:
        """Samples per frame: 960."""
        return math.prod(self.strides)

    @classmethod
    def from_weights(cls, weights: Weights) -> CodecConfig:
        """Reads shapes only, no data. Raises CheckpointError when they contradict each other."""
        codebooks = _count(weights, "quantizer.quantizers.{}.codebook.embed")
        size, dim = _shape(weights, "quantizer.quantizers.0.codebook.embed", 2)
        latent, rvq_width = _shape(weights, "fc2.weight", 2)
        blocks = _count(weights, "acoustic_decoder.block.{}.conv_t1.weight")
        shapes = [_shape(weights, f"acoustic_decoder.block.{b}.conv_t1.weight", 3) for b in range(blocks)]
        strides = _strides([shape[2] for shape in shapes], "decoder")
        widths = (shapes[0][0], *(shape[1] for shape in shapes))
        encoder = None
        if "acoustic_encoder.conv1.weight" in weights:
            encoder = _encoder(weights)
            if encoder.hubert.width + latent != rvq_width:
                raise CheckpointError(
                    f"The codec joins {latent} acoustic and {encoder.hubert.width} semantic channels, but its "
                    f"quantizer is {rvq_width} wide. The checkpoint is damaged or of another codec."
                )
        return cls(codebooks, size, dim, rvq_width, latent, widths, strides, encoder)


def _encoder(weights: Weights) -> EncoderConfig:
    blocks = _count(weights, "acoustic_encoder.block.{}.conv1.weight")
    shapes = [_shape(weights, f"acoustic_encoder.block.{b}.conv1.weight", 3) for b in range(blocks)]
    convs = _count(weights, "semantic_model.feature_extractor.conv_layers.{}.conv.weight")
    if convs != len(HUBERT_STRIDES):
        raise CheckpointError(f"HuBERT has {convs} convolutions, not {len(HUBERT_STRIDES)}: this is another codec.")
    conv = [_shape(weights, f"semantic_model.feature_extractor.conv_layers.{i}.conv.weight", 3) for i in range(convs)]
    position = "semantic_model.encoder.pos_conv_embed.conv.parametrizations.weight.original1"
    width, per_group, pos_kernel = _shape(weights, position, 3)
    hubert = HubertConfig(
        width=width,
        ffn=_shape(weights, "semantic_model.encoder.layers.0.feed_forward.intermediate_dense.weight", 2)[0],
        layers=_count(weights, "semantic_model.encoder.layers.{}.layer_norm.weight"),
        conv_width=conv[0][0],
        conv_kernels=tuple(shape[2] for shape in conv),
        pos_kernel=pos_kernel,
        pos_groups=width // per_group,
    )
    if width % hubert.heads:
        raise CheckpointError(f"HuBERT is {width} wide, which heads of {HUBERT_HEAD} do not divide.")
    return EncoderConfig(
        widths=(shapes[0][1], *(shape[0] for shape in shapes)),
        strides=_strides([shape[2] for shape in shapes], "encoder"),
        semantic_blocks=_count(weights, "encoder_semantic.conv_blocks.{}.conv.weight"),
        semantic_units=_count(weights, "encoder_semantic.conv_blocks.0.res_units.{}.conv1.weight"),
        hubert=hubert,
    )


def _strides(kernels: list[int], what: str) -> tuple[int, ...]:
    strides = tuple(kernel // 2 for kernel in kernels)
    if any(kernel % 2 for kernel in kernels) or math.prod(strides) * FRAME_RATE != SAMPLE_RATE:
        raise CheckpointError(
            f"The codec's {what} has kernels {kernels} and so {math.prod(strides)} samples per frame; octavo speaks "
            f"{SAMPLE_RATE // FRAME_RATE}. The checkpoint is of another codec."
        )
    return strides


def _shape(weights: Weights, name: str, rank: int) -> tuple[int, ...]:
    shape = weights.shape(name)
    if len(shape) != rank or 0 in shape:
        raise CheckpointError(f"{weights.prefix}{name} has shape {list(shape)}, not {rank} sizes above 0.")
    return shape


def _count(weights: Weights, pattern: str) -> int:
    """How many tensors the numbered pattern has, from 0 on. A gap, or none at all, raises naming the missing one."""
    prefix, suffix = pattern.split("{}")
    names = {name for name in weights if name.startswith(prefix) and name.endswith(suffix)}
    count = sum(name[len(prefix) : -len(suffix)].isdigit() for name in names)
    for number in range(max(count, 1)):
        weights.shape(pattern.format(number))
    return count
