"""Utterances that nobody spoke: random text, random codes in the delay pattern."""

from __future__ import annotations

import numpy as np
import torch

from octavo.quant.walk import Utterance
from octavo.runtime.delay import delay
from octavo.runtime.prompt import PLACEHOLDER


def utterance(seed: int, text: int = 9, frames: int = 12, reference: int = 0) -> Utterance:
    """`text` rows of text, and codes of `frames` frames; a voice of `reference` frames before the text if above 0."""
    random = np.random.default_rng(seed)
    voice = delay(random.integers(0, 1024, (reference, 8)))
    ids = [257, *[PLACEHOLDER] * len(voice), *random.integers(0, 256, text)]
    rows = delay(random.integers(0, 1024, (frames, 8)))
    return Utterance(torch.tensor(ids), torch.from_numpy(voice), torch.from_numpy(rows), f"text {seed}")
