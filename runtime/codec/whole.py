"""Whole utterances through the streaming kernels: on CUDA they are faster than a stack of library calls, and their
precision is stated (kernels/codec_conv.py) where cuDNN's follows a global switch that is on by default.
"""

from __future__ import annotations

import threading

import numpy as np
import torch

from .decoder import CodecDecoder
from .stream import CodecStream

ROWS = 8192  # delayed rows there is room for at first
CAPACITY = 128  # frames of a pass


class Whole:
    """A stream of one slot, made when first needed. `decode` may be called from several threads."""

    def __init__(self, decoder: CodecDecoder):
        self.decoder = decoder
        self._lock = threading.Lock()
        self._stream: CodecStream | None = None
        self._rows = torch.empty(0)

    @torch.inference_mode()
    def decode(self, codes: torch.Tensor) -> np.ndarray:
        """codes [T, codebooks], integers, T > 0 -> sound float32 [hop * T]."""
        (T, Q), size = codes.shape, self.decoder.config.codebook_size
        rows = torch.zeros(T + Q - 1, Q, dtype=torch.int16)
        known = torch.where((codes < 0) | (codes >= size), 0, codes).to("cpu", torch.int16)
        for q in range(Q):
            rows[q : q + T, q] = known[:, q]
        with self._lock:
            stream = self._open(len(rows))
            self._rows[0, : len(rows)] = rows.to(self._rows.device)
            if self._rows.is_cuda:
                stream.wait_for(torch.cuda.current_stream(self._rows.device).record_event())
            stream.begin(0)
            stream.push([0], [T + stream.lookahead], [T])
            return np.concatenate([sound for _, _, sound in stream.collect()])

    def _open(self, rows: int) -> CodecStream:
        if self._stream is None or rows > self._rows.shape[1]:
            table = self.decoder.table
            self._rows = table.new_zeros(1, max(ROWS, rows), self.decoder.config.codebooks, dtype=torch.int16)
            self._stream = CodecStream(self.decoder, self._rows, graphs=False, capacity=CAPACITY)
        return self._stream
