"""The check at every start: batched steps over the slot cache compute what the model does alone.

It crosses what attention can get wrong: a prompt in chunks beside strangers, an attention window,
a ring that wraps, a beginning that is copied from another slot. So that this takes no longer for a
model with a window of 4,096 than for one of 64, the window is narrowed while the check runs.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from atelier.errors import CheckpointError
from atelier.text.embedded.runner import Chunk, Runner
from atelier.text.embedded.slots import SlotCache

log = logging.getLogger(__name__)

TOLERANCE = {torch.float32: 1e-2, torch.bfloat16: 0.5, torch.float16: 0.1}
"""Largest difference of logits, over their spread, that counts as rounding."""

LENGTH = 72
WINDOW = 16
SLACK = 16
CHUNK = 20
SHARED = 40
"""Tokens of the prompt, of the narrowed window and its ring's slack, of a chunk, and of the
beginning that is copied."""


def reference_logits(model: Any) -> Tensor:
    """Float logits of the plain model after each token of the check's prompt; call it before the
    model's attention is switched."""
    config = model.config.get_text_config()
    with narrowed(config), torch.no_grad():
        ids = torch.tensor([_prompt(config)], device=model.device)
        return model(input_ids=ids, use_cache=False).logits[0].float()


def check_steps(runner: Runner, reference: Tensor) -> None:
    """Compare a prompt prefilled in chunks next to strangers, then fed token by token, one that
    continues a copied beginning, and, where guesses are verified, one that is fed several tokens at
    a time, with the plain model. Turns off the runner's graphs if steps cannot be recorded.

    Raises:
        CheckpointError: the rows differ by more than rounding.
    """
    config = runner.model.config.get_text_config()
    prompt = _prompt(config)
    with narrowed(config):
        own = _small_runner(runner, len(prompt))
        apart = [_chunks_then_steps(own, prompt, reference), _copied(own, prompt, reference)]
        if runner.cache.drafts:
            apart.append(_verified(own, prompt, reference))
    runner.graphs = own.graphs  # off if they cannot be recorded
    worst = max(apart) / float(reference.std())
    if not worst <= TOLERANCE.get(runner.dtype, 0.5):
        raise CheckpointError(
            f"batched steps differ from the model alone by {worst:.3g} standard deviations of its"
            " logits, so the embedded engine would change its answers: set ENGINE=vllm or"
            " ENGINE=llamacpp"
        )
    log.info(
        "probe: batched steps agree with the model alone within %.2g of the logits' spread", worst
    )


@contextmanager
def narrowed(config: Any) -> Iterator[None]:
    """Make the attention window at most WINDOW positions; models read it at every forward."""
    window = getattr(config, "sliding_window", None)
    if window is None or window <= WINDOW:
        yield
        return
    config.sliding_window = WINDOW
    try:
        yield
    finally:
        config.sliding_window = window


def _small_runner(runner: Runner, length: int) -> Runner:
    windows = tuple(None if one is None else min(one, WINDOW) for one in runner.cache.windows)
    drafts = runner.cache.drafts
    cache = SlotCache(3, length + 8 + drafts, windows, SLACK, drafts)
    return Runner(runner.model, cache, runner.graphs, runner.flash)


def _chunks_then_steps(runner: Runner, prompt: list[int], reference: Tensor) -> float:
    split, rows, slot = len(prompt) * 3 // 4, 2, 1
    got, at = [], []
    for past in range(0, split, CHUNK):
        chunk = Chunk(slot, past, prompt[past : min(past + CHUNK, split)])
        stranger = [Chunk(0, 0, prompt[:11][::-1])] if past < CHUNK else []
        got.append(runner.prefill([*stranger, chunk])[-1])
        at.append(past + len(chunk.tokens) - 1)
    runner.join(slot, split)
    for position in range(split, len(prompt)):
        runner.tokens[slot] = prompt[position]
        got.append(runner.decode(rows, position)[slot].clone())
        at.append(position)
        runner.advance(runner.tokens[:rows])
    runner.leave(slot)
    return float((torch.stack(got) - reference[at]).abs().max())


def _copied(runner: Runner, prompt: list[int], reference: Tensor) -> float:
    """Slot 1 holds the whole prompt in its first SHARED tokens, and slot 2 goes on from there."""
    shared = min(SHARED, len(prompt) // 2)
    runner.prefill([Chunk(1, 0, prompt[:shared])])
    runner.cache.copy(1, 2, shared)
    last = runner.prefill([Chunk(2, shared, prompt[shared:])])[0]
    return float((last - reference[len(prompt) - 1]).abs().max())


def _verified(runner: Runner, prompt: list[int], reference: Tensor) -> float:
    """A step of as many guesses as there may be, of which half are wrong, and one that goes on from
    there."""
    drafts, slot = runner.cache.drafts, 1
    split = len(prompt) - drafts - 2
    runner.prefill([Chunk(slot, 0, prompt[:split])])
    right = drafts // 2
    guesses = prompt[split + 1 :][:right] + prompt[: drafts - right]
    runner.place({slot: prompt[split]}, {slot: split})
    first = runner.verify([[], guesses], split)[slot, : right + 1].clone()
    split += right + 1
    runner.place({slot: prompt[split]}, {slot: split})
    rest = prompt[split + 1 :][:drafts]
    second = runner.verify([[], rest], split)[slot, : len(rest) + 1]
    runner.leave(slot)
    at = range(split - right - 1, split + len(rest) + 1)
    return float((torch.cat([first, second]) - reference[list(at)]).abs().max())


def _prompt(config: Any) -> list[int]:
    longest = int(getattr(config, "max_position_embeddings", 0) or LENGTH)
    drawn = torch.randint(
        0,
        config.vocab_size,
        (min(LENGTH, longest),),
        generator=torch.Generator().manual_seed(0),
    )
    return [int(token) for token in drawn]
