"""What a layer of a language model sees: everything before a token, or a window of it, as masks
over the columns of the cache."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


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
