"""What is read off the tensors' shapes, and the inventory of all tensors."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from octavo.runtime.checkpoint import Weights
from octavo.runtime.codec import Codec, CodecConfig
from octavo.runtime.codec.layout import decoder_layout, encoder_layout, unused_layout
from octavo.runtime.errors import CheckpointError

PREFIX = "tied.embedding.modality_embeddings.0.model."


@pytest.fixture(scope="module")
def published(shared: Path) -> dict[str, torch.Tensor]:
    """The published tensors without data."""
    shapes = json.loads((shared / "spec" / "codec_tensors.json").read_text())
    return {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}


def test_inventory_is_the_published_one(published: dict[str, torch.Tensor]) -> None:
    config = CodecConfig.from_weights(Weights(published, PREFIX))
    decode, encode, unused = decoder_layout(config), encoder_layout(config), unused_layout(config)
    assert len(decode) == 136
    assert sum(torch.Size(shape).numel() for shape in decode.values()) == 21_557_281
    ours = decode | encode | unused
    assert len(ours) == len(decode) + len(encode) + len(unused) == 528
    assert {PREFIX + name: shape for name, shape in ours.items()} == {
        name: tuple(tensor.shape) for name, tensor in published.items()
    }
    assert sum(torch.Size(shape).numel() for shape in ours.values()) == 201_401_321


def test_published_widths(published: dict[str, torch.Tensor]) -> None:
    config = CodecConfig.from_weights(Weights(published, PREFIX))
    assert (config.codebooks, config.codebook_size, config.codebook_dim) == (8, 1024, 64)
    assert config.widths == (1024, 512, 256, 128, 64, 32) and config.strides == (8, 5, 4, 2, 3) and config.hop == 960
    assert config.encoder is not None and config.encoder.hubert.heads == 12 and config.encoder.hubert.layers == 12


def test_narrow_widths(reference: Any) -> None:
    config = CodecConfig.from_weights(Weights(reference.state_dict()))
    assert config.widths == (64, 32, 16, 8, 4, 2) and config.latent == 16 and config.rvq_width == 48
    assert config.encoder is not None and config.encoder.hubert.heads == 1 and config.encoder.hubert.pos_groups == 16
    ours = decoder_layout(config) | encoder_layout(config) | unused_layout(config)
    del ours["semantic_model.masked_spec_embed"]  # absent from the reference unless it trains with masks
    assert ours == {name: tuple(tensor.shape) for name, tensor in reference.state_dict().items()}


def test_only_decoder_tensors_are_read(reference: Any) -> None:
    weights = Weights(reference.state_dict())
    codec = Codec.load(weights, "cpu")
    assert weights.taken == decoder_layout(codec.config).keys() and len(weights.taken) == 136


def test_parameters_are_copies(reference: Any, codec: Codec) -> None:
    """The checkpoint is mapped: a parameter that aliases it would change with the file."""
    stored = {tensor.untyped_storage().data_ptr() for tensor in reference.state_dict().values()}
    codec.encode(torch.zeros(24_000).numpy())
    modules = (codec.decoder, codec._load_encoder())
    assert not stored & {p.untyped_storage().data_ptr() for module in modules for p in module.parameters()}


@pytest.mark.parametrize(
    "name, shape, sentence",
    [
        ("acoustic_decoder.block.1.conv_t1.weight", (32, 16, 12), "samples per frame"),
        ("acoustic_decoder.block.1.conv_t1.weight", (32, 16, 11), "samples per frame"),
        ("acoustic_encoder.block.4.conv1.weight", (128, 64, 8), "encoder has kernels"),
        ("acoustic_decoder.block.2.res_unit2.conv1.weight", (8, 9, 7), "has shape"),
        ("encoder_semantic.conv.weight", (32, 32, 5), "must be"),
        ("semantic_model.encoder.pos_conv_embed.conv.parametrizations.weight.original1", (33, 2, 128), "joins 16"),
        ("quantizer.quantizers.3.project_out.bias", None, "missing"),
        ("semantic_model.encoder.layers.1.attention.k_proj.bias", None, "missing"),
        ("acoustic_decoder.block.0.conv_t1.weight", None, "missing"),
        ("fc2.weight", None, "missing"),
        ("fc2.weight", (768,), "not 2 sizes"),
        ("acoustic_decoder.block.3.conv_t1.weight", (8, 4), "not 3 sizes"),
        ("semantic_model.encoder.pos_conv_embed.conv.parametrizations.weight.original1", (32, 0, 128), "not 3 sizes"),
    ],
)
def test_contradictions(reference: Any, name: str, shape: tuple[int, ...] | None, sentence: str) -> None:
    tensors = dict(reference.state_dict())
    del tensors[name]
    if shape:
        tensors[name] = torch.zeros(shape)
    with pytest.raises(CheckpointError, match=sentence):
        Codec.load(Weights(tensors), "cpu")
