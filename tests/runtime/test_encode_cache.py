"""Codes by content: encoded once, by any number of threads and processes, and never wrong."""

import multiprocessing
import os
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from octavo.runtime.encode_cache import EncodeCache

PCM = np.linspace(-1, 1, 24_000, dtype=np.float32)


class Encoder:
    """Codes that depend on the sound; counts its calls and notices when two run at once."""

    def __init__(self) -> None:
        self.calls, self.running = 0, 0

    def __call__(self, pcm: np.ndarray) -> np.ndarray:
        self.calls += 1
        self.running += 1
        time.sleep(0.01)
        assert self.running == 1
        self.running -= 1
        return encode(pcm)


def encode(pcm: np.ndarray) -> np.ndarray:
    return np.random.default_rng(int(1e6 * np.abs(pcm).sum())).integers(0, 1024, (len(pcm) // 960, 8)).astype(np.int16)


def test_encoded_once(tmp_path: Path) -> None:
    cache, encoder = EncodeCache(tmp_path / "deep" / "er"), Encoder()
    first = cache.get_or_encode(PCM, "codec", encoder)
    again = EncodeCache(cache.folder).get_or_encode(PCM.copy(), "codec", encoder)
    assert encoder.calls == 1 and first.dtype == again.dtype == np.int16 and first.shape == (25, 8)
    np.testing.assert_array_equal(first, encode(PCM))
    np.testing.assert_array_equal(again, encode(PCM))
    assert not first.flags.writeable and not again.flags.writeable
    cache.get_or_encode(PCM, "other codec", encoder)
    cache.get_or_encode(np.nextafter(PCM, 2), "codec", encoder)
    cache.get_or_encode(PCM[:-1], "codec", encoder)
    assert encoder.calls == 4 and len(os.listdir(cache.folder)) == 4


def test_damage_is_noticed_and_mended(tmp_path: Path) -> None:
    cache, encoder = EncodeCache(tmp_path), Encoder()
    cache.get_or_encode(PCM, "codec", encoder)
    other = PCM / 2
    cache.get_or_encode(other, "codec", encoder)
    paths = sorted(tmp_path.iterdir(), key=lambda path: path.stat().st_mtime_ns)
    good = paths[0].read_bytes()
    flipped = good[:100] + bytes([good[100] ^ 1]) + good[101:]
    for content in (b"", good[:10], good[:32], good[:-16], good + bytes(16), flipped, paths[1].read_bytes()):
        paths[0].write_bytes(content)
        calls = encoder.calls
        np.testing.assert_array_equal(cache.get_or_encode(PCM, "codec", encoder), encode(PCM))
        assert encoder.calls == calls + 1 and paths[0].read_bytes() == good


def test_without_a_folder_it_still_encodes(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    for folder in (tmp_path / "file", tmp_path / "file" / "deeper"):
        np.testing.assert_array_equal(EncodeCache(folder).get_or_encode(PCM, "codec", encode), encode(PCM))


def test_a_failing_encoder_leaves_nothing(tmp_path: Path) -> None:
    def fail(pcm: np.ndarray) -> np.ndarray:
        raise KeyboardInterrupt

    cache = EncodeCache(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        cache.get_or_encode(PCM, "codec", fail)
    assert os.listdir(tmp_path) == []
    np.testing.assert_array_equal(cache.get_or_encode(PCM, "codec", encode), encode(PCM))  # and the lock is free


def test_threads_share_one_encoding(tmp_path: Path) -> None:
    cache, encoder, results = EncodeCache(tmp_path), Encoder(), []
    sounds = [PCM, PCM / 2, PCM / 3]

    def work(number: int) -> None:
        pcm = sounds[number % 3]
        results.append(np.array_equal(cache.get_or_encode(pcm, "codec", encoder), encode(pcm)))

    threads = [threading.Thread(target=work, args=(number,)) for number in range(24)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [True] * 24 and encoder.calls == 3


def _hammer(folder: str, sounds: int) -> None:
    for turn in range(30):
        pcm = PCM / (1 + turn % sounds)
        if turn % 7 == 0:  # someone deletes the cache meanwhile
            for name in os.listdir(folder):
                Path(folder, name).unlink(missing_ok=True)
        if not np.array_equal(EncodeCache(folder).get_or_encode(pcm, "codec", encode), encode(pcm)):
            sys.exit(1)


def test_processes(tmp_path: Path) -> None:
    workers = [multiprocessing.get_context("fork").Process(target=_hammer, args=(str(tmp_path), 3)) for _ in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert [worker.exitcode for worker in workers] == [0, 0, 0]
    assert not [name for name in os.listdir(tmp_path) if name.endswith(".tmp")]


def test_default_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("OCTAVO_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert EncodeCache().folder == tmp_path / "cache/octavo/codes"
    monkeypatch.setenv("OCTAVO_CACHE", str(tmp_path / "mine"))
    assert EncodeCache().folder == tmp_path / "mine/codes"
