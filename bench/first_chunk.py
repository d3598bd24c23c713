"""C9: how many rows the model makes before the first sound is handed out. A count, no clock.

`exact`: 18 is the least for sound that never has to be corrected: frame 0 needs frames 1 to 10, and frame 10 is
complete at row 18, because codebook 7 runs seven rows late. `fast`: 8, where frame 0 is complete; it is decoded as if
nothing followed, and the result says by how much its sound is off.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest.mock import patch

import numpy as np

from octavo.runtime import Engine
from octavo.runtime.outbox import Outbox
from octavo.runtime.speech import SAMPLE_RATE

from .measure import Check, Result

ASKED = {"exact": 18, "fast": 8}
ROWS = 60  # of the whole utterance
LIMIT = 1e-5  # of the sound's peak


def first_chunk_results(folder: Path) -> list[Result]:
    """C9. Raises CheckFailed when the first chunk, or what comes behind a fast one, is not the whole decode's sound."""
    results = []
    for policy, asked in ASKED.items():
        with Engine.load(folder, "cpu", "fp32", worker=False) as engine:
            with rows_at_each_chunk(engine) as rows:
                stream = engine.stream("Hello there.", temperature=0, max_rows=ROWS, guard=False, first_chunk=policy)
                first, speech = next(stream).pcm, stream.result()
            whole = engine.decode(speech.codes)
        error = np.abs(speech.pcm - whole) / np.abs(whole).max()
        begin = 0 if policy == "exact" else int(np.flatnonzero(error > LIMIT)[-1]) + 1
        what = "sound against the whole utterance's decode, over its peak"
        check = Check(what, float(error[begin:].max()), LIMIT)
        case = f"{policy}, and then {len(first) / SAMPLE_RATE * 1e3:.0f} ms are heard"
        results.append(Result("C9", "rows before the first sound", case, rows[0], "rows", asked, True, (check,)))
        if policy == "fast":
            case = f"RMS of the error over that of the sound, in the {begin / SAMPLE_RATE * 1e3:.0f} ms that are off"
            off = float(np.sqrt(np.square(speech.pcm[:begin] - whole[:begin]).sum() / np.square(whole[:begin]).sum()))
            results.append(Result("", "fast first sound", case, off, "of the sound", checks=(check,)))
    return results


@contextmanager
def rows_at_each_chunk(engine: Engine) -> Iterator[list[int]]:
    """How many rows the engine had made when it handed out each chunk."""
    rows: list[int] = []
    put = Outbox.put

    def counting(self: Outbox, item: object) -> None:
        rows.append(engine.stats().rows)
        put(self, item)

    with patch.object(Outbox, "put", counting):
        yield rows
