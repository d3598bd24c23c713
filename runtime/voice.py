"""A voice is codes: what the codec made of a recording, or what the model once said, with the text spoken in it.

A voice file is one small safetensors file: tensor `codes` int16 [T, 8], and as string metadata the transcript, the
consent, the licence and where the codes come from. There is no recording inside.
"""

import dataclasses
import difflib
import hashlib
import json
import os
import re
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any, Self

import numpy as np
import safetensors.numpy

from .codec.config import FRAME_RATE
from .config import plain
from .delay import BOC, CODEBOOKS
from .encode_cache import EncodeCache
from .errors import VoiceError
from .files import user_folder, write_atomic
from .text import neutralise

__all__ = ["EncodeCache", "Voice", "VoiceStore", "check_codes", "find_voice"]

CODEBOOK_SIZE = BOC  # the control codes come behind the last code
MAX_TEXT = 20_000  # characters in each text of a voice
MAX_BYTES = 1 << 20  # of a voice file: the longest codes take 24 kB
TEXTS = ("transcript", "name", "consent", "licence", "source_sha256", "codec", "created")
FORMAT, VERSION = "octavo-voice", "1"
SURROGATE = re.compile("[\ud800-\udfff]")  # what remains of bytes that were not UTF-8: no file can hold it


def check_codes(codes: Any) -> np.ndarray:
    """Integers [T, 8] in 0..1023 -> the same as a read-only int16 copy; VoiceError for anything else."""
    array = np.asarray(codes)
    if array.ndim != 2 or array.shape[1] != CODEBOOKS or not len(array) or array.dtype.kind not in "iu":
        raise VoiceError(f"The codes of a voice are integers [T, {CODEBOOKS}], not {array.dtype} {list(array.shape)}.")
    if array.min() < 0 or array.max() >= CODEBOOK_SIZE:
        raise VoiceError(
            f"The codes of a voice go from 0 to {CODEBOOK_SIZE - 1}, not from {array.min()} to {array.max()}."
        )
    array = array.astype("<i2")
    array.flags.writeable = False
    return array


