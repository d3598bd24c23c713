"""The engine: requests from any thread, one worker thread that steps the model and the codec."""

from __future__ import annotations

import dataclasses
import os
import secrets
import warnings
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch

from . import prompt, text
from .audio import Reference, read_reference
from .checkpoint import Checkpoint
from .codec import Codec
from .config import EngineConfig, SamplingParams
from .delay import CODEBOOKS
from .devices import pick_device, pick_dtype
from .errors import CapacityError, CheckpointError, RequestError
from .guard import Guard
from .hub import resolve
from .mailbox import Mailbox
from .models import CODEC_PREFIX, Model, load_model
from .request import Plan, Request, SpeechStream, cancelled
from .runner import Runner
from .scheduler import Scheduler, Sequence
from .speech import FRAME_RATE, Speech
from .tags import without_tags
from .tokenizer import Tokenizer
from .utterance import Utterance
from .voice import EncodeCache, Voice, VoiceStore, find_voice

PIECES_AT_ONCE = 4  # of one long text, so that it leaves slots to others
MOST_CARRIED = 30 * FRAME_RATE  # frames of a text's first piece that the others take as their voice


class Engine:
    """A loaded checkpoint that speaks. Several may live in one process; its methods may be called from any thread.

        with Engine.load("higgs-tts-3-4b") as engine:
            engine.generate("Hello there.").save("hello.wav")

    Requests made at the same time run together, in one batch. Nothing is global.
    """

    def __init__(self, model: Model, tokenizer: Tokenizer, codec: Codec, config: EngineConfig):
        self.model, self.tokenizer, self.codec, self.config = model, tokenizer, codec, config
        self.voices, self._cache = VoiceStore(), EncodeCache()
        self._runner, self._scheduler = Runner(model, config), Scheduler(config)
        self._stream = codec.stream(config.max_batch)
        self._requests: list[Request] = []
        self._speaking: dict[int, Utterance] = {}  # by slot: of the model and of the codec stream alike
        this = weakref.ref(self)
        self._mailbox = mailbox = Mailbox(lambda: _work(this, mailbox))
        weakref.finalize(self, mailbox.close)  # also when the interpreter ends: a worker must not be cut off in torch

    @classmethod
    def load(
        cls,
        path: str | os.PathLike,
        device: str = "auto",
        dtype: str = "auto",
        *,
        download: bool = False,
        progress: Callable[[int, int], None] = lambda done, total: None,
        **options: int,
    ) -> Engine:
        """Loads a checkpoint folder, or a model id that is in the local Hugging Face cache (or may be downloaded).

        device: `cpu`, `cuda`, `cuda:1`, or `auto`, a GPU where there is one. dtype: `fp32`, `bf16`, or `auto`: bf16 on
        a GPU, and on the CPU fp32 where that fits into half of the memory. `progress(done, total)` counts layers.
        options: the fields of EngineConfig. Raises CheckpointError, CapacityError, RequestError.
        """
        if unknown := options.keys() - {field.name for field in dataclasses.fields(EngineConfig)}:
            raise RequestError(f"The engine has no option {', '.join(sorted(unknown))}.")
        config = EngineConfig(**options)
        checkpoint = Checkpoint.open(resolve(os.fspath(path), download))
        target = pick_device(device)
        number_type = pick_dtype(dtype, target, checkpoint)
        tokenizer = Tokenizer.load(checkpoint.folder)
        try:
            codec = Codec.load(checkpoint.weights(CODEC_PREFIX), target)
            model = load_model(checkpoint, target, number_type, progress)
            checkpoint.release()
            if codec.config.codebooks != model.cfg.num_codebooks:
                raise CheckpointError(
                    f"The codec has {codec.config.codebooks} codebooks, the language model {model.cfg.num_codebooks}: "
                    "the checkpoint is damaged. Download it again."
                )
            if tokenizer.vocab_size > model.cfg.vocab_size:
                raise CheckpointError(
                    f"tokenizer.json has {tokenizer.vocab_size} tokens and the text embedding {model.cfg.vocab_size} "
                    "rows: they do not belong together. Download the checkpoint again."
                )
            config = dataclasses.replace(config, max_context=min(config.max_context, model.cfg.max_context))
            return cls(model, tokenizer, codec, config)
        except (torch.OutOfMemoryError, MemoryError) as error:
            raise CapacityError(
                f"The model and its KV cache do not fit into the memory of {target} (on disk it has "
                f"{checkpoint.nbytes / 1e9:.1f} GB). Close other programs, lower kv_rows, or use another device."
            ) from error

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
    ) -> SpeechStream:
        """Speaks `content`: returns at once with an iterator of chunks.

        voice: a Voice, a voice file, or the name of a stored voice. seed: None draws one; Speech.seed tells it. split:
        `auto` speaks a long text in pieces, each from seed + its number and in the same voice; `none` keeps it one
        piece. guard: cuts runaways, and limits each piece's rows by the length of its text; without it max_rows (per
        piece) is the only limit. strict: an unknown tag is an error, not a warning.

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

        def start(number: int, first: Utterance | None) -> Utterance:
            sequence = sequences[number]
            if first and speaker is None:  # now it is known what voice the first piece got
                carried = self._carried(first, pieces[0])
                sequence = self._sequence(pieces[number], number, sampling, guard, carried)
            watch = Guard(text.silence_allowance(pieces[number])) if guard else None
            utterance = Utterance(sequence, self._stream.lookahead, watch)
            self._scheduler.add(sequence)
            return utterance

        sequences: list[Sequence] = []
        for number, piece in enumerate(pieces):
            # A later piece must fit with the longest voice that the first may give it.
            example = self._most_carried(sequences[0], pieces[0]) if number and speaker is None else speaker
            sequences.append(self._sequence(piece, number, sampling, guard, example))
            self._scheduler.check(sequences[number])
        ahead = min(PIECES_AT_ONCE, self.config.max_batch)
        request = Request(Plan(tuple(pieces), seed, cleaned.warnings), start, ahead, carry=speaker is None)
        self._mailbox.post(lambda: self._requests.append(request))
        return SpeechStream(request, self._cancel)

    def generate(self, content: str, voice: Voice | str | Path | None = None, **options) -> Speech:
        """The whole speech at once: `stream` collected, with the same arguments."""
        with self.stream(content, voice, **options) as stream:
            return stream.result()

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

    def close(self) -> None:
        """Cancels what runs and ends the worker. The engine cannot be used afterwards; closing twice is harmless."""
        self._mailbox.close()

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

    def _carried(self, first: Utterance, said: str) -> Voice | None:
        """The voice of a text's first piece, for the others; a runaway is no example to follow."""
        if first.finish_reason in ("loop", "silence"):
            return None
        whole = first.num_frames <= MOST_CARRIED
        transcript = without_tags(said) if whole else None  # which would tell more than is heard
        return Voice(codes=first.codes[:MOST_CARRIED], transcript=transcript, codec=self.codec.fingerprint)

    def _most_carried(self, first: Sequence, said: str) -> Voice:
        """As long a voice as `_carried` may return."""
        frames = min(MOST_CARRIED, first.max_rows - CODEBOOKS + 1)
        codes = np.zeros((frames, CODEBOOKS), np.int16)
        return Voice(codes=codes, transcript=without_tags(said), codec=self.codec.fingerprint)

    def _cancel(self, request: Request) -> None:
        self._mailbox.try_post(lambda: self._end(request, cancelled()))

    def _sequence(
        self, piece: str, number: int, sampling: SamplingParams, guard: bool, voice: Voice | None
    ) -> Sequence:
        rows = min(sampling.max_rows, text.row_cap(piece)) if guard else sampling.max_rows
        own = dataclasses.replace(sampling, seed=(sampling.seed + number) % 2**63, max_rows=rows)
        if voice is None:
            return Sequence(prompt.build(self.tokenizer, piece), own)
        return Sequence(prompt.build(self.tokenizer, piece, voice.codes, voice.transcript), own, voice.key)

    # From here on: the worker thread.

    def _turn(self, actions: list[Callable[[], None]], closed: bool) -> bool:
        """What was posted, then one step; whether there is more to do. Nothing may end the worker but the end."""
        try:
            for action in actions:
                action()
            if closed:
                raise cancelled()
            if self._requests:
                self._step()
        except Exception as error:  # a bug, the device's memory, the end: nobody may wait for ever
            for request in list(self._requests):
                self._end(request, error)
        return bool(self._requests)

    def _step(self) -> None:
        """One row for everybody: admit and prefill, decode, turn finished frames to sound, hand it out."""
        for request in list(self._requests):
            self._advance(request)
        step = self._scheduler.schedule()
        if step.prefill:
            self._begin(step.prefill)
            self._collect(step.prefill, *self._runner.prefill(step.prefill))
            self._scheduler.prefilled(step.prefill)
        if step.decode:
            self._collect(step.decode, *self._runner.decode_row(step.decode))
        self._vocode()

    def _advance(self, request: Request) -> None:
        try:
            request.advance()
        except Exception as error:  # whatever is wrong with this request, the others go on
            self._end(request, error)
        else:
            if request.finished:
                self._requests.remove(request)

    def _begin(self, sequences: list[Sequence]) -> None:
        utterances = {u.sequence: u for request in self._requests for u in request.utterances}
        for sequence in sequences:
            self._speaking[sequence.slot] = utterances[sequence]
        self._stream.reset([sequence.slot for sequence in sequences])

    def _collect(self, sequences: list[Sequence], rows: np.ndarray, done: np.ndarray) -> None:
        for sequence, row, last in zip(sequences, rows, done.tolist(), strict=True):
            self._speaking[sequence.slot].add_row(row, last)

    def _vocode(self) -> None:
        """Pushes what is due through the codec, equal lengths together; who has all their sound leave."""
        while due := self._due():
            for frames, slots in due.items():
                taken = [self._speaking[slot].take(frames) for slot in slots]
                sounds = self._stream.push(slots, torch.stack([codes for codes, _ in taken]), [end for _, end in taken])
                for slot, sound in zip(slots, sounds, strict=True):
                    self._speaking[slot].add_sound(sound.cpu().numpy())
        for slot, utterance in list(self._speaking.items()):
            if utterance.flushed:
                del self._speaking[slot]
                self._scheduler.finish(utterance.sequence)

    def _due(self) -> dict[int, list[int]]:
        """Number of frames -> the slots from which so many should be pushed now."""
        due: dict[int, list[int]] = {}
        for slot, utterance in self._speaking.items():
            if frames := utterance.due():
                due.setdefault(frames, []).append(slot)
        return due

    def _end(self, request: Request, error: Exception) -> None:
        """Takes a request out, wherever its pieces are, and tells the caller why."""
        if request not in self._requests:
            return
        self._requests.remove(request)
        for utterance in request.utterances:
            self._speaking.pop(utterance.sequence.slot, None)
            self._scheduler.finish(utterance.sequence)
        request.out.put(error)


def _work(reference: weakref.ref[Engine], mailbox: Mailbox) -> None:
    """The worker. While it waits it holds no engine: one that is dropped without `close` gives its memory back."""
    busy = False
    while True:
        actions, closed = mailbox.take(wait=not busy)
        engine = reference()
        if engine is None:
            return
        busy = engine._turn(actions, closed)
        del engine, actions
        if closed:
            return
