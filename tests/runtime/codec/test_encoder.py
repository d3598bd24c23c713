"""The encoder against the tokenizer class of transformers with the same random weights."""

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from octavo.bench.codec_reference import hann_sinc_resample
from octavo.runtime.checkpoint import Weights
from octavo.runtime.codec import Codec
from octavo.runtime.codec.encoder import CodecEncoder, acoustic_frames
from octavo.runtime.codec.hubert import position_conv
from octavo.runtime.codec.resample import resample


@torch.no_grad()
def encode(reference: Any, sound: torch.Tensor) -> torch.Tensor:
    return reference.encode(sound[None, None]).audio_codes[0]


def frames_of(sound: np.ndarray, frames: int) -> np.ndarray:
    """So many frames, each time from another place."""
    begin = (frames * 7919) % (len(sound) - frames * 960)
    return sound[begin : begin + frames * 960]


def test_voiced_sound_1_to_60_frames_fp64(reference64: Any, encoder64: CodecEncoder, voiced: np.ndarray) -> None:
    """fp64, where no tie is near: all codes are equal."""
    for T in (*range(1, 26, 6), *range(26, 61)):
        sound = torch.from_numpy(frames_of(voiced, T)).double()
        sound = F.pad(sound, (0, max(0, 24_000 - len(sound))))
        assert torch.equal(encoder64(sound), encode(reference64, sound)), T


@pytest.mark.parametrize("source", ["voiced", "spoken"])
def test_codec_encode_1_to_60_frames_fp32(
    reference: Any, codec: Codec, source: str, request: pytest.FixtureRequest
) -> None:
    sound = request.getfixturevalue(source)
    for T in (1, 2, 12, 24, 25, 26, 37, 48, 60):
        clip = frames_of(sound, T)
        padded = np.pad(clip, (0, max(0, 24_000 - len(clip))))
        got, want = codec.encode(clip), encode(reference, torch.from_numpy(padded))
        assert got.dtype == np.int16 and got.shape == (max(25, T), 8)
        assert np.array_equal(got, want.T.numpy()), T
        assert len(np.unique(got)) > 50  # else it would compare one silence with another


@pytest.mark.parametrize("length", [24_000, 24_118, 24_119, 24_300, 24_631, 24_632, 24_959])
def test_frame_count_and_codes_between_frames(
    reference64: Any, encoder64: CodecEncoder, voiced: np.ndarray, length: int
) -> None:
    """The two branches disagree for 119 <= L mod 960 <= 631, and half a frame of zeros on each side reconciles them."""
    sound = torch.from_numpy(voiced[:length]).double()
    codes = encoder64(sound)
    assert codes.shape[1] == length // 960 + (length % 960 >= 119)
    assert (acoustic_frames(encoder64.encoder, length) == codes.shape[1]) == (not 119 <= length % 960 <= 631)
    assert torch.equal(codes, encode(reference64, sound))


@pytest.mark.parametrize("length", [1, 200, 4_801, 23_999])
def test_clips_under_one_second(codec: Codec, reference: Any, voiced: np.ndarray, length: int) -> None:
    clip = voiced[20_000 : 20_000 + length]
    want = encode(reference, F.pad(torch.from_numpy(clip), (0, 24_000 - length)))
    assert np.array_equal(codec.encode(clip), want.T.numpy())


def test_length_is_rounded_up_to_whole_frames(codec: Codec, reference: Any, voiced: np.ndarray) -> None:
    """As the feature extractor of transformers does."""
    clip = voiced[: 30 * 960 + 300]
    want = encode(reference, F.pad(torch.from_numpy(clip), (0, 660)))
    got = codec.encode(clip)
    assert got.shape == (31, 8) and np.array_equal(got, want.T.numpy())


