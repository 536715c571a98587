"""One fake engine, and one server of the built-in language model, for all tests of the bench."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

from tests.conftest import ROOT, free_port
from tests.text.running import Server, serving


@dataclass(frozen=True)
class Engines:
    """Addresses of the fake engine and of the same one behind the slow proxy."""

    url: str
    slow: str


@pytest.fixture(scope="session")
def engines() -> Iterator[Engines]:
    ports = free_port(), free_port()
    command = [sys.executable, "-m", "tests.bench.fake_engine", *map(str, ports)]
    process = subprocess.Popen(command, cwd=ROOT)
    try:
        found = Engines(*(f"http://127.0.0.1:{port}" for port in ports))
        ends = time.monotonic() + 30
        while not answers(found.slow):
            assert process.poll() is None and time.monotonic() < ends
            time.sleep(0.05)
        yield found
    finally:
        process.kill()
        process.wait()


def answers(url: str) -> bool:
    try:
        return httpx.get(f"{url}/v1/models", timeout=5).status_code == 200
    except httpx.TransportError:
        return False


@pytest.fixture(scope="session")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """The built-in language model behind a real server."""
    log = tmp_path_factory.mktemp("scenes") / "server.log"
    model = ROOT / "runtime" / "atelier" / "builtin" / "scenes"
    with serving(model, log, name="scenes", ready_s=120, API_KEYS="key") as running:
        yield running


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("bench")
