"""What weighted prompts are encoded to, by compel: the embeddings that a family's pipelines take in
place of texts.

The text encoders are called from the request's greenlet, so their calls are batched and cached as
those of the pipeline itself are.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import functional

from atelier.images.textual_inversions import expansions
from atelier.images.weighted_syntax import Part, plain_text

Prompt = tuple[Part, ...]
Prompts = tuple[Prompt, Prompt]
"""What to draw and what to leave out. Both are encoded to one length, or they cannot be one batch
of the denoiser."""

Arguments = dict[str, Any]

LENGTH_STEP = 64
"""A prompt that T5 reads beyond the usual length is padded to a multiple of it, so that prompts of
about one length are drawn in one batch."""


@dataclass(frozen=True)
class PromptForm:
    """How a family takes prompts."""

    encode: Callable[[Any, Prompts, Arguments], Arguments]
    """From pipeline, prompts and the pipeline's arguments to those that stand for the texts."""

    reads: frozenset[str]
    """The kinds of encoder of which every token reaches the denoiser, so that nothing is cut."""


def prompt_form(pipeline: Any) -> PromptForm | None:
    """How this pipeline takes weighted prompts; None if it has none."""
    name = type(pipeline).__name__
    if getattr(pipeline, "tokenizer", None) is None:
        return None
    if name.startswith("StableDiffusion3"):
        return PromptForm(_stable_diffusion_3, frozenset({"CLIP", "T5"}))
    if name.startswith("StableDiffusion"):
        large = getattr(pipeline, "text_encoder_2", None) is not None
        return PromptForm(_stable_diffusion_xl if large else _stable_diffusion, frozenset({"CLIP"}))
    if name.startswith("Flux") and "pooled_prompt_embeds" in _parameters(pipeline):
        return PromptForm(_flux, frozenset({"T5"}))
    return None


def _stable_diffusion(pipeline: Any, prompts: Prompts, given: Arguments) -> Arguments:
    positive, negative = _side_by_side([_clip(pipeline, "", last=True)], prompts)
    return {"prompt_embeds": positive, "negative_prompt_embeds": negative}


def _stable_diffusion_xl(pipeline: Any, prompts: Prompts, given: Arguments) -> Arguments:
    providers = [_clip(pipeline, ""), _clip(pipeline, "_2")]
    positive, negative = _side_by_side(providers, prompts)
    pooled, other = (_pooled(providers[1], each) for each in prompts)
    if not prompts[1] and pipeline.config.force_zeros_for_empty_prompt:
        negative, other = torch.zeros_like(negative), torch.zeros_like(other)
    return {
        "prompt_embeds": positive,
        "negative_prompt_embeds": negative,
        "pooled_prompt_embeds": pooled,
        "negative_pooled_prompt_embeds": other,
    }


def _stable_diffusion_3(pipeline: Any, prompts: Prompts, given: Arguments) -> Arguments:
    """Both CLIPs side by side, behind them T5, or zeros where a deployment leaves it out."""
    providers = [_clip(pipeline, ""), _clip(pipeline, "_2")]
    pooled = [torch.cat([_pooled(one, each) for one in providers], -1) for each in prompts]
    if pipeline.text_encoder_3 is None:
        width = pipeline.transformer.config.joint_attention_dim
        last = [one.new_zeros(1, _usual_length(pipeline, given), width) for one in pooled]
    else:
        last = _t5(pipeline, "_3", prompts, given)
    whole = [
        torch.cat([functional.pad(clip, (0, t5.shape[-1] - clip.shape[-1])), t5], 1)
        for clip, t5 in zip(_side_by_side(providers, prompts), last, strict=True)
    ]
    return _for_each_picture(
        given,
        prompt_embeds=whole[0],
        negative_prompt_embeds=whole[1],
        pooled_prompt_embeds=pooled[0],
        negative_pooled_prompt_embeds=pooled[1],
    )


def _flux(pipeline: Any, prompts: Prompts, given: Arguments) -> Arguments:
    """T5's embeddings, and of CLIP one vector, which stands for what it reads at once."""
    positive, negative = _t5(pipeline, "_2", prompts, given)
    clip = _clip(pipeline, "")
    found = {"prompt_embeds": positive, "pooled_prompt_embeds": _pooled(clip, prompts[0])}
    if "negative_prompt" in given:
        found["negative_prompt_embeds"] = negative
        found["negative_pooled_prompt_embeds"] = _pooled(clip, prompts[1])
    return _for_each_picture(given, **found)


