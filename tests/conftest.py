"""Real servers for tests: `atelier serve` in a process of its own, on free ports, stopped with
SIGTERM.

And the order of files and the turns of tests, for `make test` runs files in two processes.
"""

from __future__ import annotations

import fcntl
import os
import signal
import socket
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.processes import Executed, Forked

os.environ.setdefault(
    "OMP_NUM_THREADS", "1"
)  # for what tests start: two threads on shared cores are slower than one
# httpx gives up after five seconds where a call names none: on a machine with every core busy, that
# says nothing of the server.
httpx._config.DEFAULT_TIMEOUT_CONFIG.read = 60
START_SECONDS = 120
STOP_SECONDS = 60
ROOT = Path(__file__).parent.parent
FIRST = (
    "tests/image/test_image.py",
    "tests/dreambooth/test_loop.py",
    "tests/text/test_vllm.py",
    "tests/text/test_gemma3_vllm.py",
    "tests/text/test_gemma3.py",
)
"""Files that take minutes: begun last, they would be waited for."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest files come first, those with tests that must run alone last: they wait for the
    other process."""
    timed = {item.path for item in items if item.get_closest_marker("alone")}

    def place(item: pytest.Item) -> int:
        name = item.path.relative_to(ROOT).as_posix()
        return FIRST.index(name) - len(FIRST) if name in FIRST else int(item.path in timed)

    items.sort(key=place)


@contextmanager
def locked(file: Path, how: int) -> Iterator[None]:
    """A lock among processes, `fcntl.LOCK_EX` or `fcntl.LOCK_SH`; the file itself is left as it
    is."""
    with file.open() as opened:
        fcntl.flock(opened, how)
        try:
            yield
        finally:
            fcntl.flock(opened, fcntl.LOCK_UN)


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    """A test marked `alone` begins when the other process is between two tests, which then waits
    until it ends.

    Running tests share the room or have it alone. Who waits for it holds the door, so that nobody
    slips in before.
    """
    door, room = ROOT / "pyproject.toml", Path(__file__)
    with ExitStack() as stack:
        with locked(door, fcntl.LOCK_EX):
            alone = item.get_closest_marker("alone")
            stack.enter_context(locked(room, fcntl.LOCK_EX if alone else fcntl.LOCK_SH))
        return (yield)


@dataclass(frozen=True)
class Server:
    """A running server. `url` is its base URL, `grpc` host:port, `model` the served name, `log` its
    output so far."""

    url: str
    grpc: str
    model: str
    log: Path
    process: Executed | Forked

    def stop(self) -> int:
        """SIGTERM, as a cluster sends it; the exit code."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(STOP_SECONDS)

    def wait_ready(self) -> None:
        """Poll the readiness probe.

        Raises:
            AssertionError: the process ended or did not become ready; the message has the end of
                its output.
        """
        ends = time.monotonic() + START_SECONDS
        while time.monotonic() < ends and self.process.poll() is None:
            try:
                if (
                    httpx.get(f"{self.url}/v2/models/{self.model}/ready", timeout=5).status_code
                    == 200
                ):
                    return
            except httpx.TransportError:
                pass
            time.sleep(0.1)
        raise AssertionError(
            f"not ready (exit code {self.process.poll()}):\n{self.log.read_text()[-4000:]}"
        )


StartServer = Callable[..., AbstractContextManager[Server]]


def free_port() -> int:
    """A port that nobody listens on right now."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


@contextmanager
def running_server(
    log: Path, ready: bool = True, executed: bool = False, **environment: str
) -> Iterator[Server]:
    """A server with these environment variables (upper or lower case); leaving the block must end
    it with exit code 0.

    It is forked, or `executed` where it matters what is imported when.
    """
    name = environment.setdefault("model_name", "tiny")
    ports = free_port(), free_port()
    arguments = ["serve", f"--http_port={ports[0]}", f"--grpc_port={ports[1]}"]
    given = {"DEVICE": "cpu"} | {key.upper(): value for key, value in environment.items()}
    process = (Executed if executed else Forked)("atelier.cli.main", arguments, given, log)
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
    """A Stable Diffusion 1 checkpoint with random weights: text to image, image to image,
    inpainting, in milliseconds a step."""
    from tests.tiny_pipelines import stable_diffusion_1

    return stable_diffusion_1(tmp_path_factory.mktemp("checkpoints"))


@pytest.fixture(scope="session")
def start_server(tmp_path_factory: pytest.TempPathFactory) -> StartServer:
    """`with start_server(model_id=..., api_keys="a,b") as server:`; the log lies in a folder of its
    own."""

    def start(**environment: Any) -> AbstractContextManager[Server]:
        return running_server(tmp_path_factory.mktemp("server") / "log", **environment)

    return start


@pytest.fixture(scope="session")
def scenes(start_server: StartServer) -> Iterator[Server]:
    """One server of the built-in language model, for tests that change nothing in it."""
    with start_server(model_id="builtin/scenes", model_name="scenes") as running:
        yield running


@pytest.fixture(scope="session")
def server(start_server: StartServer, tiny_checkpoint: Path) -> Iterator[Server]:
    """One server with default settings on the tiny checkpoint, shared by all tests that change
    nothing in it."""
    with start_server(model_id=str(tiny_checkpoint)) as running:
        yield running
