"""The key-value cache of a running batch: one row (slot) a sequence, written and read in place.

A decode step reads a plain view of the first rows, without gathering pages; a row that ends leaves
its keys behind, and a later prompt with the same beginning copies them instead of computing them
again. What runs in which slot is the engine's business; this module knows tensors only.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers.cache_utils import Cache, DynamicLayer

from atelier.text.embedded.attention import SlotView

RING_SLACK = 512
"""Positions that a sliding layer keeps beyond its window: a prompt may continue one that has gone
on by as many tokens."""

READ_AHEAD = 4
"""Tokens that a sequence may have written beyond those that are known to be its own; drafts come on
top."""


class SlotCache(Cache):
    """`slots` rows of `columns` positions a layer, and one spare column that swallows writes of
    idle rows.

    `windows` holds each layer's attention window or None. A layer with a window keeps `ring`
    positions, the window and `slack` more, position p in column p % ring, if that is less than
    `columns`; `ring` is 0 where no layer does. `drafts` tokens may be written ahead and not be
    kept; the slack must hold them.

    Layers are allocated when they first see keys, since only then is the number and size of their
    heads known (layers of one model may differ, and in multi-head latent attention keys and values
    do).
    """

    def __init__(
        self,
        slots: int,
        columns: int,
        windows: tuple[int | None, ...] = (),
        slack: int = RING_SLACK,
        drafts: int = 0,
    ) -> None:
        super().__init__(layer_class_to_replicate=DynamicLayer)
        self.slots = slots
        self.columns = columns
        self.windows = windows
        self.window = max((window for window in windows if window is not None), default=0)
        self.ring = ring_size(self.window, columns, slack)
        self.drafts = drafts
        self.view = SlotView(0, None, torch.empty(0), 0)
        self._keys: dict[int, Tensor] = {}
        self._values: dict[int, Tensor] = {}
        self._rows: Tensor | None = None

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Write rows x heads x queries x size states at the view's columns; returns what the rows
        may attend to: columns in order, or a ring's columns followed by the states themselves."""
        ring = self._is_ring(layer_idx)
        if layer_idx not in self._keys:
            size = self.ring if ring else self.columns
            self._keys[layer_idx] = self._allocate(key_states, size)
            self._values[layer_idx] = self._allocate(value_states, size)
        keys, values, view = self._keys[layer_idx], self._values[layer_idx], self.view
        columns = view.columns if not ring or view.ring_columns is None else view.ring_columns
        if view.slots is None:
            rows = self._row_numbers(key_states.device)[: view.rows, None]
            keys[rows, :, columns] = key_states.transpose(1, 2)
            values[rows, :, columns] = value_states.transpose(1, 2)
            end = view.length if view.lengths is None else self.columns + 1
            end = min(end, self.ring) if ring else end
            return keys[: view.rows, :, :end], values[: view.rows, :, :end]
        joined = None
        if ring and view.length:  # read before the new positions replace the oldest
            joined = (
                torch.cat([view.read(keys, self.ring), key_states], 2),
                torch.cat([view.read(values, self.ring), value_states], 2),
            )
        keys[view.slots[:, None], :, columns] = key_states.transpose(1, 2)
        values[view.slots[:, None], :, columns] = value_states.transpose(1, 2)
        if joined is not None:
            return joined
        if view.length == 0:
            return key_states, value_states
        return view.read(keys, view.length), view.read(values, view.length)

    def keeps(self, length: int, written: int) -> bool:
        """Whether a slot in which `written` positions are known still holds what a continuation
        after `length` sees."""
        written += READ_AHEAD + self.drafts
        return not self.ring or written <= self.ring or written - length <= self.ring - self.window

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Positions are always passed explicitly; models ask only to build defaults that are not
        used."""
        return 0

    def copy(self, source: int, target: int, length: int) -> None:
        """Copy the first `length` positions of one slot to another."""
        for store in (self._keys, self._values):
            for layer, tensor in store.items():
                end = self.ring if self._is_ring(layer) else length
                tensor[target, :, :end] = tensor[source, :, :end]

    def bytes(self) -> int:
        """Size of what is allocated."""
        return sum(
            t.numel() * t.element_size()
            for store in (self._keys, self._values)
            for t in store.values()
        )

    def _is_ring(self, layer: int) -> bool:
        return bool(self.ring) and layer < len(self.windows) and self.windows[layer] is not None

    def _allocate(self, states: Tensor, columns: int) -> Tensor:
        """Logically slots x heads x columns x size. On an accelerator positions lie outermost, as
        flash kernels want them; on a CPU heads do, which its attention kernel reads faster (2.2 ms
        against 3.7 ms for 32 rows of 512).

        On a CPU the memory comes from calloc, so that a page is taken only when a token is written
        to it: a context nobody fills costs nothing.
        """
        _, heads, _, size = states.shape
        if states.device.type != "cpu":
            return states.new_zeros(self.slots, columns + 1, heads, size).transpose(1, 2)
        shape = (self.slots, heads, columns + 1, size * states.element_size())
        return torch.from_numpy(np.zeros(shape, np.uint8)).view(states.dtype)

    def _row_numbers(self, device: torch.device) -> Tensor:
        if self._rows is None:
            self._rows = torch.arange(self.slots, device=device)
        return self._rows


def ring_size(window: int, columns: int, slack: int = RING_SLACK) -> int:
    """Positions that a layer with this window keeps; 0 if it is better off with all `columns`."""
    ring = window + slack
    return ring if window and ring < columns else 0
