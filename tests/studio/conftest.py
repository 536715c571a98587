"""The studio before two real servers of the built-in models, and a Chromium that looks at it."""

from __future__ import annotations

import shutil
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
from playwright.sync_api import Browser, Page, sync_playwright

from tests.conftest import Server, StartServer, free_port
from tests.processes import Forked

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
KEY = "of-the-pictures"
START_SECONDS = 60


class Relay:
    """A port that leads to a server, and that can go away and come back."""

    def __init__(self, target: int) -> None:
        self.port = free_port()
        self._target = target
        self._open: list[socket.socket] = []
        self.come_back()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def come_back(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", self.port))
        threading.Thread(target=self._accept, args=(self._listener,), daemon=True).start()

    def go_away(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for connection in self._open:
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
            connection.close()
        self._open.clear()

    def _accept(self, listener: socket.socket) -> None:
        with suppress(OSError):
            while True:
                near, _ = listener.accept()
                far = socket.create_connection(("127.0.0.1", self._target))
                self._open += [near, far]
                for one, other in ((near, far), (far, near)):
                    threading.Thread(target=self._pass, args=(one, other), daemon=True).start()

    @staticmethod
    def _pass(one: socket.socket, other: socket.socket) -> None:
        with suppress(OSError):
            while data := one.recv(65536):
                other.sendall(data)
            other.shutdown(socket.SHUT_WR)


@dataclass(frozen=True)
class RunningStudio:
    """A running `atelier studio`, and the servers behind it."""

    url: str
    pictures: Server
    relay: Relay


@pytest.fixture(scope="session")
def shapes(start_server: StartServer) -> Iterator[Server]:
    """The built-in picture model behind a key, with its control, its upscaler and the studio. Not
    yet ready."""
    given = {"model_name": "shapes", "api_keys": KEY, "studio": "true"}
    given |= {"controlnets": "edges=builtin/shapes/edges", "upscalers": "builtin/shapes/x2"}
    with start_server(ready=False, **given) as running:
        yield running


@pytest.fixture(scope="session")
def scenes(start_server: StartServer) -> Iterator[Server]:
    """The built-in language model. Not yet ready: the three processes start side by side."""
    given = {"model_name": "scenes", "model_id": "builtin/scenes"}
    with start_server(ready=False, **given) as running:
        yield running


@pytest.fixture(scope="session")
def studio(
    shapes: Server, scenes: Server, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[RunningStudio]:
    port, log = free_port(), tmp_path_factory.mktemp("studio") / "log"
    relay = Relay(int(shapes.url.rpartition(":")[2]))
    endpoints = f"{relay.url},{scenes.url}"
    arguments = ["studio", "--endpoint", endpoints, "--port", str(port)]
    process = Forked("atelier.cli.main", arguments, {}, log)
    url = f"http://127.0.0.1:{port}"
    try:
        wait_for(lambda: answers(f"{url}/health"), START_SECONDS, log)
        for server in (shapes, scenes):
            server.wait_ready()
        yield RunningStudio(url, shapes, relay)
        process.terminate()
        assert process.wait(20) == 0, log.read_text()[-3000:]
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()
        relay.go_away()


def answers(url: str) -> bool:
    try:
        return httpx.get(url, timeout=5).status_code == 200
    except httpx.TransportError:
        return False


def wait_for(true: Callable[[], bool], seconds: float, log: Path | None = None) -> None:
    ends = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < ends, log.read_text()[-3000:] if log else "it did not come true"
        time.sleep(0.1)


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    if CHROMIUM is None:
        pytest.skip("no Chromium on this machine: make tools installs Debian's")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


OFFERED = "[...document.querySelectorAll('#draw-tab input')].some(one => one.value === '128x128')"
"""The form knows what the model takes."""

Visit = Callable[..., Page]


@contextmanager
def visitors(browser: Browser, studio: str) -> Iterator[Visit]:
    """Open the studio as a new browser that has the key; whatever happens, the page raises no
    error, and asks nobody but the studio."""
    faults: list[str] = []

    def come(url: str = studio) -> Page:
        page = stack.enter_context(browser.new_context()).new_page()
        page.set_default_timeout(20_000)
        page.on("pageerror", lambda error: faults.append(str(error)))
        page.on("request", lambda request: _ours(request.url, url, faults))
        page.add_init_script(f"sessionStorage.setItem('atelier-keys', '[\"{KEY}\"]')")
        page.goto(f"{url}/")
        page.wait_for_function(OFFERED)
        return page

    with ExitStack() as stack:
        yield come
    assert faults == []


@pytest.fixture
def visit(chromium: Browser, studio: RunningStudio) -> Iterator[Visit]:
    """New browsers for one test."""
    with visitors(chromium, studio.url) as come:
        yield come


@pytest.fixture(scope="module")
def page(chromium: Browser, studio: RunningStudio) -> Iterator[Page]:
    """A page that tests use one after the other, as a person would."""
    with visitors(chromium, studio.url) as come:
        yield come()


@pytest.fixture(scope="module")
def other(chromium: Browser, studio: RunningStudio) -> Iterator[Page]:
    """The page of a second browser."""
    with visitors(chromium, studio.url) as come:
        yield come()


def _ours(asked: str, url: str, faults: list[str]) -> None:
    if not asked.startswith((url, "data:", "blob:")):
        faults.append(f"the page asked {asked}")
