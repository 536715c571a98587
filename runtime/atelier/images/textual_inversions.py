"""Textual inversions: words that a text encoder did not know, added to it before it serves.

A word only adds rows to the encoder's table and tokens to the tokenizer, so prompts without it are
encoded bit for bit as before, and requests with and without it share calls.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from atelier.sources.checkpoint.inversions import KEYS, Inversion, inspect_inversion

log = logging.getLogger(__name__)

TOKENIZERS = {"text_encoder": "tokenizer", "text_encoder_2": "tokenizer_2"}


def add_inversions(pipeline: Any, files: Mapping[str, Path]) -> None:
    """Teach the pipeline's text encoders the words of these files, by name.

    Raises:
        CheckpointError: a file that does not go with the pipeline.
    """
    kind = type(pipeline).__name__
    widths = _widths(pipeline)
    found = [inspect_inversion(name, path, kind, widths) for name, path in files.items()]
    for one in found:
        _teach(pipeline, one)
        log.info("EMBEDDINGS: %s is %s in a prompt, %d vectors", one.file.name, one.word,
                 one.vectors)  # fmt: skip


def _widths(pipeline: Any) -> dict[str, int]:
    encoders: dict[str, Any] = {name: getattr(pipeline, name, None) for name in KEYS}
    return {
        name: one.config.hidden_size
        for name, one in encoders.items()
        if type(one).__name__.startswith("CLIPText")
    }


def _teach(pipeline: Any, one: Inversion) -> None:
    from safetensors.torch import load_file

    tensors = load_file(one.file)
    for encoder, key in one.parts.items():
        pipeline.load_textual_inversion(
            tensors[key],
            token=one.word,
            tokenizer=getattr(pipeline, TOKENIZERS[encoder]),
            text_encoder=getattr(pipeline, encoder),
        )


def expansions(tokenizer: Any) -> dict[int, list[int]]:
    """The ids that stand for a word of several vectors, by the id of the word's own token."""
    added: dict[str, int] = dict(tokenizer.get_added_vocab())
    found = {}
    for token, number in added.items():
        further: list[int] = []
        while (following := added.get(f"{token}_{len(further) + 1}")) is not None:
            further.append(following)
        if further:
            found[number] = [number, *further]
    return found
