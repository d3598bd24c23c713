"""A request as the rows that the model reads: text ids, and codes where the reference voice stands.

    plain                      tts  text tok(text) audio
    voice without transcript   tts  ref_audio PH*L  text tok(text) audio
    voice with transcript      tts  ref_text tok(transcript)  ref_audio PH*L  text tok(text) audio

PH stands for one delayed row of the reference, L = T + 7 rows for T frames (model-v3.md 5.1).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .delay import delay
from .text import neutralise
from .tokenizer import Tokenizer
from .voice import check_codes

PLACEHOLDER = -100  # `audio_token_id` of the published config; it must never reach an embedding


@dataclass(frozen=True, eq=False)
class Prompt:
    """ids: one per row, PLACEHOLDER where the next row of `reference_rows` ([L, 8] int64, delayed) takes the place.

    prefix_length: how many leading rows depend on the voice alone, so that their keys and values can be kept.
    """

    ids: list[int]
    reference_rows: np.ndarray | None
    prefix_length: int

    def __len__(self) -> int:
        return len(self.ids)


def build(tokenizer: Tokenizer, text: str, codes: np.ndarray | None = None, transcript: str | None = None) -> Prompt:
    """Lays out one piece of clean text, spoken by the voice of `codes` ([T, 8] integers in 0..1023) or by none.

    A transcript is what the reference says; it is neutralised here, and ignored without codes or when blank. Raises
    VoiceError for codes of another shape or range, RequestError for text that `text.clean` has not seen.
    """
    ids = [tokenizer.tts]
    rows = None
    if codes is not None:
        rows = delay(check_codes(codes))
        said, _ = neutralise(transcript or "")
        if said.strip():
            ids += [tokenizer.ref_text, *tokenizer.encode(said.strip())]
        ids += [tokenizer.ref_audio, *[PLACEHOLDER] * len(rows)]
    prefix_length = len(ids)
    ids += [tokenizer.text, *tokenizer.encode(text), tokenizer.audio]
    return Prompt(ids, rows, prefix_length)
