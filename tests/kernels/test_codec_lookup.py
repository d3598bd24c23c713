"""The codec's lookup kernel against its reference: delayed rows, values that are no code, frames behind the end."""

import pytest
import torch

from octavo.kernels.codec_lookup import codec_lookup, codec_lookup_ref

from . import codec_pass


@pytest.mark.parametrize("L, size", [(256, 1024), (17, 5)])
def test_codec_lookup(L, size, triton_device):
    generator = torch.Generator().manual_seed(0)
    # Each slot's rows end with the last row of its last real frame: whoever reads on reads the next slot's.
    codes = torch.randint(-2, size + 2, (5, 20, 8), generator=generator).to(triton_device, torch.int16)
    table = torch.randn(8 * size, L, generator=generator).to(triton_device)
    bias = torch.randn(L, generator=generator).to(triton_device)
    table_of_pass = codec_pass.frames(triton_device)
    got, want = (torch.full((codec_pass.FRAMES, L), 77.0, device=triton_device) for _ in "gw")
    codec_lookup(codes, table_of_pass, table, bias, got)
    codec_lookup_ref(codes, table_of_pass, table, bias, want)
    torch.testing.assert_close(got, want, atol=1e-5, rtol=1e-5)
    real = sum(max(0, min(count, end - pos)) for _, _, pos, count, end, _ in codec_pass.PARTS)
    assert (got != 77).all(1).sum() == real


def test_a_value_that_is_no_code_counts_as_zero(triton_device):
    codes = torch.zeros(5, 20, 8, dtype=torch.int16, device=triton_device)
    table = torch.randn(8 * 1024, 16, generator=torch.Generator().manual_seed(0)).to(triton_device)
    sounds = []
    for value in (0, 1024, 1025, -1, 32767):
        codes[0, 3, 3] = value  # frame 0 of slot 0, codebook 3
        out = torch.zeros(codec_pass.FRAMES, 16, device=triton_device)
        sounds.append(codec_lookup(codes, codec_pass.frames(triton_device), table, table[0], out))
    assert all(torch.equal(sound, sounds[0]) for sound in sounds)
