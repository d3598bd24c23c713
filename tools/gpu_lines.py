"""What the steps of gpu_check tell it while they run: lines of JSON in a file, so that a step may die at any time."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

FILE = "OCTAVO_GPU_LINES"


def write(**line: Any) -> None:
    """Appends one line at once; from several processes too."""
    file = os.open(os.environ[FILE], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    try:
        os.write(file, (json.dumps(line) + "\n").encode())
    finally:
        os.close(file)


def read(path: Path) -> dict[str, Any]:
    """A step's `facts`; its `figures`; its `checks`, name -> line; what was `planned`, and what `started`, in order."""
    told: dict[str, Any] = {"facts": {}, "figures": [], "checks": {}, "planned": [], "started": []}
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    for line in text.splitlines(keepends=True):
        if not line.endswith("\n"):  # the writer was killed in the middle of it
            break
        entry = json.loads(line)
        if "planned" in entry:
            told["planned"] += [name for name in entry["planned"] if name not in told["planned"]]
        elif "started" in entry:
            told["started"].append(entry["started"])
        elif "figure" in entry:
            told["figures"].append(entry["figure"])
        elif "facts" in entry:
            told["facts"] |= entry["facts"]
        else:
            told["checks"][entry["name"]] = entry
    return told
