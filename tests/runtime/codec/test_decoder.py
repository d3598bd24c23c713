"""The decoder against the tokenizer class of transformers with the same random weights."""

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from octavo.bench.codec_reference import DECODER, reference_tokenizer
from octavo.runtime.checkpoint import Weights
from octavo.runtime.codec import Codec, decoder
from octavo.runtime.codec.decoder import Upsample, fold_lookup


@torch.no_grad()
def decode(reference: Any, codes: torch.Tensor) -> torch.Tensor:
    return reference.decode(codes).audio_values[:, 0]


def distance(got: torch.Tensor, want: torch.Tensor) -> float:
    return ((got.double() - want.double()).norm() / want.double().norm()).item()


@pytest.mark.parametrize("T", [1, 2, 5, 37, 60])
def test_equals_transformers_fp64(reference64: Any, codec64: Codec, codes: torch.Tensor, T: int) -> None:
    got, want = codec64.decoder(codes[..., :T]), decode(reference64, codes[..., :T])
    assert got.shape == want.shape == (2, 960 * T)
    assert distance(got, want) < 1e-13


def test_equals_transformers_fp32_1_to_60_frames(reference: Any, codec: Codec, codes: torch.Tensor) -> None:
    for T in range(1, 61):
        some = codes[:1, :, 60 - T :]
        got, want = codec.decoder(some), decode(reference, some)
        assert got.dtype == torch.float32 and got.shape == want.shape
        assert distance(got, want) < 1e-5, T


def test_fp32_is_as_near_to_fp64_as_the_reference(
    reference: Any, reference64: Any, codec: Codec, codes: torch.Tensor
) -> None:
    exact = decode(reference64, codes)
    assert distance(codec.decoder(codes), exact) < 2 * distance(decode(reference, codes), exact)


def test_real_width(codes: torch.Tensor) -> None:
    reference = reference_tokenizer(DECODER)
    codec = Codec.load(Weights(reference.state_dict()), "cpu")
    assert codec.config.widths == (1024, 512, 256, 128, 64, 32) and codec.config.rvq_width == 1024
    for some in (codes[:, :, :1], codes[:1, :, :17]):
        assert distance(codec.decoder(some), decode(reference, some)) < 1e-5
    ours, theirs, exact = codec.decoder(some), decode(reference, some), decode(reference.double(), some)
    assert distance(ours, exact) < 2 * distance(theirs, exact)


def test_long_utterance(reference: Any, codec: Codec, monkeypatch: pytest.MonkeyPatch) -> None:
    """More than 512 frames, where ports switch to windows with too little context; here it is cut into pieces."""
    codes = torch.randint(0, 1024, (1, 8, 530), generator=torch.Generator().manual_seed(1))
    want = decode(reference, codes)
    assert distance(codec.decoder(codes), want) < 1e-5
    monkeypatch.setattr(decoder, "PIECE", 1)
    assert distance(codec.decoder(codes), want) < 1e-5


@pytest.mark.parametrize("T", [1, 33, 60, 113])
def test_pieces_make_the_whole(codec64: Codec, monkeypatch: pytest.MonkeyPatch, T: int) -> None:
    codes = torch.randint(0, 1024, (2, 8, T), generator=torch.Generator().manual_seed(T))
    monkeypatch.setattr(decoder, "PIECE", 1 << 40)
    want = codec64.decoder(codes)
    monkeypatch.setattr(decoder, "PIECE", 1)
    got = codec64.decoder(codes)
    assert got.shape == want.shape and distance(got, want) < 1e-13


def test_not_clipped(codec: Codec, codes: torch.Tensor) -> None:
    assert codec.decoder(codes).abs().max() > 1.5  # a tanh or a clamp would hold it below 1


