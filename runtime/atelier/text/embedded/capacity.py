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


def plan_capacity(
    settings: Settings, kind: str, limit: int, token_bytes: int, budget: int
) -> Capacity:
    """Fit the cache into `budget` bytes; `limit` is the model's own context, `token_bytes` the keys
    of one token.

    Raises:
        PlanError: MAX_NUM_SEQS and MAX_MODEL_LEN, as set, need more than there is, or not even one
            prompt fits.
    """
    if settings.max_model_len is not None and settings.max_model_len > limit:
        raise PlanError(
            f"MAX_MODEL_LEN={settings.max_model_len} exceeds the model's own limit of {limit}"
        )
    context = settings.max_model_len or limit
    slots = settings.max_num_seqs or SLOTS.get(kind, 16)
    fitting = budget // token_bytes
    if slots * context > fitting and settings.max_num_seqs is None:
        slots = max(min(FEWEST.get(kind, 8), slots), min(slots, fitting // context))
    if slots * context > fitting and settings.max_model_len is None:
        context = fitting // slots
    if slots * context > fitting or context < 16:
        raise PlanError(
            f"a cache of {slots} sequences of {context} tokens needs"
            f" {slots * context * token_bytes / 2**30:.1f} GiB, but {budget / 2**30:.1f} GiB are"
            " left: lower MAX_NUM_SEQS or MAX_MODEL_LEN"
        )
    if context < (settings.max_model_len or limit):
        log.warning(
            "context cut from %d to %d tokens, what memory holds for %d sequences",
            limit,
            context,
            slots,
        )
    return Capacity(slots, context, slots * context * token_bytes)


def cache_budget(settings: Settings, device: Any) -> int:
    """Bytes free for keys and values: of GPU memory up to MEMORY_FRACTION, of RAM half of what is
    available."""
    import torch

    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        spare = (
            int(total * (1 - (settings.memory_fraction or MEMORY_FRACTION))) + 2**30
        )  # graphs and activations
        return max(0, free - spare)
    import psutil

    return int(psutil.virtual_memory().available) // 2


def token_bytes(model: Any) -> int:
    """Bytes of keys and values of one token, measured by running one.

    Raises:
        CheckpointError: some layer keeps something other than keys and values.
    """
    import torch

    with torch.no_grad():
        cache = model(
            input_ids=torch.zeros(1, 1, dtype=torch.long, device=model.device), use_cache=True
        )
    total = 0
    for layer in cache.past_key_values.layers:
        keys, values = getattr(layer, "keys", None), getattr(layer, "values", None)
        if keys is None or values is None or getattr(layer, "conv_states", None) is not None:
            raise CheckpointError(
                f"a layer keeps a {type(layer).__name__}, which the embedded engine cannot batch: "
                "set ENGINE=vllm or ENGINE=llamacpp"
            )
        total += (keys.numel() + values.numel()) * keys.element_size()
    return total
