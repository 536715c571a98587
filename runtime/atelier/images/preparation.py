"""Everything about a request that needs no device: pipeline, arguments, decoded pictures, seed,
deadline, and what there is to say of it beforehand."""

from __future__ import annotations

import secrets
import time

from atelier.hardware.plan import MemoryPlan
from atelier.images.adapters import Adaptation
from atelier.images.arguments import build, fitted
from atelier.images.conditioners import Conditioners
from atelier.images.content_filter import ContentFilter
from atelier.images.drawing import PreparedRequest
from atelier.images.enlarging import PictureAsSent, enlarging_arguments
from atelier.images.family import PipelineFamily, must_run_alone, scheduler_for
from atelier.images.prompt_length import PromptLengths
from atelier.images.request import ImageRequest
from atelier.images.second_pass import second_pass
from atelier.images.sizes import DrawableSizes
from atelier.images.step_cache import LEVELS
from atelier.images.weighted_prompts import weighted_prompts
from atelier.settings import Settings

WITHHELD = "previews: none is sent, since SAFETY_CHECKER may keep the picture back"


class Preparation:
    """Of requests to one loaded model; for any thread."""

    def __init__(
        self,
        settings: Settings,
        plan: MemoryPlan,
        family: PipelineFamily,
        conditioners: Conditioners,
        content_filter: ContentFilter,
    ) -> None:
        self._settings = settings
        self._family = family
        self._adapters = conditioners.adapters
        self._controls = conditioners.controls
        self._image_prompts = conditioners.image_prompts
        self._upscalers = conditioners.upscalers
        self._filter = content_filter
        self._max_pixels = min(settings.max_pixels, plan.max_pixels)
        self._lengths = PromptLengths(family.base)

    def prepare(self, request: ImageRequest) -> PreparedRequest:
        """The request, ready for the engine.

        Raises:
            InvalidRequest: the pipeline cannot do what is asked for.
            ContentRefused: a prompt has a word of the list.
        """
        if request.task == "upscale":
            return self._enlarging(request)
        chosen = self._controls.chosen(request, self._max_pixels)
        pipeline = (
            self._controls.pipeline_for(request, chosen.kind)
            if chosen
            else self._family.pipeline_for(request)
        )
        prompts = self._image_prompts.chosen(request, pipeline, self._max_pixels)
        weights = weighted_prompts(pipeline, request)
        if weights:
            weights.check(self._lengths)
            request = request.model_copy(update=weights.texts)
        cuts = self._lengths.cuts(pipeline, request)
        if weights and not weights.needed(cuts):
            weights = None
        whole = weights.form.reads if weights else ()
        guard = self._filter.guard(request, pipeline)
        drawable = DrawableSizes.of(pipeline, self._max_pixels)
        if chosen:
            request = self._controls.sized(request, chosen, drawable)
        warnings: tuple[str, ...] = ()
        if self._settings.size_fallback == "nearest":
            request, warnings = fitted(pipeline, request, drawable)
        second = second_pass(request, self._family, self._max_pixels, self._settings.max_steps)
        withheld = self._filter.withholds and bool(request.previews)
        arguments = build(pipeline, request, drawable, self._settings.max_steps)
        if chosen:
            arguments = self._controls.arguments(pipeline, chosen, arguments)
        drawn = second.size if second else arguments
        return PreparedRequest(
            pipeline=pipeline,
            arguments=arguments,
            seed=secrets.randbelow(2**32) if request.seed is None else request.seed,
            pictures=request.num_images_per_prompt,
            deadline=self._deadline(request),
            scheduler=scheduler_for(pipeline, request.scheduler, "scheduler")
            if request.scheduler
            else None,
            exclusive=must_run_alone(pipeline),
            step_cache=0.0 if second else self._step_cache(request),
            second=second,
            adapters=Adaptation(
                self._adapters.select(request.lora), prompts.selection if prompts else ()
            ),
            parts={
                **(self._controls.parts(chosen) if chosen else {}),
                **(guard.parts if guard else {}),
            },
            image_prompts=prompts,
            enlargement=self._upscalers.chosen(request, pipeline, drawn),
            previews=0 if withheld else request.previews,
            warnings=(
                *warnings,
                *(told for (_, kind), told in cuts.items() if kind not in whole),
                *([WITHHELD] if withheld else []),
            ),
            guard=guard,
            weights=weights,
        )

    def _enlarging(self, request: ImageRequest) -> PreparedRequest:
        """A request that enlarges a picture and draws none."""
        arguments = enlarging_arguments(request, self._settings.max_upscaled_pixels)
        pipeline = PictureAsSent()
        return PreparedRequest(
            pipeline=pipeline,
            arguments=arguments,
            seed=request.seed or 0,
            pictures=1,
            deadline=self._deadline(request),
            guard=self._filter.guard(request, pipeline),
            enlargement=self._upscalers.chosen(request, pipeline, arguments),
        )

    def _deadline(self, request: ImageRequest) -> float:
        limit = self._settings.request_timeout
        return time.monotonic() + min(request.timeout or limit, limit)

    def _step_cache(self, request: ImageRequest) -> float:
        """The bound of the step cache: the request's, or STEP_CACHE."""
        wanted = self._settings.step_cache if request.step_cache is None else request.step_cache
        return LEVELS[wanted] if isinstance(wanted, str) else wanted
