"""Every tensor of a Higgs v3 checkpoint by name, generated from widths, and how its synthetic values are drawn.

With the published widths this is the published inventory: 398 tensors of the language model, 1 audio table, 528 of the
codec, 2 tied copies; 4,654,850,537 values. Other widths keep the names, so a tiny checkpoint exercises the same code.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

CODEC = "tied.embedding.modality_embeddings.0.model."
TEXT_TABLE = "tied.embedding.text_embedding.weight"
AUDIO_TABLE = "tied.embedding.modality_embeddings.0.embedding.weight"
TEXT_HEAD, AUDIO_HEAD = "tied.head.text_head.weight", "tied.head.modality_heads.0.weight"

CODEBOOKS, CODES = 8, 1024  # fixed by the architecture, as are the strides: 8 * 5 * 4 * 2 * 3 = 960 samples per frame
STRIDES = (8, 5, 4, 2, 3)
HUBERT_KERNELS = (10, 3, 3, 3, 3, 2, 2)
POSITION_KERNEL, POSITION_GROUPS = 128, 16


@dataclass(frozen=True)
class ModelWidths:
    """The language model. `vocab` 0 means: as many rows as the tokenizer needs, padded to a multiple of 64."""

    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    ffn: int
    vocab: int = 0


@dataclass(frozen=True)
class CodecWidths:
    """`decoder` halves at each of five blocks, `encoder` doubles; HuBERT has semantic // 64 heads."""

    decoder: int
    encoder: int
    latent: int
    semantic: int
    hubert_layers: int
    hubert_ffn: int
    hubert_conv: int
    codebook_dim: int

    @property
    def rvq(self) -> int:
        return self.latent + self.semantic


MODELS = {
    "tiny": ModelWidths(layers=4, hidden=256, heads=4, kv_heads=1, head_dim=64, ffn=1024),
    "small": ModelWidths(layers=8, hidden=1024, heads=16, kv_heads=4, head_dim=64, ffn=3072),
    "4b": ModelWidths(layers=36, hidden=2560, heads=32, kv_heads=8, head_dim=128, ffn=9728, vocab=151936),
}
CODECS = {
    "tiny": CodecWidths(64, 8, 16, 64, hubert_layers=2, hubert_ffn=128, hubert_conv=16, codebook_dim=8),
    "real": CodecWidths(1024, 64, 256, 768, hubert_layers=12, hubert_ffn=3072, hubert_conv=512, codebook_dim=64),
}


@dataclass(frozen=True)
class Spec:
    """One tensor: synthetic values are mean + std * normal, clamped to [low, high]. `like` shares another's values."""

    name: str
    shape: tuple[int, ...]
    mean: float = 0.0
    std: float = 1.0
    low: float = -math.inf
    high: float = math.inf
    like: str | None = None

    @property
    def numel(self) -> int:
        return math.prod(self.shape)


def inventory(
    model: ModelWidths, codec: CodecWidths, tied_copies: bool = True, untied_audio: bool = False
) -> list[Spec]:
    """All tensors, sorted by name. With `untied_audio` the audio head exists and has values of its own."""
    specs = [*_language_model(model), *(replace(spec, name=CODEC + spec.name) for spec in _codec(codec))]
    tables = {spec.name: spec for spec in specs}
    if tied_copies:
        specs.append(replace(tables[TEXT_TABLE], name=TEXT_HEAD, like=TEXT_TABLE))
    if untied_audio:
        specs.append(replace(tables[AUDIO_TABLE], name=AUDIO_HEAD))
    elif tied_copies:
        specs.append(replace(tables[AUDIO_TABLE], name=AUDIO_HEAD, like=AUDIO_TABLE))
    return sorted(specs, key=lambda spec: spec.name)


def _matrix(name: str, *shape: int, fan_in: int = 0, gain: float = 1.0) -> Spec:
    """A weight [out, in, ...] that keeps the variance of its input, times gain^2."""
    return Spec(name + ".weight", shape, std=gain / math.sqrt(fan_in or math.prod(shape[1:])))


