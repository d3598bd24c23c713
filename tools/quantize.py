"""Make a small checkpoint of a 16-bit one: AWQ, GGUF, int8, fp8 or NF4, and judge what was lost.

    octavo quantize higgs-tts-3-4b small.gguf --format gguf --type q4_k_m
    octavo quantize higgs-tts-3-4b small --format awq --report small.md
    octavo quantize --compare small small.gguf

The model first speaks a few sentences (for AWQ's search, and for the quality gate), then is written tensor by tensor.
The gate loads the new file and compares it with the source, row by row. The scores go into the file; one that fails is
kept as OUT with `.failed` in its name, and the exit code is 3. Interrupted, nothing is left behind.

GGUF types: q8_0, q6_k, q5_k, q4_k, q4_0, bf16 and f16; q4_k_m is llama.cpp's mix; q4_k_even has equal types in q, k, v
and in gate, up, which programs that join these ask for.
"""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING

from tqdm import tqdm

from .peak_memory import peak_memory

if TYPE_CHECKING:
    from octavo.quant import Result

FAILED = 3  # the exit code
_BYTES = ("checking", "writing")  # stages whose steps are bytes


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", metavar="IN", nargs="?", help="16-bit checkpoint: folder, .gguf file or cached id")
    parser.add_argument("out", metavar="OUT", nargs="?", help="folder to make; a name that ends in .gguf for GGUF")
    parser.add_argument("--format", metavar="F", help="awq, gguf, int8, fp8 or nf4")
    parser.add_argument("--type", metavar="T", help="of GGUF, see above (default: q4_k_even)")
    parser.add_argument("--group-size", type=int, metavar="N", help="of AWQ: weights that share a scale (default: 128)")
    parser.add_argument(
        "--calib",
        metavar="FILE|builtin|none",
        help="sentences the model speaks for AWQ's search, or as importance for K-quants; a text file has one a line "
        "(default: builtin for awq, else none)",
    )
    parser.add_argument(
        "--keep",
        metavar="NAME=TYPE",
        nargs="+",
        action="extend",
        default=[],
        help="another type for some tensors: a name, a pattern with *, or text, audio, codec; as in text=bf16",
    )
    parser.add_argument("--report", metavar="FILE.md", help="write the scores there, with JSON and a plot beside it")
    parser.add_argument("--no-gate", action="store_true", help="do not compare with the source")
    parser.add_argument("--force", action="store_true", help="replace what exists at OUT")
    parser.add_argument("--device", default="auto", help="cpu, cuda, cuda:1 (default: auto, a GPU where there is one)")
    parser.add_argument("--seed", type=int, metavar="N", default=0, help="of the speech to calibrate with (default: 0)")
    parser.add_argument("--compare", metavar="FILE", nargs="+", help="print the scores of finished files, and end")


def run(args: argparse.Namespace) -> int:
    from octavo.quant import quantize

    if args.compare:
        return _compare(args)
    _check(args)
    with _Bars() as bars:
        result = quantize(
            args.source,
            args.out,
            format=args.format,
            type=args.type,
            group_size=128 if args.group_size is None else args.group_size,
            calib=args.calib,
            keep=dict(_keep(item) for item in args.keep),
            report=args.report,
            gate=not args.no_gate,
            force=args.force,
            device=args.device,
            seed=args.seed,
            progress=bars,
        )
    for note in result.notes:
        print(f"octavo: {note}", file=sys.stderr)
    print(_summary(result))
    for failure in result.failures:
        print(f"octavo: {failure}", file=sys.stderr)
    if not result.passed:
        smaller = "a smaller --group-size, " if args.format == "awq" else ""
        print(
            f"octavo: The quality gate failed. The file is kept as {result.path}. A type with more bits, {smaller}"
            "or --keep for the layer named above may pass.",
            file=sys.stderr,
        )
    return 0 if result.passed else FAILED


def _check(args: argparse.Namespace) -> None:
    from octavo.runtime.errors import RequestError

    if not args.source or not args.out:
        order = " IN and OUT come before --keep." if args.keep else ""
        raise RequestError(
            f"Name the checkpoint to read and the one to write: octavo quantize IN OUT --format awq.{order}"
        )
    if not args.format:
        raise RequestError("Say which format to write: --format awq, gguf, int8, fp8 or nf4.")
    if args.group_size is not None and args.format != "awq":
        raise RequestError(f"--group-size is for AWQ; {args.format} has its own. Leave it out.")
    if args.seed < 0:
        raise RequestError(f"The seed is {args.seed}. Use a whole number, 0 or more.")
    for option in ("type", "calib", "report"):
        if getattr(args, option) == "":
            raise RequestError(f"--{option} is empty. Give it a value, or leave it out.")


def _keep(item: str) -> tuple[str, str]:
    from octavo.runtime.errors import RequestError

    pattern, _, kind = item.rpartition("=")
    if not pattern or not kind:
        raise RequestError(f"--keep takes NAME=TYPE, as in text=bf16, not {item!r}. IN and OUT come before it.")
    return pattern, kind


class _Bars:
    """On a terminal, a bar for each stage, with the time that is left."""

    def __init__(self) -> None:
        self._stage, self._bar = "", tqdm(disable=True)

    def __call__(self, stage: str, done: int, total: int) -> None:
        if stage != self._stage:
            self._bar.close()
            options = {"unit": "B", "unit_scale": True} if stage in _BYTES else {"unit": ""}
            hidden = not sys.stderr.isatty()
            self._stage, self._bar = stage, tqdm(total=total, desc=stage, leave=False, disable=hidden, **options)
        self._bar.total = total
        self._bar.update(done - self._bar.n)

    def __enter__(self) -> _Bars:
        return self

    def __exit__(self, *exception: object) -> None:
        self._bar.close()


def _summary(result: Result) -> str:
    minutes, seconds = divmod(round(result.seconds), 60)
    facts = [f"{result.nbytes / 1e9:.2f} GB in {f'{minutes} min ' if minutes else ''}{seconds} s"]
    if result.relative_l2:
        worst = max(result.relative_l2, key=result.relative_l2.__getitem__)
        mean = sum(result.relative_l2.values()) / len(result.relative_l2)
        facts.append(f"weights off by {mean:.2%} on average and {result.relative_l2[worst]:.2%} at most ({worst})")
    if scores := result.scores:
        facts.append(f"KL {max(scores.kl_mean):.2g} and top-1 {min(scores.top1):.1%} in the worst codebook")
    facts.append(f"peak memory {peak_memory()}")
    gate = "not judged" if result.scores is None else "passed the gate" if result.passed else "failed the gate"
    return f"{result.path}: {', '.join(facts)}; {gate}"


def _compare(args: argparse.Namespace) -> int:
    from octavo.quant import report

    if args.source or args.format or args.type or args.keep or args.report:
        from octavo.runtime.errors import RequestError

        raise RequestError("--compare prints scores of finished files. Leave out IN, OUT and the options.")
    print(report.table(args.compare))
    return 0
