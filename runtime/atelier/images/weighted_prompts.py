"""`prompt_syntax: weighted`: what of a request is written with weights, and whether the way through
compel is needed at all."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from atelier.bounds import MAX_WEIGHTED_TOKENS
from atelier.errors import InvalidRequest
from atelier.images.prompt_embeddings import PromptForm, prompt_form
from atelier.images.prompt_length import PromptLengths
from atelier.images.request import ImageRequest
from atelier.images.weighted_syntax import Part, plain_text, read_weights

CLASHES = ("clip_skip",)
"""Arguments that a pipeline heeds only while it encodes texts itself."""


@dataclass(frozen=True)
class WeightedPrompts:
    """What a request says with weights. `negative` is None if it says nothing."""

    form: PromptForm
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

    def check(self, lengths: PromptLengths) -> None:
        """See that no prompt is longer than is read.

        Raises:
            InvalidRequest: one is.
        """
        for field, text in self.texts.items():
            for kind, tokens in lengths.tokens(text).items():
                if kind in self.form.reads and tokens > MAX_WEIGHTED_TOKENS[kind]:
                    raise InvalidRequest(
                        f"{field}: {tokens} tokens of {kind}; weighted prompts have at most"
                        f" {MAX_WEIGHTED_TOKENS[kind]}",
                        field,
                    )

    def needed(self, cuts: Mapping[tuple[str, str], str]) -> bool:
        """False where the pipeline itself does the same: with no weight but 1, and nothing cut.

        Args:
            cuts: what encoders would not read, by field and kind of encoder.
        """
        return self.weighs or any(kind in self.form.reads for _, kind in cuts)

    def arguments(self, pipeline: Any, given: dict[str, Any]) -> dict[str, Any]:
        """The pipeline's arguments with embeddings for texts. For the request's greenlet."""
        rest = {name: value for name, value in given.items() if name not in self.texts}
        return rest | self.form.encode(pipeline, (self.positive, self.negative or ()), given)


def weighted_prompts(pipeline: Any, request: ImageRequest) -> WeightedPrompts | None:
    """The weights in a request; None if `prompt_syntax` is plain.

    Raises:
        InvalidRequest: this pipeline has none, a weight is not allowed, or something else in the
            request does not go with them.
    """
    if request.prompt_syntax != "weighted":
        return None
    form = prompt_form(pipeline)
    if form is None:
        raise InvalidRequest(
            "prompt_syntax: weighted prompts are there for Stable Diffusion 1, 2, XL, 3 and 3.5 and"
            f" for FLUX.1; this is {type(pipeline).__name__}; leave it out",
            "prompt_syntax",
        )
    second = [field for field in request.extra if field.startswith(("prompt_", "negative_prompt_"))]
    for field in (*second, *(one for one in CLASHES if getattr(request, one) is not None)):
        raise InvalidRequest(f"{field}: it does not go with prompt_syntax=weighted", field)
    negative = request.negative_prompt
    return WeightedPrompts(
        form,
        read_weights(request.prompt, "prompt"),
        None if negative is None else read_weights(negative, "negative_prompt"),
    )
