"""One request at work: its own copy of the pipeline, run in a greenlet that parks at every gated
module call."""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial, wraps
from typing import Any

import torch

from atelier.errors import (
    AtelierError,
    Cancelled,
    DeadlineExceeded,
    GenerationFailed,
    InvalidRequest,
)
from atelier.events import Event, Failed, Finished, Preview, Started, Step
from atelier.images.adapters import PLAIN, Adaptation
from atelier.images.batch import MOST_ROWS
from atelier.images.content_filter import RequestGuard
from atelier.images.delivery import Delivery
from atelier.images.finished import bare, generators, picture_events, pixels_of
from atelier.images.image_prompts import ChosenImagePrompts
from atelier.images.interception import Call, Parking, Stage
from atelier.images.own_copy import own_copy
from atelier.images.preview import LatentPreview, clean_estimate
from atelier.images.scheduler import Schedulable
from atelier.images.second_pass import SecondPass
from atelier.images.shortage import does_not_fit, is_out_of_memory
from atelier.images.step_cache import StepCache
from atelier.images.upscalers import Enlargement, enlarged
from atelier.images.weighted_prompts import WeightedPrompts

# Latent positions of one decoder call, 64 pixels each with the usual VAE: one picture of 1024 x
# 1024, four of 512 x 512. A decoder is busy with that; eight large pictures at once need many
# gigabytes and leave the 32-bit index range of the fast convolutions, which made them slower than
# one by one on an H200.
DECODE_POSITIONS = 128 * 128


@dataclass(frozen=True)
class PreparedRequest:
    """A request ready for the engine: the pipeline that serves it, its arguments and deadline.

    `deadline` is a `time.monotonic()` value; `previews` is how many are wanted on the way;
    `exclusive` pipelines exchange processors of the shared modules, so no other request may run in
    between; `step_cache` is the bound of `step_cache.StepCache`, 0 for none; `warnings` say what
    was changed in what was asked for; `guard` looks at prompt and pictures; `weights` are those of
    a weighted prompt; `parts` stand in for the pipeline's modules in the request's copy of it;
    `image_prompts` are pictures beside the text; `second` redraws what was drawn, `enlargement`
    scales it up.
    """

    pipeline: Any
    arguments: dict[str, Any]
    seed: int
    pictures: int
    deadline: float
    adapters: Adaptation = PLAIN
    scheduler: Any = None
    exclusive: bool = False
    previews: int = 0
    step_cache: float = 0.0
    warnings: tuple[str, ...] = ()
    guard: RequestGuard | None = None
    weights: WeightedPrompts | None = None
    parts: Mapping[str, Any] = field(default_factory=dict)
    image_prompts: ChosenImagePrompts | None = None
    second: SecondPass | None = None
    enlargement: Enlargement | None = None

    @property
    def family(self) -> str:
        """The pipeline class."""
        return type(self.pipeline).__name__


