"""However a request ends, and whatever was done to the modules that all share, the next request
gets the picture that it would get alone."""

from __future__ import annotations

import asyncio
import gc
import time
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline

from atelier.errors import (
    AtelierError,
    Cancelled,
    DeadlineExceeded,
    DeviceOutOfMemory,
    GenerationFailed,
)
from atelier.events import Event, Failed, Finished, Image, Step
from atelier.images.drawing import PreparedRequest
from atelier.images.engine import EngineLimits, ImageEngine
from atelier.images.interception import Gate, Stage
from atelier.images.modules import SharedModules
from atelier.images.observer import SilentImageObserver
from tests.tiny_pipelines import stable_diffusion_1

PLACEMENTS = ("resident", "model offload", "group offload")
FORMS = ("plain", "compiled", "step cache")
BOUND = 0.1


def placed(pipeline: Any, placement: str) -> None:
    """As the loader does it, with the CPU as the device."""
    if placement == "model offload":
        pipeline.enable_model_cpu_offload(device="cpu")
    elif placement == "group offload":
        pipeline.enable_group_offload(
            onload_device="cpu", offload_type="leaf_level", use_stream=False
        )


class House:
    """An engine around one pipeline, and plain diffusers beside it."""

    def __init__(self, folder: Path, placement: str, form: str) -> None:
        self.bare: Any = DiffusionPipeline.from_pretrained(folder)
        self.pipeline: Any = DiffusionPipeline.from_pretrained(folder)
        for one in (self.bare, self.pipeline):
            one.set_progress_bar_config(disable=True)
        placed(self.pipeline, placement)
        self.modules = SharedModules(self.pipeline)
        if form == "compiled":
            for gate in self.modules.gates:
                if gate.stage is Stage.DENOISE:
                    gate.real = torch.compile(gate.real, backend="eager")
        self.bound = BOUND if form == "step cache" else 0.0
        self.shortages = 0
        observer = SilentImageObserver()
        observer.out_of_memory = self._short  # type: ignore[method-assign]
        self.engine = ImageEngine(
            EngineLimits(rows=8, queue=16), modules=self.modules, observer=observer
        )

    def _short(self) -> None:
        self.shortages += 1

    def gate(self, stage: Stage) -> Gate:
        return next(gate for gate in self.modules.gates if gate.stage is stage)

    def job(self, seed: int = 1, steps: int = 8, side: int = 32, **more: Any) -> PreparedRequest:
        arguments = {
            "prompt": "a cat",
            "num_inference_steps": steps,
            "guidance_scale": 5.0,
            "output_type": "pt",
            "width": side,
            "height": side,
        }
        deadline = time.monotonic() + more.pop("seconds", 60)
        job = PreparedRequest(
            self.pipeline, arguments, seed, 1, deadline, step_cache=self.bound, **more
        )
        return job

    def draw(self, job: PreparedRequest, watch: Callable[[Any, Event], None] | None = None) -> Any:
        """All events of one request; `watch` is called with its stream and each."""

        async def follow() -> list[Event]:
            stream, events = self.engine.submit(job), []
            async for event in stream:
                events.append(event)
                if watch:
                    watch(stream, event)
            return events

        return asyncio.run(follow())

    def lone(self, job: PreparedRequest) -> Any:
        """The picture of plain diffusers; with a step cache, that of an engine that never drew
        another."""
        if job.step_cache:
            fresh = House(self.folder, "resident", "step cache")
            drawn = fresh.picture(fresh.draw(fresh.job(job.seed, 8)))
            fresh.engine.close()
            return drawn
        generator = torch.Generator("cpu").manual_seed(job.seed)
        output = self.bare(**job.arguments | {"output_type": "np"}, generator=generator)
        return (output.images[0] * 255).round()

    folder: Path

    @staticmethod
    def picture(events: list[Event]) -> Any:
        (image,) = [event for event in events if isinstance(event, Image)]
        shape = (image.height, image.width, 3)
        return np.frombuffer(image.pixels, np.uint8).reshape(shape).astype(float)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    House.folder = stable_diffusion_1(tmp_path_factory.mktemp("tiny"))
    return House.folder


@pytest.fixture(scope="module", params=[(p, f) for p in PLACEMENTS for f in FORMS], ids=", ".join)
def house(request: pytest.FixtureRequest, folder: Path) -> Iterator[House]:
    made = House(folder, *request.param)
    made.draw(made.job())  # what is compiled is compiled here
    yield made
    made.engine.close()


