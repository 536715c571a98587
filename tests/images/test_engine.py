"""The step-batching engine on a tiny pipeline: who shares which call, who waits, who fails, and
what the pictures are."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline, EulerDiscreteScheduler

from atelier.errors import (
    Busy,
    Cancelled,
    DeadlineExceeded,
    DeviceOutOfMemory,
    Draining,
    GenerationFailed,
)
from atelier.events import Event, Failed, Finished, Image, Preview, Step
from atelier.images.drawing import PreparedRequest
from atelier.images.engine import EngineLimits, ImageEngine
from atelier.images.interception import Gate, Stage, install
from atelier.images.stopwatch import Lap
from atelier.streams import EventStream
from tests.tiny_pipelines import stable_diffusion_1


class LateStopwatch:
    """Tells of a call long after it has returned, as that of a GPU does."""

    LATE_S = 0.2

    def __init__(self) -> None:
        self.pending: list[tuple[float, Callable[[float], None]]] = []

    @contextmanager
    def timing(self) -> Iterator[Lap]:
        lap = Lap()
        yield lap
        assert lap.tell is not None
        self.pending.append((time.monotonic() + self.LATE_S, lap.tell))

    @property
    def due_s(self) -> float | None:
        return 0.02 if self.pending else None

    def collect(self) -> None:
        while self.pending and self.pending[0][0] < time.monotonic():
            self.pending.pop(0)[1](0.001)


class Studio:
    """An engine around a tiny pipeline, with a record of every denoiser call: its rows and latent
    height."""

    def __init__(self, folder: Path, **limits: int) -> None:
        self.pipeline: Any = DiffusionPipeline.from_pretrained(folder)
        self.pipeline.set_progress_bar_config(disable=True)
        gates = {gate.name: gate for gate in install(self.pipeline)}
        self.denoiser, self.encoder = gates["unet"], gates["text_encoder"]
        self.calls: list[tuple[int, int]] = []
        self.encoded = 0
        self.before(
            self.denoiser, lambda sample, _: self.calls.append((sample.shape[0], sample.shape[2]))
        )
        self.before(self.encoder, self._count)
        self.engine = ImageEngine(EngineLimits(**{"rows": 16, "queue": 64, **limits}))

    def _count(self, *_: Any) -> None:
        self.encoded += 1

    @staticmethod
    def before(gate: Gate, look: Callable[[Any, dict[str, Any]], Any]) -> None:
        """Call `look` with the first argument and the keyword arguments of every real call."""
        real = gate.real

        def watched(*args: Any, **kwargs: Any) -> Any:
            look(args[0] if args else kwargs.get("sample"), kwargs)
            return real(*args, **kwargs)

        gate.real = watched

    def job(
        self, prompt: str = "a cat", seed: int = 1, steps: int = 4, side: int = 32, **options: Any
    ) -> PreparedRequest:
        guidance = options.pop("guidance", 5.0)
        arguments = {
            "prompt": prompt,
            "num_inference_steps": steps,
            "guidance_scale": guidance,
            "output_type": "pt",
        }
        seconds = options.pop("seconds", 60)
        return PreparedRequest(
            self.pipeline,
            arguments | {"width": side, "height": side},
            seed,
            options.pop("pictures", 1),
            time.monotonic() + seconds,
            **options,
        )

    def alone(self, job: PreparedRequest) -> np.ndarray[Any, Any]:
        """The picture that plain diffusers makes of the same arguments."""
        generator = torch.Generator("cpu").manual_seed(job.seed)
        pipeline = self.pipeline
        if job.scheduler is not None:
            pipeline = type(pipeline)(
                **pipeline.components | {"scheduler": job.scheduler}, requires_safety_checker=False
            )
            pipeline.set_progress_bar_config(disable=True)
        output = pipeline(**job.arguments | {"output_type": "np"}, generator=generator).images[0]
        return np.asarray((output * 255).round())


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return stable_diffusion_1(tmp_path_factory.mktemp("tiny"))


@pytest.fixture
def studio(folder: Path) -> Iterator[Studio]:
    made = Studio(folder)
    yield made
    made.engine.close()


async def watch(stream: EventStream) -> list[Event]:
    return [event async for event in stream]


async def draw(studio: Studio, *jobs: PreparedRequest) -> list[list[Event]]:
    """All jobs at once."""
    streams = [studio.engine.submit(job) for job in jobs]
    return await asyncio.gather(*(watch(stream) for stream in streams))


async def emptied(engine: ImageEngine) -> None:
    """Wait until the engine holds no request."""
    await holds(lambda: engine.depth == 0)


async def holds(condition: Callable[[], bool]) -> None:
    ends = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < ends, "it did not come to hold"
        await asyncio.sleep(0.01)


async def prove(studio: Studio) -> None:
    """Let the engine verify stacking and know that it pays, so that what follows is stacked."""
    await draw(studio, studio.job("one", 1, 2), studio.job("two", 2, 2))
    rows = studio.engine._limits.rows
    pace = studio.engine.scheduler.pace
    pace.knee = lambda lane, own, pixels: max(own, rows)  # type: ignore[method-assign]
    studio.calls.clear()


def pixels(events: list[Event]) -> np.ndarray[Any, Any]:
    (picture,) = [event for event in events if isinstance(event, Image)]
    return (
        np.frombuffer(picture.pixels, np.uint8)
        .reshape(picture.height, picture.width, 3)
        .astype(float)
    )


def failure(events: list[Event]) -> Exception:
    last = events[-1]
    assert isinstance(last, Failed)
    return last.error


async def test_strangers_share_calls_and_get_their_own_pictures(studio: Studio) -> None:
    euler = EulerDiscreteScheduler.from_config(studio.pipeline.scheduler.config)
    jobs = [
        studio.job("a cat", 1, steps=5),
        studio.job("two dogs", 2, steps=8, guidance=2.0),
        studio.job("a tree", 3, steps=3, guidance=1.0),
        studio.job("a cat", 4, steps=6, scheduler=euler),
    ]
    expected = [studio.alone(job) for job in jobs]
    await prove(studio)
    for events, lone in zip(await draw(studio, *jobs), expected, strict=True):
        assert isinstance(events[-1], Finished)
        assert np.abs(pixels(events) - lone).max() <= 1
    assert (
        max(rows for rows, _ in studio.calls) == 7
    )  # two rows for each guided request, one for the other
    assert len(studio.calls) < sum(job.arguments["num_inference_steps"] for job in jobs)


async def test_times_that_are_known_later_are_told_by_an_engine_without_work(
    studio: Studio, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[str] = []
    late = LateStopwatch()
    monkeypatch.setattr(studio.engine, "_stopwatch", late)
    monkeypatch.setattr(studio.engine._observer, "call", lambda stage, *_: told.append(stage))
    (events,) = await draw(studio, studio.job(steps=3))
    assert isinstance(events[-1], Finished)
    assert late.pending
    await holds(lambda: not late.pending)
    assert told[-4:] == ["denoise"] * 3 + ["decode"]


async def test_a_request_joins_a_running_batch_and_leaves_first(studio: Studio) -> None:
    await prove(studio)
    long = studio.engine.submit(studio.job("long", 1, steps=60))
    ended: list[str] = []

    async def follow_long() -> None:
        async for event in long:
            if isinstance(event, Step) and event.index == 3:
                short.set()
        ended.append("long")

    async def run_short() -> None:
        await short.wait()
        events = (await draw(studio, studio.job("short", 2, steps=4)))[0]
        assert isinstance(events[-1], Finished)
        ended.append("short")

    short = asyncio.Event()
    await asyncio.gather(follow_long(), run_short())
    assert ended == ["short", "long"]
    assert (4, 16) in studio.calls


async def test_a_short_request_of_another_shape_passes_a_long_one(studio: Studio) -> None:
    await draw(studio, studio.job("large", 1, steps=3, side=48), studio.job("small", 1, steps=3))
    studio.calls.clear()
    long = studio.engine.submit(studio.job("large", 2, steps=40, side=48))
    passed = None
    async for event in long:
        if isinstance(event, Step) and event.index == 3:
            passed = asyncio.create_task(draw(studio, studio.job("small", 3, steps=4)))
    assert passed is not None and isinstance((await passed)[0][-1], Finished)
    heights = "".join("s" if height == 16 else "l" for _, height in studio.calls)
    assert "lssssl" in heights, heights


async def test_waiting_means_until_the_first_step(studio: Studio) -> None:
    studio.before(studio.denoiser, lambda *_: time.sleep(0.02))
    events = await draw(
        studio, studio.job("one", 1, steps=20), studio.job("two", 2, steps=40, side=48)
    )
    first, second = (each[-1] for each in events)
    assert isinstance(first, Finished) and isinstance(second, Finished)
    assert second.timings["queue"] > 20 * 0.02 > first.timings["queue"]
    names = [type(event).__name__ for event in events[1]]
    assert names.index("Started") < names.index("Step")


async def test_own_rows_above_the_limit_are_split(folder: Path) -> None:
    studio = Studio(folder, rows=4)
    await prove(studio)
    job = studio.job(seed=5, pictures=5, steps=3)
    job.arguments["num_images_per_prompt"] = 5
    pictures = [event for event in (await draw(studio, job))[0] if isinstance(event, Image)]
    assert len(pictures) == 5 and max(rows for rows, _ in studio.calls[-6:]) <= 4
    lone = studio.alone(studio.job(seed=9, steps=3))
    last = np.frombuffer(pictures[4].pixels, np.uint8).reshape(lone.shape).astype(float)
    assert np.abs(last - lone).max() <= 1
    studio.engine.close()


async def test_a_cancelled_request_leaves_before_its_next_step(studio: Studio) -> None:
    stream = studio.engine.submit(studio.job(steps=140))
    async for event in stream:
        if isinstance(event, Step) and event.index == 2:
            break
    stream.cancel()
    await emptied(studio.engine)
    assert len(studio.calls) <= 5


async def test_leaving_the_event_loop_cancels_the_request(studio: Studio) -> None:
    stream = studio.engine.submit(studio.job(steps=140))
    task = asyncio.create_task(watch(stream))
    await asyncio.sleep(0.1)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    await emptied(studio.engine)
    assert len(studio.calls) < 140


async def test_a_request_whose_time_is_up_is_dropped(studio: Studio) -> None:
    studio.before(
        studio.denoiser, lambda *_: time.sleep(0.02)
    )  # so that it starts in time and does not end in time
    error = failure((await draw(studio, studio.job(steps=140, seconds=1)))[0])
    assert isinstance(error, DeadlineExceeded) and "of 140 steps" in error.message
    assert studio.engine.depth == 0


async def test_out_of_memory_halves_the_group_and_goes_on(studio: Studio) -> None:
    await prove(studio)

    def refuse_large(sample: torch.Tensor, _: Any) -> None:
        if sample.shape[0] > 4:
            raise torch.OutOfMemoryError("injected")

    studio.before(studio.denoiser, refuse_large)
    results = await draw(studio, *(studio.job("many", seed, steps=4) for seed in range(4)))
    assert all(isinstance(events[-1], Finished) for events in results)
    assert max(rows for rows, _ in studio.calls) == 4


async def test_a_request_that_does_not_fit_alone_is_told_what_to_lower(studio: Studio) -> None:
    def refuse(*_: Any) -> None:
        raise torch.OutOfMemoryError("injected")

    real = studio.denoiser.real
    studio.before(studio.denoiser, refuse)
    error = failure((await draw(studio, studio.job()))[0])
    assert isinstance(error, DeviceOutOfMemory) and "32x32" in error.message
    studio.denoiser.real = real
    assert isinstance((await draw(studio, studio.job()))[0][-1], Finished)


async def test_a_failing_request_fails_alone(studio: Studio) -> None:
    await prove(studio)

    def fail_on_bad_text(_: Any, kwargs: dict[str, Any]) -> None:
        if torch.isnan(kwargs["encoder_hidden_states"]).any():
            raise RuntimeError("poisoned")

    studio.before(studio.denoiser, fail_on_bad_text)
    bad = studio.job("bad")
    width = studio.pipeline.text_encoder.config.hidden_size
    bad.arguments.update(prompt=None, prompt_embeds=torch.full((1, 77, width), torch.nan))
    results = await draw(studio, studio.job("good", 1), bad, studio.job("fine", 2))
    assert isinstance(results[0][-1], Finished) and isinstance(results[2][-1], Finished)
    assert "poisoned" in str(failure(results[1]))


async def test_a_denoiser_that_mixes_rows_is_found_out_and_not_stacked(studio: Studio) -> None:
    real = studio.denoiser.real

    def mixes(sample: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        pairs = (
            sample.shape[0] // 2 * 2
        )  # a request's own two rows are equal: alone it is not changed
        return (
            real(sample, *args, **kwargs)[0] + sample[:pairs].std(0, correction=0, keepdim=True),
        )

    studio.denoiser.real = mixes
    jobs = [studio.job("a", 1), studio.job("b", 2), studio.job("c", 3)]
    expected = [studio.alone(job) for job in jobs]
    for events, lone in zip(await draw(studio, *jobs), expected, strict=True):
        assert np.abs(pixels(events) - lone).max() <= 1
    (told,) = [one for one in studio.engine.verifier.summary() if one["module"] == "unet"]
    assert (told["stacked"], told["alone"]) == (0, 1)


async def test_a_prompt_is_encoded_once(studio: Studio) -> None:
    await draw(studio, studio.job("again", 1))
    encoded = studio.encoded
    await draw(studio, studio.job("again", 2))
    assert studio.encoded == encoded > 0


async def test_previews_are_spread_over_the_steps(studio: Studio) -> None:
    await prove(studio)
    events = (await draw(studio, studio.job(steps=12, previews=3)))[0]
    previews = [event for event in events if isinstance(event, Preview)]
    assert [preview.step for preview in previews] == [3, 6, 9]
    assert all(len(p.pixels) == p.width * p.height * 3 for p in previews)


async def test_several_pictures_have_seeds_of_their_own(studio: Studio) -> None:
    job = studio.job(seed=5, pictures=3)
    job.arguments["num_images_per_prompt"] = 3
    pictures = [event for event in (await draw(studio, job))[0] if isinstance(event, Image)]
    assert [picture.seed for picture in pictures] == [5, 6, 7]
    lone = studio.alone(studio.job(seed=6))
    second = np.frombuffer(pictures[1].pixels, np.uint8).reshape(lone.shape).astype(float)
    assert np.abs(second - lone).max() <= 1


async def test_a_full_queue_refuses_with_an_estimate(folder: Path) -> None:
    studio = Studio(folder, queue=2)
    streams = [studio.engine.submit(studio.job(steps=100)) for _ in range(2)]
    with pytest.raises(Busy) as refused:
        studio.engine.submit(studio.job())
    assert refused.value.retry_after_s >= 1
    for stream in streams:
        stream.cancel()
    studio.engine.close()


async def test_the_place_of_a_cancelled_request_is_free_before_its_step_is_done(
    folder: Path,
) -> None:
    studio = Studio(folder, queue=1)
    stepping, go_on = threading.Event(), threading.Event()
    studio.before(studio.denoiser, lambda *_: (stepping.set(), go_on.wait(30)))
    left = studio.engine.submit(studio.job(steps=100))
    try:
        assert await asyncio.to_thread(stepping.wait, 30)
        with pytest.raises(Busy):
            studio.engine.submit(studio.job())
        left.cancel()
        taken = studio.engine.submit(studio.job())
    finally:
        go_on.set()
    assert isinstance((await watch(taken))[-1], Finished)
    studio.engine.close()


async def test_draining_finishes_what_runs_and_admits_nothing(folder: Path) -> None:
    studio = Studio(folder)
    running = asyncio.create_task(watch(studio.engine.submit(studio.job(steps=10))))
    await asyncio.sleep(0.05)
    drained = asyncio.create_task(asyncio.to_thread(studio.engine.drain, 30))
    await asyncio.sleep(0.05)
    with pytest.raises(Draining):
        studio.engine.submit(studio.job())
    await drained
    assert isinstance((await running)[-1], Finished)


async def test_what_outlasts_the_drain_is_told_so(folder: Path) -> None:
    studio = Studio(folder)
    running = asyncio.create_task(watch(studio.engine.submit(studio.job(steps=150))))
    await asyncio.sleep(0.05)
    await asyncio.to_thread(studio.engine.drain, 0.1)
    assert isinstance(failure(await running), Draining)


async def test_a_fault_of_the_engine_is_reported_and_survived(
    studio: Studio, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(studio.engine.scheduler, "next_batch", lambda now: 1 / 0)
        assert isinstance(failure((await draw(studio, studio.job()))[0]), GenerationFailed)
    assert isinstance((await draw(studio, studio.job()))[0][-1], Finished)


async def test_a_cancelled_request_reports_its_end_to_its_listeners(studio: Studio) -> None:
    job = studio.job(steps=140)
    stream = studio.engine.submit(job)
    (drawing,) = studio.engine._all()
    heard: list[Event] = []
    drawing.listeners = [heard.append]
    await asyncio.sleep(0.1)
    stream.cancel()
    await holds(lambda: any(isinstance(event, Failed) for event in heard))
    assert isinstance(failure(heard), Cancelled)


def test_gates_know_their_stages(folder: Path) -> None:
    pipeline = DiffusionPipeline.from_pretrained(folder)
    assert {(gate.name, gate.stage) for gate in install(pipeline)} == {
        ("vae", Stage.ENCODE),
        ("vae", Stage.DECODE),
        ("text_encoder", Stage.ENCODE),
        ("unet", Stage.DENOISE),
    }
