"""The Job that makes the demo's S3 credentials: run as in the cluster, against an API server and an
S3 server."""

from __future__ import annotations

import base64
import importlib.util
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import ModuleType
from typing import Any

import boto3
import httpx
import pytest
from kubernetes import client
from moto.server import ThreadedMotoServer

from tests.manifests.rendering import MANIFESTS, needs_kubectl, objects, of_kind

SCRIPT = MANIFESTS / "setup/storage/s3_setup.py"


class SecretsApi:
    """The part of the API server that the Job may use: create and read Secrets, and list API
    groups."""

    def __init__(self) -> None:
        self.secrets: dict[str, dict[str, Any]] = {}
        self.groups: list[str] = []
        api = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                if self.path.startswith("/apis"):
                    version = {"groupVersion": "g/v1", "version": "v1"}
                    groups = [{"name": name, "versions": [version]} for name in api.groups]
                    self.answer(200, {"kind": "APIGroupList", "groups": groups})
                else:
                    self.answer(200, api.secrets[self.path.rpartition("/")[2]])

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                name = body["metadata"]["name"]
                if name in api.secrets:
                    return self.answer(409, {"kind": "Status", "message": f"{name} already exists"})
                plain = body.pop("stringData")
                body["data"] = {
                    key: base64.b64encode(value.encode()).decode() for key, value in plain.items()
                }
                api.secrets[name] = body
                self.answer(201, body)

            def answer(self, code: int, body: dict[str, Any]) -> None:
                data = json.dumps(body).encode()
                self.send_response(code)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *_: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def value(self, secret: str, key: str) -> str:
        return base64.b64decode(self.secrets[secret]["data"][key]).decode()


@pytest.fixture
def api() -> Iterator[SecretsApi]:
    made = SecretsApi()
    yield made
    made.server.shutdown()
    made.server.server_close()


@pytest.fixture
def s3() -> Iterator[str]:
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    address = f"http://{host}:{port}"
    httpx.post(f"{address}/moto-api/reset")  # servers of one process share what they store
    yield address
    server.stop()


@pytest.fixture
def job(api: SecretsApi, s3: str, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.setenv("NAMESPACE", "studio")
    monkeypatch.setenv("S3_ENDPOINT", s3)
    spec = importlib.util.spec_from_file_location("s3_setup", SCRIPT)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)

    def inside_the_cluster() -> None:
        client.Configuration.set_default(
            client.Configuration(host=f"http://127.0.0.1:{api.server.server_port}")
        )

    monkeypatch.setattr(module.config, "load_incluster_config", inside_the_cluster)
    return module


def test_it_makes_connections_that_open_the_buckets(
    job: ModuleType, api: SecretsApi, s3: str
) -> None:
    job.main()
    connection = api.secrets["atelier-models"]
    assert connection["metadata"]["labels"] == {
        "opendatahub.io/dashboard": "true",
        "opendatahub.io/managed": "true",
    }
    assert connection["metadata"]["annotations"]["opendatahub.io/connection-type"] == "s3"
    names = (
        "AWS_ACCESS_KEY_ID",
        "AWS_SECRET_ACCESS_KEY",
        "AWS_S3_ENDPOINT",
        "AWS_DEFAULT_REGION",
        "AWS_S3_BUCKET",
    )
    given = {name: api.value("atelier-models", name) for name in names}
    reader: Any = boto3.client(
        "s3",
        endpoint_url=given["AWS_S3_ENDPOINT"],
        aws_access_key_id=given["AWS_ACCESS_KEY_ID"],
        aws_secret_access_key=given["AWS_SECRET_ACCESS_KEY"],
        region_name=given["AWS_DEFAULT_REGION"],
    )
    assert {bucket["Name"] for bucket in reader.list_buckets()["Buckets"]} == {
        "models",
        "pipelines",
    }
    assert given["AWS_S3_BUCKET"] == "models"
    (identity,) = json.loads(api.value("s3-server", "s3.json"))["identities"]
    assert identity["credentials"] == [
        {"accessKey": given["AWS_ACCESS_KEY_ID"], "secretKey": given["AWS_SECRET_ACCESS_KEY"]}
    ]


def test_a_second_run_keeps_keys_and_buckets(job: ModuleType, api: SecretsApi) -> None:
    job.main()
    before = json.dumps(api.secrets)
    job.main()
    assert json.dumps(api.secrets) == before


def test_nothing_secret_is_printed(
    job: ModuleType, api: SecretsApi, capsys: pytest.CaptureFixture[str]
) -> None:
    job.main()
    printed = capsys.readouterr().out
    for key in ("access_key", "secret_key"):
        assert len(api.value("s3-server", key)) >= 20
        assert api.value("s3-server", key) not in printed


def test_kserve_alone_gets_its_own_form_and_openshift_ai_makes_it_itself(
    job: ModuleType, api: SecretsApi
) -> None:
    job.main()
    entry = json.loads(api.value("storage-config", "atelier-models"))
    assert (entry["type"], entry["bucket"]) == ("s3", "models")
    api.secrets.clear()
    api.groups = ["datasciencecluster.opendatahub.io"]
    job.main()
    assert "storage-config" not in api.secrets


@needs_kubectl
def test_the_job_may_touch_the_secrets_it_makes_and_no_others(
    job: ModuleType, api: SecretsApi
) -> None:
    job.main()
    creating, reading = of_kind(objects("setup/storage"), "Role")[0]["rules"]
    assert creating["verbs"] == ["create"] and creating["resources"] == ["secrets"]
    assert set(reading["resourceNames"]) == set(api.secrets)
    assert reading["verbs"] == ["get"]


def test_the_script_is_the_one_in_the_configmap() -> None:
    kustomization = (SCRIPT.parent / "kustomization.yaml").read_text()
    assert f"files: [{Path(SCRIPT).name}]" in kustomization
