"""Two GPUs that draw each picture together over NCCL, with graphs and without, compiled and not,
with adapters, and with half of the weights on each: what one of them draws. `make test-gpu` runs
this; with `TEST_DEVICE=cpu` the bodies run over gloo."""

from __future__ import annotations

import asyncio
import logging
import multiprocessing
import os
import re
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
DEVICE = os.environ.get("TEST_DEVICE", "cuda")
if DEVICE == "cuda" and torch.cuda.device_count() < 2:
    pytest.skip(f"{torch.cuda.device_count()} CUDA devices here", allow_module_level=True)

from atelier.images.model import ImageModel  # noqa: E402
from atelier.settings import Settings  # noqa: E402
from atelier.workers.handle import CONTEXT  # noqa: E402
from tests.gpu.drawing import Pictures, draw_together  # noqa: E402
from tests.groups import group_of  # noqa: E402
from tests.images.test_adapters import save_adapter  # noqa: E402
from tests.tiny_pipelines import FAMILIES  # noqa: E402

os.environ.setdefault("NCCL_NVLS_ENABLE", "0")  # multicast can put shared hosts out of service
PATIENCE_S = 300
REQUESTS = [
    {"prompt": "a red cup", "seed": 3, "num_inference_steps": 6, "width": 64, "height": 64},
    {"prompt": "a big cup", "seed": 4, "num_inference_steps": 5, "width": 64, "height": 64},
    {"prompt": "a green tree", "seed": 5, "num_inference_steps": 4, "width": 64, "height": 96},
]


def settings_for(folder: Path, **changes: Any) -> Settings:
    given = {"model_id": str(folder), "device": DEVICE, "dtype": "float32", "compile": "off"}
    return Settings(**(given | {"cache_dir": folder.parent / "cache"} | changes))


def draw_all(model: ImageModel) -> Pictures:
    """Each alone, then all at once; with each adapter, if there are some."""
    names: list[dict[str, float]] = [{name: 1.0} for name in model._conditioners.adapters.names]
    wanted = [one | {"lora": lora} for lora in [{}, *names, {}] for one in REQUESTS]
    lone = [asyncio.run(draw_together(model, [one]))[0] for one in wanted]
    return lone + asyncio.run(draw_together(model, wanted))


def by_one(settings: Settings) -> Pictures:
    model = ImageModel(settings)
    model.load()
    try:
        return draw_all(model)
    finally:
        model.close()


Alone = Callable[[str], tuple[Path, Pictures]]


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Alone:
    """By family: a checkpoint, and what one device draws with it."""

    @cache
    def of(family: str) -> tuple[Path, Pictures]:
        folder = FAMILIES[family](tmp_path_factory.mktemp(family))
        return folder, by_one(settings_for(folder))

    return of


ByTwo = tuple[Pictures, str, int]
"""The pictures, what was said of shared and recorded calls, and how many are recorded."""


def by_two(settings: Settings) -> ByTwo:
    """In a process of its own: NCCL lives as long as that."""
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    process = context.Process(target=_answer, args=(there, settings))
    process.start()
    there.close()
    try:
        assert here.poll(PATIENCE_S), f"no pictures after {PATIENCE_S} s: do the ranks wait?"
        drawn: ByTwo = here.recv()
        return drawn
    finally:
        process.kill()
        process.join()


def _answer(connection: Any, settings: Settings) -> None:
    connection.send(_by_two(settings))
    os._exit(0)


def _by_two(settings: Settings) -> ByTwo:
    said: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: said.append(record.getMessage())  # type: ignore[method-assign]
    logging.getLogger("atelier.images").addHandler(handler)
    logging.getLogger("atelier.images").setLevel(logging.INFO)
    with group_of(CONTEXT, settings, _end) as group:
        model = ImageModel(settings, group=group)
        model.load()
        pictures = draw_all(model)
        assert model._engine is not None
        recorded = len(model._engine._graphs) if model._engine._graphs is not None else 0
    return pictures, "\n".join(said), recorded


def _end(reason: str) -> None:
    """A rank is gone: this one may wait for it in a collective."""
    print(reason, flush=True)
    os._exit(1)


@pytest.mark.parametrize("compiled", ["off", "regional"])
@pytest.mark.parametrize("graphs", ["auto", "false"], ids=["graphs", "plain"])
@pytest.mark.parametrize(
    ("family", "ways"), [("flux", {"rows", "sequence"}), ("sd3", {"rows"}), ("sdxl", {"rows"})]
)
def test_two_devices_draw_what_one_draws(
    family: str, ways: set[str], graphs: str, compiled: str, alone: Alone
) -> None:
    folder, expected = alone(family)
    own = {"enable_cuda_graphs": graphs, "compile": compiled}
    shared = settings_for(folder, sequence_parallel_size=2, data_parallel_size=1, **own)
    pictures, said, recorded = by_two(shared)
    assert set(re.findall(r"by (\w+): shared", said)) == ways, said
    assert (recorded > 0) == (graphs == "auto" and DEVICE == "cuda"), said
    assert far_apart(pictures, expected) <= 1


def far_apart(pictures: Pictures, others: Pictures) -> int:
    pairs = zip(pictures, others, strict=True)
    return max(int(np.abs(one.astype(int) - other.astype(int)).max()) for one, other in pairs)


@pytest.mark.parametrize("family", ["flux", "sd3", "sdxl"])
def test_two_devices_with_half_of_the_weights_each_draw_what_one_draws(
    family: str, alone: Alone
) -> None:
    folder, expected = alone(family)
    halves = settings_for(
        folder, sequence_parallel_size=2, data_parallel_size=1, shard_weights="true"
    )
    pictures, said, recorded = by_two(halves)
    assert "CUDA graphs are off" in said
    assert "shared by 2 ranks" in said
    assert recorded == 0
    assert far_apart(pictures, expected) <= 1


@pytest.mark.parametrize("shares", ["false", "true"], ids=["whole", "halves"])
def test_two_devices_draw_with_adapters_what_one_draws(shares: str, tmp_path: Path) -> None:
    folder = FAMILIES["sd15"](tmp_path)
    for seed, name in enumerate(("ink", "oil")):
        save_adapter(folder, tmp_path / "loras", f"{name}.safetensors", seed)
    own = {"lora_paths": [str(tmp_path / "loras")]}
    expected = by_one(settings_for(folder, **own))
    both = {"sequence_parallel_size": 2, "data_parallel_size": 1, "shard_weights": shares}
    pictures, said, _ = by_two(settings_for(folder, **own, **both))
    assert "not shared" not in said
    assert far_apart(pictures, expected) <= 1
