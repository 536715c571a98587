"""The part of a Data Science Pipelines server that `atelier pipeline` uses: REST API v2beta1 over
TLS, behind a bearer token.

Paths and bodies are those of the KFP API server's OpenAPI description, from which kfp's client is
generated: https://github.com/kubeflow/pipelines/tree/master/backend/api/v2beta1
"""

from __future__ import annotations

import json
import re
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import yaml

from tests.certificates import make_ca_and_server

TOKEN = "sha256~a-token"
API = "/apis/v2beta1"
Json = dict[str, Any]


@dataclass
class Pipelines:
    """What the server holds. `scenes` are the answers to the questions after a run; the last one
    stays."""

    url: str
    ca_file: Path
    pipelines: list[Json] = field(default_factory=list)
    versions: list[Json] = field(default_factory=list)
    experiments: list[Json] = field(default_factory=list)
    runs: list[Json] = field(default_factory=list)
    scenes: list[Json] = field(default_factory=list)

    def answer(
        self, method: str, path: str, query: dict[str, str], body: bytes
    ) -> tuple[int, Json]:
        """Status and body."""
        if path == "/healthz":
            return 200, {"multi_user": False}
        if path == "/pipelines/upload":
            return 200, self.add_pipeline(query["name"], _package(body))
        if path == "/pipelines/upload_version":
            return 200, self._add_version(query["pipelineid"], query["name"], _package(body))
        if path == "/pipelines":
            return 200, {"pipelines": self._named(self.pipelines, query)}
        if match := re.fullmatch(r"/pipelines/([\w-]+)/versions", path):
            assert query["sort_by"] == "created_at desc"
            newest = [one for one in reversed(self.versions) if one["pipeline_id"] == match[1]]
            return 200, {"pipeline_versions": newest[: int(query["page_size"])]}
        if path == "/experiments" and method == "GET":
            return 200, {"experiments": self._named(self.experiments, query)}
        if path == "/experiments":
            self.experiments.append(
                json.loads(body) | {"experiment_id": f"experiment-{len(self.experiments)}"}
            )
            return 200, self.experiments[-1]
        if path == "/runs":
            return self._start(json.loads(body))
        if (match := re.fullmatch(r"/runs/([\w-]+)", path)) and match[1] in [
            run["run_id"] for run in self.runs
        ]:
            scene = self.scenes.pop(0) if len(self.scenes) > 1 else self.scenes[0]
            return 200, {"run_id": match[1]} | scene
        return 404, {"code": 5, "message": f"{path} not found"}

    def _start(self, run: Json) -> tuple[int, Json]:
        """As the server does: a run without a needed parameter is refused."""
        version = run["pipeline_version_reference"]["pipeline_version_id"]
        specification = next(
            one["pipeline_spec"] for one in self.versions if one["pipeline_version_id"] == version
        )
        for name, about in specification["root"]["inputDefinitions"]["parameters"].items():
            if not about.get("isOptional") and name not in run["runtime_config"]["parameters"]:
                return 400, {
                    "code": 3,
                    "message": f"parameter {name} is not optional, yet has no value",
                }
        self.runs.append(run | {"run_id": f"run-{len(self.runs)}", "state": "PENDING"})
        return 200, self.runs[-1]

    def add_pipeline(self, name: str, package: bytes) -> Json:
        """A pipeline with a first version."""
        self.pipelines.append(
            {"pipeline_id": f"pipeline-{len(self.pipelines)}", "display_name": name}
        )
        self._add_version(self.pipelines[-1]["pipeline_id"], name, package)
        return self.pipelines[-1]

    def _add_version(self, pipeline: str, name: str, package: bytes) -> Json:
        self.versions.append(
            {
                "pipeline_id": pipeline,
                "pipeline_version_id": f"version-{len(self.versions)}",
                "display_name": name,
                "pipeline_spec": next(iter(yaml.safe_load_all(package))),
            }
        )
        return self.versions[-1]

    @staticmethod
    def _named(things: list[Json], query: dict[str, str]) -> list[Json]:
        [predicate] = json.loads(query["filter"])["predicates"]
        assert (predicate["key"], predicate["operation"]) == ("display_name", 1)
        return [one for one in things if one["display_name"] == predicate["stringValue"]]


def _package(body: bytes) -> bytes:
    """The file of a multipart upload."""
    found = re.search(rb"\r\n\r\n(.*?)\r\n--", body, re.DOTALL)
    assert found
    return found[1]


@contextmanager
def kfp_server(folder: Path) -> Iterator[Pipelines]:
    """A server on loopback with a certificate of a CA of its own, both made in `folder`."""
    ca_file, certificate, key = make_ca_and_server(folder)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *args: Any) -> None:
            pass

        def do_GET(self) -> None:
            parts = urlsplit(self.path)
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            query = {name: values[0] for name, values in parse_qs(parts.query).items()}
            if self.headers.get("Authorization") != f"Bearer {TOKEN}":
                status, answer = 401, {"code": 16, "message": "Unauthorized"}
            else:
                status, answer = state.answer(
                    self.command, parts.path.removeprefix(API), query, body
                )
            content = json.dumps(answer).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        do_POST = do_GET

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    state = Pipelines(f"https://127.0.0.1:{server.server_port}", ca_file)
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    try:
        yield state
    finally:
        server.shutdown()
        server.server_close()
