"""Guesses of a smaller model with the same tokenizer, which runs over slots of its own. It guesses
its likeliest tokens, also for requests that sample: `speculation` says why that is exact."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from atelier.errors import CheckpointError
from atelier.text.embedded.batch import common
from atelier.text.embedded.runner import Chunk, Runner

if TYPE_CHECKING:
    from atelier.text.embedded.sequence import Sequence

LEAST_CHUNK = 16
"""Tokens that each of many rows catches up with at once."""


class DraftModel:
    """A drafter; slot n of its runner mirrors slot n of the batch. Ids of tokens are below
    `vocabulary`. It catches up with at most `prefill_tokens` a step."""

    name = "draft model"

    def __init__(self, runner: Runner, vocabulary: int, prefill_tokens: int = 512) -> None:
        self.runner = runner
        self._vocabulary = vocabulary
        self._prefill_tokens = prefill_tokens
        self._owners: list[Sequence | None] = [None] * runner.cache.slots
        self._read: list[list[int]] = [[] for _ in self._owners]  # tokens whose keys a slot holds
        self._sure = [0] * runner.cache.slots  # as many of them are surely the owner's

    def offer(self, rows: dict[int, Sequence], most: dict[int, int]) -> dict[int, int]:
        """All that are wanted of rows that fit the smaller model's context."""
        room = self.runner.cache.columns - 2 * self.runner.cache.drafts - 1
        return {slot: count for slot, count in most.items() if _length(rows[slot]) <= room}

    @torch.no_grad()
    def propose(self, rows: dict[int, Sequence], offers: dict[int, int]) -> dict[int, list[int]]:
        """The likeliest tokens, one after the other; first it reads what is new to it."""
        held = {slot: self._held(slot, rows[slot]) for slot in offers}
        new = {slot: _text(rows[slot], start) for slot, start in held.items()}
        late = [slot for slot, tokens in new.items() if len(tokens) > 1 + self.runner.cache.drafts]
        if late:
            self._catch_up({slot: new[slot] for slot in late}, held)
            return {}
        if any(max(tokens) >= self._vocabulary for tokens in new.values()):
            return {}
        steps, slots = max(offers.values()), list(offers)
        self.runner.place({slot: new[slot][0] for slot in slots}, held)
        behind = [new[slot][1:] if slot in new else [] for slot in range(max(slots) + 1)]
        logits = self.runner.verify(behind, max(held.values()))
        ends = torch.tensor([max(0, len(tokens)) for tokens in behind], device=self.runner.device)
        picked = logits[torch.arange(len(behind), device=ends.device), ends]
        lengths = {slot: held[slot] + len(new[slot]) for slot in slots}
        self.runner.place(dict.fromkeys(slots, 0), lengths)
        tokens = [picked[:, : self._vocabulary].argmax(-1)]
        self.runner.tokens[: len(behind)] = tokens[0]
        for step in range(1, steps):
            logits = self.runner.decode(len(behind), max(lengths.values()) + step - 1)
            tokens.append(logits[:, : self._vocabulary].argmax(-1))
            self.runner.advance(tokens[-1])
        guessed = torch.stack(tokens, 1).tolist()
        for slot in slots:
            read = self._read[slot]
            del read[held[slot] :]
            read += new[slot] + guessed[slot][: steps - 1]
            self._sure[slot] = lengths[slot]
        return {slot: guessed[slot][:count] for slot, count in offers.items()}

    def move(self, source: int, target: int) -> None:
        """A sequence goes to another slot, and its keys with it."""
        self.runner.cache.copy(source, target, len(self._read[source]))
        self._owners[target], self._owners[source] = self._owners[source], None
        self._read[target] = list(self._read[source])
        self._sure[target] = self._sure[source]

    def clear(self) -> None:
        for slot in range(len(self._owners)):
            self._owners[slot], self._read[slot], self._sure[slot] = None, [], 0

    def _held(self, slot: int, sequence: Sequence) -> int:
        """How many tokens of the sequence's text the slot holds the keys of; at least one is left
        to be read."""
        read = self._read[slot]
        if self._owners[slot] is not sequence:
            self._owners[slot] = sequence
            length = common(read, sequence.job.prompt)
            self._sure[slot] = length if self.runner.cache.keeps(length, len(read)) else 0
        sure = self._sure[slot]
        guessed = zip(read[sure:], _text(sequence, sure), strict=False)
        for ours, theirs in guessed:
            if ours != theirs:
                break
            sure += 1
        return min(sure, _length(sequence) - 1)

    def _catch_up(self, new: dict[int, list[int]], held: dict[int, int]) -> None:
        share = max(LEAST_CHUNK, self._prefill_tokens // len(new))
        chunks = [Chunk(slot, held[slot], text[:-1][:share]) for slot, text in new.items()]
        if any(max(chunk.tokens) >= self._vocabulary for chunk in chunks):
            return
        self.runner.prefill(chunks)
        for chunk in chunks:
            del self._read[chunk.slot][chunk.past :]
            self._read[chunk.slot] += chunk.tokens
            self._sure[chunk.slot] = chunk.past + len(chunk.tokens)


def check_tokenizer(own: Any, draft: Any, model_id: str) -> None:
    """See that both models mean the same by every id.

    Raises:
        CheckpointError: they do not; it names a token.
    """
    ours, theirs = own.get_vocab(), draft.get_vocab()
    if ours == theirs:
        return
    token = min(token for token, _ in ours.items() ^ theirs.items())
    raise CheckpointError(
        f"DRAFT_MODEL_ID={model_id} has another tokenizer than the model: {token!r} is"
        f" {_named(ours.get(token))} to the model and {_named(theirs.get(token))} to the draft"
        " model: set a draft model of the same family, or leave it out"
    )


def _named(number: int | None) -> str:
    return "no token" if number is None else f"token {number}"


def _length(sequence: Sequence) -> int:
    return len(sequence.job.prompt) + len(sequence.tokens)


def _text(sequence: Sequence, start: int) -> list[int]:
    """Prompt and answer from a place on."""
    prompt = sequence.job.prompt
    if start >= len(prompt):
        return sequence.tokens[start - len(prompt) :]
    return prompt[start:] + sequence.tokens
