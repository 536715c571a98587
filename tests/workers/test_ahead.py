"""The download runs while the libraries are imported, once, and ends with the server."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.conftest import Server
from tests.sources.stores import Fault, Proxy, client, proxy, s3_server, upload
from tests.workers.test_streamed import variables
from tests.workers.test_workers import metrics, wait_for


@pytest.fixture(scope="module")
def store(tiny_checkpoint: Path) -> Iterator[int]:
    with s3_server() as port:
        bucket = client(port)
        bucket.create_bucket(Bucket="models")
        upload(bucket, "sd", tiny_checkpoint)
        yield port


@pytest.fixture
def link(store: int) -> Iterator[Proxy]:
    with proxy(store) as running:
        yield running


def cached(link: Proxy, folder: Path, **more: str) -> dict[str, str]:
    """What a server is told whose weights land in a folder."""
    return variables(link.port, folder) | {"WEIGHTS_CACHE": "disk"} | more


def slow(link: Proxy, seconds: float) -> list[float]:
    """Weights come late; the times at which they were asked for."""
    asked: list[float] = []

    def delay(method: str, path: str, headers: Any) -> Fault | None:
        if method != "GET" or ".safetensors" not in path:
            return None
        asked.append(time.monotonic())
        return Fault(delay=seconds)

    link.plan = delay
    return asked


def asked_once(link: Proxy) -> bool:
    ranges = [(one[1], one[2]) for one in link.gets(".safetensors")]
    return len(ranges) == len(set(ranges)) > 0


def began(server: Server) -> float:
    """When the worker's first line stands in the log."""
    wait_for(lambda: " worker 0 " in server.log.read_text())
    return time.monotonic()


def test_the_download_is_over_when_the_imports_are(
    start_server: Any, link: Proxy, tmp_path: Path
) -> None:
    asked = slow(link, 1.0)
    with start_server(**cached(link, tmp_path), executed=True, ready=False) as server:
        imported = began(server)
        server.wait_ready()
        assert asked[0] < imported - 1.0
        assert asked_once(link)
        took = re.search(r"s3://models/sd was fetched in ([\d.]+) s", server.log.read_text())
        lines = metrics(server)
        waited = [one for one in lines if one.startswith('atelier_load_seconds{stage="source"}')]
        assert took and float(waited[0].split()[-1]) < float(took[1]), "the rest was beside imports"


def test_a_worker_waits_for_a_download_that_takes_longer(
    start_server: Any, link: Proxy, tmp_path: Path
) -> None:
    slow(link, 6.0)
    with start_server(**cached(link, tmp_path)) as server:
        assert asked_once(link)
        assert "another process is filling" in server.log.read_text()


def test_sigterm_ends_server_and_download_within_five_seconds(
    start_server: Any, link: Proxy, tmp_path: Path
) -> None:
    slow(link, 60)
    with (
        pytest.raises(AssertionError, match="exit code 1"),  # stopped before it was ready
        start_server(**cached(link, tmp_path), ready=False) as server,
    ):
        wait_for(lambda: link.gets(".safetensors") and "fetching" in server.log.read_text())
        started = psutil.Process(server.process.pid).children(recursive=True)
        since = time.monotonic()
        server.stop()
        took = time.monotonic() - since
    assert took < 5
    assert started and not [one for one in started if one.is_running()]


def test_the_download_does_not_outlive_a_killed_front(
    start_server: Any, link: Proxy, tmp_path: Path
) -> None:
    slow(link, 60)
    with (
        pytest.raises(AssertionError, match="exit code -9"),
        start_server(**cached(link, tmp_path), ready=False) as server,
    ):
        wait_for(lambda: link.gets(".safetensors"))
        started = psutil.Process(server.process.pid).children(recursive=True)
        server.process.kill()
        server.process.wait(10)
    assert started
    wait_for(lambda: not [one for one in started if one.is_running()], 10)


def test_weights_on_a_disk_are_read_into_memory_beside_imports(
    start_server: Any, tiny_checkpoint: Path
) -> None:
    with start_server(model_id=str(tiny_checkpoint), log_level="debug") as server:
        wait_for(lambda: "of weights are in memory after" in server.log.read_text())
