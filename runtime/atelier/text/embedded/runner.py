"""The forward passes of the embedded engine: prefill of some slots, decode of the first rows, CUDA
graphs of decode.

It keeps the batch's tokens, positions and write columns on the device, so that a decode step needs
nothing from the host when no sequence joins or leaves. It samples nothing and knows no request.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from atelier.text.embedded.attention import SlotView
from atelier.text.embedded.slots import SlotCache

ROW_BUCKETS = (1, 2, 4, 8, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512)
LENGTH_BUCKETS = tuple(256 << n for n in range(12))


@dataclass(frozen=True)
class Chunk:
    """A part of a prompt to prefill: `tokens` go to positions `past`, `past + 1`, ... of `slot`."""

    slot: int
    past: int
    tokens: list[int]


class Runner:
    """Runs `model` over `cache`. `graphs` replays decode steps as CUDA graphs; `flash` reads only
    valid columns."""

    def __init__(
        self, model: Any, cache: SlotCache, graphs: bool = False, flash: bool = False
    ) -> None:
        self.model = model
        self.cache = cache
        self.device = model.device
        self.dtype = model.dtype
        self.graphs = graphs
        self.flash = flash
        self._pool: Any = None
        self._captured: dict[tuple[int, int], tuple[Any, Tensor]] = {}
        self._windows = window_kinds(model.config.get_text_config())
        slots, spare = cache.slots, cache.columns
        self.tokens = torch.zeros(slots, dtype=torch.long, device=self.device)
        self.positions = torch.zeros(slots, dtype=torch.long, device=self.device)
        self.write_columns = torch.full((slots,), spare, dtype=torch.long, device=self.device)
        self.active = torch.zeros(slots, dtype=torch.long, device=self.device)
        self._columns = torch.arange(cache.columns + 1, device=self.device)

    def device_memory(self) -> tuple[int, int]:
        """Used and free bytes of a GPU; (0, 0) elsewhere."""
        if self.device.type != "cuda":
            return 0, 0
        free, total = torch.cuda.mem_get_info(self.device)
        return total - free, free

    @torch.no_grad()
    def prefill(self, chunks: list[Chunk], every: bool = False) -> Tensor:
        """Compute the chunks in one padded batch; returns float logits after each chunk's last
        token, rows x vocab, or after `every` token, rows x width x vocab."""
        width = max(len(chunk.tokens) for chunk in chunks)
        ids = torch.tensor([chunk.tokens + [0] * (width - len(chunk.tokens)) for chunk in chunks])
        past = torch.tensor([[chunk.past] for chunk in chunks])
        positions = past + torch.arange(width)[None]
        ends = torch.tensor([[chunk.past + len(chunk.tokens)] for chunk in chunks])
        columns = torch.where(positions < ends, positions, self.cache.columns)
        slots = torch.tensor([chunk.slot for chunk in chunks])
        fresh = all(chunk.past == 0 for chunk in chunks)
        length = width if fresh else int(ends.max())
        ids, positions, columns, slots = (
            t.to(self.device) for t in (ids, positions, columns, slots)
        )
        last = [len(chunk.tokens) - 1 for chunk in chunks]
        kept = sorted(set(last))
        view = SlotView(len(chunks), slots, columns, 0 if fresh else length)
        view.ring_columns = self._ring_columns(columns, ends.to(self.device))
        masks = {
            kind: self._prefill_mask(positions, length, window, fresh)
            for kind, window in self._windows.items()
        }
        if fresh:
            view.causal = tuple(
                masks[kind]
                for kind, window in self._windows.items()
                if window is None or width <= window
            )
        keep = 0 if every else torch.tensor(kept, device=self.device)  # 0 keeps all
        within = positions.clamp(max=self.cache.columns - 1)  # padding may reach beyond the context
        logits = self._run(ids, within, view, masks, keep)
        if every:
            return logits.float()
        return logits[range(len(chunks)), [kept.index(index) for index in last]].float()

    def join(self, slot: int, position: int) -> None:
        """Make `slot` a decoding row whose next token goes to `position`."""
        self.positions[slot] = position
        self.write_columns[slot] = position
        self.active[slot] = 1

    def leave(self, slot: int) -> None:
        """Make `slot` an idle row: it attends to one column and writes to the spare one."""
        self.positions[slot] = 0
        self.write_columns[slot] = self.cache.columns
        self.active[slot] = 0

    def move(self, source: int, target: int, length: int) -> None:
        """Bring the sequence of one slot to another; the source keeps its keys and becomes idle."""
        self.cache.copy(source, target, length)
        for state in (self.tokens, self.positions, self.write_columns, self.active):
            state[target] = state[source]
        self.leave(source)

    @torch.no_grad()
    def decode(self, rows: int, longest: int) -> Tensor:
        """One token for each of the first `rows`; `longest` is the largest position among them.
        Returns float logits, rows x vocab. The caller writes the sampled tokens with `advance`."""
        if not self.graphs:
            length = min((longest // 32 + 1) * 32, self.cache.columns)
            return self._decode(rows, length)[:rows].float()
        rows_bucket = min(next(b for b in ROW_BUCKETS if b >= rows), self.cache.slots)
        length = self.cache.columns
        if not self.flash:
            length = min(next(b for b in LENGTH_BUCKETS if b > longest), length)
        if (rows_bucket, length) not in self._captured:
            self._capture(rows_bucket, length)
        graph, logits = self._captured[rows_bucket, length]
        graph.replay()
        return logits[:rows].float()

    def advance(self, tokens: Tensor) -> None:
        """Set the next input of the first rows, and step their positions where a sequence is
        active."""
        rows = tokens.shape[0]
        self.tokens[:rows] = tokens
        self.positions[:rows] += self.active[:rows]
        self.write_columns[:rows] += self.active[:rows]
        self.write_columns.clamp_(max=self.cache.columns)

    def _decode(self, rows: int, length: int) -> Tensor:
        positions = self.positions[:rows, None]
        lengths = (self.positions[:rows] + 1).to(torch.int32) if self.flash else None
        written = self.write_columns[:rows, None]
        view = SlotView(rows, None, written, length, lengths)
        view.ring_columns = self._ring_columns(written)
        masks = {
            kind: self._decode_mask(positions, length, window)
            for kind, window in self._windows.items()
        }
        return self._run(self.tokens[:rows, None], positions, view, masks, 1)[:, 0]

    def _run(
        self,
        ids: Tensor,
        positions: Tensor,
        view: SlotView,
        masks: dict[str, Tensor],
        keep: Tensor | int,
    ) -> Tensor:
        self.cache.view = view
        return self.model(
            input_ids=ids,
            position_ids=positions,
            attention_mask=masks if len(masks) > 1 else next(iter(masks.values())),
            past_key_values=self.cache,
            use_cache=True,
            logits_to_keep=keep,
            slot_view=view,
        ).logits

    def _prefill_mask(
        self, positions: Tensor, length: int, window: int | None, fresh: bool
    ) -> Tensor:
        columns = self._columns[None, :length]
        if window is not None and self.cache.ring and not fresh:
            held = held_positions(positions[:, :1] - 1, self._columns[: self.cache.ring])
            columns = torch.cat([held, positions], 1)
        return additive_mask(positions, columns, window, self.dtype)

    def _decode_mask(self, positions: Tensor, length: int, window: int | None) -> Tensor:
        columns = self._columns[None, :length]
        if window is not None and self.cache.ring:
            columns = held_positions(positions, self._columns[: min(length, self.cache.ring)])
        return additive_mask(positions, columns, window, self.dtype)

    def _ring_columns(self, columns: Tensor, ends: Tensor | None = None) -> Tensor | None:
        """Where positions written to `columns` go in a ring; those that later ones of the same
        forward would overwrite go to the spare column."""
        ring, spare = self.cache.ring, self.cache.columns
        if not ring:
            return None
        kept = columns < spare
        if ends is not None:
            kept = kept & (columns >= ends - ring)
        return torch.where(kept, columns % ring, ring)

    def _capture(self, rows: int, length: int) -> None:
        """Record the decode forward of this shape. Idle rows beyond the batch write to the spare
        column alone."""
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            self._decode(rows, length)
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
            logits = self._decode(rows, length)
        self._pool = self._pool or graph.pool()
        self._captured[rows, length] = (graph, logits)


def additive_mask(
    positions: Tensor, columns: Tensor, window: int | None, dtype: torch.dtype
) -> Tensor:
    """0 where a query at `positions` (rows x queries) may see a column, the dtype's least value
    elsewhere; rows x 1 x queries x columns. `columns` (rows or 1 x columns) are the positions that
    the columns hold, negative where they hold none. `window` is how many positions back a sliding
    layer sees."""
    query, key = positions[:, None, :, None], columns[:, None, None]
    seen = (key <= query) & (key >= 0)
    if window is not None:
        seen = seen & (key > query - window)
    zero = torch.zeros((), dtype=dtype, device=positions.device)
    return torch.where(seen, zero, torch.finfo(dtype).min)


def held_positions(last: Tensor, columns: Tensor) -> Tensor:
    """The position in each column of a ring whose newest one is `last` (rows x 1): rows x columns,
    negative where none was written yet. Columns left out at the end hold none."""
    return last - (last - columns[None]) % columns.shape[0]


def window_kinds(config: Any) -> dict[str, int | None]:
    """Attention window by layer type; one entry when all layers are alike.

    Raises:
        CheckpointError: a layer type that keeps no keys (recurrent state) cannot be batched in
            slots.
    """
    from atelier.errors import CheckpointError

    window = getattr(config, "sliding_window", None)
    kinds = set(getattr(config, "layer_types", None) or [])
    unknown = kinds - {"full_attention", "sliding_attention"}
    if unknown:
        raise CheckpointError(
            f"layers of type {', '.join(sorted(unknown))} keep a state that the embedded engine"
            " cannot batch: set ENGINE=vllm or ENGINE=llamacpp"
        )
    if kinds:
        return {kind: window if kind == "sliding_attention" else None for kind in sorted(kinds)}
    return {"sliding_attention" if window else "full_attention": window}


def layer_windows(config: Any) -> tuple[int | None, ...]:
    """The attention window of each layer, None where it sees everything."""
    kinds = window_kinds(config)
    layers = getattr(config, "layer_types", None) or [*kinds] * config.num_hidden_layers
    return tuple(kinds[layer] for layer in layers)
