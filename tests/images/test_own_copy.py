"""A request's own copy of a pipeline."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from diffusers import DiffusionPipeline
from diffusers.hooks import group_offloading

from atelier.images.own_copy import own_copy
from tests.tiny_pipelines import FAMILIES


def test_copies_do_not_look_at_every_module_for_their_device(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipeline: Any = DiffusionPipeline.from_pretrained(FAMILIES["sd3"](tmp_path))
    device = pipeline.device
    looks: list[Any] = []
    real = group_offloading._get_group_onload_device

    def look(module: Any) -> Any:
        looks.append(module)
        return real(module)

    monkeypatch.setattr(group_offloading, "_get_group_onload_device", look)
    own_copy(pipeline, None, lambda *told: None)
    first = len(looks)
    assert first > 0
    own = own_copy(pipeline, None, lambda *told: None)
    assert own._execution_device == device
    assert len(looks) == first
    assert isinstance(own, type(pipeline))
    assert type(own).__qualname__ == type(pipeline).__qualname__
