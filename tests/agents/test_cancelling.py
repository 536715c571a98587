"""Work that nobody waits for leaves the device: calls that are cancelled, clients that vanish,
servers that are ended."""

from __future__ import annotations

import asyncio
import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.agents.conftest import (
    KEY,
    Connect,
    McpServer,
    mcp_server,
    running,
    stdio,
    wait_until,
)
from tests.conftest import ROOT, Server

LONG = {"prompt": "a red circle on a blue background", "steps": 150, "size": "256x256"}
"""Would keep the device for more than ten seconds."""

SOON = 3.0


async def test_a_cancelled_call_frees_the_device(connect: Connect, shapes: Server) -> None:
    drawing = asyncio.Event()

    async def hear(progress: float, total: float | None, message: str | None) -> None:
        if progress >= 2:
            drawing.set()

    async with connect() as client:
        call = asyncio.create_task(client.call_tool("generate_image", LONG, progress_callback=hear))
        await asyncio.wait_for(drawing.wait(), 20)
        assert running(shapes) == 1
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        assert await asyncio.to_thread(wait_until, lambda: running(shapes) == 0, SOON)
        after = await client.call_tool("list_models", {})
        assert not after.is_error


CLIENT = """
import asyncio, sys
sys.path[:0] = {paths!r}
from tests.agents.conftest import http_client

async def main():
    async with {connection} as client:
        await client.call_tool("generate_image", {call!r})

asyncio.run(main())
"""


def client_process(connection: str) -> subprocess.Popen[str]:
    """A client in a process of its own that waits for a long drawing."""
    paths = [str(ROOT), str(ROOT / "runtime")]
    program = CLIENT.format(paths=paths, connection=connection, call=LONG)
    return subprocess.Popen([sys.executable, "-c", program], text=True)


@pytest.mark.parametrize("mode", ["auto", "legacy"])
def test_a_client_that_vanishes_frees_the_device(
    mode: str, shapes: Server, over_http: McpServer
) -> None:
    client = client_process(f"http_client({over_http.url!r}, {KEY!r}, {mode!r})")
    try:
        assert wait_until(lambda: running(shapes) == 1, 20)
    finally:
        client.kill()
        client.wait()
    assert wait_until(lambda: running(shapes) == 0, SOON)


@pytest.mark.parametrize("how", ["its client vanishes", "SIGTERM"])
def test_a_stdio_server_that_is_ended_cancels_its_job_first(
    how: str, shapes: Server, tmp_path: Path
) -> None:
    parameters = stdio(shapes.url, tmp_path)
    server = subprocess.Popen(
        [parameters.command, *parameters.args],
        env=parameters.env,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    assert server.stdin and server.stdout
    hello = {
        "protocolVersion": "2025-06-18",
        "capabilities": {},
        "clientInfo": {"name": "test", "version": "0"},
    }
    messages = [
        {"id": 0, "method": "initialize", "params": hello},
        {"method": "notifications/initialized"},
        {"id": 1, "method": "tools/call", "params": {"name": "generate_image", "arguments": LONG}},
    ]
    try:
        for message in messages:
            server.stdin.write(json.dumps({"jsonrpc": "2.0"} | message).encode() + b"\n")
        server.stdin.flush()
        assert wait_until(lambda: running(shapes) == 1, 20)
        if how == "SIGTERM":
            server.send_signal(signal.SIGTERM)
        else:
            server.stdin.close()
            server.stdout.close()
        assert server.wait(10) == 0
        assert wait_until(lambda: running(shapes) == 0, SOON)
    finally:
        server.kill()
        server.wait()


def test_a_server_that_is_ended_cancels_its_jobs_first(shapes: Server, tmp_path: Path) -> None:
    environment = {"MCP_ENDPOINT_KEY": "of-the-endpoint", "DRAIN_SECONDS": "1"}
    with mcp_server(tmp_path, shapes.url, **environment) as server:
        client = client_process(f"http_client({server.url!r})")
        try:
            assert wait_until(lambda: running(shapes) == 1, 20)
            server.process.terminate()
            assert server.process.wait(15) == 0
            assert wait_until(lambda: running(shapes) == 0, SOON)
        finally:
            client.kill()
            client.wait()
