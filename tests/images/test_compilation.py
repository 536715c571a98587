"""Compiled once: sizes, row counts and numbers of steps that come later compile nothing. The
graphs are captured as for a GPU and run eagerly, since what is counted is the capture."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.gallery import showing
from tests.tiny_pipelines import stable_diffusion_1, stable_diffusion_3

SIZES = ((64, 64), (96, 64), (64, 128), (32, 96), (128, 128))


@pytest.fixture
def capture(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """`Module.compile` without a code generator."""
    real = torch.nn.Module.compile

    def compile_eagerly(module: torch.nn.Module, **options: Any) -> None:
        real(module, backend="eager", **options)

    monkeypatch.setattr(torch.nn.Module, "compile", compile_eagerly)
    torch._dynamo.reset()
    yield
    torch.compiler.set_stance("default")
    torch._dynamo.reset()


@pytest.mark.parametrize("family", [stable_diffusion_1, stable_diffusion_3])
def test_sizes_and_row_counts_that_come_later_compile_nothing(
    family: Callable[[Path], Path], tmp_path: Path, capture: None
) -> None:
    folder = family(tmp_path)
    requests = [
        {"prompt": "a", "seed": seed, "width": w, "height": h, "num_inference_steps": 2 + seed % 3}
        for seed, (w, h) in enumerate(SIZES)
    ]
    with showing(folder, warmup="off", compile="off") as plain:
        expected = [plain.draw(one)[0] for one in requests]
    counter = torch._dynamo.utils.counters["stats"]
    counter.clear()
    with showing(folder, compile="regional", warmup="auto") as compiled:
        captured = counter["unique_graphs"]
        assert captured > 0
        for picture, one in zip(expected, requests, strict=True):
            assert np.abs(compiled.draw(one)[0].astype(int) - picture.astype(int)).max() <= 1
        for count in (2, 3, 5):
            compiled.draw(*requests[:count])
        assert counter["unique_graphs"] == captured
