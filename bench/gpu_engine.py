"""The whole engine on a GPU, with the requests of performance.md 5.2: 160 prompt rows, 89 of them a cached voice's, and
98 frames of speech. Throughput in a closed loop (G6, G7), first audio (G9, G10), arrivals at random (G11), how busy the
GPU is (G8), a process's start (G15), and what transformers and its tokenizer class make of the same requests (R4, R6).

One process, random weights of the real shape; on the CPU a tiny model makes a few short requests, for tests.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

from octavo.runtime import Engine
from octavo.runtime.config import EngineConfig
from octavo.runtime.tokenizer import Tokenizer, build_byte_tokenizer
from octavo.runtime.voice import Voice
from octavo.tools.make_checkpoint import make_checkpoint

from .batching import theirs
from .gpu_codec import codec_and_reference
from .measure import Heard, listen, pause, stopwatch
from .random_model import baseline, dtype_for, random_model

VOICE_FRAMES, TEXT, FRAMES = 82, 67, 98  # 89 rows of reference, 160 of prompt
STREAMS = (1, 16, 64, 128, 256)
THROUGHPUT = {1: 16, 16: 190, 64: 480, 128: 650, 256: 800}  # audio seconds per second, G6
FIRST = {"exact": ("G9", 45.0), "fast": ("G10", 22.0)}  # ms, p50
RATE, SECONDS = 20.0, 8.0  # G11: requests per second, for so long
UNDERRUN = 0.05  # seconds of silence that count as one
Figure = dict[str, Any]


@cache
def engine_for(device: torch.device) -> tuple[Engine, Voice]:
    """Warmed up, its voice's keys and values cached."""
    codec, _ = codec_and_reference(device)
    batch = STREAMS[-1] if device.type == "cuda" else 3
    config = EngineConfig(max_batch=batch, max_context=512, kv_rows=288 * (batch + 2))
    engine = Engine(random_model(device), Tokenizer(build_byte_tokenizer()), codec, config)
    codes = np.random.default_rng(0).integers(0, 1024, (VOICE_FRAMES, 8))
    voice = Voice(codes=codes, codec=codec.fingerprint)
    engine.warmup()
    speak(engine, voice, 0, 20)
    return engine, voice


def frames_for(device: torch.device) -> int:
    return FRAMES if device.type == "cuda" else 20


def speak(engine: Engine, voice: Voice, seed: int, frames: int, **options: Any) -> Heard:
    """One request, listened to from beginning to end."""
    text = ((chr(97 + seed % 26) * 5 + " ") * TEXT)[:TEXT]
    return listen(lambda: engine.stream(text, voice, seed=seed, max_rows=frames + 7, guard=False, **options))


def closed_loop(device: torch.device) -> Iterator[Figure]:
    """G6; at one stream G7. So many requests at any time, from as many threads."""
    engine, voice = engine_for(device)
    for streams in STREAMS if device.type == "cuda" else (1, 3):
        seconds, heard = crowd(engine, voice, streams, [frames_for(device)] * max(8, 3 * streams))
        audio = sum(one.audio for one in heard)
        firsts, wholes = ([getattr(one, name) for one in heard] for name in ("first", "seconds"))
        figure: Figure = {
            "case": f"{streams} streams",
            "audio_s_per_s": audio / seconds,
            "requests_per_s": len(heard) / seconds,
            "first_p50_ms": 1e3 * np.percentile(firsts, 50).item(),
            "first_p95_ms": 1e3 * np.percentile(firsts, 95).item(),
            "whole_p50_ms": 1e3 * np.percentile(wholes, 50).item(),
            "underruns": underruns(heard),
        }
        if goal := THROUGHPUT.get(streams):
            figure |= {"goal": "G6", "asked": goal, "value": audio / seconds}
        yield figure
        if streams == 1:
            rtf = np.median([one.seconds / one.audio for one in heard]).item()
            yield {"case": "1 stream, real-time factor", "goal": "G7", "asked": 0.062, "value": rtf, "at_most": True}


def first_audio(device: torch.device) -> Iterator[Figure]:
    """G9, G10: one stream at a time, from the call to the first chunk in the caller's hands."""
    engine, voice = engine_for(device)
    for policy, (goal, asked) in FIRST.items():
        count = 24 if device.type == "cuda" else 2
        heard = [speak(engine, voice, seed, frames_for(device), first_chunk=policy) for seed in range(count)]
        yield {"case": f"{policy} first chunk", "goal": goal, "asked": asked, **wait_for_sound(heard)}


def wait_for_sound(heard: list[Heard]) -> Figure:
    """From the call to the first chunk: the median is what is judged, the rest is told beside it."""
    p50, p95 = np.percentile([1e3 * one.first for one in heard], (50, 95)).tolist()
    return {"ms": p50, "p95_ms": p95, "underruns": underruns(heard), "value": p50, "at_most": True}


def open_loop(device: torch.device) -> Iterator[Figure]:
    """G11: requests arrive at random, whether the engine is ready or not."""
    engine, voice = engine_for(device)
    seconds = SECONDS if device.type == "cuda" else 0.2
    gaps = np.random.default_rng(0).exponential(1 / RATE, int(RATE * seconds))
    heard: list[Heard] = []
    with ThreadPoolExecutor(len(gaps)) as pool:
        futures = []
        for seed, gap in enumerate(gaps):
            pause(gap)
            futures.append(pool.submit(speak, engine, voice, seed, frames_for(device)))
        heard = [future.result() for future in futures]
    case = f"{RATE:.0f} requests per second, {len(heard)} in all"
    yield {"case": case, "goal": "G11", "asked": 60.0, **wait_for_sound(heard)}


