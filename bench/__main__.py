"""All benchmarks: `python -m octavo.bench [--out DIR]` writes DIR/host.json, DIR/decode.json, DIR/codec.json
and DIR/quant.json in some minutes.

Run it on a machine that does nothing else; `make tables` then brings the figures into the README.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from . import codec, decode, host, quant
from .command import arguments, measure

SUITES = {"host": host.results, "decode": decode.results, "codec": codec.results, "quant": quant.results}


def main(argv: list[str] | None = None) -> int:
    parser = arguments("bench", __doc__ or "")
    default = Path("bench/results") / f"cpu-{os.cpu_count()}core"
    parser.add_argument("--out", type=Path, default=default, metavar="DIR", help=f"default: {default}")
    parser.add_argument("--only", choices=SUITES, help="one of the suites alone")
    args = parser.parse_args(argv)
    chosen = [args.only] if args.only else list(SUITES)
    return max([measure(SUITES[name], args.out / f"{name}.json", args) for name in chosen])


if __name__ == "__main__":
    sys.exit(main())