def _affine(name: str, *shape: int, fan_in: int = 0, gain: float = 1.0, out: int = 0) -> Iterator[Spec]:
    """A weight and its bias (of length `out`, else the first dimension)."""
    yield _matrix(name, *shape, fan_in=fan_in, gain=gain)
    yield Spec(name + ".bias", (out or shape[0],), std=0.05)


def _layer_norm(name: str, width: int) -> Iterator[Spec]:
    yield Spec(name + ".weight", (width,), mean=1.0, std=0.1)
    yield Spec(name + ".bias", (width,), std=0.05)


def _language_model(w: ModelWidths) -> Iterator[Spec]:
    def norm(name: str, width: int) -> Spec:
        return Spec(name + ".weight", (width,), mean=1.0, std=0.1)

    for n in range(w.layers):
        layer, attention, mlp = f"body.layers.{n}", f"body.layers.{n}.self_attn", f"body.layers.{n}.mlp"
        yield norm(f"{layer}.input_layernorm", w.hidden)
        yield norm(f"{layer}.post_attention_layernorm", w.hidden)
        yield _matrix(f"{attention}.q_proj", w.heads * w.head_dim, w.hidden)
        yield _matrix(f"{attention}.k_proj", w.kv_heads * w.head_dim, w.hidden)
        yield _matrix(f"{attention}.v_proj", w.kv_heads * w.head_dim, w.hidden)
        yield _matrix(f"{attention}.o_proj", w.hidden, w.heads * w.head_dim)
        yield norm(f"{attention}.q_norm", w.head_dim)
        yield norm(f"{attention}.k_norm", w.head_dim)
        yield _matrix(f"{mlp}.gate_proj", w.ffn, w.hidden)
        yield _matrix(f"{mlp}.up_proj", w.ffn, w.hidden)
        yield _matrix(f"{mlp}.down_proj", w.hidden, w.ffn)
    yield norm("body.norm", w.hidden)
    yield _matrix(TEXT_TABLE.removesuffix(".weight"), w.vocab, w.hidden)
    yield _matrix(AUDIO_TABLE.removesuffix(".weight"), CODEBOOKS * (CODES + 2), w.hidden)


def _codec(w: CodecWidths) -> Iterator[Spec]:
    yield from _quantizer(w)
    yield from _affine("fc", w.rvq, w.rvq)
    yield from _affine("fc1", w.semantic, w.rvq)
    yield from _affine("fc2", w.latent, w.rvq)
    yield from _acoustic_decoder(w)
    yield from _acoustic_encoder(w)
    yield from _semantic("encoder_semantic", ("conv",), w.semantic)
    yield from _semantic("decoder_semantic", ("conv1", "conv2"), w.semantic)
    yield from _hubert(w)


def _quantizer(w: CodecWidths) -> Iterator[Spec]:
    for q in range(CODEBOOKS):
        name = f"quantizer.quantizers.{q}"
        yield Spec(f"{name}.codebook.embed", (CODES, w.codebook_dim))
        # A moving sum, several times larger than the codebook: whoever loads it by mistake hears it.
        yield Spec(f"{name}.codebook.embed_avg", (CODES, w.codebook_dim), std=10.0)
        yield Spec(f"{name}.codebook.cluster_size", (CODES,), mean=10.0)
        yield Spec(f"{name}.codebook.inited", (1,), mean=1.0, std=0.0)
        yield from _affine(f"{name}.project_in", w.codebook_dim, w.rvq)
        # The sum of the eight codebooks has variance one.
        yield from _affine(f"{name}.project_out", w.rvq, w.codebook_dim, gain=CODEBOOKS**-0.5)


def _snake(name: str, channels: int) -> Spec:
    return Spec(f"{name}.alpha", (1, channels, 1), mean=1.15, std=0.4, low=0.3, high=2.0)


def _residual_units(name: str, channels: int) -> Iterator[Spec]:
    for unit in (f"{name}.res_unit{u}" for u in (1, 2, 3)):
        yield _snake(f"{unit}.snake1", channels)
        yield from _affine(f"{unit}.conv1", channels, channels, 7)
        yield _snake(f"{unit}.snake2", channels)
        yield from _affine(f"{unit}.conv2", channels, channels, 1, gain=0.2)  # small, so that 15 units do not explode


