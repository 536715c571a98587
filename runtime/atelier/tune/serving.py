"""The server of one trial: `atelier serve` in a process of its own, with a log of its own."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import httpx

from atelier.children import free_port, start_child
from atelier.errors import AtelierError
from atelier.tune.space import Value

PROGRAM = (sys.executable, "-m", "atelier")
STOP_SECONDS = 60
POLL_SECONDS = 0.2
TAIL = 400
OUT_OF_MEMORY = re.compile(r"out of memory|OutOfMemory|Cannot allocate memory|bad_alloc", re.I)


class TrialFailed(AtelierError):
    """A trial that could not be measured; the message is its reason."""


@dataclass
class TrialServer:
    """A running server."""

    url: str
    process: subprocess.Popen[bytes]
    log: Path

    def reason(self, what: str) -> str:
        """What happened, with the end of the log."""
        text = self.log.read_text(errors="replace")
        memory = "out of memory: " if OUT_OF_MEMORY.search(text) else ""
        if self.process.returncode == -signal.SIGKILL:
            memory = "killed, as a machine out of memory does: "
        lines = [line.strip() for line in text.splitlines() if line.strip()]
        told = next(
            (line for line in reversed(lines) if "rror" in line), lines[-1] if lines else ""
        )
        return f"{memory}{what}: {told[-TAIL:]}"


@contextlib.contextmanager
def serving(
    settings: Mapping[str, Value], log: Path, ready_seconds: float
) -> Iterator[TrialServer]:
    """A server with these settings that is ready; it ends with the block, and with this process.

    Raises:
        TrialFailed: it ended or was not ready in time; says why.
    """
    http, grpc = free_port(), free_port()
    variables = {name.upper(): text(value) for name, value in settings.items()}
    command = [*PROGRAM, "serve", f"--http_port={http}", f"--grpc_port={grpc}"]
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("wb") as output:
        process = start_child(
            command,
            signal.SIGTERM,
            env=os.environ | variables,
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    server = TrialServer(f"http://127.0.0.1:{http}", process, log)
    try:
        _wait_ready(server, ready_seconds)
        yield server
    finally:
        _stop(process)


def text(value: Value) -> str:
    """A setting's value as its variable holds it."""
    return str(value).lower() if isinstance(value, bool) else str(value)


def _wait_ready(server: TrialServer, seconds: float) -> None:
    ends = time.monotonic() + seconds
    while time.monotonic() < ends:
        if server.process.poll() is not None:
            code = server.process.returncode
            raise TrialFailed(server.reason(f"the server ended with code {code}"))
        with contextlib.suppress(httpx.HTTPError):
            if _ready(server.url):
                return
        time.sleep(POLL_SECONDS)
    raise TrialFailed(server.reason(f"not ready within {seconds:g} s"))


def _ready(url: str) -> bool:
    listed = httpx.get(f"{url}/v1/models", timeout=5)
    if listed.status_code != 200:
        return False
    names = [one["id"] for one in listed.json()["data"]]
    return bool(names) and all(
        httpx.get(f"{url}/v2/models/{name}/ready", timeout=5).status_code == 200 for name in names
    )


def _stop(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(STOP_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
