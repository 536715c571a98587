"""What controllers make of an InferenceService: Deployment, ReplicaSet, pods and conditions.

KServe copies the observedGeneration of the Deployment into the InferenceService, as the real one
does, so it says nothing about the InferenceService's own generation.
"""

from __future__ import annotations

import copy
import hashlib
import json
from dataclasses import dataclass, field
from typing import Any

from tests.deploy.fake_rules import refusal_of_pod
from tests.deploy.fake_store import Object, Store
from tests.manifests.rendering import merged_container

SOURCE = "internal.serving.kserve.io/storage-initializer-sourceuri"
REVISION = "deployment.kubernetes.io/revision"
POD_LABEL = "serving.kserve.io/inferenceservice"


@dataclass
class Moment:
    """What the cluster looks like for one look at it.

    Attributes:
        ready: the pods start and get ready.
        reconciled: KServe has seen the last change; before that all is as it was.
        pods: instead of those that the ReplicaSet makes.
        status: merged into the InferenceService's.
    """

    ready: bool = False
    pods: list[Object] = field(default_factory=list)
    events: list[Object] = field(default_factory=list)
    status: Object = field(default_factory=dict)
    reconciled: bool = True


def reconcile(store: Store, moment: Moment) -> None:
    """Bring everything below the InferenceServices to what the moment says."""
    wanted = {k for k in store.objects if k[0] == "inferenceservices"}
    names = {key[1:] for key in wanted}
    for key in [
        k for k, doc in store.objects.items() if k[0] in ("deployments", "replicasets", "pods")
    ]:
        of = store.objects[key]["metadata"].get("labels", {}).get(POD_LABEL)
        if of and ((key[1], of) not in names or key[0] == "pods"):
            store.delete(key)
    for key in [k for k in store.objects if k[0] == "events"]:
        store.delete(key)
    for key in [k for k in store.objects if k[0] == "resourcequotas"]:
        store.write_status(key, {"hard": store.objects[key]["spec"]["hard"]})
    for key in wanted:
        _service(store, key, moment)
    for key in [k for k in store.objects if k[0] == "llminferenceservices"]:
        state = {"type": "Ready", "status": "True" if moment.ready else "False"}
        url = {"url": f"https://gateway.example.com/{key[1]}/{key[2]}"} if moment.ready else {}
        store.objects[key] = {**store.objects[key], "status": {"conditions": [state], **url}}
    for _, namespace, name in [key for key in store.objects if key[0] == "jobs"]:
        _job(store, namespace, name)


def _job(store: Store, namespace: str, name: str) -> None:
    """The Job of manifests/setup/storage makes its Secrets, a while after it was applied."""
    job = store.objects["jobs", namespace, name]
    looks = job.setdefault("status", {}).setdefault("looks", 0)
    job["status"]["looks"] = looks + 1
    if name != "atelier-s3-setup" or looks < 2:
        return
    for secret in ("s3-server", "atelier-models", "atelier-pipelines"):
        key = "secrets", namespace, secret
        if key not in store.objects:
            meta = {"name": secret}
            store.write(key, {"apiVersion": "v1", "kind": "Secret", "metadata": meta}, "job")


def _service(store: Store, key: tuple[str, str, str], moment: Moment) -> None:
    _, namespace, name = key
    service = store.objects[key]
    where = "deployments", namespace, f"{name}-predictor"
    template = _template(store, service)
    stale = not moment.reconciled and where in store.objects
    if not stale:
        labels = {POD_LABEL: name}
        document = copy.deepcopy(store.objects.get(where)) or {
            "apiVersion": "apps/v1",
            "kind": "Deployment",
            "metadata": {"name": where[2], "labels": labels},
        }
        document["spec"] = {
            "replicas": 1,
            "template": template,
            "selector": {"matchLabels": labels},
        }
        store.write(where, document, "kserve")
    deployment = store.objects[where]
    ready = moment.ready or stale
    pods = moment.pods or ([_pod(name, deployment, ready)] if ready else [])
    said = refusal_of_pod(store, namespace, f"{where[2]}-x", template["spec"])
    if said:
        pods, ready = [], False
    _rollout(store, where, ready, said)
    for number, pod in enumerate(pods):
        pod = copy.deepcopy(pod)
        pod.setdefault("apiVersion", "v1")
        pod.setdefault("kind", "Pod")
        pod["metadata"].setdefault("labels", {})[POD_LABEL] = name
        at = "pods", namespace, pod["metadata"]["name"]
        store.objects[at if at not in store.objects else (*at[:2], f"{at[2]}-{number}")] = pod
    for number, event in enumerate(moment.events):
        meta = {"name": f"{name}.{number}", "namespace": namespace}
        store.objects["events", namespace, meta["name"]] = {
            "apiVersion": "v1",
            "kind": "Event",
            "metadata": meta,
            "type": "Warning",
            "lastTimestamp": "2026-01-01T00:00:00Z",
            **event,
        }
    conditions = [{"type": "Ready", "status": "True" if ready else "False"}]
    if service["spec"].get("canary"):
        conditions.append({"type": "CanaryReady", "status": "True" if ready else "False"})
    shown = {
        "observedGeneration": store.objects[where]["metadata"]["generation"],
        "conditions": conditions,
        **moment.status,
    }
    if ready:
        shown.setdefault("url", f"https://{name}.example.com")
    store.objects[key] = {**store.objects[key], "status": shown}


