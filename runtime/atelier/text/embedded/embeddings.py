"""Embeddings of a language model: hidden states of the last layer, averaged over the text or taken
where the checkpoint says (its sentence-transformers pooling file), and of unit length."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from atelier.errors import InvalidRequest


def pooling(path: Path) -> str:
    """`mean`, `cls` or `lasttoken`, from `1_Pooling/config.json` if there is one."""
    file = path / "1_Pooling" / "config.json"
    if not file.exists():
        return "mean"
    config = json.loads(file.read_text())
    modes = {"pooling_mode_cls_token": "cls", "pooling_mode_lasttoken": "lasttoken"}
    return next((mode for key, mode in modes.items() if config.get(key)), "mean")


@torch.no_grad()
def embed(model: Any, ids: list[int], mode: str, context: int) -> list[float]:
    """The vector of one text.

    Raises:
        InvalidRequest: the text is empty, longer than the context, or holds unknown tokens.
    """
    if not 0 < len(ids) <= context:
        raise InvalidRequest(f"input has {len(ids)} tokens; allowed are 1 to {context}", "input")
    size = model.config.get_text_config().vocab_size
    if any(not 0 <= token < size for token in ids):
        raise InvalidRequest(f"input holds token ids outside of 0 to {size - 1}", "input")
    body = model.get_decoder() if hasattr(model, "get_decoder") else model.base_model
    hidden = (
        body(input_ids=torch.tensor([ids], device=model.device), use_cache=False)
        .last_hidden_state[0]
        .float()
    )
    pooled = {
        "mean": lambda: hidden.mean(0),
        "cls": lambda: hidden[0],
        "lasttoken": lambda: hidden[-1],
    }[mode]()
    return [float(x) for x in F.normalize(pooled, dim=0).tolist()]