def busy(device: torch.device) -> Iterator[Figure]:
    """G8: the union of all kernels' times over the time that passed, at 64 streams. The profiler costs some itself."""
    engine, voice = engine_for(device)
    streams = 64 if device.type == "cuda" else 2
    kind = torch.profiler.ProfilerActivity.CUDA if device.type == "cuda" else torch.profiler.ProfilerActivity.CPU
    with torch.profiler.profile(activities=[kind]) as profile:
        crowd(engine, voice, streams, [frames_for(device)] * 2 * streams)
    wanted = torch.autograd.DeviceType.CUDA if device.type == "cuda" else torch.autograd.DeviceType.CPU
    events = [event for event in profile.events() if event.device_type == wanted]
    spans = sorted((event.time_range.start, event.time_range.end) for event in events)
    if not spans:  # on the CPU the profiler sees the work of this thread alone
        return
    begin, end = spans[0][0], max(stop for _, stop in spans)
    # Requests begin and end together: what counts is the middle, where all are under way.
    middle = begin + (end - begin) / 4, end - (end - begin) / 4
    shares: Counter[str] = Counter()  # the model and the codec have a stream each
    for event in events:
        shares[str(event.device_resource_id)] += event.time_range.elapsed_us() / (end - begin)
    yield {
        "case": f"{streams} streams, {len(spans)} kernels",
        "value": union(spans, *middle) / (middle[1] - middle[0]),
        "by_stream": dict(shares.most_common(4)),
        "goal": "G8",
        "asked": 0.92,
    }


def against_transformers(device: torch.device) -> Iterator[Figure]:
    """R4: 64 requests of unequal length in one padded batch, then the codec one by one. R6: one request, heard when all
    of it is decoded."""
    engine, voice = engine_for(device)
    _, tokenizer = codec_and_reference(device)
    model = baseline(random_model(device), dtype_for(device))
    streams, longest = (64, FRAMES) if device.type == "cuda" else (2, 20)
    draw = np.random.default_rng(0)
    for count in (streams, 1):
        frames = draw.integers(longest // 4, longest + 1, count) if count > 1 else np.array([longest])
        prompts = draw.integers(0, 256, (count, 160))
        elapsed = stopwatch()
        rows = np.array(list(theirs(model, [prompts], np.array([frames.max() + 7]))))  # [rows, B, 8]
        codes = torch.from_numpy(rows).clamp(max=1023).to(device)
        for number, length in enumerate(frames):
            frame_codes = torch.stack([codes[q : q + length, number, q] for q in range(8)])[None]
            with torch.inference_mode():
                tokenizer.decode(frame_codes).audio_values.cpu()
        seconds = elapsed()
        if count == 1:
            ours = np.median([speak(engine, voice, seed, longest).first for seed in range(5)]).item()
            figure = {"ms": 1e3 * ours, "baseline_ms": 1e3 * seconds, "times": seconds / ours}
            yield {"case": "first audio, 1 stream", **figure, "goal": "R6", "asked": 50.0}
        else:
            taken, heard = crowd(engine, voice, count, frames.tolist() * 3)
            mine, other = sum(one.audio for one in heard) / taken, frames.sum().item() * 0.04 / seconds
            figure = {"audio_s_per_s": mine, "baseline_audio_s_per_s": other, "times": mine / other}
            yield {"case": f"{count} streams", **figure, "goal": "R4", "asked": 6.0}


def start(device: torch.device) -> Iterator[Figure]:
    """G15: a new process, until it has its first chunk. The checkpoint was written just before, so it is in memory."""
    code = "import sys; from octavo.runtime import Engine; next(Engine.load(*sys.argv[1:]).stream('Hello there.'))"
    with tempfile.TemporaryDirectory() as folder:
        made = make_checkpoint(Path(folder) / "model", "4b" if device.type == "cuda" else "tiny", tied_copies=False)
        elapsed = stopwatch()
        done = subprocess.run([sys.executable, "-c", code, made, device.type], capture_output=True, text=True)
        seconds = elapsed()
    if done.returncode:
        raise RuntimeError(done.stderr.strip().splitlines()[-1])
    yield {"case": "process start to first audio", "goal": "G15", "asked": 25.0, "value": seconds, "at_most": True}


BENCHMARKS: dict[str, Callable[[torch.device], Iterator[Figure]]] = {
    "closed loop": closed_loop,
    "first audio": first_audio,
    "busy": busy,
    "against transformers": against_transformers,
    "open loop": open_loop,
    "start": start,
}


def crowd(engine: Engine, voice: Voice, streams: int, frames: list[int]) -> tuple[float, list[Heard]]:
    """Seconds, and what was heard: requests of so many frames, `streams` of them at any time."""
    ready = threading.Barrier(streams + 1)

    def client(number: int) -> list[Heard]:
        ready.wait()
        return [speak(engine, voice, seed, frames[seed]) for seed in range(number, len(frames), streams)]

    with ThreadPoolExecutor(streams) as pool:
        futures = [pool.submit(client, number) for number in range(streams)]
        ready.wait()
        elapsed = stopwatch()
        heard = [one for future in futures for one in future.result()]
        return elapsed(), heard


def underruns(heard: Iterable[Heard]) -> float:
    """The share of streams that fell silent for too long, when playback begins with the first chunk."""
    return float(np.mean([one.silence > UNDERRUN for one in heard]))


def union(spans: Iterable[tuple[float, float]], begin: float, end: float) -> float:
    """How much of begin..end the spans cover; they are sorted."""
    covered, reached = 0.0, begin
    for start, stop in spans:
        start, stop = max(start, reached), min(stop, end)
        if stop > start:
            covered, reached = covered + stop - start, stop
    return covered
