"""What one pass of the streaming decoder does for one utterance."""

from __future__ import annotations

from typing import NamedTuple, Protocol

import numpy as np
import torch

UNKNOWN = 1 << 20  # frames, eleven hours: the end of an utterance that still goes on


class Part(NamedTuple):
    """Frames pos .. pos + frames - 1 of a slot; those from `end` on are dummies that push out the rest.

    Of the samples that a pass gives for it, [hop * frames], `samples` are final, new and inside the utterance.
    """

    slot: int
    owner: int  # how often the slot had changed hands: sound for a former owner is dropped
    pos: int
    frames: int
    end: int
    parity: int  # which of the slot's two sets of tails is read; the other one is written
    edge: bool  # within the delay of the utterance's beginning or end: something may lie outside
    samples: slice
    preview: bool = False  # beside the slot's state, which is neither read nor written


class Pass(Protocol):
    """The sound of some parts, now or later."""

    def done(self) -> bool: ...

    def take(self) -> list[np.ndarray]:
        """The samples of each part, [hop * frames]. Waits for them."""
        ...


class Backend(Protocol):
    """Decodes parts of different slots together and keeps the slots' state."""

    capacity: int  # frames of one pass

    def run(self, parts: list[Part]) -> Pass: ...

    def wait_for(self, event: torch.cuda.Event) -> None: ...
