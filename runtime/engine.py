"""The engine: requests from any thread, one loop that steps the model and the codec."""

from __future__ import annotations

import asyncio
import functools
import os
import secrets
import time
import warnings
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import BinaryIO, overload

import numpy as np
import torch

from . import text
from .audio import Reference, read_reference
from .codec import Codec
from .config import EngineConfig, SamplingParams
from .driver import Driver
from .errors import OctavoError, RequestError
from .load import load_parts, too_large
from .loop import Loop
from .memory_plan import MemoryPlan
from .models import Model
from .outbox import Outbox
from .request import Request, Sink
from .runner import Runner
from .scheduler import Scheduler
from .script import Script
from .session import Gate, Session
from .speech import Speech, Stats
from .streams import SpeechStream, cancelled
from .tokenizer import Tokenizer
from .utterance import Utterance
from .voice import EncodeCache, Voice, VoiceStore, find_voice

PIECES_AT_ONCE = 4  # of one long text, so that it leaves slots to others


class Engine:
    """A loaded checkpoint that speaks. Several may live in one process; its methods may be called from any thread.

        with Engine.load("higgs-tts-3-4b") as engine:
            engine.generate("Hello there.").save("hello.wav")

    Requests made at the same time run together, in one batch. Nothing is global: no signal handlers, no settings of
    torch, streams of its own on the GPU.
    """

    def __init__(self, model: Model, tokenizer: Tokenizer, codec: Codec, config: EngineConfig, *, worker: bool = True):
        """worker: a thread runs the loop. Without it the loop runs in `step`, and wherever somebody waits for sound.

        Raises CapacityError when the KV cache does not fit.
        """
        self.model, self.tokenizer, self.codec, self.config = model, tokenizer, codec, config
        self.voices, self._cache = VoiceStore(), EncodeCache()
        try:
            self._runner = Runner(model, config)
            self._runner.capture()
            sounds = codec.stream(self._runner.codes, graphs=config.graphs)
        except (torch.OutOfMemoryError, MemoryError) as error:
            raise too_large(model.device) from error
        self._loop = Loop(Scheduler(config), self._runner, sounds)
        self._driver = Driver(self._loop, self._runner, sounds, worker)
        self._began = time.monotonic()

    @classmethod
    def load(
        cls,
        path: str | os.PathLike,
        device: str = "auto",
        dtype: str = "auto",
        *,
        download: bool = False,
        progress: Callable[[int, int], None] = lambda done, total: None,
        worker: bool = True,
        vram: str | int | float | None = None,
        planned: Callable[[MemoryPlan], None] = lambda plan: None,
        **options: int | bool,
    ) -> Engine:
        """Loads a checkpoint folder, or a model id that is in the local Hugging Face cache (or may be downloaded).

        device: `cpu`, `cuda`, `cuda:1`, or `auto`, a GPU where there is one. dtype: `fp32`, `bf16`, or `auto`: bf16 on
        a GPU, and on the CPU fp32 where that fits into half of the memory. `progress(done, total)` counts layers.
        worker: False for hosts that own the loop and call `step`. options: the fields of EngineConfig. vram: a budget
        (`8GiB`, `0.8` of the device) within which what the options leave open is chosen; `planned(plan)` is told before
        anything is loaded. Raises CheckpointError, CapacityError, RequestError.
        """
        parts = load_parts(
            path,
            device,
            dtype,
            download=download,
            progress=progress,
            vram=vram,
            planned=planned,
            options=options,
        )
        return cls(parts.model, parts.tokenizer, parts.codec, parts.config, worker=worker)

    def stream(
        self,
        content: str,
        voice: Voice | str | Path | None = None,
        *,
        temperature: float = 0.8,
        top_k: int | None = 50,
        top_p: float | None = None,
        seed: int | None = None,
        max_rows: int = 2048,
        split: str = "auto",
        guard: bool = True,
        strict: bool = False,
        first_chunk: str = "exact",
    ) -> SpeechStream:
        """Speaks `content`: returns at once with an iterator of chunks, for `for` and for `async for`.

        voice: a Voice, a voice file, or the name of a stored voice. seed: None draws one; Speech.seed tells it. split:
        `auto` speaks a long text in pieces, each from seed + its number and in the same voice; `none` keeps it one
        piece. guard: cuts runaways, and limits each piece's rows by the length of its text; without it max_rows (per
        piece) is the only limit. strict: an unknown tag is an error, not a warning. first_chunk: `exact` waits for row
        18, and the stream is sample for sample the whole decode; `fast` speaks with row 8, its first frames decoded
        without what follows them (see `bench` for how far off they are).

        Raises RequestError (text, sampling values, voice) and CapacityError before anything is queued.
        """
        if not isinstance(content, str):
            raise RequestError(f"The text is a {type(content).__name__}; give a string.")
        if split not in ("auto", "none"):
            raise RequestError(f"split is {split!r}; it must be 'auto' or 'none'.")
        seed = secrets.randbits(32) if seed is None else seed
        sampling = SamplingParams(temperature, top_k, top_p, seed, max_rows)
        cleaned = text.clean(content, strict=strict)
        pieces = [piece.text for piece in text.split(cleaned.text)] if split == "auto" else [cleaned.text]
        speaker = self._find_voice(voice)
        script = self._script(speaker, sampling, guard, first_chunk)
        for piece in pieces:
            script.add(piece)
        told = (*cleaned.warnings, *(speaker.warnings if speaker else ()))
        out = self._outbox()
        request = self._request(script, out, pieces, told)
        self._driver.post(lambda: self._loop.add(request))
        return SpeechStream(request, out, self._cancel)

    @overload
    def generate(self, content: str, voice: Voice | str | Path | None = None, **options) -> Speech: ...
    @overload
    def generate(self, content: list[str], voice: Voice | str | Path | None = None, **options) -> list[Speech]: ...
    def generate(self, content, voice=None, **options):
        """The whole speech at once: `stream` collected, with the same arguments. A list of texts is spoken together, in
        one batch, and gives a list; if one of them cannot be spoken, none is."""
        if not isinstance(content, list):
            with self.stream(content, voice, **options) as stream:
                return stream.result()
        streams: list[SpeechStream] = []
        try:
            for one in content:
                streams.append(self.stream(one, voice, **options))
            return [stream.result() for stream in streams]
        finally:
            for stream in streams:
                stream.close()

    async def astream(self, content: str, voice: Voice | str | Path | None = None, **options):
        """An async generator of chunks; `stream` with the same arguments, and the text work off the event loop."""
        stream = await asyncio.to_thread(functools.partial(self.stream, content, voice, **options))
        with stream:
            async for chunk in stream:
                yield chunk

    def session(
        self,
        voice: Voice | str | Path | None = None,
        *,
        temperature: float = 0.8,
        top_k: int | None = 50,
        top_p: float | None = None,
        seed: int | None = None,
        max_rows: int = 2048,
        guard: bool = True,
        first_chunk: str = "exact",
    ) -> Session:
        """A session for text that arrives piece by piece; see Session. The arguments are those of `stream`."""
        seed = secrets.randbits(32) if seed is None else seed
        sampling = SamplingParams(temperature, top_k, top_p, seed, max_rows)
        speaker = self._find_voice(voice)

        def open_request(gate: Gate) -> tuple[Script, Request]:
            script = self._script(speaker, sampling, guard, first_chunk)
            request = self._request(script, gate, [], (), closed=False, whole=False)
            self._driver.post(lambda: self._loop.add(request))
            return script, request

        def act(request: Request, action: Callable[[], None]) -> None:
            def do() -> None:
                action()
                self._loop.touch(request)

            self._driver.post(do)

        def end(request: Request) -> None:
            self._driver.try_post(lambda: self._loop.end(request, None))

        return Session(open_request, act, end, self._outbox())

    def abort(self, id: str) -> None:
        """Cancels the request of that id (SpeechStream.id), from any thread; an unknown or finished one is no error."""

        def find() -> None:
            for request in [request for request in self._loop.requests if request.id == id]:
                self._loop.end(request, cancelled())

        self._driver.try_post(find)

    def encode_voice(
        self,
        audio: Reference | str | os.PathLike | bytes | BinaryIO | tuple[np.ndarray, int],
        transcript: str | None = None,
        *,
        name: str = "",
        consent: str = "",
        licence: str = "",
    ) -> Voice:
        """A voice from a recording of 1 to 30 s: a path, a file's bytes, (pcm, rate), or a Reference read before.

        transcript: what is said in it; speech comes closer with it. Encoded once, then cached by content. Warns of
        what will cost likeness, as Reference.warnings tells. Raises AudioError.
        """
        if isinstance(audio, Reference):
            reference = audio
        else:
            reference = read_reference(audio)
            for sentence in reference.warnings:
                warnings.warn(sentence, stacklevel=2)
        codes = self._cache.get_or_encode(reference.pcm, self.codec.fingerprint, self.codec.encode)
        return Voice(
            codes=codes,
            transcript=transcript,
            name=name,
            consent=consent,
            licence=licence,
            source_sha256=reference.sha256,
            codec=self.codec.fingerprint,
        )

    def decode(self, codes: np.ndarray) -> np.ndarray:
        """codes: integers [T, 8] -> float32 [960 * T] at 24 kHz."""
        return self.codec.decode(codes)

    def warmup(self) -> None:
        """Does once what the first request would otherwise wait for, kernels that are compiled and pages that are
        touched: speaks a word that nobody hears."""
        self.generate("Warm.", seed=0, max_rows=40, guard=False)

    def stats(self) -> Stats:
        """How busy the engine is, as of now; from any thread."""
        scheduler = self._loop.scheduler
        return Stats(
            requests=len(self._loop.requests),
            running=len(scheduler.running),
            prefilling=len(scheduler.prefilling),
            waiting=len(scheduler.waiting),
            max_batch=self.config.max_batch,
            free_pages=scheduler.pool.free_pages,
            kept_pages=scheduler.pool.kept_pages,
            num_pages=scheduler.pool.num_pages,
            rows=self._loop.rows,
            seconds=time.monotonic() - self._began,
            failure=self._driver.failure,
        )

    def step(self) -> bool:
        """For hosts that own the loop (`worker=False`): one row for everybody, in the calling thread, always the same.
        False when there was nothing to do. Chunks wait in their streams."""
        if self._driver.worker:
            raise OctavoError("This engine has a worker thread. Load it with worker=False to step it yourself.")
        return self._driver.pump()

    def close(self) -> None:
        """Cancels what runs and ends the worker. The engine cannot be used afterwards; closing twice is harmless."""
        self._driver.close()

    def __enter__(self) -> Engine:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _find_voice(self, voice: Voice | str | Path | None) -> Voice | None:
        if voice is not None and not isinstance(voice, Voice):
            voice = find_voice(voice, self.voices)
        if voice is not None:
            voice.require_codec(self.codec.fingerprint)
        return voice

    def _script(self, voice: Voice | None, sampling: SamplingParams, guard: bool, first_chunk: str) -> Script:
        if first_chunk not in ("exact", "fast"):
            raise RequestError(f"first_chunk is {first_chunk!r}; it must be 'exact' or 'fast'.")
        return Script(
            self.tokenizer,
            self.codec.fingerprint,
            voice,
            sampling,
            guard=guard,
            fast=first_chunk == "fast",
            check=self._loop.scheduler.check,
        )

    def _request(
        self, script: Script, out: Sink, pieces: list[str], told: Iterable[str], closed: bool = True, whole: bool = True
    ) -> Request:
        def start(request: Request, number: int) -> Utterance:
            utterance = script.utterance(number, request.utterances[0] if number else None)
            self._loop.begin(request, utterance)
            return utterance

        return Request(
            pieces,
            start,
            out,
            seed=script.sampling.seed,
            warnings=tuple(told),
            ahead=min(PIECES_AT_ONCE, self.config.max_batch),
            carry=script.voice is None,
            closed=closed,
            whole=whole,
        )

    def _cancel(self, request: Request) -> None:
        self._driver.try_post(lambda: self._loop.end(request, cancelled()))

    def _outbox(self) -> Outbox:
        """Without a worker, whoever waits at it steps the loop."""
        return Outbox(None if self._driver.worker else self._driver.pump)
