"""The MCP Inspector's command line against `atelier mcp`, over stdio and over HTTP: lists
everything, calls every tool, and says what came back. `make mcp-inspector` runs it.

It starts a server of the built-in pictures and needs npx with Node 22.19 or newer. The exit code
is 1 if a call fails, or if the pixel checker does not see what was drawn.
"""

from __future__ import annotations

import base64
import io
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
from PIL import Image

from atelier.builtin.shapes.checker import check

INSPECTOR = ["npx", "--yes", "@modelcontextprotocol/inspector@2.12.0", "--cli"]
PROMPT = "a red circle on a blue background"
KEY = "a-key"
START_SECONDS = 120


def free_port() -> int:
    """A port that nobody listens on right now."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


@contextmanager
def running(arguments: list[str], probe: str, **environment: str) -> Iterator[None]:
    """`atelier` with these arguments, until the block ends; it answers at `probe` by then."""
    command = [sys.executable, "-m", "atelier", *arguments]
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(command, env=os.environ | environment, stdout=log, stderr=log)
        try:
            ends = time.monotonic() + START_SECONDS
            while True:
                try:
                    if httpx.get(probe, timeout=5).status_code == 200:
                        break
                except httpx.TransportError:
                    if process.poll() is not None or time.monotonic() > ends:
                        log.seek(0)
                        raise SystemExit(log.read().decode()[-2000:]) from None
                time.sleep(0.2)
            yield
        finally:
            process.terminate()
            process.wait()


def inspect(connection: list[str], method: str, *more: str) -> dict[str, Any]:
    """One run of the Inspector: what it printed, as JSON."""
    command = [*INSPECTOR, *connection, "--method", method, *more]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{method} {' '.join(more)[:100]}: {done.stderr}{done.stdout}")
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


def call(connection: list[str], tool: str, **arguments: str) -> dict[str, Any]:
    """Call a tool; an answer that is an error ends the program."""
    pairs = [f"{name}={value}" for name, value in arguments.items()]
    options = ["--tool-arg", *pairs] if pairs else []
    answer = inspect(connection, "tools/call", "--tool-name", tool, *options)
    if answer.get("isError"):
        raise SystemExit(f"{tool}: {answer['content']}")
    structured = answer["structuredContent"]
    print(f"  {tool}: {json.dumps(structured)[:150]}")
    return answer


def picture(answer: dict[str, Any]) -> Image.Image:
    """The picture in a tool's answer."""
    (data,) = [one["data"] for one in answer["content"] if one["type"] == "image"]
    return Image.open(io.BytesIO(base64.b64decode(data))).convert("RGB")


def tour(title: str, connection: list[str]) -> None:
    """List everything and call every tool over one connection."""
    print(title)
    tools = inspect(connection, "tools/list", "--strict")["tools"]
    print(f"  tools/list: {', '.join(one['name'] for one in tools)}")
    for method, key in (("prompts/list", "prompts"), ("resources/list", "resources")):
        found = inspect(connection, method)[key]
        print(f"  {method}: {', '.join(one['name'] for one in found)}")
    call(connection, "list_models")
    call(connection, "describe_model", model="shapes")
    drawn = call(connection, "generate_image", prompt=PROMPT, seed="7")
    name = drawn["structuredContent"]["pictures"][0]["name"]
    seen = call(connection, "get_image", image=name)
    call(connection, "edit_image", image=name, prompt=PROMPT, strength="0.5", steps="8", seed="1")
    if not check(picture(drawn), PROMPT) or picture(seen) != picture(drawn):
        raise SystemExit(f"the picture does not show {PROMPT}")
    print("  the pixel checker accepts the picture")


def main() -> None:
    """Both transports, one after the other."""
    port, mcp_port = free_port(), free_port()
    endpoint = f"http://127.0.0.1:{port}"
    served = ["serve", f"--http_port={port}", f"--grpc_port={free_port()}", "--model_name=shapes"]
    over_http = ["mcp", "--http", f"--port={mcp_port}", f"--endpoint={endpoint}"]
    with (
        tempfile.TemporaryDirectory() as folder,
        running(served, f"{endpoint}/v2/models/shapes/ready", DEVICE="cpu"),
    ):
        store = str(Path(folder) / "pictures")
        config = Path(folder) / "mcp.json"
        stdio = {
            "command": sys.executable,
            "args": ["-m", "atelier", "mcp", "--endpoint", endpoint, "--store", store],
        }
        config.write_text(json.dumps({"mcpServers": {"atelier": stdio}}))
        tour("stdio", ["--config", str(config), "--server", "atelier"])
        url = f"http://127.0.0.1:{mcp_port}"
        with running(over_http, f"{url}/health", API_KEYS=KEY, MCP_STORE=store):
            header = ["--header", f"Authorization: Bearer {KEY}"]
            tour("streamable HTTP", [f"{url}/mcp", "--transport", "http", *header])


if __name__ == "__main__":
    main()
