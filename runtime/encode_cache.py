"""Codes of recordings, kept by content: the same sound is encoded once, whatever its file is called."""

import hashlib
import os
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np

from .errors import RequestError
from .files import user_folder, write_atomic

ENCODER = b"1"  # counts up when the encoder comes to give other codes for the same sound


class EncodeCache:
    """A folder of small files, one per recording: the digest of what follows, then the codes, int16 [T, 8].

    folder: default `codes` in `$OCTAVO_CACHE`, else in the user's cache folder; it may be deleted at any time. Threads
    and processes may share it. A damaged file is made again, and a folder that cannot be written costs only time.
    """

    def __init__(self, folder: str | os.PathLike | None = None) -> None:
        self.folder = Path(folder or Path(os.environ.get("OCTAVO_CACHE") or user_folder("CACHE", ".cache"), "codes"))
        self._lock = threading.Lock()

    def get_or_encode(
        self, pcm: np.ndarray, fingerprint: str, encode: Callable[[np.ndarray], np.ndarray]
    ) -> np.ndarray:
        """The codes int16 [T, 8], read-only, of `pcm` (float32 [L] at 24 kHz) under the codec of that fingerprint.

        `encode(pcm)` is called if they are not known yet. Within a process one call runs at a time: an encoder uses the
        whole machine, and a second caller with the same recording had better wait for the first.
        """
        key = hashlib.sha256(ENCODER + fingerprint.encode() + b"\0" + pcm.astype("<f4").tobytes()).digest()
        path = self.folder / key.hex()
        data = _read(path, key)
        if data is None:
            with self._lock:
                data = _read(path, key)  # the one before may have been the same
                if data is None:
                    data = encode(pcm).astype("<i2").tobytes()
                    _write(path, key, data)
        return np.frombuffer(data, "<i2").reshape(-1, 8)


def _read(path: Path, key: bytes) -> bytes | None:
    try:
        content = path.read_bytes()
    except OSError:
        return None
    digest, data = content[:32], content[32:]
    return data if digest == _digest(key, data) else None


def _write(path: Path, key: bytes, data: bytes) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, _digest(key, data) + data)
    except (OSError, RequestError):
        pass  # without the cache the codes are there all the same


def _digest(key: bytes, data: bytes) -> bytes:
    return hashlib.sha256(key + data).digest()  # with the key, so that a file under another's name is noticed
