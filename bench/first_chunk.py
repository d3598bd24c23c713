"""C9: how many rows the model makes before the first sound is handed out. A count, no clock.

18 is the least for sound that never has to be corrected: frame 0 needs frames 1 to 10, and frame 10 is complete at row
18, because codebook 7 runs seven rows late.
"""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import numpy as np

from octavo.runtime import Engine
from octavo.runtime.request import Request
from octavo.runtime.speech import SAMPLE_RATE

from .measure import Check, Result

ASKED = 18
ROWS = 60  # of the whole utterance
LIMIT = 1e-5  # of the sound's peak


class CountingEngine(Engine):
    """Notes how many rows there were when the first chunk was handed out."""

    def __init__(self, *parts: Any):
        super().__init__(*parts)
        self.rows_before_sound, self.heard = 0, threading.Event()

    def _advance(self, request: Request) -> None:
        super()._advance(request)
        if not self.heard.is_set() and not request.out.empty():
            self.rows_before_sound = request.utterances[0].sequence.rows_done
            self.heard.set()


def first_chunk_results(folder: Path) -> list[Result]:
    """C9. Raises CheckFailed when the first chunk is not what the whole utterance's decode has there."""
    with CountingEngine.load(folder, "cpu", "fp32") as engine:
        assert isinstance(engine, CountingEngine)
        stream = engine.stream("Hello there.", temperature=0, max_rows=ROWS, guard=False)
        engine.heard.wait()  # the chunk stays in its queue until it is counted
        first = next(stream).pcm
        whole = engine.decode(stream.result().codes)
    error = float(np.abs(first - whole[: len(first)]).max() / np.abs(whole).max())
    check = Check("first chunk against the whole utterance's decode, over its peak", error, LIMIT)
    case = f"exact, and then {len(first) / SAMPLE_RATE * 1e3:.0f} ms are heard"
    return [Result("C9", "rows before the first sound", case, engine.rows_before_sound, "rows", ASKED, True, (check,))]
