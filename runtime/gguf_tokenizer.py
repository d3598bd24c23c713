"""tokenizer.json from the vocabulary that llama.cpp's converters store: byte-level BPE, split as Qwen2 does."""

from __future__ import annotations

import json

from .errors import CheckpointError
from .gguf import GGUFFile
from .tags import ADDED_TOKENS
from .tokenizer import build_byte_tokenizer

_UNUSED = 5  # token type of the rows between the last token and the table's length


def rebuild_tokenizer(file: GGUFFile) -> bytes:
    """The content of a tokenizer.json that encodes as the published one. Raises CheckpointError.

    Tokens that the prompt and the control tags need may be absent altogether (HiggsTTS.cpp stores the 151,643 of the
    base vocabulary): then they follow the last, in the published order, and the ids stored for some must agree.
    """
    metadata, path = file.metadata, file.path
    model, split = metadata.scalar("tokenizer.ggml.model", "gpt2"), metadata.scalar("tokenizer.ggml.pre", "qwen2")
    if (model, split) != ("gpt2", "qwen2"):
        raise CheckpointError(f"{path} has a tokenizer of kind {model!r}, {split!r}, not that of Higgs TTS v3.")
    tokens, merges = _strings(file, "tokenizer.ggml.tokens"), _strings(file, "tokenizer.ggml.merges")
    types = metadata.naturals("tokenizer.ggml.token_type")
    unused = set() if types is None else set((types == _UNUSED).nonzero()[0].tolist())
    entries = [(token, index) for index, token in enumerate(tokens) if token and index not in unused]
    vocabulary = dict(entries)
    if len(vocabulary) < len(entries):
        raise CheckpointError(f"{path} has two tokens of one text. Download it again.")
    present = [token for token in ADDED_TOKENS if token in vocabulary]
    if not present:
        vocabulary |= {token: len(tokens) + number for number, token in enumerate(ADDED_TOKENS)}
    elif len(present) < len(ADDED_TOKENS):
        absent = next(token for token in ADDED_TOKENS if token not in vocabulary)
        raise CheckpointError(f"{path} lacks {absent}. It is not the tokenizer of a Higgs TTS 3 checkpoint.")
    for token in ADDED_TOKENS:
        stored = metadata.scalar("higgs.token." + token.strip("<|>").replace(":", "_"))
        if stored not in (None, vocabulary[token]):
            raise CheckpointError(
                f"{path} says that {token} is token {stored}, but it is number {vocabulary[token]} of its vocabulary. "
                "The file is damaged."
            )
    content = json.loads(build_byte_tokenizer().to_str())  # the published pipeline, around another vocabulary
    # Added tokens stand in the vocabulary as well: it gives them their ids, gaps included. No merge leads to one.
    content["model"] |= {"vocab": vocabulary, "merges": [_pair(file, merge) for merge in merges]}
    content["added_tokens"] = [token | {"id": vocabulary[token["content"]]} for token in content["added_tokens"]]
    return json.dumps(content, ensure_ascii=False).encode()


def _strings(file: GGUFFile, key: str) -> list[str]:
    value = file.metadata.strings(key)
    if value is None:
        raise CheckpointError(f"{file.path} has no {key}: it brings no tokenizer. Download it again.")
    return value


def _pair(file: GGUFFile, merge: str) -> list[str]:
    pair = merge.split(" ")
    if len(pair) != 2:
        raise CheckpointError(f"{file.path} has the damaged merge {merge[:40]!r}. Download it again.")
    return pair
