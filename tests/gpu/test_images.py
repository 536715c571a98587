"""What only CUDA takes in the picture engine: graphs, dynamic compile, fp8; against plain calls on
the same GPU, on small models with random weights. `make test-gpu` runs this."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
if not torch.cuda.is_available():
    pytest.skip("no CUDA device here", allow_module_level=True)

from atelier.events import Failed, Finished, Step  # noqa: E402
from atelier.images import compilation  # noqa: E402
from atelier.images.fp8 import Fp8Linear, quantize_linears  # noqa: E402
from atelier.images.model import ImageModel  # noqa: E402
from atelier.images.request import ImageRequest  # noqa: E402
from atelier.settings import Settings  # noqa: E402
from tests.gpu.drawing import draw_together  # noqa: E402
from tests.images.test_adapters import save_adapter  # noqa: E402
from tests.tiny_pipelines import FAMILIES  # noqa: E402

SIZES = [(64, 64), (96, 64), (64, 128), (128, 96), (64, 64), (128, 128)]


def settings(folder: Path, **changes: Any) -> Settings:
    given = {"model_id": str(folder), "device": "cuda", "dtype": "float32"}
    return Settings(**(given | {"compile": "off", "warmup": "auto"} | changes))


def draw(model: ImageModel, *requests: dict[str, Any]) -> list[np.ndarray[Any, Any]]:
    wanted = [{"prompt": "a cup", "num_inference_steps": 4} | one for one in requests]
    return asyncio.run(draw_together(model, wanted))


def apart(one: np.ndarray[Any, Any], other: np.ndarray[Any, Any]) -> int:
    return int(np.abs(one.astype(int) - other.astype(int)).max())


@pytest.fixture(params=["sd15", "sdxl", "sd3"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    made: Path = FAMILIES[request.param](tmp_path)
    return made


@pytest.fixture
def stance() -> Iterator[None]:
    yield
    torch.compiler.set_stance("default")
    torch._dynamo.reset()


def test_pictures_from_graphs_equal_plain_ones(folder: Path) -> None:
    wanted = [
        {"seed": seed, "width": w, "height": h, "num_inference_steps": 4 + seed % 3}
        for seed, (w, h) in enumerate(SIZES)
    ]
    plain = ImageModel(settings(folder, enable_cuda_graphs="false"))
    plain.load()
    lone = [draw(plain, one)[0] for one in wanted]
    plain.close()
    recorded = ImageModel(settings(folder))
    recorded.load()
    try:
        assert recorded._engine is not None and recorded._engine._graphs is not None
        for expected, one in zip(lone, wanted, strict=True):
            assert apart(draw(recorded, one)[0], expected) <= 1
        assert len(recorded._engine._graphs) > 0
        for expected, picture in zip(lone, draw(recorded, *wanted), strict=True):
            assert apart(picture, expected) <= 1
    finally:
        recorded.close()


def test_an_adapter_that_was_dropped_meanwhile_is_recorded_anew(tmp_path: Path) -> None:
    folder = FAMILIES["sd15"](tmp_path)
    for seed, name in enumerate(("ink", "oil")):
        save_adapter(folder, tmp_path / "loras", f"{name}.safetensors", seed)
    own = {"lora_paths": [str(tmp_path / "loras")]}
    wanted = [
        {"lora": {name: 1.0}, "seed": 1, "width": 64, "height": 64} for name in ("ink", "oil")
    ]
    plain = ImageModel(settings(folder, enable_cuda_graphs="false", **own))
    plain.load()
    lone = [draw(plain, one)[0] for one in wanted]
    plain.close()
    assert apart(*lone) > 1
    model = ImageModel(settings(folder, max_loras=1, **own))
    model.load()
    try:
        for expected, one in [*zip(lone, wanted, strict=True)] * 3:
            for _ in range(3):  # plain, recorded, replayed
                assert apart(draw(model, one)[0], expected) <= 1
    finally:
        model.close()


def test_new_sizes_and_row_counts_compile_nothing(folder: Path, stance: None) -> None:
    model = ImageModel(settings(folder, compile="regional"))
    model.load()
    try:
        counter = torch._dynamo.utils.counters["stats"]
        before = counter["unique_graphs"]
        for count, (width, height) in enumerate(SIZES, start=1):
            wanted = [{"seed": s, "width": width, "height": height} for s in range(count)]
            assert len(draw(model, *wanted)) == count
        assert counter["unique_graphs"] == before
    finally:
        model.close()


def test_no_size_stalls_the_others(folder: Path, stance: None) -> None:
    """While sizes never seen come in, no step of a running request takes long."""
    model = ImageModel(settings(folder, compile="regional"))
    model.load()

    async def follow() -> list[float]:
        long = ImageRequest(prompt="a long one", num_inference_steps=60, seed=1)
        stream = await model.submit(long)
        others = [
            await model.submit(
                ImageRequest(prompt="another", num_inference_steps=3, width=w, height=h, seed=2)
            )
            for w, h in ((80, 112), (112, 80), (96, 112))
        ]
        gaps, last = [], time.monotonic()
        async for event in stream:
            assert not isinstance(event, Failed), event.error
            if isinstance(event, Step):
                gaps.append(time.monotonic() - last)
                last = time.monotonic()
        for other in others:
            assert [event async for event in other if isinstance(event, Finished)]
        return gaps

    try:
        gaps = asyncio.run(follow())
        assert max(gaps) < 3, f"a step took {max(gaps):.1f} s"
    finally:
        model.close()


def test_what_the_device_took_is_told_without_further_work(tmp_path: Path) -> None:
    told: list[float] = []
    model = ImageModel(settings(FAMILIES["sd15"](tmp_path)))
    model.load()
    try:
        assert model._engine is not None
        model._engine._observer.call = lambda stage, seconds, *_: told.append(seconds)  # type: ignore[method-assign]
        draw(model, {"num_inference_steps": 4})
        ends = time.monotonic() + 10
        while model._engine._stopwatch.due_s is not None:
            assert time.monotonic() < ends
            time.sleep(0.01)
    finally:
        model.close()
    assert len(told) >= 5
    assert min(told) > 0


def test_fp8_layers_on_the_card_equal_their_emulation() -> None:
    torch.manual_seed(0)
    linear = torch.nn.Linear(2048, 1536).to(torch.bfloat16)
    values = torch.randn(3, 77, 2048, dtype=torch.bfloat16)
    native = Fp8Linear(linear, "cuda")(values.cuda()).cpu().float()
    emulated = Fp8Linear(linear, "cpu")(values).float()
    plain = linear(values).float()
    assert float((native - emulated).norm() / emulated.norm()) < 0.01
    assert float((native - plain).norm() / plain.norm()) < 0.05


def test_fp8_blocks_compile_and_replay(stance: None) -> None:
    class Block(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.up, self.down = torch.nn.Linear(1024, 2048), torch.nn.Linear(2048, 1024)

        def forward(self, x: Any) -> Any:
            return x + self.down(torch.nn.functional.gelu(self.up(x)))

    class Model(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.blocks = torch.nn.ModuleList([Block() for _ in range(2)])

        def forward(self, x: Any) -> Any:
            for block in self.blocks:
                x = block(x)
            return (x,)

    torch.manual_seed(0)
    model = Model().to(torch.bfloat16).cuda().eval()
    with torch.no_grad():
        x = torch.randn(2, 64, 1024, device="cuda", dtype=torch.bfloat16)
        plain = model(x)[0].float()
        assert quantize_linears(model, "cuda") == 4
        for block in compilation._repeated_blocks(model):
            block.compile(dynamic=True)
        for rows in (2, 3, 5):
            wide = x[:1].repeat(rows, 1, 1)
            assert torch.allclose(model(wide)[0][0], model(wide)[0][-1])
        error = float((model(x)[0].float() - plain).norm() / plain.norm())
    assert error < 0.05
