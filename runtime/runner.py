"""Runs the model: chunks of prompts in, one row of codes per running request out. The only place that lays out its
inputs.

Rows are launched, and read later: `prefill` and `decode` return at once, `collect` waits for the oldest row that is
under way. On CUDA one row may be under way while the host works on the one before; on the CPU nothing is gained by
that. Nobody else knows which it is, nor whether a row is a captured graph.
"""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass

import numpy as np
import torch

from octavo.kernels.launch import on_triton
from octavo.kernels.prefill_attention import prefill_tiles
from octavo.kernels.rope import rope_table
from octavo.kernels.rows import Rows
from octavo.kernels.sample_row import sample_row

from .config import EngineConfig
from .graph import RowGraphs, row_sizes
from .kv_cache import DUMMY_PAGE
from .lanes import Lanes
from .memory import lazy_zeros
from .models import Model
from .prompt import PLACEHOLDER
from .scheduler import Chunk

COPIED_AT_ONCE = 8  # pages, each of all layers: what lies between may take 20 MB
MOST_UNDER_WAY = 4  # launches: a prefill and a row that nobody has read, and those of the step before


class Runner:
    def __init__(self, model: Model, config: EngineConfig):
        cfg = model.cfg
        self.model, self.config, self.device = model, config, model.device
        self.on_cuda = self.device.type == "cuda"
        self.lookahead = 1 if self.on_cuda else 0  # rows that may be under way while the host reads an older one
        # One of its own, so that nobody else's work on the GPU is waited for; before the codec's, where both could run.
        self.stream = stream = torch.cuda.Stream(self.device, priority=-1) if self.on_cuda else None
        self._on_stream: AbstractContextManager = torch.cuda.stream(stream) if stream else contextlib.nullcontext()
        self.sizes = row_sizes(config.max_batch) if self.on_cuda else ()  # of captured rows; (): as many as there are
        pages = (cfg.num_layers, config.num_pages + 1, config.page_size, 2, cfg.num_kv_heads, cfg.head_dim)
        # Zeros, not whatever was there: rows beyond a sequence's end are masked out, but 0 * NaN would be NaN.
        self.pages = lazy_zeros(pages, model.dtype, self.device)
        self.rope = rope_table(config.max_context, cfg.head_dim, cfg.rope_theta, self.device, model.dtype)
        # The last slot is nobody's: idle lanes store their rows there.
        self.codes = lazy_zeros((config.num_slots + 1, config.max_context, cfg.num_codebooks), torch.int16, self.device)
        lanes = max(self.sizes, default=config.max_batch)
        longest = -(-config.max_context // config.page_size)
        self.lanes = Lanes(lanes, longest, cfg.num_codebooks, config.num_slots, self.device)
        self._counters = torch.zeros(lanes * cfg.num_kv_heads, dtype=torch.int32, device=self.device)
        self._graphs: RowGraphs | None = None
        self._under_way: deque[_Launch] = deque()
        state = self.lanes.state.shape
        self._read = [torch.empty(state, dtype=torch.int32, pin_memory=self.on_cuda) for _ in range(MOST_UNDER_WAY)]
        self._turn = 0
        if stream:
            stream.wait_stream(torch.cuda.current_stream(self.device))  # which writes weights and zeros

    @torch.inference_mode()
    def capture(self) -> None:
        """CUDA: records the rows, so that decoding replays them. Takes seconds; without it rows are launched one kernel
        after the other."""
        if self.on_cuda and self.config.graphs and self._graphs is None:
            with self._on_stream:
                self._graphs = RowGraphs(self.sizes, self._row)

    @torch.inference_mode()
    def prefill(self, chunks: list[Chunk]) -> None:
        """Runs the chunks in one pass. Whose prompt is complete gets the next lane, in order, and its first row."""
        with self._on_stream:
            x, rows, ends = self._lay_out(chunks)
            hidden = self.model(x, rows, self.pages)
            if len(ends):
                first = self.lanes.running
                try:
                    for chunk in chunks:
                        if chunk.completes:
                            self.lanes.join(chunk.sequence, self.model.cfg.codebook_vocab)
                    self.lanes.upload()
                    self._sample(hidden.index_select(0, ends), first, self.lanes.running)
                except BaseException:
                    while self.lanes.running > first:  # nobody has joined
                        self.lanes.leave(self.lanes.running - 1, self.lanes.running - 1)
                    raise
                self._launched(first)

    @torch.inference_mode()
    def decode(self) -> None:
        """Feeds every lane's last row back and samples the next."""
        with self._on_stream:
            self.lanes.upload()
            n = self.lanes.running
            size = next((size for size in self.sizes if size >= n), n)
            if self._graphs:
                self._graphs.replay(size)
            elif self.config.deterministic and not self.on_cuda:
                for lane in range(n):  # the CPU's products take another order for another number of rows
                    self._row(lane, lane + 1)
            else:
                self._row(0, size)
            self.lanes.advance()
            self._launched(0)

    def collect(self) -> tuple[np.ndarray, np.ndarray]:
        """Waits for the oldest launch under way: rows [n, 8] int16 of delayed codes, and done [n] int16, 1 where the
        ramp-out is complete; by lanes, as they were then. Later launches overwrite them."""
        launch = self._under_way.popleft()
        if launch.event:
            launch.event.synchronize()
        values, codebooks = launch.values.numpy().view(np.int16), self.model.cfg.num_codebooks
        return values[:, :codebooks], values[:, codebooks]

    @property
    def slots(self) -> np.ndarray:
        """[n] int64, of the running lanes."""
        return self.lanes.slots

    @property
    def under_way(self) -> int:
        """Launches that nobody has collected."""
        return len(self._under_way)

    @property
    def last_event(self) -> torch.cuda.Event | None:
        """CUDA: of the newest launch; behind it its rows are stored."""
        return self._under_way[-1].event if self._under_way else None

    def leave(self, last: int, gap: int) -> None:
        """As `Scheduler.finish` says: the last lane moves into the gap."""
        with self._on_stream:
            self.lanes.leave(last, gap)

    def synchronize(self) -> None:
        """Waits until the device has done what was launched."""
        if self.stream:
            self.stream.synchronize()

    def forget(self) -> None:
        """After an error: nothing is under way, and nobody runs."""
        self._under_way.clear()
        self.lanes.clear()

    def _row(self, first: int, last: int) -> None:
        """A row of these lanes; what CUDA graphs capture. Reads and writes tensors of fixed addresses only."""
        model, lane = self.model, self.lanes.view(first, last)
        codes = lane.out[:, : model.cfg.num_codebooks]
        x = model.start_row(codes, lane.row, lane.prompt, lane.active, lane.positions)
        table = lane.table
        if not on_triton(self.pages):  # the reference attends over whole tables: as few pages as the longest has
            table = table[:, : int(lane.positions.max()) // self.config.page_size + 1]
        rows = Rows(
            lane.positions,
            lane.owner,
            table,
            self.rope,
            self.config.page_size,
            counters=self._counters,
            deterministic=self.config.deterministic,
        )
        self._sample(model(x, rows, self.pages), first, last)

    def _sample(self, hidden: torch.Tensor, first: int, last: int) -> None:
        """Draws the next row of these lanes from their final hidden states [B, hidden] and moves their state on."""
        lane, cfg = self.lanes.view(first, last), self.model.cfg
        sample_row(
            self.model.logits(hidden),
            lane.row,
            lane.seed,
            lane.temperature,
            lane.top_k,
            lane.top_p,
            lane.left,
            lane.slot,
            self.codes,
            lane.out,
            cfg.boc,
            cfg.eoc,
        )

    def _launched(self, first: int) -> None:
        """What the lanes from `first` on have computed can be collected."""
        assert len(self._under_way) < MOST_UNDER_WAY
        values = self._read[self._turn][: self.lanes.running - first]
        self._turn = (self._turn + 1) % MOST_UNDER_WAY
        values.copy_(self.lanes.state[first : self.lanes.running], non_blocking=True)
        event = None
        if self.on_cuda:
            event = torch.cuda.Event()
            event.record()
        self._under_way.append(_Launch(values, event))

    def _lay_out(self, chunks: list[Chunk]) -> tuple[torch.Tensor, Rows, torch.Tensor]:
        """The chunks' embedded rows [N, hidden], what the kernels must know of them, and where those rows stand [n]
        whose prompts are complete. Everything goes to the device in one piece."""
        S = self.config.page_size
        counts = np.array([chunk.last - chunk.first for chunk in chunks])
        lasts = np.array([chunk.last for chunk in chunks])
        ends = counts.cumsum()
        positions = np.arange(ends[-1]) + (lasts - ends).repeat(counts)
        owner = np.arange(len(chunks)).repeat(counts)
        table = np.full((len(chunks), -(-int(lasts.max()) // S)), DUMMY_PAGE)
        for line, chunk in zip(table, chunks, strict=True):
            pages = chunk.sequence.pages[: -(-chunk.last // S)]
            line[: len(pages)] = pages
        spans = list(zip(counts.tolist(), lasts.tolist(), strict=True))
        tiles = prefill_tiles(spans, torch.device("cpu")).numpy() if on_triton(self.pages) else table[:0]
        ids = np.concatenate([chunk.sequence.token_ids[chunk.first : chunk.last] for chunk in chunks])
        (places,) = np.nonzero(ids == PLACEHOLDER)
        ids[places] = 0
        codes = [chunk.sequence.reference_rows(chunk.first, chunk.last) for chunk in chunks]
        complete = ends[[chunk.completes for chunk in chunks]] - 1
        copies = np.array([chunk.page_copy for chunk in chunks if chunk.page_copy]).reshape(-1, 2).T
        lists = (positions, owner, table, tiles, places, np.concatenate(codes), complete, *copies)
        on_device = self._upload(lists)
        device_positions, device_owner, device_table, device_tiles, device_places, device_codes, device_ends = (
            on_device[:7]
        )
        if copies.size:  # the page that a voice's prefix fills in part: its new user writes on in a copy
            for source, target in zip(*(part.split(COPIED_AT_ONCE) for part in on_device[7:]), strict=True):
                self.pages.index_copy_(1, target.long(), self.pages.index_select(1, source))
        x = self.model.embed_text(torch.from_numpy(ids))
        if len(places):
            x.index_copy_(0, device_places.long(), self.model.embed_audio(device_codes))
        rows = Rows(
            device_positions,
            device_owner,
            device_table,
            self.rope,
            S,
            spans=spans,
            tiles=device_tiles,
            deterministic=self.config.deterministic,
        )
        return x, rows, device_ends

    def _upload(self, arrays: Iterable[np.ndarray]) -> list[torch.Tensor]:
        """As int32 on the device, without waiting: a copy from pageable memory would stop the host until the device has
        come to it."""
        arrays = list(arrays)
        places = np.cumsum([0] + [-(-array.size // 4) * 4 for array in arrays])  # 16 bytes: as the kernels expect them
        packed = torch.empty(int(places[-1]), dtype=torch.int32, pin_memory=self.on_cuda)
        host = packed.numpy()
        for place, array in zip(places, arrays, strict=False):
            host[place : place + array.size] = array.ravel()
        device = packed.to(self.device, non_blocking=True)
        return [
            device[place : place + array.size].view(array.shape)
            for place, array in zip(places.tolist(), arrays, strict=False)
        ]


@dataclass(frozen=True)
class _Launch:
    values: torch.Tensor  # [n, 6] int32, lines of Lanes.state, on the host once the event has come
    event: torch.cuda.Event | None
