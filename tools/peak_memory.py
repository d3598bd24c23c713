"""How much memory a command took, for its last line."""

from __future__ import annotations

import sys


def peak_memory() -> str:
    """The most this process ever held: in host memory, and on the GPU if it used one."""
    import torch

    try:
        import resource
    except ImportError:  # not on Windows
        return "unknown"
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    line = f"{peak / 1e9:.2f} GB"
    if torch.cuda.is_available() and torch.cuda.max_memory_allocated():
        line += f" and {torch.cuda.max_memory_allocated() / 1e9:.2f} GB on the GPU"
    return line
