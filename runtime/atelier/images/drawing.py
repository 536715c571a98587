"""One request at work: its own copy of the pipeline, run in a greenlet that parks at every gated
module call."""

from __future__ import annotations

import copy
import hashlib
import time
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from functools import wraps
from typing import Any

import numpy as np
import torch

from atelier.errors import AtelierError, DeadlineExceeded, GenerationFailed, InvalidRequest
from atelier.events import Event, Failed, Finished, Image, Preview, Started, Step
from atelier.images.adapters import Selection
from atelier.images.interception import Call, Parking, Stage, is_pipeline
from atelier.images.preview import LatentPreview, clean_estimate

SEEDS = 2**63


@dataclass(frozen=True)
class PreparedRequest:
    """A request ready for the engine: the pipeline that serves it, its arguments and its deadline.

    `deadline` is a `time.monotonic()` value; `previews` is how many are wanted on the way;
    `exclusive` pipelines let no other request run in between; `restore` undoes what they did to the
    shared modules.
    """

    pipeline: Any
    arguments: dict[str, Any]
    seed: int
    pictures: int
    deadline: float
    adapters: Selection = ()
    scheduler: Any = None
    exclusive: bool = False
    previews: int = 0
    restore: Callable[[], None] | None = None


@dataclass(eq=False)
class Drawing:
    """The state of one request inside the engine; touched only by the denoising thread, but for
    `cancelled`."""

    job: PreparedRequest
    listeners: Sequence[Callable[[Event], None]]
    preview: LatentPreview
    number: int
    submitted: float = field(default_factory=time.monotonic)
    started: float | None = None
    cancelled: bool = False
    parked: Call | None = None
    key: Hashable = None
    parked_at: int = 0
    steps_done: int = 0
    steps_total: int = 0
    timings: dict[str, float] = field(default_factory=dict)
    latents: torch.Tensor | None = None
    greenlet: Parking | None = None
    _digests: dict[int, tuple[torch.Tensor, bytes]] = field(default_factory=dict)

    def emit(self, event: Event) -> None:
        """Tell everyone who listens to this request."""
        for listener in self.listeners:
            listener(event)

    def begin(self) -> None:
        """Run up to the first gated call. The greenlet's parent must be the engine's."""
        self.started = time.monotonic()
        self.timings["queue"] = self.started - self.submitted
        self.emit(Started(self.job.seed))
        self.greenlet = Parking(self._draw)
        self._advance(self.greenlet.switch)

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
        self.emit(Failed(error))

    @property
    def rows(self) -> int:
        """Rows of the parked call."""
        return self.parked.layout.rows if self.parked else 0

    @property
    def done(self) -> bool:
        """Nothing is left to run."""
        return self.greenlet is not None and self.greenlet.dead

    @property
    def overdue(self) -> bool:
        return time.monotonic() > self.job.deadline

    def deadline_error(self) -> DeadlineExceeded:
        """What an overdue request is told."""
        waited = time.monotonic() - self.submitted
        progress = (
            f"{self.steps_done} of {self.steps_total or '?'} steps were done"
            if self.started
            else "it was still queued"
        )
        return DeadlineExceeded(f"the request's time was up after {waited:.1f} s; {progress}")

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
        if self.parked is None:
            return
        self.parked.layout = self.parked.gate.stacker.layout(
            self.parked.args, self.parked.kwargs, self.digest
        )
        self.key = (id(self.parked.gate), self.job.adapters, self.parked.layout.key or self.number)

    def spent(self, stage: Stage, seconds: float) -> None:
        """Add to the time that the answer reports for a stage."""
        self.timings[stage.value] = self.timings.get(stage.value, 0.0) + seconds

    def _draw(self) -> None:
        """The greenlet's body. Every way out emits exactly one last event."""
        try:
            pipeline = _own_copy(self.job.pipeline, self.job.scheduler, self._watch)
            output = pipeline(
                **self.job.arguments, generator=_generators(self.job.seed, self.job.pictures)
            )
            pixels = _pixels(output)
            if self.latents is not None and len(self.latents) == len(pixels):
                self.preview.learn(self.latents[0], pixels[0].permute(2, 0, 1))
            for index, row in enumerate(
                (pixels * 255).round().clamp(0, 255).to(torch.uint8).cpu().numpy()
            ):
                seed = (self.job.seed + index) % SEEDS
                self.emit(
                    Image(index, seed, row.shape[1], row.shape[0], row.shape[2], row.tobytes())
                )
            self.emit(Finished(dict(self.timings)))
        except Exception as error:
            refused = isinstance(error, ValueError | TypeError) and not self.steps_done
            self.emit(Failed(InvalidRequest(str(error)) if refused else _told(error)))
        finally:
            if self.job.restore:
                self.job.restore()

    def _watch(self, pipeline: Any, scheduler: Any) -> None:
        """Count the scheduler's steps: the one thing that all pipelines do once a step, whatever
        their guidance."""
        real = scheduler.step

        @wraps(real)  # pipelines look at the signature to see what their scheduler takes
        def step(model_output: Any, timestep: Any, sample: Any, *args: Any, **kwargs: Any) -> Any:
            result = real(model_output, timestep, sample, *args, **kwargs)
            self.steps_done += 1
            self.steps_total = max(
                self.steps_done, getattr(pipeline, "_num_timesteps", 0) or len(scheduler.timesteps)
            )
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


def _own_copy(pipeline: Any, scheduler: Any, watch: Callable[[Any, Any], None]) -> Any:
    """A shallow copy that shares the modules but has schedulers and call state of its own, inner
    pipelines included.

    Attributes are set through `__dict__`: a pipeline's own `__setattr__` would write to the config
    that all copies share.
    """
    own = copy.copy(pipeline)
    for name, value in vars(pipeline).items():
        if hasattr(value, "set_timesteps"):
            fresh = copy.deepcopy(
                scheduler if scheduler is not None and name == "scheduler" else value
            )
            watch(own, fresh)
            own.__dict__[name] = fresh
        elif is_pipeline(value):
            own.__dict__[name] = _own_copy(value, None, watch)
    return own


def _generators(seed: int, pictures: int) -> torch.Generator | list[torch.Generator]:
    """Picture i has seed + i, so that each can be drawn again alone. On the CPU: the same noise on
    every device."""
    each = [torch.Generator("cpu").manual_seed((seed + index) % SEEDS) for index in range(pictures)]
    return each[0] if pictures == 1 else each


def _pixels(output: Any) -> torch.Tensor:
    """A pipeline's pictures as rows x height x width x channels in 0..1, whether it returned a
    tensor or an array."""
    images = output.images if hasattr(output, "images") else output[0]
    if torch.is_tensor(images) and images.dim() == 4:
        pixels = images.permute(0, 2, 3, 1).float()
    elif isinstance(images, np.ndarray) and images.ndim == 4:
        pixels = torch.from_numpy(images).float()
    else:
        raise GenerationFailed(f"the pipeline returned {type(images).__name__}, not pictures")
    if not bool(torch.isfinite(pixels).all()):
        raise GenerationFailed(
            "the picture holds NaN or infinite values; try DTYPE=float32 or bfloat16"
        )
    return pixels


def _told(error: BaseException) -> AtelierError:
    """What the client hears: our own errors as they are, others with their class and words."""
    return (
        error
        if isinstance(error, AtelierError)
        else GenerationFailed(f"{type(error).__name__}: {error}")
    )
