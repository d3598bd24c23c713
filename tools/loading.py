"""The model arguments that several commands share, and the engine they name."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

if TYPE_CHECKING:
    from octavo.runtime import Engine
    from octavo.runtime.memory_plan import MemoryPlan


def add_model_arguments(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("model")
    group.add_argument(
        "--model", metavar="DIR|ID", help="checkpoint folder, .gguf file, or a model id in the local cache"
    )
    group.add_argument("--download", action="store_true", help="fetch the model id from the Hugging Face hub")
    group.add_argument("--device", default="auto", help="cpu, cuda, cuda:1 (default: auto, a GPU where there is one)")
    group.add_argument("--dtype", default="auto", help="fp32 or bf16 (default: auto, what suits the device)")
    group.add_argument(
        "--vram",
        metavar="SIZE",
        help="stay within 8GiB, 7500MB or 0.8 of the device's memory (host memory on the CPU), and tell the plan",
    )


@contextmanager
def load_engine(args: argparse.Namespace) -> Iterator[Engine]:
    """The engine of --model, with a bar on a terminal while it loads; closed at the end. Raises OctavoError."""
    from octavo.runtime import Engine
    from octavo.runtime.errors import CheckpointError

    if not args.model:
        raise CheckpointError(
            "No model is named. Give the folder or the id of one with --model. To try without a real one, "
            "`python -m octavo.tools.make_checkpoint tiny` makes a synthetic model, which speaks noise."
        )
    with tqdm(desc="loading", unit="layer", leave=False, disable=not sys.stderr.isatty()) as bar:

        def progress(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        def planned(plan: MemoryPlan) -> None:
            tqdm.write(str(plan), file=sys.stderr)

        budget: dict[str, Any] = {} if args.vram is None else {"vram": args.vram, "planned": planned}
        engine = Engine.load(
            args.model, device=args.device, dtype=args.dtype, download=args.download, progress=progress, **budget
        )
    with engine:
        yield engine
