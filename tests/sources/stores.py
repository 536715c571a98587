"""A real S3 server process on loopback (moto's), and a proxy before it that does to connections
what networks do."""

import http.client
import os
import socket
import ssl
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import boto3


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@contextmanager
def s3_server():
    """Yields the port of a moto server; it ends with the block."""
    port = free_port()
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        for _ in range(200):
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/moto-api/", timeout=5).close()
                break
            except OSError:
                assert process.poll() is None, "moto's server ended at once"
                time.sleep(0.1)
        yield port
    finally:
        process.terminate()
        process.wait(10)


def upload(bucket, name: str, root: Path) -> None:
    """A checkpoint's folder to s3://models/name, but for bytecode that tests leave in it."""
    for file in root.rglob("*"):
        if file.is_file() and file.parent.name != "__pycache__":
            key = f"{name}/{file.relative_to(root)}"
            bucket.put_object(Bucket="models", Key=key, Body=file.read_bytes())


def client(port: int):
    return boto3.client(
        "s3",
        endpoint_url=f"http://127.0.0.1:{port}",
        aws_access_key_id="tester",
        aws_secret_access_key="secret",
        region_name="us-east-1",
    )


@dataclass
class Fault:
    """What to do to a response: `status` instead of it, `cut` it after so many body bytes, `flip` a
    byte (of what is written, if something is), `delay`; or `lose` the request: 200, and the store
    never hears of it."""

    status: int = 0
    code: str = "SlowDown"
    cut: int | None = None
    flip: bool = False
    delay: float = 0.0
    lose: bool = False


@dataclass
class Proxy:
    """Forwards to the S3 server. `plan(method, path, headers)` returns a Fault or None; `requests`
    is what came."""

    upstream: int
    port: int = 0
    plan: object = None
    requests: list = field(default_factory=list)

    def gets(self, key: str = "") -> list:
        """Object reads (with a Range header) of keys that end so."""
        return [
            one
            for one in self.requests
            if one[0] == "GET" and one[2] and one[1].partition("?")[0].endswith(key)
        ]


@contextmanager
def proxy(upstream: int, tls: Sequence[Path] = ()):
    state = Proxy(upstream)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *args):
            pass

        def do_GET(self):
            state.requests.append((self.command, self.path, self.headers.get("Range", "")))
            fault = state.plan(self.command, self.path, self.headers) if state.plan else None
            fault = fault or Fault()
            sent = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            if fault.lose:
                return self._answer(200, b"")
            if sent and fault.flip:
                sent = bytes([sent[0] ^ 1]) + sent[1:]
            if fault.status:
                return self._answer(
                    fault.status, f"<Error><Code>{fault.code}</Code></Error>".encode()
                )
            link = http.client.HTTPConnection("127.0.0.1", state.upstream, timeout=30)
            headers = {name: self.headers[name] for name in self.headers if name != "Expect"}
            link.request(self.command, self.path, sent or None, headers)
            response = link.getresponse()
            body = response.read()
            if fault.flip and body and not sent:
                body = bytes([body[0] ^ 1]) + body[1:]
            self.send_response(response.status)
            for name, value in response.getheaders():
                if name.lower() not in (
                    "connection",
                    "transfer-encoding",
                    "content-length",
                    "server",
                    "date",
                ):
                    self.send_header(name, value)
            length = (
                response.getheader("Content-Length") if self.command == "HEAD" else str(len(body))
            )
            self.send_header("Content-Length", length or "0")
            self.end_headers()
            time.sleep(fault.delay)
            self.wfile.write(body if fault.cut is None else body[: fault.cut])
            if fault.cut is not None:
                self.wfile.flush()
                self.close_connection = True
                self.connection.shutdown(socket.SHUT_RDWR)

        do_HEAD = do_PUT = do_POST = do_GET

        def _answer(self, status, body):
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    if tls:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(*tls)
        server.socket = context.wrap_socket(server.socket, server_side=True)
    state.port = server.server_address[1]
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield state
    finally:
        server.shutdown()
        server.server_close()


def environment(port: int, **more: str) -> dict[str, str]:
    """The environment of a process whose data connection points to that port."""
    return {
        **os.environ,
        "AWS_ACCESS_KEY_ID": "tester",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_S3_ENDPOINT": f"http://127.0.0.1:{port}",
        **more,
    }
