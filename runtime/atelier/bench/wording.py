"""Texts of given lengths, counted in the server's own tokenizer."""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable

WORDS = (
    *("a", "the", "red", "green", "blue", "yellow", "small", "large", "circle", "square", "star"),
    *("triangle", "above", "below", "left", "right", "of", "and", "with", "on", "in", "under"),
    *("between", "every", "other", "one", "two", "three", "four", "five", "people", "water"),
    *("time", "house", "garden", "light", "morning", "city", "river", "mountain", "paper"),
    *("window", "music", "letter", "road", "bread", "story"),
)
TRIES = 8
FILLER = " a"

Count = Callable[[str], Awaitable[int]]


class Writer:
    """Writes texts that count to a wanted number of tokens.

    What a word takes is learned from every count, so most texts need two or three. Where a count
    costs a request of its own (`exact` false) only the first texts are counted.
    """

    def __init__(self, count: Count, exact: bool = True) -> None:
        self._count, self._exact = count, exact
        self._per_word, self._overhead = 1.3, -1.0

    async def write(self, tokens: int, chance: random.Random, beginning: str = "") -> str:
        """A text of that many tokens that starts with `beginning`; a shorter one cannot be had
        than the template and the beginning take."""
        if self._overhead < 0:
            self._overhead = await self._count("a") - 1
        words = max(1, round((tokens - self._overhead) / self._per_word))
        drawn = [chance.choice(WORDS) for _ in range(max(words, tokens))]
        best, best_count = "", -1
        for _ in range(TRIES if self._exact or best_count < 0 else 1):
            text = " ".join([*([beginning] if beginning else []), *drawn[:words]])
            counted = await self._count(text)
            if counted <= tokens and counted > best_count:
                best, best_count = text, counted
            if words > 8 and counted > self._overhead:
                self._per_word = (counted - self._overhead) / words
            if counted == tokens or (words == 1 and counted > tokens):
                return text
            step = round((tokens - counted) / self._per_word)
            words += step or (1 if counted < tokens else -1)
            words = min(max(1, words), len(drawn))
        return await self._filled(best or text, tokens - max(best_count, 0))

    async def _filled(self, text: str, lacking: int) -> str:
        """The text with single tokens appended, if they are single here."""
        if not 0 < lacking < 8:
            return text
        wanted = await self._count(text) + lacking
        longer = text + FILLER * lacking
        return longer if await self._count(longer) == wanted else text
