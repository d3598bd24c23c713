"""The residual unit's kernel against its reference, which is two convolutions."""

import pytest
import torch

from octavo.kernels.codec_unit import Unit, codec_unit, codec_unit_ref

from . import codec_pass
from .test_codec_conv import TOLERANCES


@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
@pytest.mark.parametrize("C, rate, d", [(32, 5, 1), (128, 3, 3), (16, 7, 9), (10, 3, 3)])
def test_codec_unit(C, rate, d, dtype, triton_device):
    window = codec_pass.window(triton_device, C, rate, 6 * d, delay=rate + 2)
    unit = Unit(
        codec_pass.activation(C, triton_device),
        codec_pass.weight(7, C, C, seed=1, device=triton_device),
        torch.linspace(-1, 1, C, device=triton_device),
        tuple(half.flip(0) for half in codec_pass.activation(C, triton_device)),
        codec_pass.weight(1, C, C, seed=2, device=triton_device),
        torch.linspace(1, -1, C, device=triton_device),
    )
    got, want = (torch.full((len(window.x), C), 77.0, device=triton_device) for _ in "gw")
    reference = codec_pass.copy(window)
    codec_unit(window, unit._replace(conv1=unit.conv1.to(dtype), conv2=unit.conv2.to(dtype)), got)
    codec_unit_ref(reference, unit, want)
    inside = codec_pass.inside(window, window.delay + 3 * d)
    assert want[inside].isfinite().all() and inside.any()
    torch.testing.assert_close(got[inside], want[inside], atol=TOLERANCES[dtype], rtol=TOLERANCES[dtype])
    assert (got[-3 * rate :] == 77).all(), "idle rows were written"
    torch.testing.assert_close(window.tails, reference.tails, equal_nan=True, rtol=0, atol=0)
