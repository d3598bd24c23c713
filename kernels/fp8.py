"""Weights as fp8 (e4m3) with a scale for each row: W[o, i] = codes[o, i] * scale[o].

Up to 16 rows of x, and wherever a row's bits must not hang on the others: decoded in registers, x as it is, on any GPU.
More rows where there are fp8 matrix units: x in fp8 too, each row with a scale of its own, by torch._scaled_mm.
"""

from __future__ import annotations

import torch

from .byte_code import Bytes
from .byte_linear import after
from .byte_weight import ByteWeight
from .fp8_rows import fp8_rows
from .linear_tile import SKINNY


def has_fp8_products(device: torch.device) -> bool:
    """Whether torch._scaled_mm computes here."""
    return device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 9)


class Fp8(ByteWeight):
    @classmethod
    def pack(cls, codes: torch.Tensor, scale: torch.Tensor, device: torch.device) -> Fp8:
        """codes: [OUT, IN] float8_e4m3fn; scale: [OUT, 1] fp32."""
        OUT, IN = codes.shape
        assert codes.dtype == torch.float8_e4m3fn and scale.shape == (OUT, 1), (codes.dtype, codes.shape, scale.shape)
        stored = torch.zeros(OUT, -(-IN // 16) * 16, dtype=torch.uint8)
        stored[:, :IN] = codes.view(torch.uint8)
        return cls(Bytes(stored.to(device), scale[:, 0].float().to(device), None, 0, 1.0, IN, True), (OUT, IN))

    def linear(
        self,
        x: torch.Tensor,
        *,
        norm: torch.Tensor | None = None,
        eps: float = 0.0,
        residual: torch.Tensor | None = None,
        swiglu: bool = False,
        deterministic: bool = False,
    ) -> torch.Tensor:
        wide = len(x) > SKINNY and not deterministic and x.dtype != torch.float32
        if wide and self.shape[0] % 16 == 0 and has_fp8_products(x.device):
            return after(self._scaled_mm(x, norm, eps), residual, swiglu)
        return super().linear(x, norm=norm, eps=eps, residual=residual, swiglu=swiglu, deterministic=deterministic)

    def _scaled_mm(self, x: torch.Tensor, norm: torch.Tensor | None, eps: float) -> torch.Tensor:
        codes = self.weight.codes
        q, scale = fp8_rows(x, codes.shape[1], norm, eps)
        w = codes.view(torch.float8_e4m3fn).t()
        y = torch._scaled_mm(
            q, w, scale_a=scale, scale_b=self.weight.scale[None], out_dtype=torch.bfloat16, use_fast_accum=True
        )
        return y.to(x.dtype)
