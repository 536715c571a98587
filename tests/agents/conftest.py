"""One server of the built-in pictures, and MCP servers before it, for the official MCP client."""

from __future__ import annotations

import base64
import io
import os
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import httpx2
import pytest
from mcp import Client, StdioServerParameters
from mcp.client.streamable_http import streamable_http_client
from mcp.types import CallToolResult
from PIL import Image

from tests.conftest import ROOT, Server, StartServer, free_port
from tests.processes import Forked

KEY = "a-key"
START_SECONDS = 60


@dataclass(frozen=True)
class McpServer:
    """A running `atelier mcp --http`. `url` is its base, `folder` its store."""

    url: str
    folder: Path
    log: Path
    process: Forked


@contextmanager
def mcp_server(folder: Path, endpoint: str, **environment: str) -> Iterator[McpServer]:
    """`atelier mcp --http` in a process of its own; leaving the block must end it with code 0."""
    port, log = free_port(), folder / "log"
    arguments = ["mcp", "--http", "--port", str(port), "--endpoint", endpoint]
    given = {"MCP_STORE": str(folder / "pictures")} | environment
    process = Forked("atelier.cli.main", arguments, given, log)
    server = McpServer(f"http://127.0.0.1:{port}", folder / "pictures", log, process)
    try:
        ends = time.monotonic() + START_SECONDS
        while True:
            assert process.poll() is None and time.monotonic() < ends, log.read_text()[-3000:]
            try:
                assert httpx.get(f"{server.url}/health", timeout=5).status_code == 200
                break
            except httpx.TransportError:
                time.sleep(0.05)
        yield server
        process.terminate()
        assert process.wait(30) == 0, log.read_text()[-3000:]
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()


@pytest.fixture(scope="session")
def shapes(start_server: StartServer) -> Iterator[Server]:
    """The built-in picture model behind a key, with its control and its upscaler."""
    with start_server(
        model_name="shapes",
        api_keys="of-the-endpoint",
        controlnets="edges=builtin/shapes/edges",
        upscalers="builtin/shapes/x2",
    ) as running:
        yield running


@pytest.fixture(scope="session")
def over_http(shapes: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[McpServer]:
    """An MCP server over HTTP with keys, shared by tests that change nothing in it."""
    folder = tmp_path_factory.mktemp("mcp")
    keys = {"API_KEYS": f"{KEY},another", "MCP_ENDPOINT_KEY": "of-the-endpoint"}
    with mcp_server(folder, shapes.url, **keys) as server:
        yield server


def stdio(endpoint: str, store: Path) -> StdioServerParameters:
    """How an assistant's configuration starts the server."""
    return StdioServerParameters(
        command=sys.executable,
        args=["-m", "atelier", "mcp", "--endpoint", endpoint],
        env={
            "PYTHONPATH": str(ROOT / "runtime"),
            "MCP_STORE": str(store),
            "MCP_ENDPOINT_KEY": "of-the-endpoint",
            "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1"),
        },
    )


@asynccontextmanager
async def http_client(url: str, key: str = KEY, mode: str = "auto") -> AsyncIterator[Client]:
    """The official client over streamable HTTP. `legacy` is the protocol with sessions."""
    headers = {"Authorization": f"Bearer {key}"}
    async with (
        httpx2.AsyncClient(headers=headers, timeout=60) as http,
        Client(streamable_http_client(f"{url}/mcp", http_client=http), mode=mode) as client,
    ):
        yield client


Connect = Callable[[], AbstractAsyncContextManager[Client]]


@pytest.fixture(params=["stdio", "http", "http with sessions"])
def connect(
    request: pytest.FixtureRequest, shapes: Server, over_http: McpServer, tmp_path: Path
) -> Connect:
    """`async with connect() as client:`, over each transport."""
    if request.param == "stdio":
        return lambda: Client(stdio(shapes.url, tmp_path))
    mode = "auto" if request.param == "http" else "legacy"
    return lambda: http_client(over_http.url, mode=mode)


def shown(result: CallToolResult) -> list[Image.Image]:
    """The pictures that are in a tool's answer."""
    contents = [content for content in result.content if content.type == "image"]
    return [Image.open(io.BytesIO(base64.b64decode(content.data))) for content in contents]


def running(server: Server) -> float:
    """Requests that the server's device has now, waiting ones too."""
    text = httpx.get(f"{server.url}/metrics", timeout=10).text
    (line,) = [line for line in text.splitlines() if line.startswith("atelier_queue_depth")]
    return float(line.split()[-1])


def wait_until(holds: Callable[[], bool], seconds: float) -> bool:
    """Whether it comes to hold in that time."""
    ends = time.monotonic() + seconds
    while not (held := holds()) and time.monotonic() < ends:
        time.sleep(0.05)
    return held
