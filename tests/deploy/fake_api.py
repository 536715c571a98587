"""A Kubernetes API server with KServe and OpenShift AI, for the real clients, kubectl included.

What it keeps is in `fake_store`, what it refuses in `fake_rules`, what its controllers make of an
InferenceService in `fake_controllers`. A scene plays there: each time an InferenceService is read,
the scene's next moment is the cluster's. The last one stays.
"""

from __future__ import annotations

import copy
import json
import re
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import yaml

from tests.deploy import fake_controllers, fake_protobuf, fake_rules
from tests.deploy.fake_controllers import Moment
from tests.deploy.fake_kinds import ALL, Kind, discovery
from tests.deploy.fake_store import Object, Refused, Store, merge

__all__ = ["FakeApi", "Moment"]
ADDRESS = re.compile(
    r"/(?:api|apis/(?P<group>[^/]+))/(?P<version>[^/]+)(?:/namespaces/(?P<namespace>[^/]+))?"
    r"/(?P<resource>[a-z0-9]+)(?:/(?P<name>[^/]+))?(?:/(?P<sub>[a-z]+))?"
)
FACTS: Object = {
    "logged_in": True,
    "forbidden": [],
    "kserve": 21,
    "refusal": "",
    "dead_api": "",
}
"""What the cluster is like. `forbidden`: a resource (may not be written), or verb and resource;
`dead_api`: a group and version that is listed and does not answer."""


