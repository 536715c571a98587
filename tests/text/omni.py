"""A stand-in for `vllm serve --omni`, which needs a GPU: its routes for pictures, answered with one
colour. Run as `vllm serve MODEL --omni ...`; writes its arguments beside itself."""

from __future__ import annotations

import base64
import io
import json
import sys
from email.parser import BytesParser
from email.policy import HTTP
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from PIL import Image

COLOURS = {"red": (255, 0, 0), "blue": (0, 0, 255)}


class OmniRoutes(BaseHTTPRequestHandler):
    """Health, metrics, generations, edits, chat."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        told = {"/health": b"", "/metrics": b"vllm:num_requests_running 0\n"}
        self._say(200 if self.path in told else 404, told.get(self.path, b""))

    def do_POST(self) -> None:
        raw = self.rfile.read(int(self.headers["Content-Length"]))
        kind = self.headers["Content-Type"]
        fields = json.loads(raw) if kind == "application/json" else form(kind, raw)
        if self.path == "/v1/images/generations":
            size = tuple(map(int, fields["size"].split("x")))
            self._say_picture(Image.new("RGB", size, COLOURS[fields["prompt"]]))
        elif self.path == "/v1/images/edits":
            sent = Image.open(io.BytesIO(fields["image"]))
            self._say_picture(Image.new("RGB", sent.size, COLOURS[fields["prompt"].decode()]))
        else:
            self._say(404, b'{"error": {"message": "no such route"}}')

    def _say_picture(self, picture: Image.Image) -> None:
        out = io.BytesIO()
        picture.save(out, "PNG")
        data = [{"b64_json": base64.b64encode(out.getvalue()).decode()}]
        self._say(200, json.dumps({"created": 1, "data": data}).encode())

    def _say(self, status: int, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        pass


def form(kind: str, raw: bytes) -> dict[str, bytes]:
    """The parts of a multipart body by name."""
    message = BytesParser(policy=HTTP).parsebytes(f"Content-Type: {kind}\r\n\r\n".encode() + raw)
    return {
        part.get_param("name", header="content-disposition"): part.get_payload(decode=True)
        for part in message.iter_parts()
    }


if __name__ == "__main__":
    Path(__file__).with_name("arguments").write_text(json.dumps(sys.argv[1:]))
    port = int(sys.argv[sys.argv.index("--port") + 1])
    ThreadingHTTPServer(("127.0.0.1", port), OmniRoutes).serve_forever()
