"""Settings of speculative decoding: tokens are guessed, and one step verifies several of them."""

from __future__ import annotations

from pydantic_settings import BaseSettings

from atelier.settings.groups import SPECULATION, SPECULATORS


class SpeculationSettings(BaseSettings):
    """The part of `Settings` that stands in the group Speculative decoding."""

    prompt_lookup: bool = SPECULATION(
        False,
        "Guess tokens from what prompt and answer repeat. Answers stay what they are.",
        SPECULATORS,
    )
    draft_model_id: str = SPECULATION(
        "",
        "Smaller model with the same tokenizer that guesses tokens; from where MODEL_ID may come.",
        SPECULATORS,
    )
    num_speculative_tokens: int = SPECULATION(
        4, "Tokens guessed at once, with PROMPT_LOOKUP or DRAFT_MODEL_ID.", SPECULATORS, ge=1, le=16
    )
