"""A group of two processes that hold half of the weights each, over gloo: pictures equal those of
one process with all of them, whatever is drawn."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from atelier.errors import GenerationFailed, SettingsError
from atelier.events import Event, Finished, Image, Preview
from atelier.hardware import account
from atelier.images.image_prompts import _check_plan
from atelier.images.request import ImageRequest
from atelier.images.shards import ShardedModule
from atelier.settings import Settings
from tests.gallery import Exhibit, Pixels, difference, showing
from tests.groups import group_of
from tests.images.test_controls import entry
from tests.processes import CONTEXT
from tests.tiny_classics import perturbed_attention
from tests.tiny_controls import CHECKPOINTS, control
from tests.tiny_pipelines import flux_1, stable_diffusion_3, stable_diffusion_xl

REQUESTS = [
    {"prompt": "a red cup", "seed": 3, "num_inference_steps": 5, "width": 64, "height": 64},
    {"prompt": "a big cup", "seed": 4, "num_inference_steps": 4, "width": 64, "height": 64},
    {"prompt": "a tall green tree", "seed": 5, "num_inference_steps": 3, "width": 64, "height": 96},
]
LONG = REQUESTS[0] | {"num_inference_steps": 12, "step_cache": 0.2, "previews": 2}


@contextmanager
def in_a_group(checkpoint: Path, **settings: Any) -> Iterator[Exhibit]:
    """What two ranks draw together."""
    given = {"sequence_parallel_size": 2, "omp_num_threads": 1, "dtype": "float32", **settings}
    chosen = Settings(model_id=str(checkpoint), device="cpu", **given)
    try:
        with group_of(CONTEXT, chosen) as group, showing(checkpoint, group, **given) as shown:
            yield shown
    finally:
        dist.destroy_process_group()


in_shares = partial(in_a_group, shard_weights="true")


def draw_all(shown: Exhibit) -> list[Pixels]:
    """Each alone, then all at once."""
    return [shown.draw(one)[0] for one in REQUESTS] + shown.draw(*REQUESTS)


def sharded(shown: Exhibit) -> dict[str, ShardedModule]:
    """Those of the first rank."""
    group = shown.model._group
    assert group is not None
    calls: dict[str, Any] = {name: joint._real for name, joint in group.joint.items()}
    return {name: call.__self__ for name, call in calls.items()}


def events_of(shown: Exhibit, fields: dict[str, Any]) -> list[Event]:
    async def all_of_them() -> list[Event]:
        request = ImageRequest.parse(fields, shown.model._settings)
        return [event async for event in await shown.model.submit(request)]

    return asyncio.run(all_of_them())


@pytest.mark.parametrize("family", [flux_1, stable_diffusion_3, stable_diffusion_xl])
def test_two_halves_draw_what_a_whole_draws(
    family: Callable[[Path], Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    checkpoint = family(tmp_path)
    with showing(checkpoint) as plain:
        expected = draw_all(plain)
        whole = {
            name: sum(one.nbytes for one in getattr(plain.model._family.base, name).parameters())
            for name in ("transformer", "unet")
            if hasattr(plain.model._family.base, name)
        }
        long = events_of(plain, LONG)
    caplog.set_level("INFO")
    with in_shares(checkpoint) as shown:
        pictures = draw_all(shown)
        assert sharded(shown).keys() == whole.keys() == set(shown.model._plan.sharded)
        for name, one in sharded(shown).items():
            assert 0.5 * whole[name] < one.bytes < 0.6 * whole[name]
        told = events_of(shown, LONG)
    for picture, one in zip(pictures, expected, strict=True):
        assert difference(picture, one) <= 1
    assert "shared by 2 ranks" in caplog.text
    assert "CUDA graphs are off" in caplog.text
    assert pixels_of(told) == pytest.approx(pixels_of(long), abs=1)
    assert [one.step for one in told if isinstance(one, Preview)] == [4, 8]
    [last] = [one for one in told if isinstance(one, Finished)]
    assert last.steps_run is not None and last.steps_run < 12


def pixels_of(events: list[Event]) -> list[int]:
    [picture] = [one for one in events if isinstance(one, Image)]
    return list(picture.pixels)


@pytest.mark.parametrize("family", ["sd15", "flux"])
def test_a_control_draws_with_halves_what_it_draws_with_a_whole(
    family: str, tmp_path: Path
) -> None:
    checkpoint = CHECKPOINTS[family](tmp_path)
    named = [str(control(checkpoint, tmp_path / "lines", 1))]
    wanted = [
        {"prompt": "a cat", "num_inference_steps": 3, "seed": seed, "width": 32, "height": 32}
        | {"control": entry("lines", "slope", weight=weight)}
        for seed, weight in ((3, 1.0), (4, 0.5))
    ]
    with showing(checkpoint, controlnets=named) as plain:
        expected = [plain.draw(one)[0] for one in wanted]
        assert difference(expected[0], plain.draw(wanted[0] | {"control": None})[0]) > 3
    with in_shares(checkpoint, controlnets=named) as shown:
        pictures = shown.draw(*wanted)
    for picture, one in zip(pictures, expected, strict=True):
        assert difference(picture, one) <= 1


def test_a_pipeline_that_exchanges_processors_draws_the_same(tmp_path: Path) -> None:
    checkpoint = perturbed_attention(tmp_path)
    with showing(checkpoint) as plain:
        expected = plain.draw(*REQUESTS)
    with in_shares(checkpoint) as shown:
        pictures = shown.draw(*REQUESTS)
    for picture, one in zip(pictures, expected, strict=True):
        assert difference(picture, one) <= 1


def test_large_text_encoders_are_in_shares_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = flux_1(tmp_path)
    with showing(checkpoint) as plain:
        expected = draw_all(plain)
    monkeypatch.setattr(account, "LARGE_ENCODER", 1000)
    with in_shares(checkpoint) as shown:
        assert set(sharded(shown)) == {"transformer", "text_encoder", "text_encoder_2"}
        pictures = draw_all(shown)
    for picture, one in zip(pictures, expected, strict=True):
        assert difference(picture, one) <= 1


def test_what_sharded_modules_cannot_do_is_said(tmp_path: Path) -> None:
    checkpoint = flux_1(tmp_path)
    with in_shares(checkpoint, warmup="off") as shown:
        [gate] = [one for one in shown.model._modules.gates if one.name == "transformer"]
        with pytest.raises(GenerationFailed, match="serve this with SHARD_WEIGHTS=false"):
            gate.real(torch.zeros(1, 16, 16), joint_attention_kwargs={"cache": object()})
        with pytest.raises(SettingsError, match="IP_ADAPTERS with sharded weights"):
            _check_plan(shown.model._plan)
        assert shown.draw(REQUESTS[0])  # nobody waits for anybody
