"""What of a prompt its text encoders read. Pipelines cut the rest off without a word."""

from __future__ import annotations

import copy
import inspect
import threading
from typing import Any

from atelier.errors import shown
from atelier.images.request import ImageRequest
from atelier.images.textual_inversions import expansions

SLOTS = ("tokenizer", "tokenizer_2", "tokenizer_3")
FIELDS = ("", "_2", "_3")
"""Ends of the prompt fields that each of them reads; one that is not given is the first."""

MOST_KNOWN = 100_000
"""Tokenizers that know no limit say a larger number."""


class PromptLengths:
    """Counts tokens as a pipeline will; for any thread.

    The tokenizers are copies: the pipeline's own are at work in the denoising thread, and change
    their state when they are told to cut.
    """

    def __init__(self, pipeline: Any) -> None:
        found: dict[str, Any] = {slot: getattr(pipeline, slot, None) for slot in SLOTS}
        self._tokenizers = {
            slot: copy.deepcopy(one)
            for slot, one in found.items()
            if _kind(one) is not None and one.is_fast  # the others do not tell places
        }
        self._expansions = {slot: expansions(one) for slot, one in self._tokenizers.items()}
        self._lock = threading.Lock()

    def tokens(self, text: str) -> dict[str, int]:
        """Of a text, by kind of encoder, without its ends."""
        found: dict[str, int] = {}
        with self._lock:
            for slot, tokenizer in self._tokenizers.items():
                longer, kind = self._expansions[slot], _kind(tokenizer) or ""
                ids = tokenizer(text, truncation=False)["input_ids"]
                ends = tokenizer.num_special_tokens_to_add()
                count = sum(len(longer.get(one, [one])) for one in ids) - ends
                found[kind] = max(count, found.get(kind, 0))
        return found

    def cuts(self, pipeline: Any, request: ImageRequest) -> dict[tuple[str, str], str]:
        """A sentence for each field and kind of encoder that does not read all of it."""
        told = {}
        for slot, end in zip(SLOTS, FIELDS, strict=True):
            tokenizer = self._tokenizers.get(slot)
            limit = _limit(tokenizer, pipeline, request) if tokenizer else None
            for name, text in _texts(request, end).items() if limit else ():
                if rest := self._beyond(slot, text, limit or 0):
                    kind = _kind(tokenizer) or ""
                    told[name, kind] = (
                        f"{name}: {kind} reads {limit} tokens; what follows was not"
                        f" read by it: {shown(rest)}"
                    )
        return told

    def _beyond(self, slot: str, text: str, limit: int) -> str:
        """The part of a text that no place is left for; the last place is the end's."""
        with self._lock:
            read = self._tokenizers[slot](text, truncation=False, return_offsets_mapping=True)
        places = [
            place
            for one, place in zip(read["input_ids"], read["offset_mapping"], strict=True)
            for _ in self._expansions[slot].get(one, [one])
        ]
        return text[places[limit - 1][0] :].strip() if len(places) > limit else ""


def _kind(tokenizer: Any) -> str | None:
    """The encoder, in its name; None of one whose limit is not known."""
    name = type(tokenizer).__name__
    return next((kind for kind in ("CLIP", "T5") if name.startswith(kind)), None)


def _limit(tokenizer: Any, pipeline: Any, request: ImageRequest) -> int | None:
    """CLIP has places for so many tokens; pipelines give T5 `max_sequence_length` of them."""
    if _kind(tokenizer) == "CLIP":
        most = tokenizer.model_max_length
        return int(most) if most < MOST_KNOWN else None
    parameters = inspect.signature(type(pipeline).__call__).parameters
    parameter = parameters.get("max_sequence_length")
    if parameter is None or not isinstance(parameter.default, int):
        return None
    return request.max_sequence_length or parameter.default


def _texts(request: ImageRequest, end: str) -> dict[str, str]:
    """What an encoder reads, by the field that it comes from."""
    found = {}
    for name in ("prompt", "negative_prompt"):
        own = request.extra.get(f"{name}{end}") if end else None
        text = own if isinstance(own, str) and own else getattr(request, name)
        if text:
            found[f"{name}{end}" if text is own else name] = text
    return found
