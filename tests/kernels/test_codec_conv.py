"""The codec's convolution kernel against its reference: all its uses, ragged parts, stale rows, odd widths."""

import pytest
import torch

from octavo.kernels.codec_conv import codec_conv, codec_conv_ref, tiles

from . import codec_pass

# bf16 weights: 16 bits of each activation; TF32: 11; the interpreter computes in fp32
TOLERANCES = {torch.bfloat16: 1e-4, torch.float32: 3e-3}


@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
@pytest.mark.parametrize(
    "K, C, N, rate, tail, snake, skip",
    [
        (7, 16, 64, 1, 6, False, 0),  # the first one
        (7, 32, 32, 5, 18, True, 0),
        (7, 24, 24, 3, 54, True, 0),
        (1, 32, 32, 5, 0, True, 18),
        (1, 10, 10, 3, 0, True, 6),
        (2, 64, 160, 3, 1, True, 0),  # a transposed one of stride 5
        (2, 6, 9, 2, 1, True, 0),
    ],
)
def test_codec_conv(K, C, N, rate, tail, snake, skip, dtype, triton_device):
    delay = 2 * rate + 1
    window = codec_pass.window(triton_device, C, rate, tail, delay)
    weight = codec_pass.weight(K, C, N, seed=1, device=triton_device)
    bias = torch.linspace(-1, 1, N, device=triton_device)
    activation = codec_pass.activation(C, triton_device) if snake else None
    skipped = codec_pass.window(triton_device, N, rate, skip, delay - skip // 2, seed=2) if skip else None
    got, want = (torch.full((len(window.x), N), 77.0, device=triton_device) for _ in "gw")
    reference = codec_pass.copy(window)
    codec_conv(window, weight.to(dtype), bias, got, activation, skipped)
    codec_conv_ref(reference, weight, bias, want, activation, skipped)
    assert want.isfinite().all(), "the reference let something in that does not count"
    torch.testing.assert_close(got, want, atol=TOLERANCES[dtype], rtol=TOLERANCES[dtype])
    assert (got[-3 * rate :] == 77).all(), "idle rows were written"
    for seat, _, _, _, _, parity in codec_pass.PARTS:
        torch.testing.assert_close(
            window.tails[1 - parity, seat], reference.tails[1 - parity, seat], equal_nan=True, rtol=0, atol=0
        )
        torch.testing.assert_close(window.tails[:, 4], reference.tails[:, 4], rtol=0, atol=0)  # nobody's


@pytest.mark.parametrize("M", [1, 16, 17, 100, 2000])
def test_tiles_cover_what_they_must(M):
    """The real widths: every N is whole tiles, every C whole blocks."""
    for C, N in [(256, 1024), (1024, 4096), (512, 512), (512, 1280), (256, 256), (256, 512), (128, 128), (64, 96)]:
        BLOCK_M, BLOCK_N, BLOCK_K, _ = tiles(M, N, C, 132)
        assert N % BLOCK_N == 0 and C % BLOCK_K == 0 and min(BLOCK_M, BLOCK_N, BLOCK_K) >= 16
