"""A Kubernetes API server with KServe's InferenceService, for the real client: discovery,
server-side apply, pods, logs.

It keeps applied objects and plays a scene: each time the InferenceService is read, the scene's next
status, pods and events are the cluster's. The last one stays.
"""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import yaml

Object = dict[str, Any]
SERVICES = "/apis/serving.kserve.io/v1beta1"


@dataclass
class Moment:
    """What the cluster looks like for one look at it."""

    ready: bool = False
    pods: list[Object] = field(default_factory=list)
    events: list[Object] = field(default_factory=list)
    status: Object = field(default_factory=dict)


class FakeApi:
    """Serves until closed. `scene` may be replaced at any time."""

    def __init__(self, check: Callable[[Object], list[str]]) -> None:
        self.check = check
        self.scene = [Moment(ready=True)]
        self.services: dict[str, Object] = {}
        self.logs: dict[tuple[str, str, bool], str] = {}
        self.requests: list[str] = []
        self.has_kserve = True
        api = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                api.handle(self, "GET")

            def do_PATCH(self) -> None:
                api.handle(self, "PATCH")

            def do_DELETE(self) -> None:
                api.handle(self, "DELETE")

            def log_message(self, *_: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.thread = threading.Thread(target=self.server.serve_forever, daemon=True)
        self.thread.start()

    def kubeconfig(self, folder: Path, namespace: str = "studio") -> Path:
        path = folder / "kubeconfig"
        address = f"http://127.0.0.1:{self.server.server_port}"
        context = {"cluster": "fake", "user": "me", "namespace": namespace}
        document = {
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "fake",
            "clusters": [{"name": "fake", "cluster": {"server": address}}],
            "contexts": [{"name": "fake", "context": context}],
            "users": [{"name": "me", "user": {}}],
        }
        path.write_text(yaml.safe_dump(document))
        return path

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()

    def handle(self, request: BaseHTTPRequestHandler, method: str) -> None:
        address = urlsplit(request.path)
        query = {name: values[0] for name, values in parse_qs(address.query).items()}
        length = int(request.headers.get("Content-Length") or 0)
        body = json.loads(request.rfile.read(length)) if length else None
        self.requests.append(f"{method} {address.path}")
        code, answer = self.answer(
            method, address.path, query, body, request.headers.get("Content-Type", "")
        )
        data = answer.encode() if isinstance(answer, str) else json.dumps(answer).encode()
        request.send_response(code)
        request.send_header(
            "Content-Type", "text/plain" if isinstance(answer, str) else "application/json"
        )
        request.send_header("Content-Length", str(len(data)))
        request.end_headers()
        request.wfile.write(data)

    def answer(
        self, method: str, path: str, query: Object, body: Any, content_type: str
    ) -> tuple[int, Any]:
        if path in DISCOVERY:
            if not self.has_kserve and path in ("/apis", SERVICES):
                return 200, {"kind": "APIGroupList", "groups": []}
            return 200, DISCOVERY[path]
        if found := re.fullmatch(rf"{SERVICES}/namespaces/([^/]+)/inferenceservices/([^/]+)", path):
            return self.service(method, found[2], body, content_type)
        if found := re.fullmatch(r"/api/v1/namespaces/[^/]+/pods/([^/]+)/log", path):
            key = (
                found[1],
                query.get("container", ""),
                query.get("previous", "") in ("true", "True"),
            )
            return (
                (200, self.logs[key])
                if key in self.logs
                else (400, status("previous terminated container not found"))
            )
        if path.endswith("/pods"):
            assert query["labelSelector"].startswith("serving.kserve.io/inferenceservice=")
            return 200, {
                "kind": "PodList",
                "apiVersion": "v1",
                "metadata": {},
                "items": self.scene[0].pods,
            }
        if path.endswith("/events"):
            return 200, {
                "kind": "EventList",
                "apiVersion": "v1",
                "metadata": {},
                "items": self.scene[0].events,
            }
        return 404, status(f"{path} is not here")

    def service(self, method: str, name: str, body: Any, content_type: str) -> tuple[int, Any]:
        if method == "PATCH":
            assert content_type == "application/apply-patch+yaml"
            if errors := self.check(body):
                return 422, status("; ".join(errors))
            generation = (
                self.services.get(name, {"metadata": {"generation": 0}})["metadata"]["generation"]
                + 1
            )
            self.services[name] = {
                **body,
                "metadata": {**body["metadata"], "generation": generation},
            }
            return 200, self.services[name]
        if name not in self.services:
            return 404, status(f"inferenceservices {name} not found")
        if method == "DELETE":
            return 200, self.services.pop(name)
        if len(self.scene) > 1:
            self.scene.pop(0)
        moment, found = self.scene[0], self.services[name]
        conditions = [{"type": "Ready", "status": "True" if moment.ready else "False"}]
        shown = {
            "observedGeneration": found["metadata"]["generation"],
            "conditions": conditions,
            **moment.status,
        }
        if moment.ready:
            shown.setdefault("url", f"https://{name}.example.com")
        return 200, {**found, "status": shown}


def status(message: str) -> Object:
    return {"kind": "Status", "apiVersion": "v1", "status": "Failure", "message": message}


GROUP = {
    "name": "serving.kserve.io",
    "versions": [{"groupVersion": "serving.kserve.io/v1beta1", "version": "v1beta1"}],
    "preferredVersion": {"groupVersion": "serving.kserve.io/v1beta1", "version": "v1beta1"},
}
VERBS = ["create", "delete", "get", "list", "patch", "watch"]
DISCOVERY: dict[str, Object] = {
    "/version": {"major": "1", "minor": "32", "gitVersion": "v1.32.0"},
    "/api": {"kind": "APIVersions", "versions": ["v1"]},
    "/api/v1": {
        "kind": "APIResourceList",
        "groupVersion": "v1",
        "resources": [
            {
                "name": "pods",
                "singularName": "pod",
                "namespaced": True,
                "kind": "Pod",
                "verbs": VERBS,
            },
            {
                "name": "events",
                "singularName": "event",
                "namespaced": True,
                "kind": "Event",
                "verbs": VERBS,
            },
        ],
    },
    "/apis": {"kind": "APIGroupList", "groups": [GROUP]},
    SERVICES: {
        "kind": "APIResourceList",
        "groupVersion": "serving.kserve.io/v1beta1",
        "resources": [
            {
                "name": "inferenceservices",
                "singularName": "inferenceservice",
                "namespaced": True,
                "kind": "InferenceService",
                "verbs": VERBS,
            }
        ],
    },
}
