"""The convolution with fewer products against the plain one."""

import pytest
import torch
import torch.nn.functional as F

from octavo.runtime.codec.fir import fir, fir_pays
from octavo.runtime.codec.layers import Conv


@pytest.mark.parametrize("taps", [4, 5, 7])
@pytest.mark.parametrize("dilation", [1, 3, 9])
@pytest.mark.parametrize("rows", [1, 2, 35, 36, 37, 200])
def test_equals_the_convolution(rows: int, dilation: int, taps: int) -> None:
    generator = torch.Generator().manual_seed(rows)
    x = torch.randn(rows + (taps - 1) * dilation, 6, generator=generator, dtype=torch.float64)
    weight = torch.randn(5, 6, 1, taps, generator=generator, dtype=torch.float64)
    got = fir(x, weight, dilation)
    want = F.conv1d(x.T[None], weight[:, :, 0], dilation=dilation)[0].T
    assert got.shape == want.shape == (rows, 5)
    torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-12)


def test_rounding() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(1000, 128, generator=generator)
    weight = torch.randn(128, 128, 1, 7, generator=generator)
    exact = fir(x.double(), weight.double(), 3)
    plain = F.conv1d(x.T[None], weight[:, :, 0], dilation=3)[0].T
    assert (fir(x, weight, 3) - exact).norm() < 3 * (plain - exact).norm()


def test_where_it_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    conv = Conv(torch.randn(128, 128, 7), torch.randn(128), torch.float32, dilation=3)
    used = {n: fir_pays(torch.zeros(1, n, 128), conv.weight, 3) for n in (160, 161, 162, 1000)}
    assert used == {160: False, 161: False, 162: True, 1000: True}
    assert not fir_pays(torch.zeros(2, 1000, 128), conv.weight, 3)
    assert not fir_pays(torch.zeros(1, 1000, 128, dtype=torch.float64), conv.weight.double(), 3)
    assert not fir_pays(torch.zeros(1, 1000, 64), conv.weight[:64, :64], 3)
    x = torch.randn(1, 300, 128)
    with_fir = conv(x)
    monkeypatch.setattr("octavo.runtime.codec.layers.fir_pays", lambda *_: False)
    torch.testing.assert_close(with_fir, conv(x), rtol=1e-4, atol=1e-4)
