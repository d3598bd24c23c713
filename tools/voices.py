"""Keep voices: add one from a recording, make one up, list, show and remove them.

A stored voice holds codes, the transcript, the consent and the licence; the recording itself is not kept. Voices lie in
the user's data folder, or in $OCTAVO_VOICES.
"""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import json
import sys
from typing import TYPE_CHECKING

from .loading import add_model_arguments, load_engine

if TYPE_CHECKING:
    from octavo.runtime.voice import Voice

# What a house voice says once, in about eight seconds.
_HOUSE_TEXT = (
    "Good morning. The kettle is on, the garden is quiet, and there is all the time in the world for a story. "
    "Shall we begin?"
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(metavar="ACTION", required=True)

    add = actions.add_parser("add", help="clone the voice in a recording of 1 to 30 s")
    add.add_argument("name", metavar="NAME")
    add.add_argument("audio", metavar="AUDIO", help="wav, flac, mp3, ogg or opus")
    transcript = add.add_mutually_exclusive_group()
    transcript.add_argument("--transcript", metavar="TEXT", help="what is said in it; makes a better clone")
    transcript.add_argument("--transcript-file", metavar="FILE", help="the same from a UTF-8 file")
    add.add_argument(
        "--consent", metavar="TEXT", help="who allowed this use of the voice, and how (else you are asked)"
    )
    add.set_defaults(act=_add)

    make = actions.add_parser("make", help="make up a voice: the model speaks once without an example")
    make.add_argument("name", metavar="NAME")
    make.add_argument("--seed", type=int, required=True, help="another seed, another voice")
    make.add_argument("--text", metavar="TEXT", default=_HOUSE_TEXT, help="what it says; control tags colour the voice")
    make.set_defaults(act=_make)

    for parser in (add, make):
        parser.add_argument("--licence", metavar="TEXT", default="", help="under which others may use the voice")
        parser.add_argument("--replace", action="store_true", help="overwrite a voice of this name")
        add_model_arguments(parser)

    listing = actions.add_parser("list", help="all voices")
    listing.set_defaults(act=_list)
    show = actions.add_parser("show", help="all there is to know about one voice")
    show.add_argument("name", metavar="NAME")
    show.add_argument("--json", action="store_true")
    show.set_defaults(act=_show)
    remove = actions.add_parser("rm", help="remove a voice")
    remove.add_argument("name", metavar="NAME")
    remove.add_argument("--yes", action="store_true", help="do not ask")
    remove.set_defaults(act=_remove)


def run(args: argparse.Namespace) -> int:
    return args.act(args)


def _add(args: argparse.Namespace) -> int:
    from octavo.runtime.audio import read_reference
    from octavo.runtime.voice import VoiceStore

    from .texts import read_text

    VoiceStore().path_for(args.name, args.replace)  # a bad or taken name is known before the work is done
    transcript = read_text(args.transcript, args.transcript_file)
    reference = read_reference(args.audio)
    for warning in reference.warnings:
        print(f"octavo: {warning}", file=sys.stderr)
    consent = args.consent or _ask_for_consent()
    with load_engine(args) as engine:
        voice = engine.encode_voice(reference, transcript, name=args.name, consent=consent, licence=args.licence)
    for warning in voice.warnings:
        print(f"octavo: {warning}", file=sys.stderr)
    return _store(voice, args)


def _make(args: argparse.Namespace) -> int:
    from octavo.runtime.errors import VoiceError
    from octavo.runtime.tags import without_tags
    from octavo.runtime.voice import Voice, VoiceStore

    VoiceStore().path_for(args.name, args.replace)  # a bad or taken name is known before the work is done
    with load_engine(args) as engine:
        speech = engine.generate(args.text, seed=args.seed, split="none", max_rows=60 * 25 + 7)  # a voice's 60 s
        for warning in speech.warnings:
            print(f"octavo: {warning}", file=sys.stderr)
        if speech.finish_reason in ("loop", "silence"):
            raise VoiceError(f"With seed {args.seed} the model ran away ({speech.finish_reason}). Try another seed.")
        if speech.finish_reason == "length":
            print("octavo: the text was cut; a shorter one, or another seed, makes a better voice", file=sys.stderr)
        voice = Voice(
            codes=speech.codes,
            transcript=without_tags(speech.segments[0].text),
            name=args.name,
            consent="Made up by the model; nobody's recording.",
            licence=args.licence,
            codec=engine.codec.fingerprint,
            seed=speech.seed,
        )
    return _store(voice, args)


def _list(args: argparse.Namespace) -> int:
    from octavo.runtime.voice import Voice, VoiceStore

    store = VoiceStore()
    voices = store.list()
    if not voices:
        print(f"No voices in {store.folder} yet. Add one: octavo voices add NAME RECORDING", file=sys.stderr)
    width = max(map(len, voices), default=0)
    for name, voice in voices.items():
        if isinstance(voice, Voice):
            source = "recording" if voice.source_sha256 else "made up"
            transcript = "with transcript" if voice.transcript else "no transcript"
            print(f"{name:<{width}}  {voice.seconds:5.2f} s  {source}, {transcript}  {voice.licence}".rstrip())
        else:
            print(f"{name:<{width}}  damaged: {voice}")
    return 0


def _show(args: argparse.Namespace) -> int:
    from octavo.runtime.voice import VoiceStore

    print(voice_text(VoiceStore().get(args.name), args.json))
    return 0


def _remove(args: argparse.Namespace) -> int:
    from octavo.runtime.errors import VoiceError
    from octavo.runtime.voice import VoiceStore

    store = VoiceStore()
    if args.name not in store.list():
        store.get(args.name)  # raises, telling similar names
    if not args.yes:
        if not sys.stdin.isatty():
            raise VoiceError(f"Nobody can be asked whether to remove {args.name}. Say so with --yes.")
        if _ask(f"Remove the voice {args.name}? [y/N] ").lower() not in ("y", "yes"):
            return 0
    store.remove(args.name)
    return 0


def voice_text(voice: Voice, as_json: bool = False) -> str:
    """All there is to know about a voice, for people or as JSON."""
    facts = {field.name: getattr(voice, field.name) for field in dataclasses.fields(voice) if field.name != "codes"}
    facts |= {"frames": len(voice.codes), "seconds": voice.seconds}
    if as_json:
        return json.dumps(facts, indent=2, ensure_ascii=False)
    return "\n".join(f"{name:<14}{value}" for name, value in facts.items() if value not in (None, ""))


def _ask_for_consent() -> str:
    from octavo.runtime.errors import VoiceError

    if not sys.stdin.isatty():
        raise VoiceError("A voice is stored only with consent. Say who allowed it, and how, with --consent TEXT.")
    consent = _ask("Whose voice is this, and how did they allow its use? It is stored with the voice.\n> ")
    if not consent:
        raise VoiceError("Without consent the voice is not stored. Get it, and say who gave it and how.")
    return consent


def _ask(question: str) -> str:
    """One line from the terminal. The question goes to stderr: stdout may be a file."""
    print(question, end="", file=sys.stderr, flush=True)
    line = sys.stdin.readline()
    if not line:  # Ctrl-D: the cursor still stands behind the question
        print(file=sys.stderr)
    return line.strip()


def _store(voice: Voice, args: argparse.Namespace) -> int:
    from octavo.runtime.voice import VoiceStore

    voice = dataclasses.replace(voice, created=datetime.date.today().isoformat())
    path = VoiceStore().add(voice, args.name, replace=args.replace)
    print(f'{path}: {voice.seconds:.2f} s. Try it: octavo say "Hello." --voice {args.name} --model {args.model}')
    return 0
