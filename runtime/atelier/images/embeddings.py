"""A bounded cache of what text encoders returned: the same prompt, and above all the empty negative
one, comes again and again.

It sits behind the encoder modules, not behind a pipeline's `encode_prompt`, so it serves every
family alike.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Any

import torch
from torch.utils import _pytree as pytree

from atelier.images.interception import Call, Stage

MAX_INPUT_BYTES = 1 << 18  # token ids are small; hashing pictures would cost more than it saves


class EmbeddingCache:
    """Least recently used results of encoder calls, at most `max_bytes` of tensors. Used by one
    thread."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._bytes = 0
        self._entries: OrderedDict[Hashable, tuple[Any, int]] = OrderedDict()

    @staticmethod
    def key(
        call: Call, adapters: Hashable, digest: Callable[[torch.Tensor], bytes]
    ) -> Hashable | None:
        """Equal keys mean equal results; None if the call is no pure function of small tensors and
        plain values."""
        if (
            call.gate.stage is not Stage.ENCODE
            or call.layout.key is None
            or call.layout.takes_lists
        ):
            return None
        tensors = call.layout.tensors
        if sum(tensor.nbytes for tensor in tensors) > MAX_INPUT_BYTES:
            return None
        return (
            id(call.gate),
            adapters,
            call.layout.key,
            tuple(digest(tensor) for tensor in tensors),
        )

    def get(self, key: Hashable | None) -> Any | None:
        """The stored result, copied, since a pipeline may write into what it was given; None if
        there is none."""
        if key is None or key not in self._entries:
            return None
        self._entries.move_to_end(key)
        return _copied(self._entries[key][0])

    def put(self, key: Hashable | None, result: Any) -> None:
        """Keep a result unless it is larger than a quarter of the cache."""
        size = sum(leaf.nbytes for leaf in pytree.tree_leaves(result) if torch.is_tensor(leaf))
        if key is None or key in self._entries or size > self._max_bytes // 4:
            return
        self._entries[key] = (_copied(result), size)
        self._bytes += size
        while self._bytes > self._max_bytes:
            self._bytes -= self._entries.popitem(last=False)[1][1]


def _copied(result: Any) -> Any:
    return pytree.tree_map(lambda leaf: leaf.clone() if torch.is_tensor(leaf) else leaf, result)
