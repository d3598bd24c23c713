"""The codec's last kernel against its reference."""

import pytest
import torch

from octavo.kernels.codec_head import codec_head, codec_head_ref

from . import codec_pass


@pytest.mark.parametrize("C, rate", [(32, 7), (5, 30), (2, 3)])
def test_codec_head(C, rate, triton_device):
    window = codec_pass.window(triton_device, C, rate, 6, delay=rate + 2)
    weight = codec_pass.weight(7, C, seed=1, device=triton_device)
    activation = codec_pass.activation(C, triton_device)
    bias = torch.tensor([0.25], device=triton_device)
    got, want = (torch.full((len(window.x),), 77.0, device=triton_device) for _ in "gw")
    reference = codec_pass.copy(window)
    codec_head(window, activation, weight, bias, got)
    codec_head_ref(reference, activation, weight, bias, want)
    torch.testing.assert_close(got, want, atol=1e-5, rtol=1e-5)
    assert (got[-3 * rate :] == 77).all(), "idle rows were written"
    torch.testing.assert_close(window.tails, reference.tails, equal_nan=True, rtol=0, atol=0)
