"""Guesses from what a text repeats: where its last few tokens stood before, it may go on as it did
then (prompt lookup, https://github.com/apoorvumang/prompt-lookup-decoding). Answers that quote
their prompt, edit code or fill forms gain most.
"""

from __future__ import annotations

from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from atelier.text.embedded.sequence import Sequence

SHORTEST, LONGEST = 2, 4
"""Tokens at the end of the text that are looked for in it."""


class PromptLookup:
    """A drafter that needs no model."""

    name = "prompt lookup"

    def __init__(self) -> None:
        self._texts: WeakKeyDictionary[Sequence, SearchedText] = WeakKeyDictionary()

    def offer(self, rows: dict[int, Sequence], most: dict[int, int]) -> dict[int, int]:
        """All that are wanted of rows whose end stood before."""
        return {slot: count for slot, count in most.items() if self._text(rows[slot]).repeats}

    def propose(self, rows: dict[int, Sequence], offers: dict[int, int]) -> dict[int, list[int]]:
        """What followed when the end stood before."""
        return {slot: self._text(rows[slot]).continuation(count) for slot, count in offers.items()}

    def move(self, source: int, target: int) -> None:
        """Nothing: texts belong to sequences."""

    def clear(self) -> None:
        self._texts.clear()

    def _text(self, sequence: Sequence) -> SearchedText:
        text = self._texts.get(sequence)
        if text is None:
            prompt = sequence.job.prompt
            text = self._texts[sequence] = SearchedText(len(prompt) + sequence.job.max_tokens)
            text.add(prompt)
        text.add(sequence.tokens[text.length - len(sequence.job.prompt) :])
        return text


class SearchedText:
    """Tokens, at most `size` of them, and where their end stood before."""

    def __init__(self, size: int) -> None:
        self.length = 0
        self._tokens: npt.NDArray[np.int64] = np.empty(size, np.int64)
        self._next = 0  # behind the earlier place of the end; 0: it never stood before

    @property
    def repeats(self) -> bool:
        """Whether the last tokens stood before."""
        return self._next > 0

    def add(self, tokens: list[int]) -> None:
        """The text goes on."""
        if tokens:
            self._tokens[self.length : self.length + len(tokens)] = tokens
            self.length += len(tokens)
            self._next = self._found()

    def continuation(self, count: int) -> list[int]:
        """How the text goes on if it goes on as before; what repeats itself is repeated further."""
        period = self.length - self._next
        known = self._tokens[self._next : self._next + min(count, period)].tolist()
        return [known[place % period] for place in range(count)]

    def _found(self) -> int:
        """The end of the latest earlier place of as many of the last tokens as stood before."""
        text, found = self._tokens[: self.length], 0
        ends = np.flatnonzero(text[:-1] == text[-1])
        for size in range(2, min(LONGEST, self.length) + 1):
            ends = ends[ends >= size - 1]
            ends = ends[text[ends - (size - 1)] == text[-size]]
            if not ends.size:
                break
            if size >= SHORTEST:
                found = int(ends[-1]) + 1
        return found
