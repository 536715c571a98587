"""A server that speaks TLS itself, as behind the gateway of KServe's LLMInferenceService."""

from __future__ import annotations

import ssl
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.certificates import make_ca_and_server
from tests.conftest import free_port
from tests.processes import Forked
from tests.protocols.pictures import FAST, SIZE


class TlsServer:
    """The tiny checkpoint behind a certificate in `folder`."""

    def __init__(self, checkpoint: Path, folder: Path) -> None:
        self.ca, self.certificate, self.key = make_ca_and_server(folder)
        self.folder = folder
        self.log = folder / "log"
        self.address = f"127.0.0.1:{free_port()}"
        arguments = ["serve", f"--http_port={self.address.split(':')[1]}", "--enable_grpc=false"]
        arguments += [f"--ssl_certfile={self.certificate}", f"--ssl_keyfile={self.key}"]
        given = {"DEVICE": "cpu", "MODEL_ID": str(checkpoint), "MODEL_NAME": "tiny"}
        self.process = Forked("atelier.cli.main", arguments, given, self.log)

    def client(self) -> httpx.Client:
        """One that trusts the authority whose certificate lies in the folder now."""
        trusted = ssl.create_default_context(cafile=str(self.ca))
        return httpx.Client(base_url=f"https://{self.address}", verify=trusted, timeout=30)

    def wait(self, path: str) -> None:
        """Until the path answers 200 to a client that trusts the authority."""
        ends = time.monotonic() + 60
        while time.monotonic() < ends:
            try:
                with self.client() as client:
                    if client.get(path).status_code == 200:
                        return
            except httpx.HTTPError:
                assert self.process.poll() is None, self.log.read_text()
            time.sleep(0.1)
        raise AssertionError(f"{path} does not answer 200: {self.log.read_text()[-2000:]}")


@pytest.fixture(scope="module")
def encrypted(
    tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[TlsServer]:
    server = TlsServer(tiny_checkpoint, tmp_path_factory.mktemp("tls"))
    server.wait("/v2/models/tiny/ready")
    yield server
    server.process.terminate()
    assert server.process.wait(20) == 0


def test_pictures_come_over_tls_and_in_no_other_way(encrypted: TlsServer) -> None:
    body = {"prompt": "a", "size": SIZE, **FAST}
    with encrypted.client() as client:
        answer = client.post("/v1/images/generations", json=body | {"response_format": "url"})
        assert answer.status_code == 200, answer.text
        url = answer.json()["data"][0]["url"]
        assert url.startswith(f"https://{encrypted.address}/")
        assert client.get(url).headers["content-type"] == "image/png"
    with pytest.raises(httpx.HTTPError):
        httpx.get(f"http://{encrypted.address}/v2/health/live")


def test_the_printed_command_speaks_tls(encrypted: TlsServer) -> None:
    port = encrypted.address.split(":")[1]
    wanted = f"curl -s --cacert {encrypted.certificate} https://localhost:{port}/v1/models/tiny"
    assert wanted in encrypted.log.read_text()


def test_headers_are_bounded_over_tls_too(encrypted: TlsServer) -> None:
    with encrypted.client() as client:
        answer = client.get("/v2/health/live", headers={"X-Long": "a" * 100_000})
        assert answer.status_code == 431


def test_a_renewed_certificate_is_taken_without_a_restart(encrypted: TlsServer) -> None:
    make_ca_and_server(encrypted.folder)  # of another authority
    encrypted.wait("/v2/health/live")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--ssl_certfile={certificate}"], "--ssl_keyfile is missing"),
        (["--ssl_keyfile={key}"], "--ssl_certfile is missing"),
        (["--ssl_certfile=nowhere.pem", "--ssl_keyfile={key}"], "No such file or directory"),
        (["--ssl_certfile={certificate}", "--ssl_keyfile={other}"], "KEY_VALUES_MISMATCH"),
        (["--ssl_certfile={certificate}", "--ssl_keyfile={certificate}"], "cannot be used"),
    ],
)
def test_a_certificate_that_cannot_be_used_is_told_before_the_weights_are_loaded(
    options: list[str], words: str, tmp_path: Path
) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    _, certificate, key = make_ca_and_server(tmp_path / "one")
    other = make_ca_and_server(tmp_path / "two")[2]
    given = [one.format(certificate=certificate, key=key, other=other) for one in options]
    log = tmp_path / "log"
    process = Forked("atelier.cli.main", ["serve", *given], {"MODEL_ID": "builtin/shapes"}, log)
    assert process.wait(60) == 1
    assert words in log.read_text()
    assert "Traceback" not in log.read_text()
