"""Small checkpoints: `quantize` writes and judges them. `formats` are the number formats, which the runtime reads too;
the rest is the workshop: calibration, searches, writers, the quality gate."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .quantizer import Result, quantize

__all__ = ["Result", "quantize"]


def __getattr__(name: str) -> Any:
    """Imported when asked for: the runtime imports this package's formats, and the workshop imports the runtime."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from . import quantizer

    return getattr(quantizer, name)
