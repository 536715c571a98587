"""A stand-in for vLLM's and llama.cpp's servers: the few routes that the tests ask, worded as
theirs are. As `python ... --uds FILE` it is the first, as `llama-server --port N` the second.

A file `slow` beside it makes its start take the seconds that the file holds.
"""

from __future__ import annotations

import json
import os
import socketserver
import sys
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
GIVEN = sys.argv[1:]
VLLM = "--uds" in GIVEN
ROUTES = ("/v1/chat/completions", "/v1/completions", "/v1/messages", "/tokenize", "/detokenize")
REFUSALS = {
    "busy": (429, "too many requests"),
    "gone": (404, "no such adapter"),
    "asleep": (503, "the engine sleeps"),
    "wrong": (400, "a bad prompt"),
}
NO_PARSER = '"auto" tool choice requires --enable-auto-tool-choice and --tool-call-parser to be set'


class Routes(BaseHTTPRequestHandler):
    """Health, metrics, chats, tokens: a letter is one."""

    protocol_version = "HTTP/1.1"

    def address_string(self) -> str:
        return "door"  # a socket file has no address

    def do_GET(self) -> None:
        if self.path == "/openapi.json" and VLLM:
            self._say(200, {"paths": {path: {} for path in ROUTES}})
        else:
            self._say(200 if self.path in ("/health", "/metrics") else 404, {})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self.path == "/tokenize":  # without `content` llama.cpp finds nothing
            letters = [ord(one) for one in body.get("content", "")]
            first = [1] if body.get("add_special") else []
            pieces = [{"id": one, "piece": chr(one)} for one in letters]
            self._say(200, {"tokens": pieces if body.get("with_pieces") else first + letters})
        elif self.path == "/detokenize":
            self._say(200, {"content": "".join(map(chr, body["tokens"]))})
        elif self.path not in ROUTES:
            self._say(501 if not VLLM else 404, {"error": {"message": "not supported"}})
        elif body.get("prompt") in REFUSALS:
            status, message = REFUSALS[body["prompt"]]
            self._say(status, {"error": {"message": message}}, wait="7")
        elif body.get("tools") and "--tool-call-parser" not in GIVEN:
            self._say(400, {"error": {"message": NO_PARSER, "type": "BadRequestError"}})
        else:
            choice = {"index": 0, "message": {"role": "assistant", "content": "hello"}}
            self._say(200, {"choices": [choice], "usage": {}})

    def _say(self, status: int, told: Any, wait: str = "") -> None:
        body = json.dumps(told).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        if wait:
            self.send_header("Retry-After", wait)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        pass


class SocketFileServer(socketserver.ThreadingUnixStreamServer):
    """HTTP over a socket file, as vLLM's --uds has it."""

    daemon_threads = True


def option(name: str) -> str:
    return GIVEN[GIVEN.index(name) + 1]


if __name__ == "__main__":
    (HERE / "arguments").write_text(json.dumps(GIVEN))
    (HERE / "environment").write_text(json.dumps(dict(os.environ)))
    if (HERE / "slow").exists():
        time.sleep(float((HERE / "slow").read_text()))
    server: socketserver.BaseServer
    if VLLM:
        server = SocketFileServer(option("--uds"), Routes)
    else:
        server = ThreadingHTTPServer(("127.0.0.1", int(option("--port"))), Routes)
    server.serve_forever()