def finished(house: House) -> None:
    assert isinstance(house.draw(house.job(3, side=48))[-1], Finished)


def cancelled(house: House) -> None:
    def leave(stream: Any, event: Event) -> None:
        if isinstance(event, Step) and event.index == 2:
            stream._on_cancel()

    _ended(house.draw(house.job(3, steps=140), leave), Cancelled)


def failed(house: House) -> None:
    job = house.job(3)
    width = house.pipeline.text_encoder.config.hidden_size
    job.arguments.update(prompt=None, prompt_embeds=torch.full((1, 77, width + 1), 0.5))
    _ended(house.draw(job), AtelierError)


def out_of_memory(house: House) -> None:
    gate, calls = house.gate(Stage.DENOISE), []
    real = gate.real

    def refuse(*args: Any, **kwargs: Any) -> Any:
        calls.append(1)
        if len(calls) == 4:
            raise torch.OutOfMemoryError("injected")
        return real(*args, **kwargs)

    gate.real = refuse
    _ended(house.draw(house.job(3, steps=12)), DeviceOutOfMemory)
    gate.real = real


def deadline(house: House) -> None:
    gate = house.gate(Stage.DENOISE)
    real, began = gate.real, time.monotonic()

    def slow(*args: Any, **kwargs: Any) -> Any:
        time.sleep(0.05)
        return real(*args, **kwargs)

    gate.real = slow
    _ended(house.draw(house.job(3, steps=400, seconds=0.5)), DeadlineExceeded)
    gate.real = real
    assert time.monotonic() - began < 5  # it did not draw to the end


def _ended(events: list[Event], kind: type[AtelierError]) -> None:
    last = events[-1]
    assert isinstance(last, Failed) and isinstance(last.error, kind), last
    error: BaseException | None = last.error
    assert error is not None
    assert error.__traceback__ is error.__context__ is error.__cause__ is None


ENDS = (finished, cancelled, failed, out_of_memory, deadline)


@pytest.mark.parametrize("end", ENDS, ids=lambda end: end.__name__)
def test_the_next_request_gets_its_lone_picture(house: House, end: Callable[[House], None]) -> None:
    end(house)
    job = house.job(7)
    events = house.draw(job)
    assert isinstance(events[-1], Finished)
    assert np.abs(house.picture(events) - house.lone(job)).max() <= 1
    for gate in house.modules.gates:
        assert getattr(gate.module, gate._method) is gate._gated


def test_memory_that_runs_out_between_two_calls_is_told_like_within_one(folder: Path) -> None:
    house = House(folder, "resident", "plain")
    scheduler = type(house.pipeline.scheduler).from_config(house.pipeline.scheduler.config)

    def refuse(*_: Any, **__: Any) -> Any:
        raise torch.OutOfMemoryError("injected")

    scheduler.step = refuse
    _ended(house.draw(house.job(scheduler=scheduler)), DeviceOutOfMemory)
    house.engine.close()
    assert house.shortages == 1


def test_the_end_of_a_request_holds_none_of_its_tensors(folder: Path) -> None:
    house = House(folder, "resident", "plain")
    held: list[weakref.ref[torch.Tensor]] = []
    gate = house.gate(Stage.DENOISE)

    def break_down(sample: torch.Tensor, *_: Any, **__: Any) -> Any:
        held.append(weakref.ref(sample))
        raise RuntimeError("injected")

    gate.real = break_down
    end = house.draw(house.job())[-1]
    house.engine.close()
    gc.collect()
    assert isinstance(end, Failed) and isinstance(end.error, GenerationFailed)
    assert held[0]() is None


def test_a_picture_s_encoding_is_gated(folder: Path) -> None:
    from diffusers import StableDiffusionImg2ImgPipeline
    from PIL import Image as PIL

    house = House(folder, "model offload", "plain")
    pipeline = StableDiffusionImg2ImgPipeline(
        **house.pipeline.components, requires_safety_checker=False
    )
    gate = next(gate for gate in house.modules.gates if gate._method == "encode")

    def refuse(*_: Any, **__: Any) -> Any:
        raise torch.OutOfMemoryError("injected")

    gate.real = refuse
    arguments = {"prompt": "a cat", "image": PIL.new("RGB", (32, 32)), "output_type": "pt"}
    job = PreparedRequest(pipeline, arguments, 1, 1, time.monotonic() + 60)
    _ended(house.draw(job), DeviceOutOfMemory)
    house.engine.close()
    assert house.shortages == 1
