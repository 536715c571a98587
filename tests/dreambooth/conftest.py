"""Checkpoints, pictures and options that the tests of this folder share."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import boto3
import httpx
import numpy as np
import pytest
from moto.server import ThreadedMotoServer
from PIL import Image

from atelier_training.dreambooth.options import TrainOptions
from tests.conftest import ROOT, free_port
from tests.tiny_pipelines import FAMILIES


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The tiny checkpoint of a family, made once."""
    root = tmp_path_factory.mktemp("checkpoints")
    made: dict[str, Path] = {}
    return lambda family: made.setdefault(family, made.get(family) or FAMILIES[family](root))


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Five pictures of several shapes."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    for index in range(5):
        pixels = np.random.default_rng(index).integers(
            0, 255, (64, 64 + 24 * (index % 2), 3), dtype=np.uint8
        )
        Image.fromarray(pixels).save(folder / f"thing {index}.png")
    return folder


@pytest.fixture
def options(
    checkpoint: Callable[[str], Path], pictures: Path, tmp_path: Path
) -> Callable[..., TrainOptions]:
    """Options of a short run on the tiny SD3; keyword arguments change them."""

    def build(family: str = "sd3", **changes: Any) -> TrainOptions:
        values: dict[str, Any] = {
            "data": pictures,
            "output": tmp_path / "output",
            "instance_prompt": "a zqx ring",
            "resolution": 64,
            "steps": 3,
            "device": "cpu",
        }
        return TrainOptions.parse(
            model=changes.pop("model", None) or checkpoint(family), **(values | changes)
        )

    return build


@pytest.fixture
def s3_server() -> Iterator[ThreadedMotoServer]:
    server = ThreadedMotoServer("127.0.0.1", free_port(), verbose=False)
    server.start()
    yield server
    server.stop()


@pytest.fixture
def s3(s3_server: ThreadedMotoServer, monkeypatch: pytest.MonkeyPatch) -> str:
    """An empty store with the bucket `atelier`, as the environment announces it; its address."""
    host, port = s3_server.get_host_and_port()
    address = f"http://{host}:{port}"
    values = {"ENDPOINT": address, "BUCKET": "atelier"}
    for name, value in values.items():
        monkeypatch.setenv(f"AWS_S3_{name}", value)
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "local")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    httpx.post(f"{address}/moto-api/reset")
    boto3.client("s3", endpoint_url=address).create_bucket(Bucket="atelier")
    return address


@pytest.fixture(scope="session")
def kfp_python() -> str:
    """The interpreter of the pipelines' environment, which `make kfp` makes."""
    python = ROOT / ".engines" / "kfp" / "bin" / "python"
    if not python.exists():
        subprocess.run(
            [
                ROOT / "pipelines" / "atelier_training" / "environment.sh",
                python.parents[1],
                sys.executable,
            ],
            check=True,
        )
    return str(python)
