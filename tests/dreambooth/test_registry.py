"""The model registry is reached over TLS with the authority and the token that a pod has."""

from __future__ import annotations

import json
import ssl
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from atelier_training.dreambooth import registry
from atelier_training.dreambooth.errors import PublishError
from tests.certificates import make_ca_and_server

PUBLISHED = {"version": "aaaaaaaa1111", "uri": "s3://atelier/ring/aaaaaaaa1111"}


class Registry:
    """Keeps what is posted; wants a bearer token."""

    def __init__(self, folder: Path) -> None:
        self.posted: list[str] = []
        kept = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.answer(404 if self.headers["Authorization"] == "Bearer pod" else 401)

            def do_POST(self) -> None:
                self.rfile.read(int(self.headers["Content-Length"]))
                kept.posted.append(self.path.rpartition("/")[2])
                self.answer(201)

            def answer(self, code: int) -> None:
                body = json.dumps({"id": "7"}).encode()
                self.send_response(code)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: object) -> None:
                pass

        self.ca, certificate, key = make_ca_and_server(folder)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate, key)
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.socket = context.wrap_socket(self.server.socket, server_side=True)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        self.url = f"https://127.0.0.1:{self.server.server_port}"


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Registry]:
    account = tmp_path / "account"
    account.mkdir()
    (account / "token").write_text("pod\n")
    monkeypatch.setattr(registry, "ACCOUNT", account)
    monkeypatch.delenv("MODEL_REGISTRY_TOKEN", raising=False)
    made = Registry(tmp_path)
    yield made
    made.server.shutdown()
    made.server.server_close()


def test_a_version_is_entered_with_the_pods_token_and_authority(
    server: Registry, tmp_path: Path
) -> None:
    (tmp_path / "account/service-ca.crt").write_bytes(server.ca.read_bytes())
    assert registry.register(server.url, "ring", PUBLISHED, "models") == "7"
    assert server.posted == ["registered_models", "versions", "artifacts"]


def test_an_authority_can_be_named(server: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MODEL_REGISTRY_CA", str(server.ca))
    assert registry.register(server.url, "ring", PUBLISHED, "models") == "7"


def test_a_certificate_that_nobody_vouches_for_is_refused(server: Registry) -> None:
    with pytest.raises(PublishError, match="certificate verify failed"):
        registry.register(server.url, "ring", PUBLISHED, "models")


def test_an_authority_that_is_missing_is_named(
    server: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MODEL_REGISTRY_CA", "/nowhere/ca.crt")
    with pytest.raises(PublishError, match=r"/nowhere/ca\.crt"):
        registry.register(server.url, "ring", PUBLISHED, "models")


def test_a_wrong_token_is_told(server: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MODEL_REGISTRY_CA", str(server.ca))
    monkeypatch.setenv("MODEL_REGISTRY_TOKEN", "wrong")
    with pytest.raises(PublishError, match="401"):
        registry.register(server.url, "ring", PUBLISHED, "models")
