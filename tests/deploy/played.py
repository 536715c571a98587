"""The part of schedulers, kubelets and controllers, played by hand on any API server: pods with
their states, events, ReplicaSets whose pods may not be made, conditions of an InferenceService.

Nobody else writes there: a server without controllers has nobody, and where they run, these pods
wait for a scheduler that does not exist.
"""

from __future__ import annotations

import itertools
import json
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, cast

import pytest
from kubernetes import config
from kubernetes.dynamic import DynamicClient
from kubernetes.dynamic.exceptions import DynamicApiError, ForbiddenError, NotFoundError

from tests.manifests.rendering import Object

POD_LABEL = "serving.kserve.io/inferenceservice"
NOBODY = "nobody-schedules-these"
RULES_WAIT_S = 10
MERGE = "application/merge-patch+json"
CONTAINER: Object = {
    "name": "kserve-container",
    "image": "registry.example/atelier:1",
    "resources": {
        "requests": {"cpu": "1", "memory": "2Gi"},
        "limits": {"cpu": "4", "memory": "6Gi"},
    },
    "securityContext": {
        "allowPrivilegeEscalation": False,
        "runAsNonRoot": True,
        "capabilities": {"drop": ["ALL"]},
        "seccompProfile": {"type": "RuntimeDefault"},
    },
}
PATHS = {
    "Pod": "/api/v1/namespaces/{namespace}/pods",
    "Event": "/api/v1/namespaces/{namespace}/events",
    "ServiceAccount": "/api/v1/namespaces/{namespace}/serviceaccounts",
    "ResourceQuota": "/api/v1/namespaces/{namespace}/resourcequotas",
    "LimitRange": "/api/v1/namespaces/{namespace}/limitranges",
    "Deployment": "/apis/apps/v1/namespaces/{namespace}/deployments",
    "ReplicaSet": "/apis/apps/v1/namespaces/{namespace}/replicasets",
    "InferenceService": "/apis/serving.kserve.io/v1beta1/namespaces/{namespace}/inferenceservices",
    "ValidatingWebhookConfiguration": (
        "/apis/admissionregistration.k8s.io/v1/validatingwebhookconfigurations"
    ),
}


