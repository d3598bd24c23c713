"""Codec: codes to sound and sound to codes, with the tensors of one checkpoint."""

from __future__ import annotations

import contextlib
import hashlib
import threading

import numpy as np
import torch

from octavo.kernels.launch import on_triton
from octavo.runtime.checkpoint import Weights
from octavo.runtime.errors import AudioError, CheckpointError, RequestError

from .config import SAMPLE_RATE, CodecConfig
from .decoder import CodecDecoder
from .encoder import CodecEncoder
from .layout import encoder_layout
from .stream import CodecStream
from .whole import Whole


class Codec:
    """`decode` and `encode` may be called from several threads. The encoder is loaded when first needed."""

    config: CodecConfig
    decoder: CodecDecoder
    fingerprint: str  # hex digest of what gives codes their meaning; voices of another fingerprint sound wrong here

    def __init__(
        self,
        weights: Weights,
        config: CodecConfig,
        decoder: CodecDecoder,
        fingerprint: str,
        encoder_device: torch.device | str | None = None,
    ):
        self.config, self.decoder, self.fingerprint = config, decoder, fingerprint
        self._weights, self._encoder_device = weights, encoder_device or decoder.table.device
        self._encoder: CodecEncoder | None = None
        self._lock = threading.Lock()
        self._whole = Whole(decoder)

    @classmethod
    def load(
        cls,
        weights: Weights,
        device: torch.device | str,
        dtype: torch.dtype = torch.float32,
        encoder_device: torch.device | str | None = None,
    ) -> Codec:
        """Copies the decoder's tensors to `device`; of the encoder's it checks names and shapes only.

        dtype is the decoder's; Snake and the lookup table are computed in at least fp32 whatever it is. encoder_device:
        where recordings will be encoded, if not on `device`. Raises CheckpointError when a tensor of the decoder, or of
        the encoder if there is one, is missing or misshapen.
        """
        config = CodecConfig.from_weights(weights)
        for name, shape in encoder_layout(config).items() if config.encoder else ():
            if weights.shape(name) != shape:
                raise CheckpointError(
                    f"{weights.prefix}{name} has shape {list(weights.shape(name))}; beside the codec's other tensors "
                    f"it must be {list(shape)}. Download the checkpoint again."
                )
        decoder = CodecDecoder(weights, config, dtype).to(device)
        return cls(weights, config, decoder, _fingerprint(weights, config), encoder_device)

    def decode(self, codes: np.ndarray | torch.Tensor) -> np.ndarray:
        """codes [T, codebooks], integers -> sound float32 [hop * T] at 24 kHz, not clipped to [-1, 1].

        A value that is no code (below 0, or 1024 and up) counts as 0. On CUDA an fp32 decoder runs through the kernels
        of the stream, in their precision. Raises RequestError for another shape or type.
        """
        codes = torch.tensor(codes) if isinstance(codes, np.ndarray) else codes  # a copy: a voice's are read-only
        if codes.dim() != 2 or codes.shape[1] != self.config.codebooks or codes.dtype.is_floating_point:
            raise RequestError(
                f"Codes are integers of shape [T, {self.config.codebooks}], not {codes.dtype} {list(codes.shape)}."
            )
        if on_triton(self.decoder.table) and self.decoder.table.dtype == torch.float32 and len(codes):
            return self._whole.decode(codes)
        batch = codes.T[None].to(self.decoder.table.device, torch.int64)
        return self.decoder(batch)[0].to("cpu", torch.float32).numpy()

    def encode(self, pcm: np.ndarray) -> np.ndarray:
        """Mono sound [L] at 24 kHz -> codes int16 [T, codebooks], T = ceil(L / 960) but at least 25.

        Zeros fill the last frame, and clips under one second up to one second: what the codec's authors do, and for
        whole frames the acoustic and the semantic branch agree on T. The level is left alone. Raises AudioError when
        the sound is empty, not mono or not finite, and CheckpointError when the checkpoint has no encoder.
        """
        sound = torch.as_tensor(pcm, dtype=torch.float32)
        if sound.dim() != 1 or len(sound) == 0:
            raise AudioError(f"A reference is mono sound of shape [L], L > 0, not {list(sound.shape)}.")
        if not bool(sound.isfinite().all()):
            raise AudioError("The sound holds NaN or infinite samples. Export it again.")
        length = max(SAMPLE_RATE, -(-len(sound) // self.config.hop) * self.config.hop)
        sound = torch.nn.functional.pad(sound, (0, length - len(sound)))
        with _exact_convolutions():
            codes = self._load_encoder()(sound.to(self._encoder_device))
        return codes.T.to("cpu", torch.int16).contiguous().numpy()

    def stream(self, codes: torch.Tensor, graphs: bool = True) -> CodecStream:
        """A streaming decoder that reads the frames of its slots out of codes [slots, rows, codebooks] int16."""
        return CodecStream(self.decoder, codes, graphs)

    def drop_encoder(self) -> None:
        """Frees HuBERT and the acoustic encoder; the next `encode` loads them again."""
        with self._lock:
            self._encoder = None

    def _load_encoder(self) -> CodecEncoder:
        with self._lock:
            if self._encoder is None:
                if self.config.encoder is None:
                    raise CheckpointError("This checkpoint holds no codec encoder, so it cannot take reference audio.")
                self._encoder = CodecEncoder(self._weights, self.config).to(self._encoder_device)
            return self._encoder


def _exact_convolutions() -> contextlib.AbstractContextManager:
    """No TF32 in cuDNN, for codes hang on small differences. torch has this switch for the whole process only."""
    cudnn = torch.backends.cudnn
    return cudnn.flags(cudnn.enabled, cudnn.benchmark, deterministic=cudnn.deterministic, allow_tf32=False)


def _fingerprint(weights: Weights, config: CodecConfig) -> str:
    """SHA-256 of codebooks, their output projections and fc2, by value: the same for bf16 and for fp32 storage."""
    digest = hashlib.sha256()
    size, dim, width = config.codebook_size, config.codebook_dim, config.rvq_width
    parts: list[tuple[str, tuple[int, ...]]] = [("fc2.weight", (config.latent, width)), ("fc2.bias", (config.latent,))]
    for q in range(config.codebooks):
        name = f"quantizer.quantizers.{q}"
        parts.append((f"{name}.codebook.embed", (size, dim)))
        parts += [(f"{name}.project_out.weight", (width, dim)), (f"{name}.project_out.bias", (width,))]
    for name, shape in parts:
        digest.update(f"{name} {shape}".encode())
        digest.update(weights.take(name, *shape).to("cpu", torch.float32).contiguous().numpy().tobytes())
    return digest.hexdigest()
