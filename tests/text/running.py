"""A real `atelier serve` in a process of its own, for tests with real clients."""

from __future__ import annotations

import contextlib
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx

from tests.conftest import free_port
from tests.processes import Executed, Forked

ROOT = Path(__file__).parents[2]


@dataclass
class Server:
    """Where a server listens, and its process."""

    url: str
    grpc: str
    name: str
    process: Executed | Forked
    log: Path

    def worker(self) -> int:
        """Process id of the worker."""
        described = httpx.get(f"{self.url}/v2/models/{self.name}").json()
        return int(described["properties"]["workers"][0]["pid"])

    def metric(self, name: str) -> float:
        """The value of a gauge or counter of this model."""
        for line in httpx.get(f"{self.url}/metrics").text.splitlines():
            if line.startswith(f"{name}{{") and f'model="{self.name}"' in line:
                return float(line.split()[-1])
        raise KeyError(name)


@contextlib.contextmanager
def serving(
    model: Path,
    log: Path,
    name: str = "tiny",
    module: str = "atelier.cli.main",
    ready_s: float = 60,
    executed: bool = False,
    **settings: str,
) -> Iterator[Server]:
    """Start a server, wait until it is ready, and stop it afterwards. It is forked, or `executed`
    where it matters what it imports, or what it shares with others."""
    rest, grpc = free_port(), free_port()
    arguments = ["serve", "--http_port", str(rest), "--grpc_port", str(grpc)]
    given = {"MODEL_ID": str(model), "MODEL_NAME": name} | settings
    # A faulty server has workers of its own kind, so it starts its own fork server.
    kind = Forked if module == "atelier.cli.main" and not executed else Executed
    process = kind(module, arguments, given, log)
    server = Server(f"http://127.0.0.1:{rest}", f"127.0.0.1:{grpc}", name, process, log)
    try:
        _wait(server, ready_s)
        yield server
    finally:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _wait(server: Server, seconds: float) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        with contextlib.suppress(httpx.HTTPError):
            if httpx.get(f"{server.url}/v2/models/{server.name}/ready").status_code == 200:
                return
        if server.process.poll() is not None:
            break
        time.sleep(0.1)
    raise RuntimeError(f"the server is not ready:\n{server.log.read_text()[-4000:]}")
