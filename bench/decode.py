"""What the language model costs: decode steps (C1), many requests (C3), prefill with a reused voice (C4), rows to the
first sound (C9), bandwidth at the real width, and loading. All on synthetic checkpoints, made in a temporary folder.

    python -m octavo.bench.decode --json OUT
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from octavo.tools.make_checkpoint import make_checkpoint

from .bandwidth import WIDTHS as REAL_WIDTHS
from .bandwidth import bandwidth_results
from .batching import batching_results
from .command import main
from .first_chunk import first_chunk_results
from .loading import WIDTHS, loading_results
from .measure import Result
from .prefill import prefill_results
from .step import SHAPES, step_results

LOADS = 3  # processes per dtype


def results(repetitions: int, device: torch.device) -> list[Result]:
    """All of them. What takes long is repeated less: prefill a third as often, C3 a twentieth."""
    found = []
    for shape in SHAPES:
        with checkpoint(SHAPES[shape].widths) as folder:
            found += step_results(folder, shape, device, repetitions)
            if shape == "small":
                found += prefill_results(folder, shape, device, max(1, repetitions // 3))
                found += batching_results(folder, shape, device, max(1, repetitions // 20))
            if shape == "tiny":
                found += first_chunk_results(folder)
    with checkpoint(REAL_WIDTHS) as folder:
        found += bandwidth_results(folder, device, repetitions)
    with checkpoint(WIDTHS, codec="real") as folder:
        found += loading_results(folder, LOADS)
    return found


@contextmanager
def checkpoint(widths: Mapping[str, Any], codec: str = "tiny") -> Iterator[Path]:
    """A synthetic checkpoint, without what nobody reads here, for as long as it is needed."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "checkpoint"
        yield make_checkpoint(out, codec=codec, tied_copies=False, index=False, **widths)


if __name__ == "__main__":
    sys.exit(main(results, "bench.decode", __doc__ or ""))
