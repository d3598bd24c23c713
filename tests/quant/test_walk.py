"""The walk against `transformers`, and against what its rows are said to be."""

from __future__ import annotations

import pytest
import torch
from reference import Reference

from octavo.kernels import launch
from octavo.quant.walk import TEXT_SHARE, Utterance, Walk
from octavo.runtime.checkpoint import Checkpoint
from octavo.runtime.delay import undelay
from octavo.runtime.errors import CheckpointError
from octavo.runtime.prompt import PLACEHOLDER
from octavo.tools.make_checkpoint import make_checkpoint

from .utterances import utterance

UTTERANCES = [utterance(0), utterance(1, text=20, frames=9, reference=15), utterance(2, text=3, frames=1)]


def walk(folder, device="cpu", dtype=torch.float32, **options) -> Walk:
    return Walk(Checkpoint.open(folder), UTTERANCES, torch.device(device), dtype, **options)


def embedded(reference: Reference, u) -> torch.Tensor:
    codes = undelay(u.reference.numpy()).tolist() if len(u.reference) else None
    prompt = reference.embed_prompt(u.ids.tolist(), codes)[0]
    return torch.stack([*prompt, *(reference.embed_row(row) for row in u.rows[:-1].tolist())])


@pytest.mark.parametrize("chunk_rows", [2048, 40], ids=["one chunk", "chunks"])
def test_rows_and_logits_equal_transformers(tiny_dir, device, chunk_rows):
    reference, walked = Reference(tiny_dir, device=device), walk(tiny_dir, device, chunk_rows=chunk_rows)
    steps = [step.number for step in walked.layers()]
    logits = walked.logits()
    assert steps == [0, 1, 2, 3]
    assert torch.equal(walked.targets.cpu(), torch.cat([u.rows for u in UTTERANCES]))
    for number, u in enumerate(UTTERANCES):
        hidden = reference.hidden(embedded(reference, u)[None])
        want = reference.logits(hidden[len(u.ids) - 1 :]).flatten(1)
        got = logits[walked.owner == number]
        assert got.shape == want.shape == (len(u.rows), 8 * 1026)
        torch.testing.assert_close(got, want, atol=2e-4, rtol=2e-4)


def test_logits_predict_the_rows_that_were_spoken(tiny_dir):
    """Greedy rows are what each position likes best, once the delay pattern forces nothing."""
    ids = UTTERANCES[0].ids
    rows, _ = Reference(tiny_dir).greedy(ids.tolist(), None, 24)
    spoken = Utterance(ids, torch.empty(0, 8, dtype=torch.int64), torch.tensor(rows), "greedy")
    walked = Walk(Checkpoint.open(tiny_dir), [UTTERANCES[1], spoken], torch.device("cpu"), torch.float32)
    list(walked.layers())
    best, mine = walked.logits().view(-1, 8, 1026).argmax(-1), walked.owner == 1
    assert torch.equal(best[mine][8:], walked.targets[mine][8:])


