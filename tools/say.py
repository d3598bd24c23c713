"""Speak a text into a sound file.

The sound is written while it is generated; a file appears under its name only when it is complete. The last line tells
how long the sound is, how fast it was made, and the seed that makes it again. Texts and reports go to stderr.
"""

from __future__ import annotations

import argparse
import io
import os
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from tqdm import tqdm

from .loading import add_model_arguments, load_engine
from .peak_memory import peak_memory
from .texts import read_text

if TYPE_CHECKING:
    import numpy as np

    from octavo.runtime.audio import Reference
    from octavo.runtime.engine import Engine
    from octavo.runtime.speech import Chunk, Speech
    from octavo.runtime.streams import SpeechStream
    from octavo.runtime.voice import Voice

_DEFAULT_OUTPUT = "speech.wav"
_ENDED = {
    "length": "cut by the row limit before the text ended",
    "loop": "stopped by the guard: the model repeated itself",
    "silence": "stopped by the guard: the model fell silent",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("text", metavar="TEXT", nargs="?", help="what to say; - reads standard input")
    parser.add_argument("-f", "--file", metavar="FILE", help="read the text from a UTF-8 file instead")
    parser.add_argument(
        "-o",
        "--output",
        metavar="OUT",
        help=f".wav, .flac, .mp3, .ogg or .opus, or - for WAV on standard output (default: {_DEFAULT_OUTPUT}; "
        "none with --play)",
    )
    add_model_arguments(parser)
    voice = parser.add_argument_group("voice (default: the model picks one)")
    voice.add_argument("--voice", metavar="NAME|FILE", help="a stored voice (octavo voices list) or a voice file")
    voice.add_argument("--ref-audio", metavar="FILE", help="clone the voice in this recording, 1 to 30 s")
    voice.add_argument("--ref-text", metavar="TEXT", help="what is said in the recording; it makes a better clone")
    sampling = parser.add_argument_group("sampling")
    sampling.add_argument("--temperature", type=float, metavar="X", default=0.8, help="0 is greedy (default: 0.8)")
    sampling.add_argument("--top-k", type=int, metavar="N", default=50, help="0 is off (default: 50)")
    sampling.add_argument("--top-p", type=float, metavar="X", help="default: off")
    sampling.add_argument(
        "--seed", type=int, metavar="N", help="the same seed gives the same sound (default: a new one each time)"
    )
    sampling.add_argument(
        "--max-rows", type=int, metavar="N", default=2048, help="25 rows are a second (default: 2048)"
    )
    sampling.add_argument("--split", choices=("auto", "none"), default="auto", help="none keeps the text one piece")
    sampling.add_argument("--no-guard", action="store_true", help="only --max-rows ends a runaway")
    parser.add_argument("--strict", action="store_true", help="an unknown <|tag|> is an error, not spoken as text")
    parser.add_argument("--codes", metavar="OUT.npy", help="also write the codes, int16 [frames, 8]")
    parser.add_argument("--srt", metavar="FILE", help="also write subtitles: .srt, or .vtt by the suffix")
    parser.add_argument("--play", action="store_true", help="also play the sound once it is made; alone: write no file")


def run(args: argparse.Namespace) -> int:
    from octavo.runtime.audio_writer import AudioWriter, play
    from octavo.runtime.files import AtomicFile, write_atomic

    text = _check(args, read_text(args.text, args.file))
    voice, reference = _voice(args), _reference(args)
    output = args.output or (None if args.play else _DEFAULT_OUTPUT)
    for path in filter(None, (args.codes, args.srt)):
        AtomicFile(path).abort()  # what cannot be written is known before the model is loaded
    if args.play:
        _play_silence()
    with ExitStack() as stack:
        sound = stack.enter_context(AudioWriter(output)) if output else None  # removed on any error, and on Ctrl-C
        engine = stack.enter_context(load_engine(args))
        if reference:
            voice = engine.encode_voice(reference, transcript=args.ref_text)
        stream = stack.enter_context(_start(args, engine, text, voice))
        for chunk in _watched(stream):
            if sound:
                sound.write(chunk.pcm)
        speech = stream.result()
    print(_summary(speech, output), file=sys.stderr)  # with the seed, even if one of the next files fails
    if args.codes:
        write_atomic(args.codes, _npy(speech.codes))
    if args.srt:
        write_atomic(args.srt, _subtitles(speech, args.srt))
    if args.play:
        play(speech.pcm, speech.sample_rate)
    return 0


def _check(args: argparse.Namespace, text: str | None) -> str:
    """The text, once nothing is wrong that can be known before a model is loaded. Raises RequestError."""
    from octavo.runtime.config import SamplingParams
    from octavo.runtime.errors import RequestError
    from octavo.runtime.text import clean

    for option in ("output", "voice", "ref_audio", "ref_text", "codes", "srt"):
        if getattr(args, option) == "":
            raise RequestError(f"--{option.replace('_', '-')} is empty. Give it a value, or leave it out.")
    inputs = [path for path in (args.file, args.ref_audio, args.voice) if path]
    for output in filter(None, (args.output, args.codes, args.srt)):
        if any(os.path.exists(output) and os.path.exists(path) and os.path.samefile(output, path) for path in inputs):
            raise RequestError(f"{output} is read as well: writing it would lose what it holds. Choose another name.")
    if text is None:
        raise RequestError("Give the text to say, or a file with -f FILE.")
    if args.voice and args.ref_audio:
        raise RequestError("--voice and --ref-audio both name a voice. Give one of the two.")
    if args.ref_text and not args.ref_audio:
        raise RequestError("--ref-text says what is spoken in a recording. Give the recording with --ref-audio.")
    if args.output == "-" and sys.stdout.isatty():
        raise RequestError("Standard output is a terminal. Pipe the sound somewhere, or name a file with -o.")
    if args.srt and Path(args.srt).suffix.lower() not in (".srt", ".vtt"):
        raise RequestError(f"{args.srt} names no kind of subtitles. Use a name that ends in .srt or .vtt.")
    if args.codes and Path(args.codes).suffix.lower() != ".npy":
        raise RequestError(f"{args.codes} names no array file. Use a name that ends in .npy.")
    SamplingParams(args.temperature, args.top_k, args.top_p, args.seed or 0, args.max_rows)
    clean(text, strict=args.strict)
    return text


def _voice(args: argparse.Namespace) -> Voice | None:
    from octavo.runtime.voice import VoiceStore, find_voice

    return find_voice(args.voice, VoiceStore()) if args.voice else None


def _reference(args: argparse.Namespace) -> Reference | None:
    from octavo.runtime.audio import read_reference

    reference = read_reference(args.ref_audio) if args.ref_audio else None
    for warning in reference.warnings if reference else ():
        print(f"octavo: {warning}", file=sys.stderr)
    return reference


def _start(args: argparse.Namespace, engine: Engine, text: str, voice: Voice | None) -> SpeechStream:
    stream = engine.stream(
        text,
        voice,
        temperature=args.temperature,
        top_k=args.top_k,
        top_p=args.top_p,
        seed=args.seed,
        max_rows=args.max_rows,
        split=args.split,
        guard=not args.no_guard,
        strict=args.strict,
    )
    for warning in stream.warnings:
        print(f"octavo: {warning}", file=sys.stderr)
    return stream


def _watched(stream: SpeechStream) -> Iterator[Chunk]:
    """The chunks, with a bar on a terminal that counts seconds of sound (how many there will be, nobody knows)."""
    form = "{desc}{n:.1f} s of sound in {elapsed}"
    with tqdm(bar_format=form, leave=False, disable=not sys.stderr.isatty()) as bar:
        for chunk in stream:
            if chunk.segments > 1:
                bar.set_description(f"piece {chunk.segment + 1} of {chunk.segments}", refresh=False)
            bar.update(len(chunk.pcm) / 24_000)
            yield chunk


def _play_silence() -> None:
    """Raises AudioError now if nothing can be played here."""
    import numpy as np

    from octavo.runtime.audio_writer import play

    play(np.zeros(240, dtype=np.float32))


def _subtitles(speech: Speech, path: str) -> bytes:
    from octavo.runtime.subtitles import to_srt, to_vtt

    return (to_vtt if path.lower().endswith(".vtt") else to_srt)(speech.segments).encode()


def _npy(codes: np.ndarray) -> bytes:
    import numpy as np

    file = io.BytesIO()
    np.save(file, codes)
    return file.getvalue()


def _summary(speech: Speech, output: str | None) -> str:
    """The last line: how long the sound is, what it cost, how it ended if not by itself, and its seed."""
    usage = speech.usage
    facts = [
        f"{usage.audio_seconds:.2f} s of sound in {usage.seconds:.2f} s (RTF {usage.rtf:.2f})",
        f"first audio after {usage.first_audio_seconds:.2f} s",
        f"peak memory {peak_memory()}",
        f"seed {speech.seed}",
    ]
    if speech.finish_reason != "stop":
        facts.append(f"{speech.finish_reason}: {_ENDED[speech.finish_reason]}")
    return (f"{output}: " if output not in (None, "-") else "") + ", ".join(facts)
