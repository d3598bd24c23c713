"""The memory plan: it counts what is really there, never exceeds the budget, and its refusals tell what would fit."""

from __future__ import annotations

import dataclasses
import re
import weakref
from collections import Counter
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from octavo.runtime import Engine, memory_plan
from octavo.runtime.checkpoint import Checkpoint, Weights
from octavo.runtime.codec.config import CodecConfig
from octavo.runtime.codec.decoder import CodecDecoder
from octavo.runtime.codec.encoder import CodecEncoder
from octavo.runtime.codec.kernels import Kernels
from octavo.runtime.config import EngineConfig, ModelConfig
from octavo.runtime.errors import CapacityError, OctavoError, RequestError
from octavo.runtime.memory_parts import memory_parts, state_values
from octavo.runtime.memory_plan import FEW, LEAST_ROWS, MOST, TYPICAL_ROWS, MemoryPlan, parse_size, plan, plan_for, size
from octavo.tools.doctor import published
from octavo.tools.inventory import CODEC

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
BF16, FP32 = torch.bfloat16, torch.float32
GiB = 1 << 30
REAL = published()  # the shapes of the published model
STAYS = ("language model", "audio table, head", "KV cache", "codec decoder", "codec state", "requests")


@pytest.fixture(scope="module")
def tiny(tiny_dir) -> tuple[ModelConfig, CodecConfig]:
    checkpoint = Checkpoint.open(tiny_dir)
    return ModelConfig.from_checkpoint(checkpoint.config), CodecConfig.from_weights(checkpoint.weights(CODEC))


# --- sizes


@pytest.mark.parametrize(
    "text, nbytes",
    [
        ("8GiB", 8 << 30), ("8 gib", 8 << 30), (" 1.5GiB ", 3 << 29), ("7500MB", 7_500_000_000), ("64MiB", 64 << 20),
        ("512KiB", 512 << 10), ("100kb", 100_000), ("8000000000", 8_000_000_000), ("123b", 123), (5_000_000, 5_000_000),
        (np.int64(5_000_000), 5_000_000), (8e9, 8_000_000_000), ("0.8", 800), (0.8, 800), (".5", 500), ("80%", 800),
        ("100 %", 1000), ("1", 1000), (1, 1000), (1.0, 1000), (np.float64(0.25), 250), ("2", 2),
    ],
)  # fmt: skip
def test_sizes(text, nbytes):
    assert parse_size(text, total=1000) == nbytes


@pytest.mark.parametrize(
    "text",
    ["", "lots", "-8GiB", "8G", "8 GB free", "0", "0%", "101%", "1.5", "0,8", "1,000MB", "nan", "inf", "1e9", "8TiB%",
     "0.0001", True, None, -1, float("nan"), float("inf"), [8]],
    ids=repr,
)  # fmt: skip
def test_what_is_no_size(text):
    with pytest.raises(RequestError, match="8GiB") as caught:
        parse_size(text, total=1000)
    assert str(caught.value).startswith(repr(text))


@given(st.integers(1, 1 << 45))
def test_a_size_that_was_told_can_be_given(nbytes):
    assert nbytes <= parse_size(size(nbytes), 1) <= nbytes * 1.01 + 2**20


# --- what is counted


def held(root: object) -> int:
    """Bytes of all tensors and arrays that can be reached from `root`, each memory once."""
    seen: dict[int, object] = {}  # the objects too: another one must not get a dropped one's id
    memory: dict[int, int] = {}

    def look(thing: object) -> None:
        if id(thing) in seen:
            return
        seen[id(thing)] = thing
        if isinstance(thing, torch.Tensor):
            opaque = thing.layout != torch.strided  # oneDNN's: it does not tell where it lies
            at = id(thing) if opaque else thing.untyped_storage().data_ptr()
            memory[at] = thing.numel() * thing.element_size() if opaque else thing.untyped_storage().nbytes()
        elif isinstance(thing, np.ndarray):
            while isinstance(thing.base, np.ndarray):
                thing = thing.base
            memory[thing.ctypes.data] = thing.nbytes
        elif isinstance(thing, dict):
            list(map(look, thing.values()))
        elif isinstance(thing, list | tuple | set):
            list(map(look, thing))
        elif type(thing).__module__.startswith("octavo.") or isinstance(thing, torch.nn.Module):
            if not isinstance(thing, Checkpoint | Weights):
                look({name: value for name, value in vars(thing).items() if name != "text_rows"})

    look(root)
    return sum(memory.values())


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
@pytest.mark.parametrize(
    "options", [{}, {"max_batch": 3, "kv_rows": 1000, "page_size": 32, "max_context": 1500}], ids=str
)
def test_what_stays_is_counted_to_the_byte(tiny_dir, tiny, dtype, options):
    with Engine.load(tiny_dir, device="cpu", dtype=dtype, **options) as engine:
        parts = memory_parts(*tiny, engine.model.dtype, CPU, engine.config, encoder=False)
        assert parts["language model"] + parts["audio table, head"] == held(engine.model)
        assert parts["KV cache"] == engine._runner.pages.nbytes
        assert parts["codec decoder"] == held(engine.codec)
        others = held(engine) - sum(parts[name] for name in STAYS if name != "requests")
        assert abs(parts["requests"] / others - 1) < 0.05


