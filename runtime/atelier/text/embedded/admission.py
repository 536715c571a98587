"""What the embedded engine admits: whether a tokenized request fits the context and the
vocabulary."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from atelier.errors import InvalidRequest

if TYPE_CHECKING:
    from atelier.text.request import TextRequest


@dataclass(frozen=True)
class ContextLimits:
    """Tokens of prompt and answer together, requests at once, seconds of one request, tokens of one
    prefill step."""

    context: int
    queue: int
    timeout: float
    prefill_tokens: int = 2048


@dataclass(frozen=True)
class Vocabulary:
    """The tokenizer, how many logits a step has, the tokens that end an answer, and the
    checkpoint's sampling values."""

    tokenizer: Any
    size: int
    eos: frozenset[int]
    defaults: dict[str, float] = field(default_factory=dict)


def check_fit(
    request: TextRequest, prompt: list[int], limits: ContextLimits, vocabulary: Vocabulary
) -> int:
    """How many tokens may be generated.

    Raises:
        InvalidRequest: the prompt is empty, holds unknown tokens, or leaves no room for what is
            asked for.
    """
    context = limits.context
    if not prompt:
        raise InvalidRequest("the prompt is empty: it needs at least one token", "prompt")
    if not all(0 <= token < vocabulary.size for token in prompt):
        raise InvalidRequest(
            f"prompt holds token ids outside of 0 to {vocabulary.size - 1}", "prompt"
        )
    outside = [token for token in request.logit_bias if not 0 <= token < vocabulary.size]
    if outside:
        raise InvalidRequest(f"logit_bias holds unknown token id {outside[0]}", "logit_bias")
    read_only = request.max_tokens == 0
    if len(prompt) >= context + read_only:
        raise InvalidRequest(
            f"the prompt has {len(prompt)} tokens, but this model's context holds {context}"
            f"{'' if read_only else ' and needs at least one for the answer'}: shorten the prompt"
            " or raise MAX_MODEL_LEN",
            "prompt",
        )
    room = context - len(prompt)
    if request.max_tokens is not None and request.max_tokens > room and not request.cut_to_context:
        raise InvalidRequest(
            f"the prompt has {len(prompt)} tokens and max_tokens={request.max_tokens}, together"
            f" more than this model's context of {context}: lower max_tokens to"
            f" {context - len(prompt)} or less",
            "max_tokens",
        )
    return room if request.max_tokens is None else min(request.max_tokens, room)