def test_x_is_behind_each_layer_as_it_is_yielded(tiny_dir):
    reference, walked = Reference(tiny_dir), walk(tiny_dir)
    u = UTTERANCES[0]
    x = embedded(reference, u)
    torch.testing.assert_close(walked.x[: len(x)], x, atol=1e-6, rtol=1e-6)
    want = reference.model(inputs_embeds=x[None], output_hidden_states=True).hidden_states
    for step in walked.layers():
        if step.number < 3:  # the last one's is normed there
            torch.testing.assert_close(walked.x[: len(x)], want[step.number + 1][0], atol=1e-4, rtol=1e-4)
    again = next(walked.layers())
    assert again.number == 0
    torch.testing.assert_close(walked.x[: len(x)], want[1][0], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("chunk_rows", [2048, 40], ids=["one chunk", "chunks"])
def test_captured_inputs_are_what_the_products_multiply(tiny_dir, device, chunk_rows):
    reference, walked = Reference(tiny_dir, device=device), walk(tiny_dir, device, chunk_rows=chunk_rows)
    layer, names = reference.model.layers[0], {"qkv": "self_attn.q_proj", "o": "self_attn.o_proj"}
    names |= {"gate_up": "mlp.gate_proj", "down": "mlp.down_proj"}
    seen = {name: [] for name in names}
    for name, module in names.items():
        layer.get_submodule(module).register_forward_pre_hook(lambda m, args, name=name: seen[name].append(args[0][0]))
    for u in UTTERANCES:
        reference.hidden(embedded(reference, u)[None])
    step = next(walked.layers(capture=True))
    assert step.inputs.keys() == names.keys()
    for name, parts in seen.items():
        torch.testing.assert_close(step.inputs[name], torch.cat(parts), atol=1e-4, rtol=1e-4)


def test_kernels_walk_like_their_references(triton_device, tmp_path):
    widths = {"layers": 1, "hidden": 64, "heads": 4, "kv_heads": 2, "head_dim": 16, "ffn": 96}
    checkpoint = Checkpoint.open(make_checkpoint(tmp_path / "mini", **widths))
    utterances = [utterance(0, frames=4), utterance(1, text=5, frames=1, reference=3)]
    walked = Walk(checkpoint, utterances, triton_device, torch.float32)
    got = next(walked.layers(capture=True)).inputs | {"x": walked.x}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(launch, "_forced", False)
        walked = Walk(checkpoint, utterances, torch.device("cpu"), torch.float32)
        want = next(walked.layers(capture=True)).inputs | {"x": walked.x}
    for name, values in want.items():
        torch.testing.assert_close(got[name].cpu(), values, atol=2e-4, rtol=2e-4)


def test_nothing_is_captured_unless_asked(tiny_dir):
    assert next(walk(tiny_dir).layers()).inputs == {}


def test_text_weighs_a_fifth_of_all_rows(tiny_dir):
    walked = walk(tiny_dir)
    texts = torch.cat([torch.cat([u.ids != PLACEHOLDER, torch.zeros(len(u.rows) - 1).bool()]) for u in UTTERANCES])
    assert walked.weights.shape == (len(walked.x),)
    assert (walked.weights[~texts] == 1).all()
    share = (walked.weights[texts].sum() / walked.weights.sum()).item()
    assert share == pytest.approx(TEXT_SHARE)


def test_little_text_keeps_its_weight(tiny_dir):
    walked = Walk(Checkpoint.open(tiny_dir), [utterance(0, text=2, frames=30)], torch.device("cpu"), torch.float32)
    assert (walked.weights == 1).all()


def test_bf16_is_near_fp32(tiny_dir):
    exact, rounded = walk(tiny_dir), walk(tiny_dir, dtype=torch.bfloat16)
    for _ in zip(exact.layers(), rounded.layers(), strict=True):
        assert rounded.x.dtype == torch.bfloat16
        assert (rounded.x.float() - exact.x).norm() < 0.03 * exact.x.norm()  # eight bits, a few dozen roundings


def test_an_untied_head_predicts(tmp_path):
    folder = make_checkpoint(tmp_path / "untied", untied_audio=True, layers=1)
    walked = walk(folder)
    list(walked.layers())
    head = Checkpoint.open(folder)["tied.head.modality_heads.0.weight"].float()
    table = Checkpoint.open(folder)["tied.embedding.modality_embeddings.0.embedding.weight"].float()
    assert not torch.equal(head, table)
    got = walked.logits()
    hidden = torch.linalg.lstsq(head, got.T).solution  # the logits lie in the span of the head's columns
    torch.testing.assert_close(head @ hidden, got.T, atol=1e-3, rtol=1e-3)


def test_a_checkpoint_of_another_shape_is_refused(tmp_path):
    folder = make_checkpoint(tmp_path / "other", layers=1)
    config = folder / "config.json"
    config.write_text(config.read_text().replace('"intermediate_size": 1024', '"intermediate_size": 512'))
    with pytest.raises(CheckpointError, match="do not belong together"):
        walk(folder)