def test_an_untied_head_is_counted(tiny):
    model, codec = tiny
    untied = dataclasses.replace(model, tied_audio=False)
    one, two = (memory_parts(m, codec, BF16, CUDA, EngineConfig(), False) for m in (model, untied))
    assert two["audio table, head"] == 2 * one["audio table, head"] >= 2 * 8208 * model.hidden_size * 2


def test_the_encoder_is_counted(tiny_dir, tiny):
    weights = Checkpoint.open(tiny_dir).weights(CODEC)
    loaded = held(CodecEncoder(weights, tiny[1]))
    activations = 5 * 30 * 24_000 * tiny[1].encoder.widths[0] * 4
    counted = memory_parts(*tiny, BF16, CPU, EngineConfig(), encoder=True)["voice encoder"]
    assert abs(counted - activations - loaded) < 1000  # the factors of a weight norm


def test_the_published_shapes():
    """model-v3.md 2.5, codec.md 6.1 and 7.1, performance.md 5."""
    model, codec = REAL
    parts = memory_parts(model, codec, BF16, CPU, EngineConfig(max_batch=1, kv_rows=16, page_size=16), False)
    assert abs(parts["language model"] - 2 * 3.633e9) < 2e6
    assert parts["KV cache"] == 2 * 16 * 147_456
    assert state_values(codec) == 81_088
    on_gpu = memory_parts(model, codec, BF16, CUDA, EngineConfig(), False)
    assert 0 <= on_gpu["language model"] - parts["language model"] < 36 * 4 * 2**21


def test_the_state_of_the_codec_on_cuda(tiny_dir, tiny):
    config, codec = EngineConfig(max_batch=3), tiny[1]
    decoder = CodecDecoder(Checkpoint.open(tiny_dir).weights(CODEC), codec)
    codes = torch.zeros(config.num_slots + 1, 8, 8, dtype=torch.int16)
    tails = Kernels(decoder, codes).stages.tails
    assert memory_parts(*tiny, BF16, CUDA, config, False)["codec state"] == sum(tail.nbytes for tail in tails)


class Peak(TorchDispatchMode):
    """The most bytes that tensors made inside it held at one moment."""

    def __init__(self):
        super().__init__()
        self.live = self.most = 0
        self._views: Counter[int] = Counter()  # living tensors by the memory they look at

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        outside = {self._at(tensor) for tensor in tree_leaves((args, kwargs))} - self._views.keys()
        result = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            at = self._at(tensor)
            if at is None or at in outside:
                continue
            nbytes = tensor.untyped_storage().nbytes()
            self.live += nbytes * (at not in self._views)
            self.most = max(self.most, self.live)
            self._views[at] += 1
            weakref.finalize(tensor, self._gone, at, nbytes)
        return result

    def _gone(self, at: int, nbytes: int) -> None:
        self._views[at] -= 1
        if not self._views[at]:
            del self._views[at]
            self.live -= nbytes

    @staticmethod
    def _at(thing: object) -> int | None:
        strided = isinstance(thing, torch.Tensor) and thing.layout == torch.strided
        return thing.untyped_storage().data_ptr() if strided else None


@pytest.mark.parametrize("rows", [64, 1000])
def test_workspaces_take_no_more_than_counted(tiny_dir, tiny, rows):
    """Prompts of so many rows, rows behind them, and the codec's pushes, through the engine."""
    config = EngineConfig(max_batch=2, kv_rows=4096, max_context=2048, prefill_rows=rows)
    parts = memory_parts(*tiny, FP32, CPU, config, encoder=False)
    with Engine.load(tiny_dir, device="cpu", dtype="fp32", worker=False, **dataclasses.asdict(config)) as engine:
        text = {"split": "none", "guard": False, "max_rows": 40}
        streams = [engine.stream("a" * (rows - 3), seed=seed, **text) for seed in (1, 2)]
        with Peak() as prompts:
            engine.step()
        with Peak() as peak:
            while engine.step():
                pass
        assert all(len(stream.result().codes) for stream in streams)
    workspaces = parts["prompt workspace"] + parts["row workspace"] + parts["codec workspace"]
    assert 0.1 * workspaces < max(prompts.most, peak.most) < workspaces


