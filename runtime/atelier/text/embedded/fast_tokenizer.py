"""A checkpoint's tokenizer, with its vocabulary held once: in the `tokenizers` library."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from atelier.errors import CheckpointError

READ_AT_LOAD = ("_vocab", "_merges")
"""Attributes in which transformers' own classes keep the Python lists and dicts that they made the
library's tokenizer of; of Gemma 3 they take twice as much memory as that."""


def load_fast_tokenizer(path: Path, **options: Any) -> Any:
    """The tokenizer in `path`; `options` are those of `from_pretrained`.

    Raises:
        CheckpointError: it has no form for the library.
        OSError, ValueError, ImportError, KeyError: transformers cannot load it.
    """
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(path, **options)
    if not getattr(tokenizer, "is_fast", False):
        raise CheckpointError(
            f"{path} has no fast tokenizer (tokenizer.json), which streaming needs"
        )
    if type(tokenizer).__module__.startswith("transformers."):  # a checkpoint's own may read them
        for name in READ_AT_LOAD:
            vars(tokenizer).pop(name, None)
    return tokenizer
