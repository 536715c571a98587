"""What the notebooks share: a loaded pipeline with its plan, a server beside the notebook, grids
and plots."""

from __future__ import annotations

import base64
import io
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
from PIL import Image

from atelier.settings import load_settings
from atelier_training.dreambooth.journal import Journal

START_SECONDS = 600


def load_with_plan(model: str) -> tuple[Any, str]:
    """The pipeline of `model`, placed as the memory plan says, and the plan as a table."""
    from atelier.hardware.choice import OptimizationManager
    from atelier.hardware.machine import DeviceManager
    from atelier.images.loader import PipelineLoader
    from atelier.sources import fetch
    from atelier.sources.checkpoint.folder import inspect
    from atelier_training.dreambooth.journal import quiet_libraries

    settings = load_settings(model_id=model)
    checkpoint = inspect(fetch(settings))
    plan = OptimizationManager(DeviceManager(settings).select(), settings).plan(checkpoint)
    with quiet_libraries():
        return PipelineLoader(checkpoint, plan, settings).load(), plan.table()


@contextmanager
def serving(model: str, **settings: str) -> Iterator[str]:
    """`atelier serve` on a free port of this machine for as long as the block runs; its address.

    Raises:
        RuntimeError: it did not become ready; the message has the end of its log.
    """
    port, grpc_port = _free_port(), _free_port()
    command = [
        sys.executable,
        "-m",
        "atelier",
        "serve",
        f"--http_port={port}",
        f"--grpc_port={grpc_port}",
    ]
    environment = os.environ | {"MODEL_ID": model, "MODEL_NAME": "model"} | settings
    environment["PYTHONPATH"] = os.pathsep.join(path for path in sys.path if path)
    with tempfile.TemporaryFile("w+") as log:
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
        try:
            _wait_ready(f"http://127.0.0.1:{port}", process, log)
            yield f"http://127.0.0.1:{port}"
        finally:
            process.terminate()
            process.wait(60)


def _wait_ready(url: str, process: subprocess.Popen[bytes], log: Any) -> None:
    ends = time.monotonic() + START_SECONDS
    while process.poll() is None and time.monotonic() < ends:
        try:
            if httpx.get(f"{url}/v2/models/model/ready", timeout=5).status_code == 200:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.2)
    log.seek(0)
    raise RuntimeError(f"the server did not become ready:\n{log.read()[-3000:]}")


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def decode(encoded: str | bytes) -> Image.Image:
    """A picture from base64 text, or from the bytes of a file."""
    data = base64.b64decode(encoded) if isinstance(encoded, str) else encoded
    return Image.open(io.BytesIO(data)).convert("RGB")


def grid(
    pictures: Sequence[Image.Image], columns: int, titles: Sequence[str] = (), width: float = 2.0
) -> Any:
    """Pictures side by side as a figure, `width` inches each, with titles above."""
    import matplotlib.pyplot as plt

    rows = -(-len(pictures) // columns)
    figure, axes = plt.subplots(
        rows, columns, figsize=(columns * width, rows * (width + 0.35)), squeeze=False
    )
    for axis in axes.flat:
        axis.axis("off")
    for index, picture in enumerate(pictures):
        axes.flat[index].imshow(picture)
        if titles:
            axes.flat[index].set_title(titles[index], fontsize=8)
    figure.tight_layout()
    plt.close(figure)
    return figure


def loss_plot(output: Path) -> Any:
    """The loss of the training in `output` over its steps."""
    import matplotlib.pyplot as plt

    rows = Journal.read(output)
    figure, axis = plt.subplots(figsize=(7, 3))
    axis.plot(
        [int(row["step"]) for row in rows], [float(row["loss"]) for row in rows], label="loss"
    )
    checked = [
        (int(row["step"]), float(row["validation_loss"])) for row in rows if row["validation_loss"]
    ]
    if checked:
        axis.plot(*zip(*checked, strict=True), label="validation loss")
    axis.set_xlabel("step")
    axis.legend()
    plt.close(figure)
    return figure
