"""`atelier studio`: the studio as a server of its own, in front of endpoints that are elsewhere."""

from __future__ import annotations

import signal
import socket
import sys
from collections.abc import Sequence

import uvicorn

from atelier.errors import StartError
from atelier.studio.app import PATH, studio_app
from atelier.studio.client import EndpointClient

MAX_UPLOAD_BYTES = 64 * 2**20
"""Of a picture that is edited, as MAX_BODY_BYTES is by default."""


def run_studio(endpoints: Sequence[str], host: str, port: int) -> None:
    """Serve until stopped.

    Raises:
        EndpointError: an address is none.
        StartError: the port cannot be had.
    """
    clients = [EndpointClient(url) for url in endpoints if url.strip()]
    if not clients:
        raise StartError("--endpoint: give the URL of a server, such as http://localhost:8080")
    _check_free(host, port)
    app = studio_app(clients, MAX_UPLOAD_BYTES)
    shown = "localhost" if host in ("127.0.0.1", "0.0.0.0", "::") else host
    print(f"Studio: http://{shown}:{port}{PATH}/", flush=True)
    # uvicorn raises the signal that stopped it once more when it is done: an orderly end.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    # A browser holds connections open for as long as its page is; a stop does not wait for them.
    uvicorn.run(app, host=host, port=port, log_level="warning", timeout_graceful_shutdown=3)


def _check_free(host: str, port: int) -> None:
    try:
        with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as trial:
            trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            trial.bind((host, port))
    except OSError as error:
        raise StartError(
            f"--port={port} cannot be listened on at {host}: {error.strerror}"
        ) from None
