"""The runner on the kernels, as on a GPU: padded to the sizes of captured rows, with idle lanes on the dummy page."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from quantized import quantized

from octavo.kernels import launch
from octavo.kernels.linear import linear_ref
from octavo.runtime.checkpoint import Checkpoint
from octavo.runtime.config import EngineConfig, SamplingParams
from octavo.runtime.models import load_model
from octavo.runtime.prompt import PLACEHOLDER, Prompt
from octavo.runtime.runner import Runner
from octavo.runtime.scheduler import Scheduler, Sequence
from octavo.tools.make_checkpoint import make_checkpoint

ROWS = 4


@pytest.fixture(scope="module")
def mini(tmp_path_factory):
    widths = {"layers": 1, "hidden": 64, "heads": 4, "kv_heads": 2, "head_dim": 16, "ffn": 96}
    return make_checkpoint(tmp_path_factory.mktemp("mini") / "mini", size="tiny", seed=1, **widths)


def requests() -> list[Sequence]:
    """Unequal prompts, one with reference rows whose front others may reuse."""
    reference = np.random.default_rng(0).integers(0, 1026, (5, 8))
    cloned = Prompt([1, 2, *[PLACEHOLDER] * 5, 9, 8, 7], reference, 7)
    plain = Prompt(list(range(1, 7)), None, 1)
    sampled, greedy = SamplingParams(seed=3, top_p=0.9, max_rows=ROWS + 8), SamplingParams(0.0, max_rows=ROWS + 8)
    return [Sequence(plain, sampled), Sequence(cloned, greedy, b"voice"), Sequence(cloned, sampled, b"voice")]


def run(folder, device: torch.device, sizes: tuple[int, ...]) -> dict[int, list[list[int]]]:
    """Request -> its rows. One leaves in the middle, and the last lane moves into the gap."""
    model = load_model(Checkpoint.open(folder), device, torch.float32, lambda done, total: None)
    if device.type == "cpu":  # 8,208 outputs take the interpreter half a minute
        head = model.audio_head.weight
        model.audio_head.forward = lambda x, norm, eps: linear_ref(x, head, norm=norm, eps=eps)
    config = EngineConfig(max_batch=4, kv_rows=128, max_context=32, page_size=4, prefill_rows=9)
    runner = Runner(model, config)
    runner.sizes = sizes
    runner.pages[:, 0] = torch.nan  # the dummy page may hold anything
    scheduler, sequences = Scheduler(config), requests()
    for sequence in sequences:
        scheduler.add(sequence)
    rows: dict[int, list[list[int]]] = {0: [], 1: [], 2: []}

    def read(lanes: list[Sequence]) -> None:
        values, _ = runner.collect()
        for sequence, row in zip(lanes, values.tolist(), strict=True):
            rows[sequences.index(sequence)].append(row)

    while len(scheduler.running) < 3:
        chunks = scheduler.schedule()
        runner.prefill(chunks)
        scheduler.prefilled(chunks)
        if any(chunk.completes for chunk in chunks):
            read([chunk.sequence for chunk in chunks if chunk.completes])
    assert sequences[2].reused_rows == 7
    for number in range(ROWS):
        if number == 2:
            runner.leave(*scheduler.finish(sequences[0]))
        runner.decode()
        read(scheduler.running)
    return rows


def test_the_kernels_decode_as_the_reference_does(mini, triton_device):
    got = run(mini, triton_device, sizes=(1, 2, 4))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(launch, "_forced", False)
        want = run(mini, torch.device("cpu"), sizes=())
    assert got == want and [len(rows) for rows in want.values()] == [3, 5, 5]


@pytest.mark.parametrize("kind", ["awq", "int8"])
def test_quantized_weights_too(mini, triton_device, tmp_path, kind):
    folder = quantized(mini, tmp_path / kind, kind)
    got = run(folder, triton_device, sizes=(1, 2, 4))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(launch, "_forced", False)
        want = run(folder, torch.device("cpu"), sizes=())
    assert got == want


def test_padding_changes_nothing(mini):
    cpu = torch.device("cpu")
    assert run(mini, cpu, sizes=(4,)) == run(mini, cpu, sizes=(2, 3)) == run(mini, cpu, sizes=())