@dataclass(frozen=True, eq=False)
class Voice:
    """The codes of 1 to 30 s of a recording, or of up to 60 s generated without one (a "house voice").

    Raises VoiceError if a field cannot be right. Consent is asked for when a voice is stored: see `save`.
    """

    codes: np.ndarray  # integers [T, 8] in 0..1023; kept as a read-only int16 copy
    transcript: str | None = None  # what is said in the codes; a blank one counts as none
    name: str = ""
    consent: str = ""  # who allowed the use of the recorded voice, and how
    licence: str = ""
    source_sha256: str = ""  # of the recording, 64 hexadecimal digits; empty for a house voice
    codec: str = ""  # fingerprint of the codec that gives the codes their meaning
    seed: int | None = None  # that made a house voice
    created: str = ""  # date, as the caller writes it

    def __post_init__(self) -> None:
        codes = check_codes(self.codes)
        least, most = (1, 30) if self.source_sha256 else (0, 60)
        if not least * FRAME_RATE <= len(codes) <= most * FRAME_RATE:
            kind = "recorded" if self.source_sha256 else "generated"
            raise VoiceError(f"A {kind} voice lasts {least} to {most} s, not {len(codes) / FRAME_RATE:g} s.")
        for field, text in self._texts().items():
            if not isinstance(text, str) or len(text) > MAX_TEXT or SURROGATE.search(text):
                raise VoiceError(f"The {field} of a voice is Unicode text of at most {MAX_TEXT} characters.")
        if not re.fullmatch("([0-9a-f]{64})?", self.source_sha256):
            raise VoiceError(
                f"The source of a voice is a SHA-256 of 64 hexadecimal digits, not {self.source_sha256!r}."
            )
        seed = plain(self.seed)
        if seed is not None and not (type(seed) is int and 0 <= seed < 1 << 63):
            raise VoiceError(f"The seed of a voice is a whole number from 0 to 2^63 - 1, not {self.seed!r}.")
        object.__setattr__(self, "codes", codes)
        object.__setattr__(self, "seed", seed)
        if self.transcript is not None and not self.transcript.strip():
            object.__setattr__(self, "transcript", None)

    def _texts(self) -> dict[str, str]:
        fields = {field: getattr(self, field) for field in TEXTS}
        return {field: text for field, text in fields.items() if text is not None or field != "transcript"}

    @property
    def seconds(self) -> float:
        return len(self.codes) / FRAME_RATE

    @cached_property
    def warnings(self) -> tuple[str, ...]:
        """What whoever speaks with this voice should know, in sentences."""
        _, removed = neutralise(self.transcript or "")
        if not removed:
            return ()
        return (f"Removed {', '.join(removed)} from the voice's transcript: it frames prompts and is no control tag.",)

    @cached_property
    def key(self) -> bytes:
        """SHA-256 of all codes and the transcript: equal keys make equal prompts, so a prefix cache goes by it."""
        return _digest(self.codes, {"transcript": self.transcript})

    def require_codec(self, fingerprint: str) -> None:
        """Raise VoiceError unless the codes were made with the codec of this fingerprint."""
        if self.codec != fingerprint:
            raise VoiceError(
                f"The voice {self.name!r} was made with another codec ({self.codec[:12] or 'unknown'}) than that of "
                f"this model ({fingerprint[:12]}). Make it again from its recording with this model."
            )

    def save(self, path: str | os.PathLike) -> None:
        """Write a voice file, whole or not at all. VoiceError: recorded but without consent, no codec, cannot write."""
        if self.source_sha256 and not self.consent.strip():
            raise VoiceError("A voice made from a recording is stored only with consent. Say who allowed it, and how.")
        if not self.codec:
            raise VoiceError("A voice is stored with the fingerprint of its codec. Set Voice.codec.")
        metadata = {"format": FORMAT, "version": VERSION, "octavo": version("octavo"), **self._texts()}
        if self.seed is not None:
            metadata["seed"] = str(self.seed)
        metadata["digest"] = _digest(self.codes, metadata).hex()
        write_atomic(path, safetensors.numpy.save({"codes": self.codes}, metadata), VoiceError)

    @classmethod
    def load(cls, path: str | os.PathLike) -> Self:
        """Read a voice file. VoiceError: missing, no voice file, damaged or edited, of a newer octavo."""
        tensors, metadata = _read(path)
        if metadata.get("format") != FORMAT:
            raise VoiceError(f"{path} is not a voice file. `octavo voices add` makes one.")
        if metadata.get("version") != VERSION:
            raise VoiceError(f"{path} was made by a newer octavo ({metadata.get('octavo')}). Update octavo to use it.")
        try:
            if {name: tensor.dtype for name, tensor in tensors.items()} != {"codes": np.int16}:
                raise VoiceError(f"its tensors are {sorted(tensors)}, not int16 codes")
            if metadata.pop("digest") != _digest(tensors["codes"], metadata).hex():
                raise VoiceError("its contents do not match their digest")
            texts = {field: metadata[field] for field in TEXTS if field != "transcript"}
            seed = int(metadata["seed"]) if "seed" in metadata else None
            voice = cls(tensors["codes"], metadata.get("transcript"), **texts, seed=seed)
            if voice.source_sha256 and not voice.consent.strip():
                raise VoiceError("it is made from a recording, but without consent")
        except (KeyError, ValueError) as exc:  # VoiceError is a ValueError
            raise VoiceError(f"{path} is damaged or was edited ({exc}). Make the voice again.") from exc
        return voice


def _digest(codes: np.ndarray, fields: Mapping[str, str | None]) -> bytes:
    return hashlib.sha256(json.dumps(fields, sort_keys=True).encode() + codes.astype("<i2").tobytes()).digest()


def _read(path: str | os.PathLike) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """The tensors and the metadata of a small safetensors file; VoiceError for any other."""
    try:
        size = os.stat(path).st_size
        if size <= MAX_BYTES:
            with safetensors.safe_open(path, "numpy") as file:
                return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}
    except FileNotFoundError as exc:
        raise VoiceError(f"There is no voice file {path}. `octavo voices list` shows the stored voices.") from exc
    except OSError as exc:
        raise VoiceError(f"{path} cannot be read: {exc.strerror or exc}. Check the path.") from exc
    except (safetensors.SafetensorError, TypeError, ValueError) as exc:
        raise VoiceError(f"{path} is not a voice file, or is damaged ({exc}). `octavo voices add` makes one.") from exc
    raise VoiceError(f"{path} is no voice file: {size} bytes are too large. `octavo voices add` makes one.")


