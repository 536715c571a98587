"""However a controlled request ends, and whatever it had switched on, the next request gets the
picture that it would get alone."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from atelier.errors import GenerationFailed
from atelier.events import Event, Failed, Image, Step
from atelier.hardware.choice import OptimizationManager
from atelier.images.interception import Stage
from atelier.images.model import ImageModel
from atelier.images.request import ImageRequest
from atelier.protocols.control_pictures import with_control_pictures
from atelier.settings import load_settings
from tests.images.test_adapters import save_adapter
from tests.images.test_controls import FIELDS, entry
from tests.tiny_controls import control, ip_adapter, stable_diffusion_1, t2i_adapter

ON: dict[str, dict[str, Any]] = {
    "plain": {},
    "control": {"control": [entry("net", "slope")]},
    "two controls": {"control": [entry("net", "slope"), entry("other", "rows", end=0.5)]},
    "T2I-Adapter": {"control": [entry("lines", "slope")]},
    "image prompt": {"image_prompt": [entry("look", "rows")]},
    "control and image prompt": {
        "control": [entry("net", "slope")],
        "image_prompt": [entry("look", "rows", weight=0.5)],
    },
    "control, image prompt and LoRA": {
        "control": [entry("net", "slope")],
        "image_prompt": [entry("look", "rows")],
        "lora": {"ink": 0.5},
    },
    "control and weighted prompt": {
        "control": [entry("net", "slope")],
        "image_prompt": [entry("look", "slope")],
        "prompt": "a (cat:1.4)",
        "prompt_syntax": "weighted",
    },
    "control and step cache": {
        "control": [entry("net", "slope")],
        "step_cache": 0.5,
        "num_inference_steps": 8,
    },
}
NEXT = ("plain", "control and image prompt")
SMALL = {"width": 32, "height": 32, "num_inference_steps": 2, "seed": 7}


class Room:
    """One model and its pictures, drawn alone first."""

    def __init__(self, root: Path) -> None:
        checkpoint = stable_diffusion_1(root)
        controls = [control(checkpoint, root / "net", 1), control(checkpoint, root / "other", 2)]
        controls.append(t2i_adapter(root / "lines"))
        save_adapter(checkpoint, root / "loras", "ink.safetensors", 3)
        self.settings = load_settings(
            model_id=str(checkpoint),
            device="cpu",
            controlnets=",".join(map(str, controls)),
            ip_adapters=str(ip_adapter(checkpoint, root / "ip", "look.safetensors", 4)),
            lora_paths=str(root / "loras"),
        )
        self.model = self.loaded()
        self.alone = {name: asyncio.run(self.picture(name)) for name in ON}

    def loaded(self) -> ImageModel:
        model = ImageModel(self.settings)
        model.load()
        return model

    def request(self, name: str, **more: Any) -> ImageRequest:
        fields = with_control_pictures(FIELDS | SMALL | ON[name], "", self.settings)
        return ImageRequest.parse(fields | more, self.settings)

    async def picture(self, name: str, model: ImageModel | None = None) -> np.ndarray:
        stream = await (model or self.model).submit(self.request(name))
        events = [event async for event in stream]
        [image] = [event for event in events if isinstance(event, Image)]
        return np.frombuffer(image.pixels, np.uint8)

    async def after(self, name: str, ends: Callable[..., Any], following: str) -> np.ndarray:
        """What `following` looks like right after `name` has ended in this way."""
        await ends(self, name)
        return await self.picture(following)


@pytest.fixture(scope="module")
def room(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Room]:
    room = Room(tmp_path_factory.mktemp("endings"))
    yield room
    room.model.close()


async def finishes(room: Room, name: str) -> None:
    assert np.array_equal(await room.picture(name), room.alone[name])


async def is_cancelled(room: Room, name: str) -> None:
    """In the middle of its steps."""
    stream = await room.model.submit(room.request(name, num_inference_steps=40))
    seen: list[Event] = []
    async for event in stream:
        seen.append(event)
        if isinstance(event, Step):
            stream.cancel()
    assert isinstance(seen[-1], Step) and seen[-1].index < 5


async def runs_out_of_time(room: Room, name: str) -> None:
    stream = await room.model.submit(room.request(name, num_inference_steps=150, timeout=0.05))
    assert isinstance([event async for event in stream][-1], Failed)


async def fails(room: Room, name: str) -> None:
    """In the denoiser, at its second call."""
    engine = room.model._engine
    assert engine is not None and engine._modules is not None
    gate = next(one for one in engine._modules.gates if one.stage is Stage.DENOISE)
    real, calls = gate.real, []

    def failing(*args: Any, **kwargs: Any) -> Any:
        calls.append(time.monotonic())
        if len(calls) > 1:
            raise RuntimeError("a test's fault")
        return real(*args, **kwargs)

    gate.real = failing
    try:
        last = [event async for event in await room.model.submit(room.request(name))][-1]
    finally:
        gate.real = real
    assert isinstance(last, Failed) and isinstance(last.error, GenerationFailed)


@pytest.mark.parametrize("ends", [finishes, is_cancelled, runs_out_of_time, fails])
@pytest.mark.parametrize("on", ON)
def test_the_next_request_is_right(room: Room, on: str, ends: Callable[..., Any]) -> None:
    following = NEXT[len(on) % 2]
    assert np.array_equal(asyncio.run(room.after(on, ends, following)), room.alone[following])


def test_each_of_them_shows(room: Room) -> None:
    for name, picture in room.alone.items():
        for other, elsewhere in room.alone.items():
            assert name == other or not np.array_equal(picture, elsewhere), (name, other)


def test_controls_go_with_components_that_are_kept_in_ram(
    room: Room, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the plan places them where a device is short; here on the processor, with diffusers'
    hooks."""
    plan = OptimizationManager.plan
    monkeypatch.setattr(
        OptimizationManager,
        "plan",
        lambda *given: replace(plan(*given), placement="model_offload"),
    )
    model = room.loaded()
    try:
        for name in ("control and image prompt", "two controls", "plain", "T2I-Adapter"):
            assert np.array_equal(asyncio.run(room.picture(name, model)), room.alone[name]), name
    finally:
        model.close()
