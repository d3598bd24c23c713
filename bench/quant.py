"""What quantized weights cost on the CPU: decode steps (C2), bandwidth at the real width, products by the number of
rows, and what the CPU's layouts add to the error of the formats. On synthetic checkpoints, rounded as they load.

    python -m octavo.bench.quant --json OUT
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch

from octavo.kernels.cpu_packed import FewAndMany
from octavo.kernels.packed import Packed
from octavo.quant.formats import awq, blocks, fp8, int8, kquants, nf4
from octavo.quant.formats.grouped import Grouped
from octavo.runtime.checkpoint import Checkpoint
from octavo.runtime.config import EngineConfig, SamplingParams
from octavo.runtime.layers.linear import Linear
from octavo.runtime.models import Model, load_model
from octavo.runtime.tensor_names import BODY, CODEC_PREFIX

from .bandwidth import READ, THREADS, reductions, row_bytes
from .bandwidth import WIDTHS as REAL_WIDTHS
from .baseline import Baseline
from .command import main
from .decode import checkpoint
from .measure import Case, Check, Result, compare, interleave, relative
from .request import ForcedRequest, Probe
from .step import GREEDY, SHAPES, Course, Sides

CPU, BF16 = torch.device("cpu"), torch.bfloat16
ROWS = (1, 2, 3, 4, 8, 16, 64, 128)
PRODUCT_LIMIT = 0.015  # relative: what is rounded to bf16, and the weights' second rounding


@dataclass(frozen=True)
class Method:
    """How a matrix [OUT, IN] fp32 is quantized, and what is asked of it."""

    quantize: Callable[[torch.Tensor], Grouped]
    step: float  # times as fast as transformers in bf16
    share: float  # of the memory's bandwidth
    band: float  # hidden states: distance from fp32, over that of transformers in bf16, both with the rounded weights


def _blocks(weight: torch.Tensor, type: str) -> Grouped:
    return blocks.decode(kquants.encode(weight, type), type)


# The prompt's rows take 4-bit weights as bytes, rounded once more: hence the wider band.
METHODS = {
    "8-bit": Method(lambda weight: int8.decode(int8.encode(weight), tuple(weight.shape)), 1.75, 0.85, 1.0),
    "4-bit": Method(lambda weight: awq.quantize(weight, 128), 3.2, 0.75, 2.0),
}
FORMATS: dict[str, Callable[[torch.Tensor], Grouped]] = {
    **{name: partial(_blocks, type=name) for name in ("Q8_0", "Q6_K", "Q5_K", "Q4_K")},
    "AWQ, groups of 128": METHODS["4-bit"].quantize,
    "NF4": lambda weight: nf4.decode(nf4.encode(weight), tuple(weight.shape)),
    "fp8": lambda weight: fp8.decode(fp8.encode(weight), tuple(weight.shape)),
}


def results(repetitions: int, device: torch.device) -> list[Result]:
    """All of them. Raises CheckFailed where outputs differ from those of the dequantized weights."""
    assert device == CPU, device  # bench/gpu_*.py measure the others
    found = []
    with checkpoint(SHAPES["slice"].widths) as folder:
        for name, method in METHODS.items():
            sides = QuantizedSides(folder, method)
            step = sides.step(f"slice, {name} against bf16", method.step, repetitions)
            found.append(replace(step, goal="C2"))
    with checkpoint(REAL_WIDTHS) as folder:
        for name, method in METHODS.items():
            found.append(share(QuantizedSides(folder, method), name, method.share, repetitions))
    for name, method in METHODS.items():
        found += products(name, method, 2 * REAL_WIDTHS["ffn"], REAL_WIDTHS["hidden"], max(1, repetitions // 4))
    return found + [added_error(name, REAL_WIDTHS["hidden"]) for name in FORMATS]


class Rounded(Checkpoint):
    """A checkpoint in 16 bits, whose body is quantized as it is read."""

    method: Method

    @classmethod
    def of(cls, folder: Path, method: Method) -> Rounded:
        opened = cls.open(folder)
        assert isinstance(opened, cls)
        opened.method = method
        return opened

    def matrix(self, name: str) -> torch.Tensor | Grouped:
        values = super().matrix(name)
        if name.startswith(BODY) and name.endswith("_proj.weight") and isinstance(values, torch.Tensor):
            return self.method.quantize(values.float())
        return values


class QuantizedSides(Sides):
    """octavo with the quantized weights; transformers with the same dequantized, in bf16 and, to compare, in fp32."""

    def __init__(self, folder: Path, method: Method):
        source, course = Rounded.of(folder, method), Course.random(CPU)
        weights = {name: source[name] for name in source if not name.startswith(CODEC_PREFIX)}
        text = source.config["text_config"]
        exact = Baseline.of(text, weights, CPU, torch.float32)
        with exact.rounded_rope():
            want, _ = course.through(exact)
        model = load_model(source, CPU, BF16, lambda done, total: None)
        assert sum(not isinstance(weight, Packed) for weight in _weights(model)) == 1, "all but the head are packed"
        super().__init__(Probe(model, EngineConfig()), Baseline.of(text, weights, CPU, BF16), course, want)
        self.band = method.band

    def request(self, sampling: SamplingParams) -> tuple[ForcedRequest, Check]:
        request = ForcedRequest(self.runner, self.course.ids, sampling)
        hidden = torch.cat([request.feed(row) for row in self.course.forced])
        request.put(self.course.row)
        request.hold()
        distance = relative(hidden, self.want) / relative(self.theirs, self.want)
        what = "hidden states: distance from fp32, over that of transformers in bf16, of the same quantized weights"
        return request, Check(what, distance, self.band)


def _weights(model: Model) -> list[torch.Tensor | Packed]:
    return [module.weight for module in model.modules() if isinstance(module, Linear)]


def share(sides: QuantizedSides, name: str, asked: float, repetitions: int, read: int = READ) -> Result:
    """What a row must read, divided by its time, over what plain reductions read in that time: bandwidth.py."""
    request, check = sides.request(GREEDY)
    cases = {"octavo": Case(request.decode, request.rewind), **reductions(read)}
    timings = interleave(cases, repetitions, threads=THREADS)
    fastest = min((case for case in cases if case.startswith("read")), key=lambda case: timings[case].p10)
    nbytes, bandwidth = row_bytes(sides.runner), read / timings[fastest].p10
    layers = sides.runner.model.cfg.num_layers
    case = f"octavo, {layers} layers of the real width, {name}, batch 1, {nbytes / 1e9:.2f} GB, {THREADS} threads"
    mine = {"octavo": timings["octavo"], "read": timings[fastest]}
    value, unit = nbytes / timings["octavo"].p10 / bandwidth, f"of {bandwidth / 1e6:.1f} GB/s"
    return Result("CPU row", "bandwidth of a row", case, value, unit, asked, checks=(check,), timings=mine)


def products(name: str, method: Method, OUT: int, IN: int, repetitions: int, rows=ROWS) -> list[Result]:
    """One product against octavo's own in bf16, by rows of x. Asked: a quantized model is never slower than its bf16.

    A matrix of the real width is larger than the caches; between its turns the other one passes through them.
    """
    matrix = method.quantize(torch.randn(OUT, IN, generator=torch.Generator().manual_seed(0)) / IN**0.5)
    ours, theirs = (Linear(IN, OUT, CPU, BF16) for _ in range(2))
    ours.load(matrix)
    theirs.load(matrix.dequantize(BF16))
    found = []
    for N in rows:
        x = torch.randn(N, IN, generator=torch.Generator().manual_seed(N)).to(BF16)
        want = x.float() @ matrix.dequantize().t()
        check = Check("relative distance from the dequantized product", relative(ours(x), want), PRODUCT_LIMIT)
        case = f"{name} against octavo's bf16, {OUT} x {IN}, {N} rows"
        sides = (Case(partial(ours, x)), Case(partial(theirs, x)))
        found.append(compare("product", case, *sides, (check,), repetitions, asked=1.0))
    return found


def added_error(name: str, IN: int, OUT: int = 256) -> Result:
    """How far the layout for bf16 activations moves normally distributed weights, relative, beside the format's own."""
    weight = torch.randn(OUT, IN, generator=torch.Generator().manual_seed(0))
    matrix = FORMATS[name](weight)
    linear = Linear(IN, OUT, CPU, BF16)
    linear.load(matrix)
    assert isinstance(linear.weight, Packed)
    layout = linear.weight.many if isinstance(linear.weight, FewAndMany) else linear.weight
    stored = matrix.dequantize()
    added, own = relative(layout.dense(torch.float32), stored), relative(stored, weight)
    return Result("", "error that the bytes add", f"{name}, whose own is {own:.2g}", added, "of the weights")


if __name__ == "__main__":
    sys.exit(main(results, "bench.quant", __doc__ or ""))