def test_the_encoder_takes_no_more_than_counted(tiny_dir, tiny):
    noise = np.random.default_rng(0).uniform(-0.1, 0.1, 4 * 24_000).astype(np.float32)
    encoder = CodecEncoder(Checkpoint.open(tiny_dir).weights(CODEC), tiny[1])
    counted = 5 * len(noise) * tiny[1].encoder.widths[0] * 4
    with Peak() as peak:
        encoder(torch.from_numpy(noise))
    assert 0.4 * counted < peak.most < counted


# --- what is chosen


def attempt(*args, **options) -> MemoryPlan | None:
    try:
        return plan(*args, **options)
    except CapacityError:
        return None


budgets = st.integers(6 * GiB, 40 * GiB) | st.integers(1, 200 * GiB)
keeping = st.dictionaries(st.sampled_from(["max_batch", "kv_rows"]), st.integers(1, 400), max_size=2)


@given(
    st.sampled_from([CPU, CUDA]), st.sampled_from([BF16, FP32]), budgets, budgets, keeping,
    st.sampled_from([None, True, False]), st.sampled_from([100, 2048, 8192]), st.sampled_from([1, 16, 48]),
)  # fmt: skip
def test_plans_keep_to_the_budget_and_more_never_gives_less(
    device, dtype, budget, other, kept, encoder, max_context, page_size
):
    if "kv_rows" in kept:
        kept["kv_rows"] *= 50
    config = EngineConfig(**kept, max_context=max_context, page_size=page_size)
    small, large = (attempt(*REAL, dtype, device, amount, config, kept, encoder) for amount in sorted((budget, other)))
    for found in filter(None, (small, large)):
        assert found.total == sum(found.parts.values()) <= found.budget
        assert dataclasses.replace(config, max_batch=found.max_batch, kv_rows=found.kv_rows) == found.config
        assert all(getattr(found.config, name) == value for name, value in kept.items())
        assert found.encoder == encoder or encoder is None
        if "kv_rows" not in kept:
            assert found.kv_rows % page_size == 0
            assert found.kv_rows >= max(min(LEAST_ROWS, max_context), found.max_batch * min(TYPICAL_ROWS, max_context))
        if "max_batch" not in kept:
            assert 1 <= found.max_batch <= MOST[device.type]
    if small:
        assert large is not None
        assert large.max_batch >= small.max_batch and large.kv_rows >= small.kv_rows and large.encoder >= small.encoder


@pytest.mark.parametrize("device", [CPU, CUDA], ids=str)
def test_a_little_more_never_gives_less(device):
    """Where one more request comes in, and where the encoder does."""
    found = [attempt(*REAL, BF16, device, budget) for budget in range(8 * GiB, 12 * GiB, 24 << 20)]
    given = [(plan.max_batch, plan.kv_rows, plan.encoder) for plan in found if plan]
    assert given[0][0] == 1 and given[-1][0] > FEW and given[-1][2]
    assert all(a <= b for small, large in pairwise(given) for a, b in zip(small, large, strict=True))


def test_memory_is_not_left_lying_about():
    """What remains would not have been enough for one page more, or for one request more."""
    for gib in (12, 16, 24, 80):
        found = plan(*REAL, BF16, CUDA, gib * GiB)
        assert found.encoder and found.max_batch >= FEW
        more = dataclasses.replace(found.config, max_batch=found.max_batch + 1, kv_rows=found.kv_rows + TYPICAL_ROWS)
        assert sum(memory_parts(*REAL, BF16, CUDA, more, True).values()) > found.budget
        assert found.budget - found.total < 64 << 20


def test_the_encoder_comes_after_a_few_requests_and_before_many():
    one = EngineConfig(max_batch=1, kv_rows=LEAST_ROWS)
    least = plan(*REAL, BF16, CUDA, 100 * GiB, one, ["max_batch", "kv_rows"], encoder=False).total
    grown = [plan(*REAL, BF16, CUDA, least + int(gib * GiB)) for gib in np.arange(0, 3, 0.1)]
    without = [found for found in grown if not found.encoder]
    assert without and without[-1].max_batch == FEW
    assert all(found.encoder and found.max_batch >= FEW for found in grown[len(without) :])
    assert "encoded on the host" in str(without[0]) and "encoded on the host" not in str(grown[-1])


def test_a_checkpoint_without_encoder_needs_no_room_for_it(tiny):
    model, codec = tiny
    bare = dataclasses.replace(codec, encoder=None)
    for encoder in (None, True):
        found = plan(model, bare, FP32, CPU, 2 * GiB, encoder=encoder)
        assert not found.encoder and found.max_batch == MOST["cpu"]


def test_the_context_is_the_models(tiny):
    model = dataclasses.replace(tiny[0], max_context=512)
    found = plan(model, tiny[1], FP32, CPU, 2 * GiB)
    assert found.config.max_context == 512 and found.kv_rows == 512 * found.max_batch


