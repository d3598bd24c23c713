"""Text to codes through the engine against an independent assembly of `transformers` parts with its own prompt."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from reference import PLACEHOLDER, Reference
from tokenizers import Tokenizer

from octavo.runtime import Engine, Voice
from octavo.tools.make_checkpoint import make_checkpoint

ROWS = 48
TEXTS = {
    "plain": "Hello there, this is octavo.",
    "tagged": "<|emotion:elation|>Welcome aboard. Hello there <|prosody:pause|> and thanks.",
    "chinese": "你好，我是千问，你今天过得好吗？",
    "combining accent": "Cafe\u0301 cre\u0300me",
}


@pytest.fixture(scope="module")
def engine(tiny_dir):
    with Engine.load(tiny_dir, device="cpu", dtype="fp32") as engine:
        yield engine


@pytest.fixture(scope="module")
def reference(tiny_dir):
    return Reference(tiny_dir)


def make_voice(engine: Engine, frames: int, transcript: str | None, seed: int = 0) -> Voice:
    codes = np.random.default_rng(seed).integers(0, 1024, (frames, 8))
    return Voice(codes=codes, transcript=transcript, codec=engine.codec.fingerprint)


def prompt_ids(folder, text: str, voice: Voice | None) -> list[int]:
    """The published layouts, put together from tokenizer.json alone."""
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    token, encode = tokenizer.token_to_id, lambda said: tokenizer.encode(said, add_special_tokens=False).ids
    ids = [token("<|tts|>")]
    if voice and voice.transcript:
        ids += [token("<|ref_text|>"), *encode(voice.transcript)]
    if voice:
        ids += [token("<|ref_audio|>"), *[PLACEHOLDER] * (len(voice.codes) + 7)]
    return [*ids, token("<|text|>"), *encode(text), token("<|audio|>")]


def frames_of(rows: list[list[int]]) -> list[list[int]]:
    frames = [[rows[t + c][c] for c in range(8)] for t in range(len(rows) - 7)]
    return [[0 if code >= 1024 else code for code in frame] for frame in frames]


@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS.keys())
@pytest.mark.parametrize("cloned", [None, "no transcript", "And this is what was said."], ids=str)
def test_greedy_codes_equal_the_assembly(engine, reference, tiny_dir, text, cloned):
    voice = cloned and make_voice(engine, 33, None if cloned == "no transcript" else cloned)
    seen = []
    logits = engine.model.logits
    engine.model.logits = lambda hidden: seen.append(logits(hidden).view(-1, 8, 1026)) or seen[-1].flatten(1)
    try:
        speech = engine.generate(text, voice, temperature=0, max_rows=ROWS, guard=False)
    finally:
        del engine.model.logits
    rows, want = reference.greedy(prompt_ids(tiny_dir, text, voice), voice and voice.codes.tolist(), ROWS)
    assert speech.codes.tolist() == frames_of(rows)
    # Equal rows alone would forgive a slip that moves no argmax: gate and up swapped, the wrong rope pairs.
    assert len(seen) == len(rows)
    torch.testing.assert_close(torch.cat(seen), want, atol=1e-4 * want.abs().max().item(), rtol=0)
    assert len(speech.pcm) == 960 * len(speech.codes)


@pytest.mark.parametrize("slip", ["gate and up", "rope pairs", "q and k norm"])
def test_the_comparison_sees_known_slips(engine, reference, tiny_dir, slip):
    """The same comparison with a slip of other ports built in: the logits must tell."""
    ids = prompt_ids(tiny_dir, TEXTS["plain"], None)
    _, before = reference.greedy(ids, None, 1)
    layer = reference.model.layers[1]
    if slip == "gate and up":
        pair = layer.mlp.gate_proj, layer.mlp.up_proj
    elif slip == "q and k norm":
        pair = layer.self_attn.q_norm, layer.self_attn.k_norm
    else:
        pair = None
    if pair:
        pair[0].weight, pair[1].weight = pair[1].weight, pair[0].weight
        _, after = reference.greedy(ids, None, 1)
        pair[0].weight, pair[1].weight = pair[1].weight, pair[0].weight
    else:  # interleaved pairs instead of halves: permute the head's dimensions, on q and k of one layer
        order = torch.arange(64).view(2, 32).T.flatten()
        weight = layer.self_attn.q_proj.weight.data
        layer.self_attn.q_proj.weight.data = weight.view(-1, 64, 256)[:, order].reshape(weight.shape)
        _, after = reference.greedy(ids, None, 1)
        layer.self_attn.q_proj.weight.data = weight
    assert (after - before).abs().max() > 1e-3 * before.abs().max()


def test_the_real_tokenizer_end_to_end(tmp_path, published_tokenizer):
    """Examples A and B of the published ids, through engine and reference, with the real vocabulary."""
    folder = make_checkpoint(tmp_path / "real", size="tiny", seed=3, tokenizer=published_tokenizer)
    text = TEXTS["tagged"]
    rows, _ = Reference(folder).greedy(prompt_ids(folder, text, None), None, 24)
    with Engine.load(folder, device="cpu", dtype="fp32") as engine:
        assert engine.generate(text, temperature=0, max_rows=24).codes.tolist() == frames_of(rows)
