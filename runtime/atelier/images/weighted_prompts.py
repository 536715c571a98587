"""Weighted and long prompts of the CLIP families, by compel: embeddings in place of texts.

The text encoders are called from the request's greenlet, so their calls are batched and cached as
those of the pipeline itself are.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from atelier.errors import InvalidRequest
from atelier.images.request import ImageRequest
from atelier.images.textual_inversions import expansions
from atelier.images.weighted_syntax import Part, plain_text, read_weights

MOST_CHUNKS = 8
"""Of 75 tokens each: what the denoiser attends to grows by as much."""

CHUNK_TOKENS = 75

CLASHES = ("clip_skip",)
"""Arguments that a pipeline heeds only while it encodes texts itself."""


@dataclass(frozen=True)
class WeightedPrompts:
    """What a request says with weights. `negative` is None if it says nothing."""

    positive: tuple[Part, ...]
    negative: tuple[Part, ...] | None

    @property
    def texts(self) -> dict[str, str]:
        """The prompts without weights, by field."""
        found = {"prompt": plain_text(self.positive)}
        if self.negative is not None:
            found["negative_prompt"] = plain_text(self.negative)
        return found

    @property
    def weighs(self) -> bool:
        """Whether any weight is not 1."""
        return any(part.weight != 1 for part in (*self.positive, *(self.negative or ())))

    def arguments(self, pipeline: Any, given: dict[str, Any]) -> dict[str, Any]:
        """The pipeline's arguments with embeddings for texts. For the request's greenlet."""
        rest = {name: value for name, value in given.items() if name not in self.texts}
        providers = _providers(pipeline)
        prompts = [self.positive, self.negative or ()]
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
        if len(providers) == 1:
            return rest | {"prompt_embeds": positive, "negative_prompt_embeds": negative}
        pooled = [providers[1].get_pooled_embeddings([plain_text(each)]) for each in prompts]
        if self.negative is None and pipeline.config.force_zeros_for_empty_prompt:
            negative, pooled[1] = torch.zeros_like(negative), torch.zeros_like(pooled[1])
        return rest | {
            "prompt_embeds": positive,
            "negative_prompt_embeds": negative,
            "pooled_prompt_embeds": pooled[0],
            "negative_pooled_prompt_embeds": pooled[1],
        }


def weighted_prompts(pipeline: Any, request: ImageRequest) -> WeightedPrompts | None:
    """The weights in a request; None if `prompt_syntax` is plain.

    Raises:
        InvalidRequest: this pipeline has none, a weight is not allowed, or something else in the
            request does not go with them.
    """
    if request.prompt_syntax != "weighted":
        return None
    name = type(pipeline).__name__
    first = getattr(pipeline, "tokenizer", None)
    if not name.startswith("StableDiffusion") or name.startswith("StableDiffusion3") or not first:
        raise InvalidRequest(
            f"prompt_syntax: weighted prompts are there for Stable Diffusion 1, 2 and XL; this is"
            f" {name}; leave it out",
            "prompt_syntax",
        )
    second = [field for field in request.extra if field.startswith(("prompt_", "negative_prompt_"))]
    for field in (*second, *(one for one in CLASHES if getattr(request, one) is not None)):
        raise InvalidRequest(f"{field}: it does not go with prompt_syntax=weighted", field)
    negative = request.negative_prompt
    return WeightedPrompts(
        read_weights(request.prompt, "prompt"),
        None if negative is None else read_weights(negative, "negative_prompt"),
    )


def _providers(pipeline: Any) -> list[Any]:
    """compel's view of one or both text encoders."""
    from compel import EmbeddingsProvider, ReturnedEmbeddingsType

    if getattr(pipeline, "text_encoder_2", None) is None:
        kind = ReturnedEmbeddingsType.LAST_HIDDEN_STATES_NORMALIZED
        pairs = [(pipeline.tokenizer, pipeline.text_encoder)]
    else:
        kind = ReturnedEmbeddingsType.PENULTIMATE_HIDDEN_STATES_NON_NORMALIZED
        pairs = [
            (pipeline.tokenizer, pipeline.text_encoder),
            (pipeline.tokenizer_2, pipeline.text_encoder_2),
        ]
    return [
        EmbeddingsProvider(
            tokenizer, encoder, truncate=False, returned_embeddings_type=kind,
            dtype_for_device_getter=lambda device: torch.float32,
            textual_inversion_manager=_Words(expansions(tokenizer)),
        )
        for tokenizer, encoder in pairs
    ]  # fmt: skip


class _Words:
    """compel's textual inversion manager: a word of several vectors is as many tokens."""

    def __init__(self, longer: dict[int, list[int]]) -> None:
        self._longer = longer

    def expand_textual_inversion_token_ids_if_necessary(self, token_ids: list[int]) -> list[int]:
        return [each for one in token_ids for each in self._longer.get(one, [one])]


def _encoded(provider: Any, parts: tuple[Part, ...]) -> torch.Tensor:
    """1 x tokens x width, tokens a multiple of the encoder's places."""
    texts = [part.text for part in parts] or [""]
    weights = [part.weight for part in parts] or [1.0]
    made: torch.Tensor = provider.get_embeddings_for_weighted_prompt_fragments(
        [texts], [weights], device=provider.device
    )
    return made


def _lengthened(encoded: torch.Tensor, provider: Any, length: int) -> torch.Tensor:
    """The same with what an empty text is encoded to behind it."""
    missing = (length - encoded.shape[1]) // provider.max_token_count
    empty = provider.empty_z.to(encoded)
    return torch.cat([encoded, *[empty] * missing], dim=1)