def test_the_table():
    found = plan(*REAL, BF16, CUDA, 12 * GiB)
    lines = str(found).splitlines()
    assert lines[0] == "bf16 on cuda, within 12.00 GiB:"
    told = {line[:22].strip(): parse_size(line[22:], 1) for line in lines[1:-1]}
    assert told.keys() == found.parts.keys() | {"in all"}
    assert all(told[name] >= nbytes for name, nbytes in found.parts.items()) and told["in all"] >= found.total
    assert lines[-1] == f"{found.max_batch} requests at once, {found.kv_rows:,} rows of KV cache"


# --- what is refused


@pytest.mark.parametrize("device", [CPU, CUDA], ids=str)
@pytest.mark.parametrize("dtype", [BF16, FP32], ids=str)
def test_the_smallest_budget_that_would_do_is_named(device, dtype):
    with pytest.raises(CapacityError, match="language model") as caught:
        plan(*REAL, dtype, device, 1 << 20)
    named = parse_size(re.search(r"Allow ([\d.]+ GiB)", str(caught.value))[1], 1)
    least = plan(*REAL, dtype, device, named)
    assert least.max_batch == 1 and least.kv_rows == LEAST_ROWS and not least.encoder
    assert attempt(*REAL, dtype, device, least.total) and not attempt(*REAL, dtype, device, least.total - 1)


@pytest.mark.parametrize(
    "set_by_user, name",
    [({"max_batch": 400}, "max_batch"), ({"kv_rows": 100_000}, "kv_rows"), ({"prefill_rows": 100_000}, "prefill_rows")],
    ids=str,
)
def test_the_option_to_lower_is_named(set_by_user, name):
    with pytest.raises(CapacityError) as caught:
        plan(*REAL, BF16, CUDA, 12 * GiB, EngineConfig(**set_by_user), set_by_user)
    value = int(re.search(rf"lower {name} to (\d+)", str(caught.value))[1])
    assert plan(*REAL, BF16, CUDA, 12 * GiB, EngineConfig(**{name: value}), [name], encoder=False)
    assert not attempt(*REAL, BF16, CUDA, 12 * GiB, EngineConfig(**{name: value + 1}), [name], encoder=False)


def test_other_ways_out_are_named_where_they_lead_somewhere():
    def refusal(dtype, gib, encoder=None):
        with pytest.raises(CapacityError) as caught:
            plan(*REAL, dtype, CUDA, int(gib * GiB), encoder=encoder)
        return str(caught.value)

    assert "load it in bf16" in refusal(FP32, 12) and "bf16" not in refusal(FP32, 4).split(" are allowed")[1]
    assert "on the host" in refusal(BF16, 9, encoder=True) and "on the host" not in refusal(BF16, 9 - 2, encoder=True)


# --- from a checkpoint


@pytest.fixture
def memory(monkeypatch):
    def there_is(total: int, free: int) -> None:
        monkeypatch.setattr(memory_plan, "device_memory", lambda device: (total, free))

    return there_is


def test_a_share_of_the_device(tiny_dir, memory):
    memory(4 * GiB, 3 * GiB)
    checkpoint, config = Checkpoint.open(tiny_dir), EngineConfig(max_batch=3)
    found = plan_for(checkpoint, CPU, "fp32", "0.5", config, ["max_batch"])
    assert (found.budget, found.dtype, found.max_batch) == (2 * GiB, FP32, 3)
    for vram in ("0.8", "100%", "3.1GiB"):
        with pytest.raises(CapacityError, match="only 3.00 GiB are free"):
            plan_for(checkpoint, CPU, "fp32", vram, config)
    for vram in ("plenty", "", -1):
        with pytest.raises(OctavoError, match="no amount of memory"):
            plan_for(checkpoint, CPU, "fp32", vram, config)
    with pytest.raises(CapacityError, match="Allow 6.. MiB"):
        plan_for(checkpoint, CPU, "fp32", "100MiB", config)


def test_the_dtype_follows_the_budget(tiny_dir, memory):
    memory(64 * GiB, 64 * GiB)
    checkpoint = Checkpoint.open(tiny_dir)
    values = checkpoint.nbytes // 2
    for info_budget, dtype in ((700 << 20, FP32), (2 * 4 * values - 2, BF16)):
        small = dataclasses.replace(EngineConfig(), max_batch=1, kv_rows=16, prefill_rows=16, max_context=64)
        try:
            assert plan_for(checkpoint, CPU, "auto", info_budget, small, ["max_batch", "kv_rows"]).dtype == dtype
        except CapacityError as refused:
            assert dtype == BF16 and " in bf16 (" in str(refused)


def test_the_device_here():
    total, free = memory_plan.device_memory(CPU)
    assert 0 < free <= total