@pytest.mark.parametrize("rates", [(24_000, 16_000), (48_000, 24_000), (16_000, 24_000), (22_050, 24_000)])
@pytest.mark.parametrize("length", [1, 2, 999, 24_001])
def test_resampler(rates: tuple[int, int], length: int) -> None:
    x = np.random.default_rng(0).normal(size=(2, length))
    got = resample(torch.from_numpy(x), *rates)
    assert got.shape == (2, -(-length * rates[1] // rates[0]))
    np.testing.assert_allclose(got.numpy(), hann_sinc_resample(x, *rates), atol=1e-14)
    single = resample(torch.from_numpy(x).float(), *rates)
    np.testing.assert_allclose(single.numpy(), hann_sinc_resample(x, *rates), atol=2e-6)


def test_resampler_keeps_a_tone() -> None:
    t = np.arange(24_000) / 24_000
    got = resample(torch.from_numpy(np.sin(2 * np.pi * 440 * t))[None], 24_000, 16_000)[0].numpy()
    np.testing.assert_allclose(got[100:-100], np.sin(2 * np.pi * 440 * np.arange(16_000) / 16_000)[100:-100], atol=2e-3)


def test_mean_of_all_hidden_states(reference64: Any, encoder64: CodecEncoder, voiced: np.ndarray) -> None:
    """The states after the positions and after each layer: one more than layers."""
    sound = torch.from_numpy(voiced[None, :16_320]).double()
    with torch.no_grad():
        states = reference64.semantic_model(sound, output_hidden_states=True).hidden_states
    assert len(states) == len(encoder64.hubert.layers) + 1
    mean = torch.stack(states).mean(0)
    with torch.no_grad():
        torch.testing.assert_close(encoder64.hubert(sound), mean, rtol=1e-10, atol=1e-10)
    assert not torch.allclose(torch.stack(states[1:]).mean(0), mean, rtol=1e-3)


def test_positional_convolution_is_folded(reference64: Any, codec64: Codec) -> None:
    assert codec64.config.encoder is not None
    weight, _ = position_conv(Weights(reference64.state_dict()), codec64.config.encoder.hubert)
    want = reference64.semantic_model.encoder.pos_conv_embed.conv.weight
    torch.testing.assert_close(weight, want.detach(), rtol=1e-12, atol=1e-12)


def quantise_by_hand(reference: Any, z: np.ndarray) -> np.ndarray:
    """Frame by frame, with plain distances: z [T, width] -> codes [codebooks, T]."""
    codes = []
    for quantizer in reference.quantizer.quantizers:
        parts = (quantizer.project_in, quantizer.project_out)
        (w_in, b_in), (w_out, b_out) = ((p.weight.detach().numpy(), p.bias.detach().numpy()) for p in parts)
        embed = quantizer.codebook.embed.numpy()
        row = np.array([((w_in @ frame + b_in - embed) ** 2).sum(1).argmin() for frame in z])
        z = np.stack([frame - (w_out @ embed[code] + b_out) for frame, code in zip(z, row, strict=True)])
        codes.append(row)
    return np.stack(codes)


def test_residual_is_taken_frame_by_frame(reference64: Any, codec64: Codec, encoder64: CodecEncoder) -> None:
    """A known slip: the residual read with the strides of a transposed tensor (as many frames as channels here)."""
    width = codec64.config.rvq_width
    z = torch.randn(width, width, generator=torch.Generator().manual_seed(0), dtype=torch.float64).T  # strided
    got = encoder64.quantise(z)
    assert np.array_equal(got.numpy(), quantise_by_hand(reference64, z.numpy()))
    project_out, embed = encoder64.project_out[0], encoder64.embed[0]
    slipped = z - project_out(embed[got[0]]).T  # what the slip makes of the first residue
    right = z - project_out(embed[got[0]])
    rest = quantise_by_hand(reference64, right.numpy())[1], quantise_by_hand(reference64, slipped.numpy())[1]
    assert not np.array_equal(*rest)


def test_first_of_equally_near_entries(reference64: Any, codec64: Codec) -> None:
    tensors = dict(reference64.state_dict())
    name = "quantizer.quantizers.0.codebook.embed"
    tensors[name] = tensors[name][:512].repeat(2, 1)  # entry k again at k + 512
    encoder = CodecEncoder(Weights(tensors), codec64.config, torch.float64)
    z = torch.randn(50, codec64.config.rvq_width, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    codes = encoder.quantise(z)[0]
    assert codes.max() < 512 and len(codes.unique()) > 10
