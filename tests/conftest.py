"""Real servers for tests: `python -m atelier serve` in a process of its own, on free ports, stopped with SIGTERM."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

START_SECONDS = 120
STOP_SECONDS = 60
ROOT = Path(__file__).parent.parent


@dataclass(frozen=True)
class Server:
    """A running server. `url` is its base URL, `grpc` host:port, `model` the served name, `log` its output so far."""

    url: str
    grpc: str
    model: str
    log: Path
    process: subprocess.Popen[bytes]

    def stop(self) -> int:
        """SIGTERM, as a cluster sends it; the exit code."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(STOP_SECONDS)

    def wait_ready(self) -> None:
        """Poll the readiness probe.

        Raises:
            AssertionError: the process ended or did not become ready; the message has the end of its output.
        """
        ends = time.monotonic() + START_SECONDS
        while time.monotonic() < ends and self.process.poll() is None:
            try:
                if httpx.get(f"{self.url}/v2/models/{self.model}/ready", timeout=5).status_code == 200:
                    return
            except httpx.TransportError:
                pass
            time.sleep(0.1)
        raise AssertionError(f"not ready (exit code {self.process.poll()}):\n{self.log.read_text()[-4000:]}")


StartServer = Callable[..., AbstractContextManager[Server]]


def free_port() -> int:
    """A port that nobody listens on right now."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


@contextmanager
def running_server(log: Path, ready: bool = True, **environment: str) -> Iterator[Server]:
    """A server with these environment variables (upper or lower case); leaving the block must end it with exit code 0."""
    name = environment.setdefault("model_name", "tiny")
    ports = free_port(), free_port()
    command = [sys.executable, "-m", "atelier", "serve", f"--http_port={ports[0]}", f"--grpc_port={ports[1]}"]
    inherited = {"PYTHONPATH": f"{ROOT / 'runtime'}{os.pathsep}{ROOT}", "OMP_NUM_THREADS": "1", "DEVICE": "cpu"}
    given = {key.upper(): value for key, value in environment.items()}
    with log.open("wb") as output:
        process = subprocess.Popen(command, env=os.environ | inherited | given, stdout=output, stderr=output)
    server = Server(f"http://127.0.0.1:{ports[0]}", f"127.0.0.1:{ports[1]}", name, log, process)
    try:
        if ready:
            server.wait_ready()
        yield server
        code = server.stop() if process.poll() is None else process.returncode
        assert code == 0, f"exit code {code}:\n{log.read_text()[-4000:]}"
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Stable Diffusion 1 checkpoint with random weights: text to image, image to image, inpainting, in milliseconds a step."""
    from tests.tiny_pipelines import stable_diffusion_1

    return stable_diffusion_1(tmp_path_factory.mktemp("checkpoints"))


@pytest.fixture(scope="session")
def start_server(tmp_path_factory: pytest.TempPathFactory) -> StartServer:
    """`with start_server(model_id=..., api_keys="a,b") as server:`; the log lies in a folder of its own."""

    def start(**environment: str) -> AbstractContextManager[Server]:
        return running_server(tmp_path_factory.mktemp("server") / "log", **environment)

    return start


@pytest.fixture(scope="session")
def server(start_server: StartServer, tiny_checkpoint: Path) -> Iterator[Server]:
    """One server with default settings on the tiny checkpoint, shared by all tests that change nothing in it."""
    with start_server(model_id=str(tiny_checkpoint)) as running:
        yield running