def _template(store: Store, service: Object) -> Object:
    predictor = service["spec"]["predictor"]
    runtime = store.objects.get(
        ("servingruntimes", service["metadata"]["namespace"], predictor["model"]["runtime"])
    ) or {
        "kind": "ServingRuntime",
        "metadata": {"name": predictor["model"]["runtime"]},
        "spec": {"containers": [{"name": "kserve-container", "resources": {}}]},
    }
    container = merged_container([service, runtime])
    # A typed object leaves out what is empty.
    container["env"] = [
        {name: value for name, value in entry.items() if value != ""}
        for entry in container.get("env", [])
    ]
    keep = ("serviceAccountName", "tolerations", "affinity", "nodeSelector", "volumes")
    spec = {k: copy.deepcopy(predictor[k]) for k in keep if k in predictor}
    storage = predictor["model"].get("storageUri") or predictor["model"].get("storage")
    annotations = {SOURCE: storage if isinstance(storage, str) else json.dumps(storage)}
    labels = {POD_LABEL: service["metadata"]["name"]}
    return {
        "metadata": {"labels": labels, "annotations": annotations if storage else {}},
        "spec": {**spec, "containers": [container]},
    }


def _rollout(store: Store, where: tuple[str, str, str], ready: bool, refused: str) -> None:
    deployment = store.objects[where]
    hashed = _hash(deployment)
    name = f"{where[2]}-{hashed}"
    failed = [
        {"type": "ReplicaFailure", "status": "True", "reason": "FailedCreate", "message": refused}
    ]
    deployment["status"] = {
        "observedGeneration": deployment["metadata"]["generation"],
        "replicas": int(not refused),
        "updatedReplicas": int(not refused),
        "availableReplicas": int(ready),
        "conditions": failed if refused else [],
    }
    sets = [k for k in store.objects if k[0] == "replicasets" and k[2].startswith(where[2])]
    # Earlier ones stay, for a way back.
    revisions = {k: int(store.objects[k]["metadata"]["annotations"][REVISION]) for k in sets}
    key = ("replicasets", where[1], name)
    last = max(revisions.values(), default=0)
    revision = last if last and revisions.get(key) == last else last + 1
    replica_set = {
        "apiVersion": "apps/v1",
        "kind": "ReplicaSet",
        "metadata": {
            "name": name,
            "labels": {**deployment["metadata"]["labels"], "pod-template-hash": hashed},
            "annotations": {REVISION: str(revision)},
            "ownerReferences": [{"kind": "Deployment", "name": where[2]}],
        },
        "spec": deployment["spec"],
    }
    store.write(key, replica_set, "controller")
    store.objects[key]["status"] = {
        "replicas": int(not refused),
        "conditions": failed if refused else [],
    }


def _hash(deployment: Object) -> str:
    text = json.dumps(deployment["spec"]["template"], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def _pod(name: str, deployment: Object, ready: bool) -> Object:
    hashed = _hash(deployment)
    status: dict[str, Any] = {"name": "kserve-container", "state": {"running": {}}, "ready": ready}
    return {
        "metadata": {
            "name": f"{name}-predictor-{hashed}-x",
            "labels": {"pod-template-hash": hashed},
            "creationTimestamp": "2026-01-02T00:00:00Z",
        },
        "spec": deployment["spec"]["template"]["spec"],
        "status": {
            "phase": "Running",
            "conditions": [{"type": "Ready", "status": str(ready)}],
            "containerStatuses": [{**status, "restartCount": 0}],
        },
    }
