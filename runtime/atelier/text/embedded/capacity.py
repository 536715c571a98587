"""How many sequences of which length the embedded engine holds at once, from the memory that the
weights leave."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from atelier.errors import CheckpointError, PlanError

if TYPE_CHECKING:
    from atelier.settings import Settings

log = logging.getLogger(__name__)

SLOTS = {"cpu": 32, "cuda": 256}
"""Slots if MAX_NUM_SEQS is unset and memory allows; on a CPU more rows make each token slower."""

FEWEST = {"cpu": 8, "cuda": 32}
"""Slots below which the context is shortened instead: most prompts are far shorter than the longest
a model can take."""

MEMORY_FRACTION = 0.9
"""Share of all GPU memory that weights and cache use unless the setting says otherwise."""


@dataclass(frozen=True)
class Capacity:
    """The cache's size: sequences at once, tokens of each, and bytes of it all."""

    slots: int
    context: int
    bytes: int


@dataclass(frozen=True)
class WindowedKeys:
    """What the layers with a sliding window add: bytes of a position, and how many positions they
    keep at most."""

    bytes: int = 0
    ring: int = 0


def plan_capacity(
    settings: Settings,
    kind: str,
    limit: int,
    token_bytes: int,
    budget: int,
    windowed: WindowedKeys = WindowedKeys(),
) -> Capacity:
    """Fit the cache into `budget` bytes; `limit` is the model's own context, `token_bytes` the keys
    of one token in the layers that keep the whole context.

    Raises:
        PlanError: MAX_NUM_SEQS and MAX_MODEL_LEN, as set, need more than there is, or not even one
            prompt fits.
    """
    if settings.max_model_len is not None and settings.max_model_len > limit:
        raise PlanError(
            f"MAX_MODEL_LEN={settings.max_model_len} exceeds the model's own limit of {limit}"
        )

    def sequence_bytes(context: int) -> int:
        return token_bytes * context + windowed.bytes * min(context, windowed.ring)

    context = settings.max_model_len or limit
    slots = settings.max_num_seqs or SLOTS.get(kind, 16)
    if slots * sequence_bytes(context) > budget and settings.max_num_seqs is None:
        fewest = min(FEWEST.get(kind, 8), slots)
        slots = max(fewest, min(slots, budget // sequence_bytes(context)))
    if slots * sequence_bytes(context) > budget and settings.max_model_len is None:
        context = _longest(budget // slots, token_bytes, windowed)
    if slots * sequence_bytes(context) > budget or context < 16:
        raise PlanError(
            f"a cache of {slots} sequences of {context} tokens needs"
            f" {slots * sequence_bytes(context) / 2**30:.1f} GiB, but {budget / 2**30:.1f} GiB are"
            " left: lower MAX_NUM_SEQS or MAX_MODEL_LEN"
        )
    if context < (settings.max_model_len or limit):
        log.warning(
            "context cut from %d to %d tokens, what memory holds for %d sequences",
            limit,
            context,
            slots,
        )
    return Capacity(slots, context, slots * sequence_bytes(context))


def _longest(budget: int, token_bytes: int, windowed: WindowedKeys) -> int:
    """The longest context whose keys take at most `budget` bytes a sequence."""
    short = budget // (token_bytes + windowed.bytes)
    if short <= windowed.ring or not token_bytes:
        return short
    return (budget - windowed.bytes * windowed.ring) // token_bytes


def cache_budget(settings: Settings, device: Any) -> int:
    """Bytes free for keys and values: of GPU memory up to MEMORY_FRACTION, of RAM half of what the
    control group leaves, or the machine."""
    import torch

    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        spare = (
            int(total * (1 - (settings.memory_fraction or MEMORY_FRACTION))) + 2**30
        )  # graphs and activations
        return max(0, free - spare)
    from atelier.hardware.container import host_memory

    return host_memory()[1] // 2


def layer_bytes(model: Any) -> list[int]:
    """Bytes of keys and values of one token in each layer, measured by running one.

    Raises:
        CheckpointError: some layer keeps something other than keys and values.
    """
    import torch

    with torch.no_grad():
        cache = model(
            input_ids=torch.zeros(1, 1, dtype=torch.long, device=model.device), use_cache=True
        )
    found = []
    for layer in cache.past_key_values.layers:
        keys, values = getattr(layer, "keys", None), getattr(layer, "values", None)
        if keys is None or values is None or getattr(layer, "conv_states", None) is not None:
            raise CheckpointError(
                f"a layer keeps a {type(layer).__name__}, which the embedded engine cannot batch: "
                "set ENGINE=vllm or ENGINE=llamacpp"
            )
        found.append((keys.numel() + values.numel()) * keys.element_size())
    return found


def split_by_window(
    layers: list[int], windows: tuple[int | None, ...], ring: int
) -> tuple[int, WindowedKeys]:
    """Bytes of a token in layers that keep the whole context, and what those with a window add;
    with a ring of 0 all keep the whole context."""
    sliding = sum(
        size for size, window in zip(layers, windows, strict=False) if ring and window is not None
    )
    return sum(layers) - sliding, WindowedKeys(sliding, ring)