def _for_each_picture(given: Arguments, **found: torch.Tensor) -> Arguments:
    """These pipelines do not repeat embeddings for the pictures of one prompt."""
    pictures = given.get("num_images_per_prompt", 1)
    rows: Arguments = {name: one.repeat_interleave(pictures, dim=0) for name, one in found.items()}
    return rows | {"num_images_per_prompt": 1}


def _side_by_side(providers: list[Any], prompts: Prompts) -> tuple[torch.Tensor, torch.Tensor]:
    """1 x tokens x the encoders' widths together, of each prompt."""
    encoded = [[_encoded(provider, each) for each in prompts] for provider in providers]
    longest = max(one.shape[1] for each in encoded for one in each)
    positive, negative = (
        torch.cat(
            [
                _lengthened(each[index], provider, longest)
                for provider, each in zip(providers, encoded, strict=True)
            ],
            dim=-1,
        )
        for index in range(2)
    )
    return positive, negative


def _t5(pipeline: Any, end: str, prompts: Prompts, given: Arguments) -> list[torch.Tensor]:
    """T5's positions are relative, so it reads a long prompt in one piece."""
    tokenizer = getattr(pipeline, f"tokenizer{end}")
    tokens = max(
        sum(len(ids) - 1 for ids in tokenizer([part.text for part in each] or [""])["input_ids"])
        for each in prompts
    )
    length = usual = _usual_length(pipeline, given)
    if tokens >= usual:  # the last place is the end's
        length = -(-(tokens + 1) // LENGTH_STEP) * LENGTH_STEP
    provider = _provider(pipeline, end, model_max_length=length)
    return [_encoded(provider, each) for each in prompts]


def _usual_length(pipeline: Any, given: Arguments) -> int:
    """Tokens that the pipeline gives T5."""
    default = _parameters(pipeline)["max_sequence_length"].default
    return int(given.get("max_sequence_length", default))


def _clip(pipeline: Any, end: str, last: bool = False) -> Any:
    """compel's view of a CLIP encoder: of its `last` layer or the one before."""
    from compel import ReturnedEmbeddingsType as Layer

    layer = Layer.PENULTIMATE_HIDDEN_STATES_NON_NORMALIZED
    if last:
        layer = Layer.LAST_HIDDEN_STATES_NORMALIZED
    return _provider(pipeline, end, returned_embeddings_type=layer)


def _provider(pipeline: Any, end: str, **how: Any) -> Any:
    from compel import EmbeddingsProvider

    tokenizer = getattr(pipeline, f"tokenizer{end}")
    return EmbeddingsProvider(
        tokenizer,
        getattr(pipeline, f"text_encoder{end}"),
        truncate=False,
        device=pipeline._execution_device,  # offloaded encoders say another one
        dtype_for_device_getter=lambda device: torch.float32,
        textual_inversion_manager=_Words(expansions(tokenizer)),
        **how,
    )


class _Words:
    """compel's textual inversion manager: a word of several vectors is as many tokens."""

    def __init__(self, longer: dict[int, list[int]]) -> None:
        self._longer = longer

    def expand_textual_inversion_token_ids_if_necessary(self, token_ids: list[int]) -> list[int]:
        return [each for one in token_ids for each in self._longer.get(one, [one])]


def _encoded(provider: Any, prompt: Prompt) -> torch.Tensor:
    """1 x tokens x width, tokens a multiple of the encoder's places. Parts that the tokenizer makes
    nothing of, such as blanks, are left out: compel cannot find them again."""
    ids = provider.get_token_ids([part.text for part in prompt] or [""], False)
    parts = [part for part, own in zip(prompt, ids, strict=False) if own] or [Part("")]
    made: torch.Tensor = provider.get_embeddings_for_weighted_prompt_fragments(
        [[part.text for part in parts]],
        [[part.weight for part in parts]],
        device=provider.device,
    )
    return made


def _pooled(provider: Any, prompt: Prompt) -> torch.Tensor:
    """CLIP's one vector, of what it reads at once and without weights, as compel has it."""
    made: torch.Tensor = provider.get_pooled_embeddings([plain_text(prompt)])
    return made


def _lengthened(encoded: torch.Tensor, provider: Any, length: int) -> torch.Tensor:
    """The same with what an empty text is encoded to behind it."""
    missing = (length - encoded.shape[1]) // provider.max_token_count
    empty = provider.empty_z.to(encoded)
    return torch.cat([encoded, *[empty] * missing], dim=1)


def _parameters(pipeline: Any) -> Any:
    return inspect.signature(type(pipeline).__call__).parameters
