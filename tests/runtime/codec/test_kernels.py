"""The stream through the kernels' passes gives what the whole decode gives: ragged pushes, slots used again, late ends.

With the kernels' references, which are quick, on a toy codec of two blocks; with the kernels themselves on one of a
single block, where a pass under the interpreter takes less than a second.
"""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch

from octavo.runtime.checkpoint import Weights
from octavo.runtime.codec import Codec, CodecConfig, CodecDecoder, CodecStream, stages
from octavo.runtime.codec.kernels import STAGINGS, Kernels, sizes
from octavo.runtime.codec.layout import decoder_layout

from .utterances import Utterance, distance, store, utterance

TOY = CodecConfig(8, 1024, 4, 12, 16, (24, 20, 12), (8, 2), None)
TINY = CodecConfig(8, 1024, 4, 12, 16, (16, 16), (8,), None)
# bf16 weights: 16 bits of each activation; other weights: TF32, which neither references nor interpreter round to
TOLERANCES = {True: 1e-4, False: 1e-2}


def toy(config: CodecConfig, exact: bool, device: torch.device | str) -> tuple[CodecDecoder, CodecDecoder]:
    """The same decoder on the CPU and on `device`. exact: its weights are bf16 numbers."""
    generator, tensors = torch.Generator().manual_seed(0), {}
    for name, shape in decoder_layout(config).items():
        noise = torch.randn(shape, generator=generator)
        if name.endswith("alpha"):
            noise = noise.abs() + 0.3
        elif noise.dim() > 1 and "embed" not in name:
            noise /= (2 * shape[0] if "conv_t1" in name else noise[0].numel()) ** 0.5
        tensors[name] = noise.bfloat16() if exact else noise
    weights = Weights(tensors)
    return CodecDecoder(weights, config), CodecDecoder(weights, config).to(device)


@pytest.mark.parametrize("seed", range(4))
def test_passes_equal_whole(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stages, "WIDEST", 16)  # the first block's units take two launches, the second's one
    lengths = [1, 7, 26, 13, 2, 30]
    scenario(TOY, exact=seed > 0, device="cpu", slots=3, capacity=20, lengths=lengths, seed=seed, graphs=False)


def test_kernels_equal_whole(triton_device: torch.device) -> None:
    scenario(TINY, True, triton_device, slots=2, capacity=16, lengths=[4, 1, 5], seed=2, graphs=False, counts=(3, 11))


@pytest.mark.gpu
@pytest.mark.parametrize("graphs", [False, True])
def test_graphs_equal_whole(graphs: bool) -> None:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    lengths = [1, 7, 26, 13, 2, 30, 55, 10]
    scenario(TOY, True, torch.device("cuda"), slots=3, capacity=64, lengths=lengths, seed=5, graphs=graphs)


def scenario(config, exact, device, slots, capacity, lengths, seed, graphs, counts=(1, 6, 14, 25)) -> None:
    """Random pushes, ragged, some larger than a pass; a cancel leaves full tails. What nobody wrote is NaN."""
    whole, decoder = toy(config, exact, device)
    rng = random.Random(seed)
    waiting = [utterance(T, 10 * seed + i) for i, T in enumerate(lengths)]
    codes = torch.full((slots, max(lengths) + 7, 8), -7, dtype=torch.int16, device=device)
    stream = CodecStream(decoder, codes, graphs=False)
    stream._backend = backend = Kernels(decoder, codes, graphs, capacity)
    for stale in (*backend.stages.tails, backend.stages._input, backend.stages._output, backend.stages._between):
        stale.fill_(torch.nan)
    active: dict[int, Utterance] = {}
    finished: list[Utterance] = []
    cancelled = False
    while waiting or active:
        if not cancelled and len(active) == slots:
            waiting.append(active.pop(rng.choice(list(active))).codes)
            cancelled = True
        for slot in set(range(slots)) - active.keys():
            if waiting:
                stream.begin(slot)
                active[slot] = Utterance(waiting.pop(), rng.random() < 0.5)
                store(codes, slot, active[slot].codes)
        if codes.is_cuda:
            torch.cuda.synchronize()
        chosen = rng.sample(list(active), rng.randint(1, len(active)))
        pushed = [active[slot].next(rng.choice(counts)) for slot in chosen]
        stream.push(chosen, [count for count, _ in pushed], [end for _, end in pushed])
        for slot, _, samples in stream.collect():
            active[slot].sound.append(samples)
        for slot in [slot for slot in active if active[slot].pos >= active[slot].codes.shape[1] + stream.lookahead]:
            finished.append(active.pop(slot))
    assert len(finished) == len(lengths)
    for done in finished:
        got, want = np.concatenate(done.sound), whole(done.codes[None])[0].numpy()
        assert got.shape == want.shape and got.dtype == np.float32
        assert distance(got, want) < TOLERANCES[exact], done.codes.shape


