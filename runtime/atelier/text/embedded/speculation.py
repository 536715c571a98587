"""Speculative decoding: tokens are guessed, and one step of the model verifies several of them
(Leviathan et al. 2023, https://arxiv.org/abs/2211.17192).

A guess changes no answer. The batch draws every token from the model's own logits, as it always
does, and goes on to the next position only while the guess was the token drawn. So greedy answers
are equal token by token, and sampled ones have the same distribution: with a guess that is certain,
rejection sampling and this come to the same. Who guesses is a `Drafter`; this module decides
whether guessing pays, by the times of the steps and by how many guesses came true.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from atelier.text.embedded.sequence import Sequence

MOST_ROWS = 32
"""More rows keep a device busy by themselves, and each width of a step is a graph of its own."""

RETRY = 64
"""Every so many steps the way that is thought to be the slower one is measured again."""

NEWS = 0.2
"""Weight of the last step among the times of its kind."""


class Drafter(Protocol):
    """Guesses how sequences go on. `rows` are the decoding sequences by slot."""

    name: str

    def offer(self, rows: dict[int, Sequence], most: dict[int, int]) -> dict[int, int]:
        """How many tokens it would guess for which rows, of `most` that are wanted. Cheap."""

    def propose(self, rows: dict[int, Sequence], offers: dict[int, int]) -> dict[int, list[int]]:
        """The guesses; none where it had to catch up with long texts instead."""

    def move(self, source: int, target: int) -> None:
        """A sequence goes to another slot."""

    def clear(self) -> None:
        """Forget everything; for use after a failure."""


@dataclass
class Acceptance:
    """How likely a guess for one sequence comes true, by those of late."""

    hits: float = 2.0
    misses: float = 1.0

    def note(self, guessed: int, accepted: int) -> None:
        """Guesses behind the first that failed were not judged."""
        self.hits = 0.8 * self.hits + accepted
        self.misses = 0.8 * self.misses + (accepted < guessed)

    def expected(self, guesses: int) -> float:
        """Tokens that so many guesses bring."""
        share = self.hits / (self.hits + self.misses)
        return sum(share**place for place in range(1, guesses + 1))


class Speculation:
    """At most `tokens` guesses a row and step."""

    def __init__(self, drafter: Drafter, tokens: int) -> None:
        self.drafter = drafter
        self.tokens = tokens
        self._seconds: dict[tuple[int, int], float] = {}  # of a step, by rows and width
        self._steps = 0
        self._begun = 0.0

    def described(self) -> str:
        """For the model's metadata."""
        return f"{self.drafter.name}, {self.tokens} tokens"

    def drafts(self, rows: dict[int, Sequence]) -> dict[int, list[int]]:
        """Guesses of the next step by slot; none where a plain step is thought to be quicker. The
        step begins with this, and ends with `note`."""
        self._begun = time.perf_counter()
        self._steps += 1
        wanted = {
            slot: min(self.tokens, sequence.job.max_tokens - len(sequence.tokens) - 1)
            for slot, sequence in rows.items()
            if not sequence.over
        }
        most = {slot: count for slot, count in wanted.items() if count > 0}
        offers = self.drafter.offer(rows, most) if most and len(rows) <= MOST_ROWS else {}
        retried = self._steps % RETRY == 0
        if not offers or self._pays(rows, offers) == retried:
            return {}
        drafts = self.drafter.propose(rows, offers)
        if not drafts:
            self._begun = time.perf_counter()  # what was done instead is no part of a step
        return drafts

    def note(self, rows: int, width: int) -> None:
        """The step that began with `drafts` is over; it took `width` tokens of each row."""
        took = time.perf_counter() - self._begun
        known = self._seconds.get((rows, width), took)
        self._seconds[rows, width] = known + NEWS * (took - known)

    def _pays(self, rows: dict[int, Sequence], offers: dict[int, int]) -> bool:
        """Whether more tokens a second are expected with the guesses; a plain step is measured
        first, then one with guesses."""
        plain = self._seconds.get((len(rows), 1))
        if plain is None:
            return False
        verified = self._seconds.get((len(rows), 1 + max(offers.values())))
        if verified is None:
            return True
        more = sum(rows[slot].acceptance.expected(count) for slot, count in offers.items())
        return (len(rows) + more) / verified > len(rows) / plain
