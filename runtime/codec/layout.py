"""Every tensor of the codec by name, with its shape: what a checkpoint must hold, and what it may hold besides."""

from __future__ import annotations

from itertools import pairwise

from .config import CodecConfig, EncoderConfig, HubertConfig

Layout = dict[str, tuple[int, ...]]


def decoder_layout(config: CodecConfig) -> Layout:
    """Codes to sound: 136 tensors of the published codec."""
    layout: Layout = {}
    for q in range(config.codebooks):
        layout[f"quantizer.quantizers.{q}.codebook.embed"] = (config.codebook_size, config.codebook_dim)
        layout |= _affine(f"quantizer.quantizers.{q}.project_out", config.rvq_width, config.codebook_dim)
    layout |= _affine("fc2", config.latent, config.rvq_width)
    layout |= _affine("acoustic_decoder.conv1", config.widths[0], config.latent, 7)
    for b, ((cin, cout), stride) in enumerate(zip(pairwise(config.widths), config.strides, strict=True)):
        name = f"acoustic_decoder.block.{b}"
        layout[f"{name}.snake1.alpha"] = (1, cin, 1)
        layout[f"{name}.conv_t1.weight"] = (cin, cout, 2 * stride)  # transposed: input channels first
        layout[f"{name}.conv_t1.bias"] = (cout,)
        layout |= _residual_units(name, cout)
    layout["acoustic_decoder.snake1.alpha"] = (1, config.widths[-1], 1)
    return layout | _affine("acoustic_decoder.conv2", 1, config.widths[-1], 7)


def encoder_layout(config: CodecConfig) -> Layout:
    """Sound to codes: what the encoder needs besides the codebooks and their output projections."""
    encoder = config.encoder
    assert encoder is not None
    layout = _acoustic_encoder(config, encoder) | _hubert(encoder.hubert)
    width = encoder.hubert.width
    layout["encoder_semantic.conv.weight"] = (width, width, 3)
    for b in range(encoder.semantic_blocks):
        for u in range(encoder.semantic_units):
            layout[f"encoder_semantic.conv_blocks.{b}.res_units.{u}.conv1.weight"] = (width, width, 3)
            layout[f"encoder_semantic.conv_blocks.{b}.res_units.{u}.conv2.weight"] = (width, width, 1)
        layout |= _affine(f"encoder_semantic.conv_blocks.{b}.conv", width, width, 3)
    layout |= _affine("fc", config.rvq_width, config.rvq_width)
    for q in range(config.codebooks):
        layout |= _affine(f"quantizer.quantizers.{q}.project_in", config.codebook_dim, config.rvq_width)
    return layout


def unused_layout(config: CodecConfig) -> Layout:
    """Left from training and never read. `embed_avg` looks like a codebook and is not one."""
    encoder = config.encoder
    assert encoder is not None
    width = encoder.hubert.width
    layout: Layout = {"semantic_model.masked_spec_embed": (width,)}
    for q in range(config.codebooks):
        name = f"quantizer.quantizers.{q}.codebook"
        layout[f"{name}.embed_avg"] = (config.codebook_size, config.codebook_dim)
        layout[f"{name}.cluster_size"] = (config.codebook_size,)
        layout[f"{name}.inited"] = (1,)
    layout["decoder_semantic.conv1.weight"] = layout["decoder_semantic.conv2.weight"] = (width, width, 3)
    for b in range(encoder.semantic_blocks):
        layout |= _affine(f"decoder_semantic.conv_blocks.{b}.conv", width, width, 3)
        for u in range(encoder.semantic_units):
            layout[f"decoder_semantic.conv_blocks.{b}.res_units.{u}.conv1.weight"] = (width, width, 3)
            layout[f"decoder_semantic.conv_blocks.{b}.res_units.{u}.conv2.weight"] = (width, width, 1)
    return layout | _affine("fc1", width, config.rvq_width)


def _acoustic_encoder(config: CodecConfig, encoder: EncoderConfig) -> Layout:
    layout = _affine("acoustic_encoder.conv1", encoder.widths[0], 1, 7)
    for b, ((cin, cout), stride) in enumerate(zip(pairwise(encoder.widths), encoder.strides, strict=True)):
        name = f"acoustic_encoder.block.{b}"
        layout |= _residual_units(name, cin)
        layout[f"{name}.snake1.alpha"] = (1, cin, 1)
        layout |= _affine(f"{name}.conv1", cout, cin, 2 * stride)
    layout["acoustic_encoder.snake1.alpha"] = (1, encoder.widths[-1], 1)
    return layout | _affine("acoustic_encoder.conv2", config.latent, encoder.widths[-1], 3)


def _hubert(config: HubertConfig) -> Layout:
    layout: Layout = {}
    for i, kernel in enumerate(config.conv_kernels):
        cin = config.conv_width if i else 1
        layout[f"semantic_model.feature_extractor.conv_layers.{i}.conv.weight"] = (config.conv_width, cin, kernel)
    layout |= _affine("semantic_model.feature_extractor.conv_layers.0.layer_norm", config.conv_width)
    layout |= _affine("semantic_model.feature_projection.layer_norm", config.conv_width)
    layout |= _affine("semantic_model.feature_projection.projection", config.width, config.conv_width)
    name = "semantic_model.encoder.pos_conv_embed.conv"
    layout[f"{name}.parametrizations.weight.original0"] = (1, 1, config.pos_kernel)
    layout[f"{name}.parametrizations.weight.original1"] = (
        config.width, config.width // config.pos_groups, config.pos_kernel,
    )  # fmt: skip
    layout[f"{name}.bias"] = (config.width,)
    layout |= _affine("semantic_model.encoder.layer_norm", config.width)
    for i in range(config.layers):
        name = f"semantic_model.encoder.layers.{i}"
        for part in ("q", "k", "v", "out"):
            layout |= _affine(f"{name}.attention.{part}_proj", config.width, config.width)
        layout |= _affine(f"{name}.layer_norm", config.width) | _affine(f"{name}.final_layer_norm", config.width)
        layout |= _affine(f"{name}.feed_forward.intermediate_dense", config.ffn, config.width)
        layout |= _affine(f"{name}.feed_forward.output_dense", config.width, config.ffn)
    return layout


def _residual_units(name: str, width: int) -> Layout:
    layout: Layout = {}
    for u in (1, 2, 3):
        layout[f"{name}.res_unit{u}.snake1.alpha"] = layout[f"{name}.res_unit{u}.snake2.alpha"] = (1, width, 1)
        layout |= _affine(f"{name}.res_unit{u}.conv1", width, width, 7)
        layout |= _affine(f"{name}.res_unit{u}.conv2", width, width, 1)
    return layout


def _affine(name: str, *shape: int) -> Layout:
    return {f"{name}.weight": shape, f"{name}.bias": shape[:1]}
