"""The activation of the codec against its equation in fp64."""

import pytest
import torch

from octavo.kernels.launch import jit, tl
from octavo.kernels.snake import snake, snake_of, snake_reciprocal

TOL = {torch.float64: 1e-15, torch.float32: 3e-7, torch.bfloat16: 8e-3, torch.float16: 1e-3}  # about two ulp


def equation(x: torch.Tensor, alpha: torch.Tensor) -> torch.Tensor:
    x, alpha = x.double(), alpha.double()
    return x + torch.sin(alpha * x) ** 2 / (alpha + 1e-9)


@pytest.mark.parametrize("dtype", TOL, ids=str)
@pytest.mark.parametrize("shape", [(1, 1, 1), (2, 63, 7), (3, 5, 123)])
@pytest.mark.parametrize("strided", [False, True])
def test_equation(shape: tuple[int, ...], dtype: torch.dtype, strided: bool, device: torch.device) -> None:
    generator = torch.Generator().manual_seed(0)
    x = (3 * torch.randn(*shape[:-1], shape[-1] * (1 + strided), generator=generator))[..., : shape[-1]]
    x = x.to(device, dtype)
    alpha = (0.3 + 1.7 * torch.rand(shape[-1], generator=generator)).to(
        device, torch.promote_types(dtype, torch.float32)
    )
    torch.testing.assert_close(snake(x, alpha, snake_reciprocal(alpha)).double(), equation(x, alpha), atol=TOL[dtype],
                               rtol=TOL[dtype])  # fmt: skip


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_in_place_and_into_a_hole(dtype: torch.dtype, device: torch.device) -> None:
    x = torch.randn(2, 63, 7, device=device).to(dtype)
    alpha = torch.rand(7, device=device) + 0.3
    want = snake(x, alpha, snake_reciprocal(alpha))
    wide = torch.full((2, 63, 9), torch.nan, device=device, dtype=dtype)
    snake(x, alpha, snake_reciprocal(alpha), out=wide[..., 1:8])
    assert torch.equal(wide[..., 1:8], want) and wide[..., [0, 8]].isnan().all()
    snake(x, alpha, snake_reciprocal(alpha), out=x)
    assert torch.equal(x, want)


def test_small_alpha_and_large_argument() -> None:
    """A near-zero alpha overflows in half precision, a fast sine fails far from zero."""
    alpha = torch.tensor([1e-7, 0.5, 2.0])
    x = torch.tensor([[1.0, 4000.0, -9000.0]])
    y = snake(x, alpha, snake_reciprocal(alpha))
    sine = torch.sin((alpha * x).double())  # of the rounded product: one ulp of 18,000 is 2e-3
    torch.testing.assert_close(y.double(), x + sine**2 / (alpha.double() + 1e-9), rtol=1e-6, atol=1e-6)
    half = snake(x.half(), alpha, snake_reciprocal(alpha))
    assert half.isfinite().all()


@jit
def _kernel(x_ptr, alpha_ptr, reciprocal_ptr, y_ptr, N: tl.constexpr):
    n = tl.arange(0, N)
    y = snake_of(tl.load(x_ptr + n), tl.load(alpha_ptr + n), tl.load(reciprocal_ptr + n))
    tl.store(y_ptr + n, y)


@pytest.mark.parametrize("scale, tolerance", [(1.0, 5e-7), (100.0, 2e-5), (3e4, 5e-3)])
def test_the_kernels_snake(scale: float, tolerance: float, triton_device: torch.device) -> None:
    """Absolute: far from zero the rounding of alpha * x decides, half an ulp of it."""
    generator = torch.Generator().manual_seed(0)
    x = (scale * torch.randn(4096, generator=generator)).to(triton_device)
    alpha = (0.3 + 1.7 * torch.rand(4096, generator=generator)).to(triton_device)
    y = torch.empty_like(x)
    _kernel[(1,)](x, alpha, snake_reciprocal(alpha), y, N=4096)
    error = ((y.double() - x.double()) - (equation(x, alpha) - x.double())) * (alpha + 1e-9)
    ulp = x.double().abs() * 2.0**-23  # of y, into which the square of the sine is added
    assert (error.abs() <= tolerance + ulp * alpha).all(), error.abs().max()


@pytest.mark.filterwarnings("ignore:invalid value")
def test_the_kernels_snake_at_the_extremes(triton_device: torch.device) -> None:
    x = torch.tensor([0.0, 1.0, 1e7, -3e8, 1e30, torch.inf, -torch.inf, torch.nan], device=triton_device)
    alpha = torch.tensor([1.0, 1e-7, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0], device=triton_device)
    y = torch.empty_like(x)
    _kernel[(1,)](x, alpha, snake_reciprocal(alpha), y, N=8)
    torch.testing.assert_close(y[:2].double(), equation(x, alpha)[:2], rtol=1e-6, atol=0)
    assert ((y - x)[2:4] >= 0).all() and ((y - x)[2:4] <= 32).all()  # no more than one ulp of x
    assert torch.equal(y[4:7], x[4:7]) and y[7].isnan()