class FakeApi:
    """Serves until closed. `scene` and `facts` may be replaced at any time."""

    def __init__(self, check: Callable[[Object], list[str]], namespace: str = "studio") -> None:
        self.check = check
        self.scene = [Moment(ready=True)]
        self.store = Store()
        self.facts: Object = copy.deepcopy(FACTS)
        self.kinds: list[Kind] = list(ALL)
        self.logs: dict[tuple[str, str, bool], str] = {}
        self.requests: list[str] = []
        self.lock = threading.RLock()
        self.down = False
        self.controllers = True
        if namespace:
            self.add("v1", "Namespace", namespace, "")
            self.add("v1", "ServiceAccount", "atelier", namespace)
        api = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            # Head and body are two writes; the second must not wait for the client's ACK, 40 ms.
            disable_nagle_algorithm = True

            def do_GET(self) -> None:
                api.handle(self, self.command)

            do_PATCH = do_DELETE = do_POST = do_PUT = do_GET

            def log_message(self, *_: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True)
        self.thread.start()

    @property
    def has_kserve(self) -> bool:
        return any(kind.group == "serving.kserve.io" for kind in self.kinds)

    @has_kserve.setter
    def has_kserve(self, there: bool) -> None:
        self.kinds = [k for k in ALL if there or k.group != "serving.kserve.io"]

    @property
    def services(self) -> dict[str, Object]:
        """The InferenceServices by name."""
        kept = self.store.objects.items()
        return {name: doc for (kind, _, name), doc in kept if kind == "inferenceservices"}

    def add(
        self, version: str, kind: str, name: str, namespace: str = "studio", **more: Any
    ) -> None:
        """An object that is there before anybody comes."""
        known = next(k for k in ALL if k.api_version == version and k.kind == kind)
        meta = {"name": name, **more.pop("metadata", {})}
        document = {"apiVersion": version, "kind": kind, "metadata": meta, **more}
        self.store.write((known.resource, namespace, name), document, "before")

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
        self.down = True
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()

    def handle(self, request: BaseHTTPRequestHandler, method: str) -> None:
        if self.down:
            request.connection.close()
            request.close_connection = True
            return
        address = urlsplit(request.path)
        query = {name: values[0] for name, values in parse_qs(address.query).items()}
        length = int(request.headers.get("Content-Length") or 0)
        text = request.rfile.read(length)
        content_type = request.headers.get("Content-Type", "")
        with self.lock:
            self.requests.append(f"{method} {address.path}")
            try:
                if text.startswith(fake_protobuf.MAGIC):
                    body = fake_protobuf.access_review(text)
                else:
                    body = yaml.safe_load(text) if text else None
                code, answer = self.answer(method, address.path, query, body, content_type)
            except Refused as refused:
                code, answer = refused.code, refused.status
        data = answer.encode() if isinstance(answer, str) else json.dumps(answer).encode()
        request.send_response(code)
        kind = "text/plain" if isinstance(answer, str) else "application/json"
        request.send_header("Content-Type", kind)
        request.send_header("Content-Length", str(len(data)))
        request.end_headers()
        request.wfile.write(data)

    def answer(
        self, method: str, path: str, query: Object, body: Any, content_type: str
    ) -> tuple[int, Any]:
        if not self.facts["logged_in"]:
            raise Refused(401, "Unauthorized", "Unauthorized")
        if (found := discovery(path, self.kinds, self.facts["dead_api"])) is not None:
            return 200, found
        if self.facts["dead_api"] and path == f"/apis/{self.facts['dead_api']}":
            said = "the server is currently unable to handle the request"
            raise Refused(503, "ServiceUnavailable", said)
        if path.endswith("/selfsubjectaccessreviews"):
            asked = body["spec"]["resourceAttributes"]
            allowed = self.may(asked["verb"], asked["resource"])
            return 201, {**body, "status": {"allowed": allowed}}
        found = ADDRESS.fullmatch(path)
        kind = found and next(
            (
                k
                for k in self.kinds
                if (k.group, k.version, k.resource)
                == (found["group"] or "", found["version"], found["resource"])
            ),
            None,
        )
        if not found or not kind:
            raise Refused(404, "NotFound", f"the server could not find {path}")
        if found["resource"] == "namespaces":
            return self.serve(kind, method, "", found["name"] or "", query, body, content_type)
        if found["sub"] == "log":
            return self.log(found["name"], query)
        place = found["namespace"] or "", found["name"] or ""
        if found["sub"] == "status":
            return 200, self.store.write_status((kind.resource, *place), body["status"])
        return self.serve(kind, method, *place, query, body, content_type)

    def may(self, verb: str, resource: str) -> bool:
        """RBAC as told."""
        told = {entry.split(".")[0] for entry in self.facts["forbidden"]}
        if f"{verb} {resource}" in told:
            return False
        return verb in ("get", "list", "watch") or resource not in told

    def log(self, pod: str, query: Object) -> tuple[int, Any]:
        key = pod, query.get("container", ""), query.get("previous", "") in ("true", "True")
        if key not in self.logs:
            raise Refused(400, "BadRequest", "previous terminated container not found")
        return 200, self.logs[key]

    def serve(
        self,
        kind: Kind,
        method: str,
        namespace: str,
        name: str,
        query: Object,
        body: Any,
        content_type: str,
    ) -> tuple[int, Any]:
        verbs = {"GET": "get" if name else "list", "POST": "create", "PUT": "update"}
        verb = verbs.get(method, method.lower())
        name = name or ((body or {}).get("metadata", {}).get("name", "") if body else "")
        if not self.may(verb, kind.resource):
            text = f'{kind.plural} "{name}" is forbidden: User "me" cannot {verb} resource'
            raise Refused(403, "Forbidden", f'{text} "{kind.resource}"')
        if method == "GET" and kind.resource == "inferenceservices" and len(self.scene) > 1:
            self.scene.pop(0)
        self.reconcile()
        if method == "POST" and not name:
            said = f'{kind.kind} "" is invalid: metadata.name: Required value: name or generateName'
            raise Refused(422, "Invalid", f"{said} is required")
        key = kind.resource, namespace, name
        there = self.store.objects.get(key)
        if verb == "list":
            return 200, self.listing(kind, namespace, query)
        if there is None and (method in ("GET", "DELETE") or "merge-patch" in content_type):
            text = f'{kind.plural} "{name}" not found'
            raise Refused(404, "NotFound", text, name=name, kind=kind.resource)
        if method == "GET":
            return 200, {**there, "apiVersion": kind.api_version}
        if method == "DELETE":
            return 200, self.store.delete(key)
        if method == "POST" and there is not None:
            raise Refused(409, "AlreadyExists", f'{kind.plural} "{name}" already exists')
        return 200 if there else 201, self.change(kind, key, query, body, content_type)

    def change(
        self, kind: Kind, key: tuple[str, str, str], query: Object, body: Any, content_type: str
    ) -> Object:
        there, manager = self.store.objects.get(key), query.get("fieldManager", "unknown")
        if kind.namespaced and ("namespaces", "", key[1]) not in self.store.objects:
            raise Refused(404, "NotFound", f'namespaces "{key[1]}" not found')
        if kind.namespaced and there is None:
            fake_rules.must_not_be_leaving(self.store, kind.plural, key)
        force = query.get("force") in ("true", "True")
        by_apply = "apply-patch" in content_type
        if by_apply:
            document = self.store.apply(key, body, manager, force)
        elif "patch" in content_type:
            document = merge(there, body, strategic="strategic" in content_type)
        else:
            document = copy.deepcopy(body)
            document.setdefault("metadata", {})["name"] = key[2]
            document["metadata"] |= {"namespace": key[1]} if key[1] else {}
        # A status is written by its own address, whatever else was sent.
        document.pop("status", None)
        if there and "status" in there:
            document["status"] = there["status"]
        if errors := self.check({k: v for k, v in document.items() if k != "status"}):
            raise Refused(422, "Invalid", "; ".join(errors))
        fake_rules.admit(self.store, key[0], document, there, self.facts)
        if query.get("dryRun"):
            return document
        if by_apply:
            self.store.own(key, body, manager, force)
        written = self.store.write(key, document, manager)
        self.reconcile()
        return written

    def reconcile(self) -> None:
        """The controllers' turn."""
        if self.controllers:
            fake_controllers.reconcile(self.store, self.scene[0])

    def listing(self, kind: Kind, namespace: str, query: Object) -> Object:
        selectors = dict(
            pair.split("=") for pair in query.get("labelSelector", "").split(",") if "=" in pair
        )
        fields = dict(
            pair.split("=") for pair in query.get("fieldSelector", "").split(",") if "=" in pair
        )
        items = [
            {**doc, "apiVersion": kind.api_version}
            for (resource, place, name), doc in sorted(self.store.objects.items())
            if resource == kind.resource
            and (not namespace or place == namespace)
            and selectors.items() <= doc["metadata"].get("labels", {}).items()
            and fields.get("type", doc.get("type")) == doc.get("type")
            and fields.get("metadata.name", name) == name
        ]
        meta = {"resourceVersion": "1"}
        return {
            "kind": f"{kind.kind}List",
            "apiVersion": kind.api_version,
            "metadata": meta,
            "items": items,
        }
