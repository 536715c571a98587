"""Settings of language models that contradict each other or the engine, refused before anything is
loaded."""

from __future__ import annotations

from atelier.errors import StartError
from atelier.settings import Settings

CHILDREN_ONLY = (
    "tensor_parallel_size",
    "pipeline_parallel_size",
    "enable_expert_parallel",
    "kv_cache_dtype",
    "engine_args",
    "engine_path",
)
EMBEDDED_PARSERS = {
    "tool_call_parser": ("auto", "hermes", "llama3_json", "glm47", "qwen3_coder"),
    "reasoning_parser": ("auto", "none"),
}


def check_embedded(settings: Settings) -> None:
    """Refuse what only child engines know how to do.

    Raises:
        StartError: names the variable, its value and the remedy.
    """
    for name in CHILDREN_ONLY:
        if getattr(settings, name) != Settings.model_fields[name].default:
            value = getattr(settings, name)
            raise StartError(
                f"{name.upper()}={value} is for child engines: leave it out, or set ENGINE=vllm"
            )
    for name, allowed in EMBEDDED_PARSERS.items():
        if getattr(settings, name) not in allowed:
            value = getattr(settings, name)
            raise StartError(
                f"{name.upper()}={value} with the embedded engine: allowed: {', '.join(allowed)}"
            )
    if settings.lora_paths:
        raise StartError(
            "LORA_PATHS with a language model needs a child engine: merge the adapter, or set"
            " ENGINE=vllm"
        )
    check_guesses(settings)


def check_guesses(settings: Settings) -> None:
    """Refuse two ways to guess at once.

    Raises:
        StartError: both are set.
    """
    if settings.prompt_lookup and settings.draft_model_id:
        raise StartError(
            f"PROMPT_LOOKUP=true and DRAFT_MODEL_ID={settings.draft_model_id}: tokens are guessed"
            " in one way: leave one of them out"
        )