@pytest.fixture
def idle(device: torch.device) -> CodecStream:
    """A stream of two slots through passes; on the CPU with the kernels' references."""
    _, decoder = toy(TINY, True, device)
    codes = torch.zeros(2, 60, 8, dtype=torch.int16, device=device)
    stream = CodecStream(decoder, codes, graphs=False)
    stream._backend = Kernels(decoder, codes, graphs=False, capacity=64)
    return stream


def test_previews(idle: CodecStream, device: torch.device) -> None:
    """Two in one pass, beside a stream that does not notice."""
    whole, _ = toy(TINY, True, "cpu")
    spoken = [utterance(12, seed) for seed in range(2)]
    for slot, some in enumerate(spoken):
        store(idle._backend.stages.codes, slot, some)
    if device.type == "cuda":
        torch.cuda.synchronize()
    idle.push([0], [5], [None])
    idle.preview(0, 5)
    idle.preview(1, 3)
    idle.push([0], [7 + idle.lookahead], [12])
    (_, _, first), (_, _, second), (slot, preview, last) = idle.collect()
    assert (slot, preview) == (0, False)
    for got, want in ((first, spoken[0][:, :5]), (second, spoken[1][:, :3]), (last, spoken[0])):
        assert got.shape == (8 * want.shape[1],) and distance(got, whole(want[None])[0].numpy()) < 1e-4


def test_staging_is_used_again(idle: CodecStream) -> None:
    """However many passes: no more memory than passes were under way at once. Sound that was fetched stays."""
    idle.push([0], [14], [None])
    [(_, _, first)] = idle.collect()
    kept = first.copy()
    for _ in range(3):
        idle.push([0], [2], [None])
        idle.push([0], [1], [None])
        assert len(idle.collect()) == 2
    assert np.array_equal(first, kept) and len(idle._backend._free) == STAGINGS


def test_whole_decode(triton_device: torch.device) -> None:
    """Codec.decode goes through the kernels, in as many passes as it takes; values that are no code count as 0."""
    cuda = triton_device.type == "cuda"
    whole, decoder = toy(TINY, True, triton_device)
    codec = Codec(Weights({}), TINY, decoder, "")
    for T in (2, 300) if cuda else (2,):
        codes = utterance(T, T)
        codes[3, 1] = 0
        given = codes.clone()
        given[3, 1] = 70_000
        got, want = codec.decode(given.T), whole(codes[None])[0].numpy()
        assert got.shape == want.shape and distance(got, want) < 1e-4
    assert codec.decode(np.zeros((0, 8), np.int16)).shape == (0,)


def test_sizes() -> None:
    assert sizes(256) == [1, 2, 4, 8, 16, 32, 64, 128, 256] and sizes(20)[-2:] == [16, 20] and sizes(1) == [1]


def test_pass_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    """The memory plan counts what a pass allocates."""
    monkeypatch.setattr(stages, "WIDEST", 16)
    _, decoder = toy(TOY, True, "cpu")
    codes = torch.zeros(2, 20, 8, dtype=torch.int16)
    made = stages.Stages(decoder, codes, 3, 32)
    buffers = [made.frames, made.sound, made._input, made._output, made._between]
    weights = [cell.cell_contents for stage in made._stages for cell in stage.launch.__closure__ or ()]
    weights = [w for cell in weights for w in (cell if isinstance(cell, tuple) else (cell,))]
    buffers += [w for w in weights if isinstance(w, torch.Tensor) and w.dtype == torch.bfloat16]
    assert sum(buffer.nbytes for buffer in buffers) == stages.pass_bytes(TOY, 32)