def _acoustic_decoder(w: CodecWidths) -> Iterator[Spec]:
    name, channels = "acoustic_decoder", w.decoder
    yield from _affine(f"{name}.conv1", channels, w.latent, 7)
    for b, stride in enumerate(STRIDES):
        wide, channels = channels, channels // 2
        yield _snake(f"{name}.block.{b}.snake1", wide)
        # Stored [in, out, 2 * stride]; each output sample sees two taps of every input channel.
        yield from _affine(f"{name}.block.{b}.conv_t1", wide, channels, 2 * stride, fan_in=2 * wide, out=channels)
        yield from _residual_units(f"{name}.block.{b}", channels)
    yield _snake(f"{name}.snake1", channels)
    yield _matrix(f"{name}.conv2", 1, channels, 7, gain=0.05)  # speech-like loudness instead of unit variance
    yield Spec(f"{name}.conv2.bias", (1,), std=0.01)


def _acoustic_encoder(w: CodecWidths) -> Iterator[Spec]:
    name, channels = "acoustic_encoder", w.encoder
    yield from _affine(f"{name}.conv1", channels, 1, 7, gain=10.0)  # speech comes in at about 0.1
    for b, stride in enumerate(STRIDES):
        yield from _residual_units(f"{name}.block.{b}", channels)
        yield _snake(f"{name}.block.{b}.snake1", channels)
        yield from _affine(f"{name}.block.{b}.conv1", 2 * channels, channels, 2 * stride)
        channels *= 2
    yield _snake(f"{name}.snake1", channels)
    yield from _affine(f"{name}.conv2", w.latent, channels, 3)


def _semantic(name: str, ends: tuple[str, ...], width: int) -> Iterator[Spec]:
    for end in ends:
        yield _matrix(f"{name}.{end}", width, width, 3)
    for block in (f"{name}.conv_blocks.{b}" for b in (0, 1)):
        for unit in (f"{block}.res_units.{u}" for u in (0, 1)):
            yield _matrix(f"{unit}.conv1", width, width, 3)
            yield _matrix(f"{unit}.conv2", width, width, 1)
        yield from _affine(f"{block}.conv", width, width, 3)


def _hubert(w: CodecWidths) -> Iterator[Spec]:
    name, width = "semantic_model", w.semantic
    yield Spec(f"{name}.masked_spec_embed", (width,))
    for i, kernel in enumerate(HUBERT_KERNELS):
        layer = f"{name}.feature_extractor.conv_layers.{i}"
        yield _matrix(f"{layer}.conv", w.hubert_conv, w.hubert_conv if i else 1, kernel, gain=2**0.5)  # GELU halves it
        if i == 0:
            yield from _layer_norm(f"{layer}.layer_norm", w.hubert_conv)
    yield from _layer_norm(f"{name}.feature_projection.layer_norm", w.hubert_conv)
    yield from _affine(f"{name}.feature_projection.projection", width, w.hubert_conv)
    conv = f"{name}.encoder.pos_conv_embed.conv"
    yield Spec(f"{conv}.bias", (width,), std=0.05)
    # Weight norm, one factor per tap: this one gives the folded weight the scale 1 / sqrt(fan_in).
    factor = math.sqrt(width / POSITION_KERNEL)
    weight = f"{conv}.parametrizations.weight"
    yield Spec(f"{weight}.original0", (1, 1, POSITION_KERNEL), mean=factor, std=0.1 * factor)
    yield Spec(f"{weight}.original1", (width, width // POSITION_GROUPS, POSITION_KERNEL))
    yield from _layer_norm(f"{name}.encoder.layer_norm", width)
    for layer in (f"{name}.encoder.layers.{n}" for n in range(w.hubert_layers)):
        for projection in ("q_proj", "k_proj", "v_proj", "out_proj"):
            yield from _affine(f"{layer}.attention.{projection}", width, width)
        yield from _layer_norm(f"{layer}.layer_norm", width)
        yield from _affine(f"{layer}.feed_forward.intermediate_dense", w.hubert_ffn, width)
        yield from _affine(f"{layer}.feed_forward.output_dense", width, w.hubert_ffn)
        yield from _layer_norm(f"{layer}.final_layer_norm", width)