def test_receptive_field(codec64: Codec) -> None:
    """Frame 20 of 41 is heard from sample 960 * 20 - 9458 to 960 * 20 + 959 + 9433.

    Without biases and with silence around it, so that the faintest echo counts: beside sound it would be rounded away.
    """
    silent = copy.deepcopy(codec64.decoder)
    for name, parameter in silent.named_parameters():
        if name.endswith("bias"):
            parameter.zero_()
    silent.table[::2] = 0
    codes = torch.zeros(1, 8, 41, dtype=torch.int64)
    codes[:, :, 20] = 1
    heard = silent(codes)[0].nonzero().flatten()
    assert (heard.min().item(), heard.max().item()) == (9742, 29592)


@pytest.mark.parametrize("left, right, equal", [(10, 10, True), (9, 10, False), (10, 9, False)])
def test_window(codec64: Codec, codes: torch.Tensor, left: int, right: int, equal: bool) -> None:
    whole = codec64.decoder(codes[:1])[0, 960 * 25 : 960 * 30]
    window = codec64.decoder(codes[:1, :, 25 - left : 30 + right])[0, 960 * left : 960 * (left + 5)]
    assert (distance(window, whole) < 1e-13) == equal


@pytest.mark.parametrize("stride", [2, 3, 4, 5, 8])
@pytest.mark.parametrize("n", [1, 2, 7])
def test_upsample_is_the_transposed_convolution(stride: int, n: int) -> None:
    generator = torch.Generator().manual_seed(stride)
    weight = torch.randn(6, 5, 2 * stride, generator=generator, dtype=torch.float64)
    bias, alpha = torch.randn(5, generator=generator).double(), torch.rand(1, 6, 1, generator=generator) + 0.3
    x = torch.randn(2, n, 6, generator=generator, dtype=torch.float64)
    tensors = {"b.conv_t1.weight": weight, "b.conv_t1.bias": bias, "b.snake1.alpha": alpha}
    layer = Upsample(Weights(tensors), "b", 6, 5, stride, torch.float64)
    got, _ = decoder.advance(layer, x, None, last=True)
    activated = x + torch.sin(alpha.flatten() * x) ** 2 / (alpha.flatten().double() + 1e-9)
    want = F.conv_transpose1d(
        activated.transpose(1, 2), weight, bias, stride, padding=-(-stride // 2), output_padding=stride % 2
    )
    assert got.shape == (2, n * stride, 5)
    torch.testing.assert_close(got, want.transpose(1, 2), rtol=1e-12, atol=1e-12)


def test_folded_lookup(reference64: Any, codec64: Codec, codes: torch.Tensor) -> None:
    with torch.no_grad():
        unfolded = reference64.fc2(reference64.quantizer.decode(codes.transpose(0, 1)).transpose(1, 2))
    torch.testing.assert_close(codec64.decoder.lookup(codes), unfolded, rtol=1e-12, atol=1e-12)


def test_lookup_is_folded_above_the_stored_precision(reference: Any, codec64: Codec) -> None:
    stored = {name: tensor.bfloat16() for name, tensor in reference.state_dict().items()}
    table, bias = fold_lookup(Weights(stored), codec64.config)
    assert table.dtype == bias.dtype == torch.float64
    torch.testing.assert_close(table, codec64.decoder.table.data, rtol=1e-12, atol=1e-12)


def test_what_is_no_code_counts_as_zero(codec: Codec, codes: torch.Tensor) -> None:
    """Never as 1023, and never as an index beyond the table."""
    wrong, zeros, clamped = codes.clone(), codes.clone(), codes.clone()
    for q, t, value in ((0, 5, 1024), (3, 6, 1025), (7, 59, -1), (2, 0, 70_000), (7, 30, 1024)):
        wrong[0, q, t], zeros[0, q, t], clamped[0, q, t] = value, 0, min(value, 1023)
    assert torch.equal(codec.decoder(wrong), codec.decoder(zeros))
    assert not torch.equal(codec.decoder(wrong), codec.decoder(clamped.clamp(0)))


def test_bf16_is_near(reference: Any, codec: Codec, codes: torch.Tensor) -> None:
    half = Codec.load(Weights(reference.state_dict()), "cpu", torch.bfloat16)
    got = half.decoder(codes)
    assert got.dtype == torch.float32 and distance(got, codec.decoder(codes)) < 0.1