@dataclass(eq=False, kw_only=True)
class Drawing(Schedulable):
    """The state of one request inside the engine; touched only by the denoising thread, but for
    `cancelled`. What the scheduler reads of it is kept up to date whenever it parks."""

    job: PreparedRequest
    listeners: Sequence[Callable[[Event], None]]
    preview: LatentPreview
    delivery: Delivery
    number: int
    started: bool = False
    cancelled: bool = False
    ran_short: bool = False
    parked: Call | None = None
    steps_done: int = 0
    steps_total: int = 0
    steps_before: int = 0  # of the first pass, in the second
    timings: dict[str, float] = field(default_factory=dict)
    latents: torch.Tensor | None = None
    greenlet: Parking | None = None
    cache: StepCache | None = None
    _digests: dict[int, tuple[torch.Tensor, bytes]] = field(default_factory=dict)

    def emit(self, event: Event) -> None:
        """Tell everyone who listens to this request."""
        for listener in self.listeners:
            listener(event)

    def begin(self) -> None:
        """Run up to the first gated call. The greenlet's parent must be the engine's."""
        self.cache = StepCache(self.job.step_cache) if self.job.step_cache else None
        self.greenlet = Parking(self._draw)
        self._advance(self.greenlet.switch)

    def start(self) -> None:
        """Its first step is about to run; until here it has waited, but for its own encoding."""
        if not self.started:
            self.started = True
            waited = time.monotonic() - self.arrived
            self.timings["queue"] = max(0.0, waited - self.timings.get(Stage.ENCODE.value, 0.0))
            self.emit(Started(self.job.seed))

    def resume(self, result: Any) -> None:
        """Answer the parked call and run up to the next one."""
        assert self.greenlet is not None
        self._advance(self.greenlet.switch, result)

    def fail(self, error: Exception) -> None:
        """Raise `error` where the call is parked, as if the module had raised it."""
        assert self.greenlet is not None
        self._advance(self.greenlet.throw, error)

    def stop(self, error: AtelierError) -> None:
        """Unwind the pipeline call, whatever it catches, and report `error`."""
        while self.greenlet is not None and not self.greenlet.dead:
            self.greenlet.throw()
        self.emit(Failed(bare(error)))

    @property
    def done(self) -> bool:
        """Nothing is left to run."""
        return self.greenlet is not None and self.greenlet.dead

    @property
    def must_go(self) -> AtelierError | None:
        """Why it is to be dropped now, if it is."""
        if self.cancelled:
            return Cancelled("the request was cancelled")
        return self._deadline_error() if time.monotonic() > self.job.deadline else None

    def _deadline_error(self) -> DeadlineExceeded:
        waited = time.monotonic() - self.arrived
        progress = (
            f"{self.steps_done} of {self.steps_total or '?'} steps were done"
            if self.started
            else "it was still queued"
        )
        return DeadlineExceeded(f"the request's time was up after {waited:.1f} s; {progress}")

    def cached_answer(self) -> Any | None:
        """What the step cache answers the parked call with; None if it has to be run."""
        if self.cache is None or self.parked is None or self.parked.gate.stage is not Stage.DENOISE:
            return None
        return self.cache.answer(self.parked, self.steps_done, self.steps_total)

    def digest(self, tensor: torch.Tensor) -> bytes:
        """A hash of the content; kept for the tensor's life, because pipelines pass the same ids at
        every step."""
        known = self._digests.get(id(tensor))
        if known is None or known[0] is not tensor:
            raw = tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes()
            known = (
                tensor,
                hashlib.blake2b(repr(tensor.shape).encode() + raw, digest_size=16).digest(),
            )
            self._digests[id(tensor)] = known
        return known[1]

    def _advance(self, switch: Callable[..., Any], *values: Any) -> None:
        """Let the pipeline run on until it parks or ends."""
        before = time.monotonic()
        parked = switch(*values)
        self.spent(
            self.parked.gate.stage if self.parked else Stage.ENCODE, time.monotonic() - before
        )
        self.parked = parked if isinstance(parked, Call) else None
        if self.parked is not None:
            self._describe(self.parked)

    def _describe(self, call: Call) -> None:
        """Say what the scheduler has to know of the parked call."""
        gate = call.gate
        call.layout = gate.stacker.layout(call.args, call.kwargs, self.digest)
        if not gate.stackable:
            call.layout = replace(call.layout, key=None)
        self.stage, self.rows = gate.stage.value, max(1, call.layout.rows)
        self.key = (
            id(gate),
            self.job.family,
            self.job.adapters,
            call.layout.key or self.number,
        )
        self.bytes = max(self.bytes, sum(tensor.nbytes for tensor in call.layout.tensors))
        self.most_rows = math.inf
        if gate.stage is Stage.DECODE:
            self.most_rows = max(1, DECODE_POSITIONS // call.layout.positions)
        elif gate.stage in MOST_ROWS:
            self.most_rows = MOST_ROWS[gate.stage]

    def spent(self, stage: Stage, seconds: float) -> None:
        """Add to the time that the answer reports for a stage."""
        self.timings[stage.value] = self.timings.get(stage.value, 0.0) + seconds

    def _draw(self) -> None:
        """The greenlet's body. Every way out emits exactly one last event."""
        try:
            guard = self.job.guard
            if guard:
                guard.check_prompt()
            pixels = self._run(self.job.pipeline, self.job.arguments)
            if second := self.job.second:
                self.steps_before = self.steps_done
                self.kind, self.pixels = second.kind, second.width * second.height
                pixels = self._run(second.pipeline, second.arguments_for(pixels))
            pixels = enlarged(pixels, self.job.enlargement)
            scores = guard.scores(pixels) if guard else None
            self.start()
            self.steps_left = 0
            last = Finished(dict(self.timings), steps_run=self._steps_run())
            self.delivery.hand_over(pixels.device, partial(self._deliver, pixels, scores, last))
        except Exception as error:
            self.emit(Failed(bare(self._told(error))))

    def _run(self, pipeline: Any, arguments: dict[str, Any]) -> torch.Tensor:
        own = own_copy(pipeline, self.job.scheduler, self._watch)
        vars(own).update(self.job.parts)
        if self.job.image_prompts:  # first: weights may change the number of pictures
            arguments = self.job.image_prompts.arguments(own, arguments)
        if self.job.weights:
            arguments = self.job.weights.arguments(own, arguments)
        return pixels_of(own(**arguments, generator=generators(self.job.seed, self.job.pictures)))

    def _deliver(self, pixels: torch.Tensor, scores: torch.Tensor | None, last: Finished) -> None:
        """Send the pictures and the last event; waits for the device."""
        try:
            if not bool(torch.isfinite(pixels).all()):
                raise GenerationFailed(
                    "the picture holds NaN or infinite values; try DTYPE=float32 or bfloat16"
                )
            if self.latents is not None and len(self.latents) == len(pixels):
                self.preview.learn(self.latents[0], pixels[0].permute(2, 0, 1))
            flags: Sequence[tuple[str, ...]] = [()] * len(pixels)
            if self.job.guard:
                pixels, flags = self.job.guard.judged(pixels, scores)
            for picture in picture_events(pixels, flags, self.job.seed):
                self.emit(picture)
            self.emit(last)
        except Exception as error:
            self.emit(Failed(bare(self._told(error))))

    def _told(self, error: Exception) -> AtelierError:
        """What the client hears: our own errors as they are, others with their class and words."""
        if isinstance(error, AtelierError):
            return error
        if is_out_of_memory(error):
            self.ran_short = True
            return does_not_fit(self.job.arguments, self.job.pictures)
        if isinstance(error, ValueError | TypeError) and not self.steps_done:
            return InvalidRequest(str(error))
        return GenerationFailed(f"{type(error).__name__}: {error}")

    def _steps_run(self) -> int | None:
        """Steps that were not answered by the step cache; None without one."""
        if self.cache is None:
            return None
        calls = self.cache.run + self.cache.answered
        return round(self.steps_done * self.cache.run / calls) if calls else self.steps_done

    def _watch(self, pipeline: Any, scheduler: Any) -> None:
        """Count the scheduler's steps: the one thing that all pipelines do once a step, whatever
        their guidance."""
        real = scheduler.step

        @wraps(real)  # pipelines look at the signature to see what their scheduler takes
        def step(model_output: Any, timestep: Any, sample: Any, *args: Any, **kwargs: Any) -> Any:
            result = real(model_output, timestep, sample, *args, **kwargs)
            self.steps_done += 1
            steps = getattr(pipeline, "_num_timesteps", 0) or len(scheduler.timesteps)
            ahead = self.job.second.steps if self.job.second and not self.steps_before else 0
            self.steps_total = max(self.steps_done, self.steps_before + steps + ahead)
            self.steps_left = self.steps_total - self.steps_done
            self.latents = result[0] if torch.is_tensor(result[0]) else None
            self.emit(Step(self.steps_done, self.steps_total))
            if self._preview_is_due():
                self._emit_preview(clean_estimate(scheduler, sample, result[0]))
            return result

        scheduler.step = step

    def _preview_is_due(self) -> bool:
        """Previews are spread evenly: two of twenty steps come after steps 7 and 14, never after
        the last."""
        spacing = self.steps_total / (self.job.previews + 1)
        before, now = (self.steps_done - 1) // spacing, self.steps_done // spacing
        return bool(self.job.previews) and now > before and self.steps_done < self.steps_total

    def _emit_preview(self, latents: torch.Tensor) -> None:
        sizes = self.job.arguments
        drawn = self.preview.draw(latents[0], sizes.get("height", 1) / sizes.get("width", 1))
        if drawn is not None:
            self.emit(
                Preview(self.steps_done, drawn.shape[1], drawn.shape[0], drawn.numpy().tobytes())
            )
