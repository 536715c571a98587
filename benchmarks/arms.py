"""What benchmarks compare: a server in a process of its own, and the bare pipeline."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import httpx


@contextmanager
def server_process(
    program: str = "atelier",
    log: Path | None = None,
    patience_s: float = 120,
    **environment: str,
) -> Iterator[str]:
    """A server in a process of its own under the name `model`; its base URL.

    Args:
        program: the module that is run.
        log: where its log goes; unset: this process's standard error.
        patience_s: how long it may take to be ready.
    """
    with socket.socket() as http, socket.socket() as grpc:
        http.bind(("127.0.0.1", 0))
        grpc.bind(("127.0.0.1", 0))
        ports = http.getsockname()[1], grpc.getsockname()[1]
    given = {name.upper(): value for name, value in environment.items()}
    settings = {"OMP_NUM_THREADS": "1", "MODEL_NAME": "model", "LOG_LEVEL": "warning"} | given
    command = [
        sys.executable,
        "-m",
        program,
        "serve",
        f"--http_port={ports[0]}",
        f"--grpc_port={ports[1]}",
    ]
    with ExitStack() as files:
        errors = files.enter_context(log.open("wb")) if log else None
        process = subprocess.Popen(
            command, env=os.environ | settings, stdout=subprocess.DEVNULL, stderr=errors
        )
    url = f"http://127.0.0.1:{ports[0]}"
    ends = time.monotonic() + patience_s
    try:
        while time.monotonic() < ends:
            if process.poll() is not None:
                sys.exit(f"the server ended with code {process.returncode}")
            try:
                if httpx.get(f"{url}/health", timeout=5).status_code == 200:
                    break
            except httpx.TransportError:
                pass
            time.sleep(0.1)
        else:
            raise TimeoutError(f"the server was not ready within {patience_s:.0f} s")
        yield url
    finally:
        process.terminate()
        if code := process.wait(60):
            sys.exit(f"the server ended with code {code}")


PROMPT = "a red circle on a blue background"


def bare_pipeline(model: str) -> Any:
    import torch
    from diffusers import DiffusionPipeline

    from atelier.settings import load_settings
    from atelier.sources import fetch

    torch.set_num_threads(1)
    pipeline = DiffusionPipeline.from_pretrained(fetch(load_settings(model_id=model)))
    pipeline.set_progress_bar_config(disable=True)

    def draw(steps: int, seed: int) -> None:
        generator = torch.Generator("cpu").manual_seed(seed)
        pipeline(PROMPT, num_inference_steps=steps, guidance_scale=5.0, generator=generator)

    return draw
