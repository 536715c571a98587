"""The forward passes of the embedded engine: prefill of some slots, decode of the first rows, with
or without drafts behind their next tokens, and CUDA graphs of decode.

It keeps the batch's tokens, positions and write columns on the device, so that a decode step needs
nothing from the host when no sequence joins or leaves. It samples nothing and knows no request.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from atelier.hardware.recording import recording_into
from atelier.text.embedded.attention import SlotView
from atelier.text.embedded.slots import SlotCache
from atelier.text.embedded.windows import additive_mask, held_positions, window_kinds

log = logging.getLogger(__name__)

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
    valid columns. At most `cache.drafts` tokens are verified behind the next one of a row."""

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
        self._captured: dict[tuple[int, int, int], tuple[Any, Tensor]] = {}
        self._windows = window_kinds(model.config.get_text_config())
        slots, spare = cache.slots, cache.columns
        self.tokens = torch.zeros(slots, dtype=torch.long, device=self.device)
        self.positions = torch.zeros(slots, dtype=torch.long, device=self.device)
        self.write_columns = torch.full((slots,), spare, dtype=torch.long, device=self.device)
        self.active = torch.zeros(slots, dtype=torch.long, device=self.device)
        self._columns = torch.arange(cache.columns + 1, device=self.device)
        self._drafted = torch.zeros(slots, cache.drafts, dtype=torch.long, device=self.device)

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
        first, last_slot = chunks[0].slot, chunks[-1].slot
        if [chunk.slot for chunk in chunks] == list(range(first, last_slot + 1)):
            view.span = slice(first, last_slot + 1)
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
        Returns float logits, rows x vocab, which the next step may overwrite. The caller writes the
        sampled tokens with `advance`."""
        return self._step(rows, longest, 1)[:, 0]

    @torch.no_grad()
    def verify(self, drafts: list[list[int]], longest: int) -> Tensor:
        """The next token of each of the first rows and the drafts behind it, in one forward.

        Returns float logits, rows x width x vocab: after the next token, after the first draft, and
        so on; behind a row's own drafts they mean nothing, and the next step may overwrite all. The
        caller says with `place` what became of the rows. All of width must fit the context behind
        `longest`: see `fits`.
        """
        width = self.width_of(drafts)
        padded = [row + [0] * (width - 1 - len(row)) for row in drafts]
        self._drafted[: len(drafts), : width - 1] = torch.tensor(padded).to(self.device)
        return self._step(len(drafts), longest, width)

    def width_of(self, drafts: list[list[int]]) -> int:
        """Tokens a row in the forward that verifies them; graphs are recorded for one width."""
        return 1 + (self.cache.drafts if self.graphs else max(map(len, drafts)))

    def fits(self, longest: int) -> bool:
        """Whether drafts can be verified while this is the largest position of the rows."""
        return longest + 1 + self.cache.drafts <= self.cache.columns

    def place(self, tokens: dict[int, int], positions: dict[int, int]) -> None:
        """Set next tokens and their positions, both by slot; all other slots become idle rows."""
        state = torch.zeros(3, self.cache.slots, dtype=torch.long)
        state[2] = self.cache.columns
        for slot, position in positions.items():
            state[0, slot], state[1, slot], state[2, slot] = tokens[slot], position, position
        state = state.to(self.device)
        self.tokens[:], self.positions[:], self.write_columns[:] = state[0], state[1], state[2]
        self.active[:] = self.write_columns < self.cache.columns

    def advance(self, tokens: Tensor) -> None:
        """Set the next input of the first rows, and step their positions where a sequence is
        active."""
        rows = tokens.shape[0]
        self.tokens[:rows] = tokens
        self.positions[:rows] += self.active[:rows]
        self.write_columns[:rows] += self.active[:rows]
        self.write_columns.clamp_(max=self.cache.columns)

    def _step(self, rows: int, longest: int, width: int) -> Tensor:
        """Float logits of `width` tokens of each of the first rows, replayed where that can be."""
        longest += width - 1
        if self.graphs and (logits := self._replayed(rows, longest, width)) is not None:
            return logits[:rows].float()
        length = self.cache.columns
        if not self.flash:
            length = min((longest // 32 + 1) * 32, length)
        return self._decode(rows, length, width)[:rows].float()

    def _replayed(self, rows: int, longest: int, width: int) -> Tensor | None:
        """Logits of the recorded forward that is wide and long enough; None, now and from then on,
        if it cannot be recorded: experts in float32 ask the CPU on the way."""
        rows = min(next(b for b in ROW_BUCKETS if b >= rows), self.cache.slots)
        length = self.cache.columns
        if not self.flash:
            length = min(next(b for b in LENGTH_BUCKETS if b > longest), length)
        if (rows, length, width) not in self._captured:
            try:
                self._capture(rows, length, width)
            except torch.cuda.OutOfMemoryError:
                raise
            except RuntimeError as error:
                self.graphs = False
                reason = str(error).partition("\n")[0]
                log.warning("decode steps are not recorded as CUDA graphs: %s", reason)
                return None
        graph, logits = self._captured[rows, length, width]
        graph.replay()
        return logits

    def _decode(self, rows: int, length: int, width: int) -> Tensor:
        spare = self.cache.columns
        ahead = self._columns[None, :width]
        positions = self.positions[:rows, None] + ahead
        lengths = (self.positions[:rows] + width).to(torch.int32) if self.flash else None
        written = (self.write_columns[:rows, None] + ahead).clamp(max=spare)
        ids = torch.cat([self.tokens[:rows, None], self._drafted[:rows, : width - 1]], 1)
        view = SlotView(rows, None, written, length, lengths)
        view.ring_columns = self._ring_columns(written)
        masks = {
            kind: self._decode_mask(positions, length, window)
            for kind, window in self._windows.items()
        }
        return self._run(ids, positions.clamp(max=spare - 1), view, masks, width)

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
            columns = held_positions(
                positions[:, -1:], self._columns[: min(length, self.cache.ring)]
            )
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

    def _capture(self, rows: int, length: int, width: int) -> None:
        """Record the decode forward of this shape. Idle rows beyond the batch write to the spare
        column alone."""
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            self._decode(rows, length, width)
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with recording_into(graph, self._pool):
            logits = self._decode(rows, length, width)
        self._pool = self._pool or graph.pool()
        self._captured[rows, length, width] = (graph, logits)
