"""Whether an endpoint is ready for the spec that was applied last. Pure.

KServe copies the *Deployment's* observedGeneration into an InferenceService, so no number there
says that a change was seen. The Deployment says it: it has the change, and its pods are new.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from atelier.deploy.manifest import MODE

Object = dict[str, Any]
CONTAINER = "kserve-container"
SOURCE = "internal.serving.kserve.io/storage-initializer-sourceuri"
REVISION = "deployment.kubernetes.io/revision"
HASH = "pod-template-hash"
FACTORS = {"n": 1e-9, "u": 1e-6, "m": 1e-3, "": 1.0}
FACTORS |= {suffix: 1e3**power for power, suffix in enumerate("kMGTPE", 1)}
FACTORS |= {f"{suffix}i": float(2 ** (10 * power)) for power, suffix in enumerate("KMGTPE", 1)}
QUANTITY = re.compile(r"([+-]?[0-9.]+(?:[eE][+-]?[0-9]+)?)([numkMGTPE]|[KMGTPE]i)?")


def is_ready(service: Object, deployment: Object | None) -> bool:
    """Ready by its conditions, and by pods that follow its spec.

    Args:
        deployment: None where there is none; then the conditions alone count if the endpoint is
            not in standard mode (Knative keeps revisions of its own).
    """
    status = service.get("status") or {}
    ready = any(
        condition["type"] == "Ready" and condition["status"] == "True"
        for condition in status.get("conditions") or []
    )
    if not ready:
        return False
    if deployment is None:
        mode = (service["metadata"].get("annotations") or {}).get(MODE)
        return mode == "Serverless" or status.get("deploymentMode") == "Serverless"
    return not list(behind(service, deployment)) and has_rolled_out(deployment)


def has_rolled_out(deployment: Object) -> bool:
    """Its controller saw the last change, and every pod is of it and available."""
    status = deployment.get("status") or {}
    wanted = deployment["spec"].get("replicas", 1)
    updated = status.get("updatedReplicas") or 0
    return bool(
        (status.get("observedGeneration") or 0) >= deployment["metadata"].get("generation", 0)
        and updated >= wanted
        and (status.get("replicas") or 0) == updated
        and (status.get("availableReplicas") or 0) >= wanted
    )


def behind(service: Object, deployment: Object) -> Iterator[str]:
    """Fields of the endpoint's predictor that its Deployment does not have yet."""
    predictor = service["spec"]["predictor"]
    model = predictor.get("model") or {}
    template = deployment["spec"]["template"]
    container: Object = next(
        (each for each in template["spec"]["containers"] if each["name"] == CONTAINER), {}
    )
    has = {entry["name"]: entry for entry in container.get("env") or []}
    for entry in model.get("env") or []:
        if not _covers(has.get(entry["name"]), entry):
            yield f"env {entry['name']}"
    if not set(model.get("args") or []) <= set(container.get("args") or []):
        yield "args"
    if model.get("image", container.get("image")) != container.get("image"):
        yield "image"
    for part, amounts in (model.get("resources") or {}).items():
        there = (container.get("resources") or {}).get(part) or {}
        if any(quantity(there.get(name, 0)) != quantity(v) for name, v in amounts.items()):
            yield f"resources.{part}"
    for name in ("serviceAccountName", "nodeSelector", "affinity"):
        if name in predictor and not _covers(template["spec"].get(name), predictor[name]):
            yield name
    source = (template["metadata"].get("annotations") or {}).get(SOURCE)
    if source and model.get("storageUri", source) != source:
        yield "storageUri"


def newest(replica_sets: list[Object]) -> list[Object]:
    """The ReplicaSets of the last revision; a Deployment keeps ten earlier ones."""

    def revision(each: Object) -> int:
        return int((each["metadata"].get("annotations") or {}).get(REVISION) or 0)

    last = max(map(revision, replica_sets), default=0)
    return [each for each in replica_sets if revision(each) == last]


def is_of(pod: Object, replica_sets: list[Object]) -> bool:
    """Whether a pod is of one of them, as far as its labels say; Knative's are of none."""

    def mark(each: Object) -> Any:
        return (each["metadata"].get("labels") or {}).get(HASH)

    return mark(pod) is None or not replica_sets or mark(pod) in map(mark, replica_sets)


def quantity(text: Any) -> float:
    """A Kubernetes quantity as a number: 500m is 0.5, 1Ki is 1024.

    Raises:
        ValueError: it is none.
    """
    if not (found := QUANTITY.fullmatch(str(text))):
        raise ValueError(f"{text!r} is no quantity such as 500m or 16Gi")
    return float(found[1]) * FACTORS[found[2] or ""]


def _covers(there: Any, wanted: Any) -> bool:
    """Whether all that is wanted is there; what the API server fills in does not matter, and what
    is empty it leaves out."""
    if isinstance(wanted, dict):
        return isinstance(there, dict) and all(_covers(there.get(k), v) for k, v in wanted.items())
    if isinstance(wanted, list):
        return (
            isinstance(there, list)
            and len(there) == len(wanted)
            and all(map(_covers, there, wanted))
        )
    return bool(there == wanted or (not there and wanted == ""))