class VoiceStore:
    """A folder of voice files, each named after its voice.

    folder: default `$OCTAVO_VOICES`, else `octavo/voices` in the user's data folder; it appears with the first voice.
    Names are letters and digits of any script, `-` and `_`, and are the same in small and capital letters. Files are
    written whole, so several processes may share a folder.
    """

    SUFFIX = ".safetensors"

    def __init__(self, folder: str | os.PathLike | None = None) -> None:
        self.folder = Path(folder or os.environ.get("OCTAVO_VOICES") or user_folder("DATA", ".local/share") / "voices")

    def path_for(self, name: str, replace: bool = False) -> Path:
        """The file where `add` would store a voice of that name. VoiceError: the name is bad, or taken."""
        name = _check_name(name)
        path = self._find(name)
        if path and not replace:
            raise VoiceError(f"There is already a voice {path.stem!r}. Choose another name, or replace it (--replace).")
        return path or self.folder / (name + self.SUFFIX)

    def add(self, voice: Voice, name: str | None = None, replace: bool = False) -> Path:
        """Store `voice` as `name` (default: its own) and return the file. VoiceError: name bad or taken, no consent."""
        path = self.path_for(voice.name if name is None else name, replace)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as exc:
            raise VoiceError(f"The folder {self.folder} cannot be made: {exc.strerror}. Set OCTAVO_VOICES.") from exc
        dataclasses.replace(voice, name=path.stem).save(path)
        return path

    def list(self) -> dict[str, Voice | VoiceError]:
        """All voices by name, in order; in place of a file that cannot be read stands the error that says why."""
        voices: dict[str, Voice | VoiceError] = {}
        for path in self._files():
            try:
                voices[path.stem] = self._load(path)
            except VoiceError as exc:
                voices[path.stem] = exc
        return voices

    def get(self, name: str) -> Voice:
        """The voice of that name; if there is none, the VoiceError tells similar names."""
        return self._load(self._existing(name))

    def has(self, name: str) -> bool:
        return self._find(name) is not None

    def remove(self, name: str) -> None:
        """Delete the voice of that name; VoiceError if there is none."""
        path = self._existing(name)
        try:
            path.unlink(missing_ok=True)
        except OSError as exc:
            raise VoiceError(f"{path} cannot be removed: {exc.strerror}. Check who owns it.") from exc

    def _load(self, path: Path) -> Voice:
        return dataclasses.replace(Voice.load(path), name=path.stem)  # a file renamed by hand goes by its new name

    def _existing(self, name: str) -> Path:
        if path := self._find(name):
            return path
        names = [path.stem for path in self._files()]
        near = difflib.get_close_matches(_folded(name), map(_folded, names))
        hint = f"Did you mean {' or '.join(near)}?" if near else "`octavo voices list` shows them, `add` makes one."
        raise VoiceError(f"There is no voice {name!r} among the {len(names)} in {self.folder}. {hint}")

    def _find(self, name: str) -> Path | None:
        return next((path for path in self._files() if _folded(path.stem) == _folded(name)), None)

    def _files(self) -> tuple[Path, ...]:
        try:
            return tuple(sorted(p for p in self.folder.iterdir() if p.suffix == self.SUFFIX and p.name[0] != "."))
        except FileNotFoundError:
            return ()
        except OSError as exc:
            raise VoiceError(f"The folder {self.folder} cannot be read: {exc.strerror}. Set OCTAVO_VOICES.") from exc


def find_voice(name_or_path: str | os.PathLike, store: VoiceStore | None = None) -> Voice:
    """The voice in a file, if there is such a file or what is given looks like one; else the stored voice so named."""
    try:
        path, store = Path(name_or_path), store or VoiceStore()
    except TypeError as exc:
        kind = type(name_or_path).__name__
        raise VoiceError(f"A voice is named by a string or a path, not by a value of type {kind}.") from exc
    if path.suffix or len(path.parts) > 1 or (os.path.isfile(path) and not store.has(str(name_or_path))):
        return Voice.load(path)
    return store.get(str(name_or_path))


def _folded(name: str) -> str:
    return unicodedata.normalize("NFC", name).casefold()


def _check_name(name: str) -> str:
    name = unicodedata.normalize("NFC", name)
    kinds = [unicodedata.category(char)[0] for char in name]  # letter, mark, number, ...
    fits = all(kind in "LMN" or char in "-_" for kind, char in zip(kinds, name, strict=True))
    if not fits or not 1 <= len(name) <= 48 or kinds[0] not in "LN":
        raise VoiceError(
            f"{name!r} cannot name a voice. Take up to 48 letters, digits, - and _, a letter or digit first."
        )
    return name
