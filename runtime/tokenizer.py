"""Text to ids through `tokenizer.json` of the checkpoint (model-v3.md section 4), and a stand-in for synthetic ones."""

from __future__ import annotations

import os
from pathlib import Path

import tokenizers
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers, processors

from .errors import CheckpointError, RequestError
from .tags import ADDED_TOKENS, CONTROL_TAGS

BASE_VOCABULARY = 151_643  # ids below the added tokens in the published file
_FRAME = {"tts": "<|tts|>", "text": "<|text|>", "audio": "<|audio|>", "ref_text": "<|ref_text|>",
          "ref_audio": "<|ref_audio|>"}  # fmt: skip


class Tokenizer:
    """Encodes clean text; knows the ids that frame a prompt. Holds no state between calls: threads may share it.

    tts, text, audio, ref_text, ref_audio: ids of the structural tokens of those names, found by their strings.
    vocab_size: one more than the largest id it can give; the text embedding must have at least as many rows.
    """

    tts: int
    text: int
    audio: int
    ref_text: int
    ref_audio: int

    def __init__(self, tokenizer: tokenizers.Tokenizer, source: str = "the tokenizer"):
        """Raises CheckpointError, naming `source`, when a token of the prompt or a control tag is missing."""
        added = {token.content: index for index, token in tokenizer.get_added_tokens_decoder().items()}
        if missing := [token for token in (*_FRAME.values(), *CONTROL_TAGS) if token not in added]:
            named = ", ".join(missing[:5]) + (f" and {len(missing) - 5} more" if len(missing) > 5 else "")
            raise CheckpointError(f"{source} lacks {named}. It is not the tokenizer of a Higgs TTS 3 checkpoint.")
        for name, token in _FRAME.items():
            setattr(self, name, added[token])
        self.vocab_size = max(tokenizer.get_vocab().values()) + 1
        self._tokenizer = tokenizer
        self._structural = {index: token for token, index in added.items() if token not in CONTROL_TAGS}

    @classmethod
    def load(cls, path: str | os.PathLike) -> Tokenizer:
        """Reads `tokenizer.json`, given as the file or as the folder that holds it. Raises CheckpointError."""
        file = Path(path)
        file = file / "tokenizer.json" if file.is_dir() else file
        try:
            return cls.parse(file.read_bytes(), str(file))
        except OSError as error:
            raise CheckpointError(f"{file} cannot be read: {error.strerror}. Download the model again.") from error

    @classmethod
    def parse(cls, content: bytes, source: str) -> Tokenizer:
        """content: of a tokenizer.json; `source` names it in what is raised: CheckpointError."""
        try:
            tokenizer = tokenizers.Tokenizer.from_str(content.decode())
        except UnicodeDecodeError as error:
            raise CheckpointError(f"{source} is damaged (it is not UTF-8). Download it again.") from error
        except Exception as error:  # the library raises nothing more exact
            raise CheckpointError(
                f"{source} is damaged or of an unknown format ({error}). Download it again."
            ) from error
        tokenizer.no_truncation()  # a file may carry settings of another use
        tokenizer.no_padding()
        return cls(tokenizer, source)

    def encode(self, text: str) -> list[int]:
        """Ids of clean text: each control tag is one id, the rest is Unicode-normalised (NFC) and byte-level BPE.

        Raises RequestError when a structural token would come out: text that went through `text.clean` has none.
        """
        try:
            ids: list[int] = self._tokenizer.encode(text, add_special_tokens=False).ids
        except (TypeError, UnicodeEncodeError) as error:  # lone surrogates: which of the two depends on the version
            raise RequestError("The text is not valid Unicode. Save it as UTF-8.") from error
        if found := self._structural.keys() & set(ids):
            token = self._structural[min(found)]
            raise RequestError(f"{token} is a token of the model's own and cannot be spoken. Remove it from the text.")
        return ids


def build_byte_tokenizer(base_vocab: int | None = None) -> tokenizers.Tokenizer:
    """A tokenizer for synthetic checkpoints: one id per UTF-8 byte, then the 84 added tokens, in the published order.

    Its pipeline is the published one without merges. `base_vocab` fills the ids from 256 up to it with tokens that no
    text can produce: with BASE_VOCABULARY the added tokens get their real ids.
    """
    # The byte alphabet in its usual order, which is also the published one: printable bytes first.
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {character: index for index, character in enumerate(alphabet)}
    assert base_vocab is None or base_vocab >= len(vocabulary), base_vocab
    vocabulary |= {f"unused{index}": index for index in range(len(vocabulary), base_vocab or 0)}
    tokenizer = tokenizers.Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.normalizer = normalizers.NFC()
    words = (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
        r"|\s+(?!\S)|\s+"
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(words), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, trim_offsets=False, use_regex=False),
        ]
    )
    tokenizer.post_processor = processors.ByteLevel(add_prefix_space=False, trim_offsets=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_tokens(
        [AddedToken(token, normalized=False, special=token.startswith("<|")) for token in ADDED_TOKENS]
    )
    return tokenizer
