"""The pieces of one request as the sequences that the model will run: who speaks, from which seed, how long at most."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np

from . import prompt, text
from .config import SamplingParams
from .delay import CODEBOOKS
from .scheduler import Sequence
from .speech import FRAME_RATE
from .tags import without_tags
from .tokenizer import Tokenizer
from .utterance import Utterance
from .voice import Voice

MOST_CARRIED = 30 * FRAME_RATE  # frames of a text's first piece that the others take as their voice


class Script:
    """Pieces are added by the caller's thread, which hears what is wrong with them, and taken up by the loop's."""

    def __init__(
        self,
        tokenizer: Tokenizer,
        codec: str,
        voice: Voice | None,
        sampling: SamplingParams,
        *,
        guard: bool,
        fast: bool,
        check: Callable[[Sequence], None],
    ):
        """codec: fingerprint of the engine's; check: raises for a sequence that the engine can never hold."""
        self.voice, self.sampling, self.guard, self.fast = voice, sampling, guard, fast
        self._tokenizer, self._codec, self._check = tokenizer, codec, check
        self._pieces: list[str] = []
        self._sequences: list[Sequence] = []

    def add(self, piece: str) -> None:
        """The next piece. Raises RequestError, CapacityError; it is not added then."""
        # A later piece must fit with the longest voice that the first may give it.
        example = self._longest_carried() if self._sequences and self.voice is None else self.voice
        sequence = self._sequence(piece, len(self._sequences), example)
        self._check(sequence)
        self._pieces.append(piece)
        self._sequences.append(sequence)

    def utterance(self, number: int, first: Utterance | None) -> Utterance:
        """Piece `number` on its way. first: the first piece's, finished, for the others if no voice was given."""
        piece, sequence = self._pieces[number], self._sequences[number]
        if first and self.voice is None:  # now it is known what voice the first piece got
            sequence = self._sequence(piece, number, self.carried(first))
        allowance = text.silence_allowance(piece) if self.guard else None
        return Utterance(sequence, allowance, fast=self.fast and number == 0)

    def carried(self, first: Utterance) -> Voice | None:
        """The voice of a text's first piece, for the others; a runaway is no example to follow."""
        if first.finish_reason in ("loop", "silence") or first.num_frames == 0:
            return None
        whole = first.num_frames <= MOST_CARRIED
        transcript = without_tags(self._pieces[0]) if whole else None  # which would tell more than is heard
        return Voice(codes=first.codes[:MOST_CARRIED], transcript=transcript, codec=self._codec)

    def _longest_carried(self) -> Voice:
        """As long a voice as `carried` may return."""
        frames = min(MOST_CARRIED, self._sequences[0].max_rows - CODEBOOKS + 1)
        codes = np.zeros((frames, CODEBOOKS), np.int16)
        return Voice(codes=codes, transcript=without_tags(self._pieces[0]), codec=self._codec)

    def _sequence(self, piece: str, number: int, voice: Voice | None) -> Sequence:
        rows = min(self.sampling.max_rows, text.row_cap(piece)) if self.guard else self.sampling.max_rows
        own = dataclasses.replace(self.sampling, seed=(self.sampling.seed + number) % 2**63, max_rows=rows)
        if voice is None:
            return Sequence(prompt.build(self._tokenizer, piece), own)
        return Sequence(prompt.build(self._tokenizer, piece, voice.codes, voice.transcript), own, voice.key)
