"""Controlled pictures on a GPU: from recorded calls, stacked, between plain ones, they are those
that plain calls draw one by one."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
if not torch.cuda.is_available():
    pytest.skip("no CUDA device here", allow_module_level=True)

from atelier.images.model import ImageModel  # noqa: E402
from tests.gpu.test_images import apart, draw, settings  # noqa: E402
from tests.images.test_controls import drawn  # noqa: E402
from tests.tiny_controls import CHECKPOINTS, control, ip_adapter, t2i_adapter  # noqa: E402

PROMPTED = ("sd15", "sdxl", "flux")
ADAPTED = ("sd15", "sdxl")


def entry(name: str, kind: str, **more: Any) -> dict[str, Any]:
    out = io.BytesIO()
    drawn(kind, 64).save(out, "PNG")
    return {"name": name, "image": out.getvalue(), **more}


def requests_of(family: str) -> list[dict[str, Any]]:
    wanted: list[dict[str, Any]] = [
        {},
        {"control": [entry("net", "slope", weight=0.7)]},
        {"control": [entry("net", "rows", end=0.5)]},
    ]
    if family in PROMPTED:
        wanted.append({"image_prompt": [entry("look", "rows", weight=0.5)]})
        wanted.append(wanted[1] | wanted[-1])
    if family in ADAPTED:
        wanted.append({"control": [entry("lines", "slope", weight=0.5)]})
    size = {"width": 64, "height": 64}
    return [one | size | {"seed": seed} for seed, one in enumerate(wanted)]


@pytest.mark.parametrize("family", ["sd15", "sdxl", "sd3", "flux"])
def test_controlled_pictures_from_graphs_equal_plain_ones(family: str, tmp_path: Path) -> None:
    checkpoint = CHECKPOINTS[family](tmp_path)
    beside = {"controlnets": str(control(checkpoint, tmp_path / "net", 1))}
    if family in ADAPTED:
        beside["controlnets"] += f",{t2i_adapter(tmp_path / 'lines', large=family == 'sdxl')}"
    if family in PROMPTED:
        file = ip_adapter(checkpoint, tmp_path / "ip", "look.safetensors", 2)
        beside["ip_adapters"] = str(file)
    wanted = requests_of(family)
    plain = ImageModel(settings(checkpoint, enable_cuda_graphs="false", **beside))
    plain.load()
    lone = [draw(plain, one)[0] for one in wanted]
    plain.close()
    model = ImageModel(settings(checkpoint, **beside))
    model.load()
    try:
        for _ in range(3):  # plain, recorded, replayed
            for expected, one in zip(lone, wanted, strict=True):
                assert apart(draw(model, one)[0], expected) <= 1
        for expected, picture in zip(lone, draw(model, *wanted), strict=True):
            assert apart(picture, expected) <= 1
        assert model._engine is not None and len(model._engine._graphs or ()) > 0
    finally:
        model.close()
