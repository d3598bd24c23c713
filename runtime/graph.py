"""A whole row as one CUDA graph, for each of a few batch sizes."""

from __future__ import annotations

import threading
from collections.abc import Callable
from functools import partial
from typing import Any

import torch

WARM_UPS = 2  # compile kernels and fill the libraries' workspaces before the capture: neither may happen inside
_CAPTURING = threading.Lock()  # a capture synchronises the device, which would break another one beside it


def capture(work: Callable[[], None], pool: Any = None) -> torch.cuda.CUDAGraph:
    """Runs `work` some times, then records what it launches on the current stream. Other threads of this process may
    allocate and launch meanwhile, for their own models, but not synchronise the whole device.

    pool: of `torch.cuda.graph_pool_handle`, shared by graphs that never run at the same time.
    """
    with _CAPTURING:
        stream = torch.cuda.current_stream()
        for _ in range(WARM_UPS):
            work()
        stream.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=pool, stream=stream, capture_error_mode="thread_local"):
            work()
        return graph


def row_sizes(max_batch: int) -> tuple[int, ...]:
    """1, 2, 4, 8, 16, 32, 48, 64, 96, 128, 192, ... up to `max_batch`, which is one of them."""
    sizes = [1, 2, 4, 8, 16, 32]
    while sizes[-1] < max_batch:
        sizes += [sizes[-1] * 3 // 2, sizes[-1] * 2]
    return (*(size for size in sizes if size < max_batch), max_batch)


class RowGraphs:
    """The captured rows. All share one memory pool: the largest is captured first, the others fit into what it took."""

    def __init__(self, sizes: tuple[int, ...], row: Callable[[int, int], None]):
        """row(0, n) computes a row of the first n lanes, from and into tensors that stay where they are.

        Call on the stream that will replay. No lane may be running: what the warm-ups compute goes to idle lanes.
        """
        pool = torch.cuda.graph_pool_handle()
        self._graphs = {size: capture(partial(row, 0, size), pool) for size in reversed(sizes)}

    def replay(self, size: int) -> None:
        self._graphs[size].replay()
