"""Drafters for tests: one that knows the answers and errs at times, and models that nearly
agree."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch

from atelier.text.embedded.capacity import Capacity
from atelier.text.embedded.draft_model import DraftModel
from atelier.text.embedded.loading import make_runner
from atelier.text.embedded.sequence import Sequence
from atelier.text.embedded.slots import SlotCache
from atelier.text.embedded.speculation import Speculation
from tests.text import families

TOKENS = 4


class Oracle:
    """Guesses what was answered before to the same prompt; every seventh token is wrong."""

    name = "oracle"

    def __init__(self, prompts: Iterable[list[int]], answers: Iterable[list[int]]) -> None:
        self._answers = dict(zip(map(tuple, prompts), answers, strict=True))

    def offer(self, rows: dict[int, Sequence], most: dict[int, int]) -> dict[int, int]:
        return {slot: count for slot, count in most.items() if self._guess(rows[slot], count)}

    def propose(self, rows: dict[int, Sequence], offers: dict[int, int]) -> dict[int, list[int]]:
        return {slot: self._guess(rows[slot], count) for slot, count in offers.items()}

    def move(self, source: int, target: int) -> None:
        pass

    def clear(self) -> None:
        pass

    def _guess(self, sequence: Sequence, count: int) -> list[int]:
        answer, at = self._answers.get(tuple(sequence.job.prompt), []), len(sequence.tokens)
        places = range(at, min(at + count, len(answer)))
        odd = len(sequence.job.prompt)
        return [answer[place] ^ ((place + odd) % 7 == 6) for place in places]


class Always(Speculation):
    """Guesses whatever the times say, so that tests see the same steps on every machine."""

    def _pays(self, rows: dict[int, Sequence], offers: dict[int, int]) -> bool:
        return True


def runner_of(model: Any, slots: int = 4, slack: int = 32) -> Any:
    """A runner that verifies TOKENS guesses, with rings short enough to wrap in the context."""
    runner = make_runner(model, Capacity(slots, families.CONTEXT, 0), False, TOKENS)
    runner.cache = SlotCache(slots, families.CONTEXT, runner.cache.windows, slack, TOKENS)
    return runner


def nearly(family: str, device: str, dtype: torch.dtype = torch.float32) -> Any:
    """The family's model with a little noise on its weights: it often guesses right."""
    model = families.make(family, device, dtype)
    torch.manual_seed(1)
    with torch.no_grad():
        for weight in model.parameters():
            # Drawn on the processor, so that every device has the same drafter.
            noise = torch.randn(weight.shape).to(weight)
            weight += 0.01 * weight.std() * noise
    return model


def draft_model(
    family: str, device: str, dtype: torch.dtype = torch.float32, slots: int = 4
) -> DraftModel:
    """A drafter that is often right."""
    runner = runner_of(nearly(family, device, dtype), slots)
    return DraftModel(runner, families.VOCABULARY, prefill_tokens=64)