class Played:
    """What is made here for one endpoint, and removed again by `close`."""

    def __init__(self, kubeconfig: Path, namespace: str, name: str) -> None:
        self.namespace, self.name = namespace, name
        self.client = DynamicClient(config.new_client_from_config(str(kubeconfig)))
        self.made: list[tuple[str, str]] = []
        self.numbers = itertools.count(1)

    def close(self) -> None:
        for kind, name in reversed(self.made):
            with suppress(NotFoundError):
                self._ask("DELETE", kind, name, {"gracePeriodSeconds": 0})

    def create(self, kind: str, document: Object) -> Object:
        """Make an object."""
        version = "v1"
        if "/apis/" in (path := PATHS[kind]):
            version = "/".join(path.split("/")[2:4])
        body = {"apiVersion": version, "kind": kind, **document}
        with skipping_without_rights():
            made = self._ask("POST", kind, "", body)
        self.made.append((kind, made["metadata"]["name"]))
        return made

    def state(self, kind: str, name: str, status: Object) -> None:
        """Write an object's status, as its controller does."""
        with skipping_without_rights():
            self._ask("PATCH", kind, f"{name}/status", {"status": status})

    def service(self, **status: Any) -> None:
        """What KServe says of the endpoint."""
        self.state("InferenceService", self.name, status)

    def pod(self, status: Object) -> str:
        """A pod of the endpoint in this state."""
        name = f"{self.name}-predictor-{next(self.numbers)}"
        spec = {
            "schedulerName": NOBODY,
            "automountServiceAccountToken": False,
            "containers": [CONTAINER],
        }
        if status.get("initContainerStatuses"):
            spec["initContainers"] = [{**CONTAINER, "name": "storage-initializer"}]
        meta = {"name": name, "labels": {POD_LABEL: self.name}}
        self.create("Pod", {"metadata": meta, "spec": spec})
        self.state("Pod", name, {"phase": "Pending", **_filled(status)})
        return name

    def warn(self, subject: str, reason: str, message: str) -> None:
        """An event about a pod."""
        place = {"namespace": self.namespace}
        self.create(
            "Event",
            {
                "metadata": {"name": f"{subject}.{next(self.numbers)}", **place},
                "involvedObject": {"kind": "Pod", "name": subject, **place},
                "type": "Warning",
                "reason": reason,
                "message": message,
                "lastTimestamp": "2026-01-01T00:00:00Z",
            },
        )

    def quota(self, hard: Object) -> None:
        """A quota as its controller leaves it: the server heeds what is counted, not the spec."""
        self.create("ResourceQuota", {"metadata": {"name": "project"}, "spec": {"hard": hard}})
        self.state("ResourceQuota", "project", {"hard": hard, "used": dict.fromkeys(hard, "0")})

    def refused(self, spec: Object) -> None:
        """A ReplicaSet whose pod the API server refuses, with the server's words in its status.

        Raises:
            AssertionError: the server takes the pod.
        """
        name = f"{self.name}-predictor-{next(self.numbers)}"
        labels = {POD_LABEL: self.name, "played": name}
        template = {"metadata": {"labels": labels}, "spec": {"schedulerName": NOBODY, **spec}}
        self.create(
            "ReplicaSet",
            {
                "metadata": {"name": name, "labels": labels},
                "spec": {"replicas": 1, "selector": {"matchLabels": labels}, "template": template},
            },
        )
        meta = {"name": f"{name}-x", "labels": labels}
        said = self._refusal({"metadata": meta, "spec": template["spec"]})
        failure = {"type": "ReplicaFailure", "status": "True", "reason": "FailedCreate"}
        if not self._has_failure(name):
            conditions = [failure | {"message": said}]
            self.state("ReplicaSet", name, {"replicas": 0, "conditions": conditions})

    def _has_failure(self, replica_set: str) -> bool:
        """Whether a controller was here and has said it."""
        status = self._ask("GET", "ReplicaSet", replica_set, {}).get("status") or {}
        return any(each["type"] == "ReplicaFailure" for each in status.get("conditions", []))

    def _refusal(self, pod: Object) -> str:
        """Why a pod may not be made; its rules may be so new that the server does not know them."""
        document = {"apiVersion": "v1", "kind": "Pod", **pod}
        ends = time.monotonic() + RULES_WAIT_S
        while time.monotonic() < ends:
            try:
                self._ask("POST", "Pod", "", document, dry_run="All")
            except DynamicApiError as refusal:
                return str(json.loads(refusal.body)["message"])
            time.sleep(0.2)
        raise AssertionError("the API server takes a pod that it should refuse")

    def _ask(self, method: str, kind: str, name: str, body: Object, **query: str) -> Object:
        path = PATHS[kind].format(namespace=self.namespace) + (f"/{name}" if name else "")
        content_type = MERGE if method == "PATCH" else "application/json"
        answer = self.client.request(
            method, path, body=body, content_type=content_type, serialize=False, **query
        )
        return cast(Object, json.loads(answer.data))


@contextmanager
def skipping_without_rights() -> Iterator[None]:
    """A project's administrator may write no states and no quotas."""
    try:
        yield
    except ForbiddenError as error:
        said = json.loads(error.body)["message"]
        if " cannot " in said:
            pytest.skip(f"TEST_KUBECONFIG: {said}")
        raise


def _filled(status: Object) -> Object:
    """What the API wants of every container's status."""
    filled = dict(status)
    for field in ("containerStatuses", "initContainerStatuses"):
        if status.get(field):
            needed = {"image": CONTAINER["image"], "imageID": "", "ready": False, "restartCount": 0}
            filled[field] = [{**needed, **each} for each in status[field]]
        else:
            filled.pop(field, None)
    return filled
