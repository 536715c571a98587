"""Why an endpoint does not start, in words: from its status, its pods and the warnings about them.
Pure.

Objects are plain dicts as the API gives them. One `Finding` for a cause; a cause that nobody here
knows is given with the cluster's own words.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from atelier.deploy.readiness import CONTAINER
from atelier.deploy.refusals import (
    BEFORE_THE_START,
    FAILED_CREATE,
    NO_IMAGE,
    NO_SUCH_IMAGE,
    PASSING,
    REFUSED_BY_NODE,
    WAITING,
    WARNINGS,
    first,
)
from atelier.deploy.scheduling import explain

Object = dict[str, Any]


@dataclass(frozen=True)
class Finding:
    """One cause. `fatal`: waiting longer will not help."""

    subject: str
    cause: str
    remedy: str
    fatal: bool = False

    def __str__(self) -> str:
        return f"{self.subject}: {self.cause}\n  -> {self.remedy}"


RESTARTS_UNTIL_FATAL = 3
STOP = "serving.kserve.io/stop"


def diagnose(
    service: Object | None,
    pods: list[Object],
    warnings: list[Object],
    owners: list[Object] | None = None,
) -> list[Finding]:
    """Every cause found, the most certain first, none twice.

    Args:
        owners: the Deployment and the ReplicaSets, which say why there is no pod.
    """
    found: dict[tuple[str, str], Finding] = {}
    for finding in [
        *_of_service(service),
        *_of_owners(owners or []),
        *_of_pods(pods),
        *_of_events(_of_now(warnings, pods, owners or [])),
    ]:
        found.setdefault((finding.subject, finding.cause), finding)
    return sorted(found.values(), key=lambda finding: not finding.fatal)


def _of_now(warnings: list[Object], pods: list[Object], owners: list[Object]) -> list[Object]:
    """Warnings that still hold: the API keeps them for an hour.

    That a pod could not be made is told by its owner's conditions as long as it is so.
    """
    started = {pod["metadata"]["name"] for pod in pods if _has_started(pod)}
    known = {owner["metadata"]["name"] for owner in owners}
    return [
        event
        for event in warnings
        for name in [event["involvedObject"].get("name")]
        if not (event.get("reason") == "FailedCreate" and name in known)
        and not (event.get("reason") in BEFORE_THE_START and name in started)
    ]


def _has_started(pod: Object) -> bool:
    status = pod.get("status") or {}
    states = status.get("initContainerStatuses") or status.get("containerStatuses") or []
    return any("waiting" not in (each.get("state") or {"waiting": {}}) for each in states)


def _of_service(service: Object | None) -> Iterator[Finding]:
    if service is None:
        return
    status = service.get("status") or {}
    name = service["metadata"]["name"]
    if (service["metadata"].get("annotations") or {}).get(STOP) == "true":
        remedy = f"start it in the dashboard, or: kubectl annotate isvc {name} {STOP}-"
        yield Finding(name, "it was stopped (the dashboard's Stop)", remedy, fatal=True)
    model = status.get("modelStatus") or {}
    failure = model.get("lastFailureInfo") or {}
    if model.get("transitionStatus") == "InvalidSpec":
        runtime = service["spec"]["predictor"].get("model", {}).get("runtime", "")
        remedy = (
            f"is ServingRuntime {runtime} installed here, and does it list the format? kubectl"
            " apply -k manifests/base"
        )
        yield Finding(
            name, failure.get("message") or "KServe finds no runtime for it", remedy, fatal=True
        )
    for condition in status.get("conditions") or []:
        if condition.get("reason") == "ReconcileFailed":
            yield Finding(
                name,
                condition.get("message", "KServe cannot reconcile it"),
                "correct what the message names",
            )
        if condition["type"] == "CanaryReady" and condition["status"] == "False":
            said = condition.get("message") or condition.get("reason") or "no reason given"
            remedy = "traffic stays where it was; atelier deploy canary NAME --percent 0 ends it"
            yield Finding(name, f"the canary is not ready: {said}", remedy)


def _of_owners(owners: list[Object]) -> Iterator[Finding]:
    """Deployments and ReplicaSets whose pods may not be made."""
    said = set()
    for owner in owners:
        for condition in (owner.get("status") or {}).get("conditions") or []:
            message = condition.get("message") or ""
            failed = condition["type"] == "ReplicaFailure" and condition["status"] == "True"
            if failed and message not in said:
                said.add(message)
                yield _no_pod(owner["metadata"]["name"], message)


def _no_pod(subject: str, message: str) -> Finding:
    remedy = first(FAILED_CREATE, message)
    final = any(part in message for part in ("forbidden", "denied", "is invalid"))
    passing = any(part in message for part in PASSING)
    cause = f"no pod may be made: {message}"
    return Finding(subject, cause, remedy, fatal=final and not passing)


def _of_pods(pods: list[Object]) -> Iterator[Finding]:
    for pod in pods:
        name, status = pod["metadata"]["name"], pod.get("status") or {}
        if status.get("reason") == "Evicted":
            yield Finding(
                name,
                f"evicted: {status.get('message', '')}",
                "the node ran out of disk or memory: keep weights on a volume"
                " (components/model-cache)",
            )
        for reason, remedy in REFUSED_BY_NODE.items():
            if str(status.get("reason") or "").startswith(reason):
                cause = f"the node refused it: {status['reason']}: {status.get('message', '')}"
                yield Finding(name, cause, remedy)
        for condition in status.get("conditions") or []:
            if condition.get("reason") == "Unschedulable":
                why = explain(condition.get("message", ""))
                yield Finding(name, f"cannot be scheduled: {why.cause}", why.remedy)
            elif condition.get("reason") == "SchedulingGated":
                gates = (pod.get("spec") or {}).get("schedulingGates") or []
                named = ", ".join(gate["name"] for gate in gates) or condition.get("message", "")
                remedy = "a queue lets it start: kubectl get workloads.kueue.x-k8s.io says its turn"
                yield Finding(name, f"waits at the gate {named}", remedy)
        for container in [
            *(status.get("initContainerStatuses") or []),
            *(status.get("containerStatuses") or []),
        ]:
            yield from _of_container(name, container)


def _of_container(pod: str, status: Object) -> Iterator[Finding]:
    waiting = (status.get("state") or {}).get("waiting") or {}
    ended = (
        (status.get("state") or {}).get("terminated")
        or (status.get("lastState") or {}).get("terminated")
        or {}
    )
    container = status.get("name", "")
    subject = f"{pod}/{container}"
    again = status.get("restartCount", 0) >= RESTARTS_UNTIL_FATAL
    reason, said = waiting.get("reason"), waiting.get("message") or ""
    if reason in NO_IMAGE:
        final = any(part in f"{reason} {said}" for part in NO_SUCH_IMAGE)
        remedy = (
            "does the tag exist, and does the service account have a pull secret for the registry?"
        )
        cause = f"the image {status.get('image', '')} cannot be pulled ({said or reason})"
        yield Finding(subject, cause, remedy, final)
    elif reason in WAITING:
        yield Finding(subject, f"the container cannot be made: {said or reason}", WAITING[reason])
    if ended.get("reason") == "OOMKilled" or ended.get("exitCode") == 137:
        yield _killed(subject, container, ended, again)
    elif ended.get("exitCode"):
        last = str(ended.get("message") or "").strip().splitlines()
        cause = f"ended with exit code {ended['exitCode']}" + (f": {last[-1]}" if last else "")
        yield Finding(subject, cause, _remedy_for_exit(container), again)
    elif reason == "CrashLoopBackOff":
        cause = "ends again and again, without an error"
        yield Finding(subject, cause, _remedy_for_exit(container), again)


def _killed(subject: str, container: str, ended: Object, again: bool) -> Finding:
    if container == "storage-initializer":
        remedy = (
            "raise the initializer's memory in the inferenceservice-config ConfigMap, or let the"
            " server fetch by itself"
        )
        return Finding(subject, "killed for memory while it downloaded the weights", remedy, again)
    if ended.get("reason") == "OOMKilled":
        remedy = "raise limits.memory; docs/deploying.md says how much a model needs"
        return Finding(subject, "killed for memory (host memory, not the GPU's)", remedy, again)
    remedy = (
        "see the warnings for a failed probe; a kill without one is the kernel's, for memory: raise"
        " limits.memory"
    )
    return Finding(subject, "killed from outside (exit code 137)", remedy, again)


def _remedy_for_exit(container: str) -> str:
    if container == "storage-initializer":
        return (
            "does the address of the weights exist, and do the connection's keys open it? "
            "atelier deploy logs --container storage-initializer"
        )
    if container != CONTAINER:
        return f"atelier deploy logs --container {container} --previous shows the last run"
    return (
        "atelier deploy logs --previous shows the last run; a line that starts with `atelier:`"
        " names the setting"
    )


def _of_events(warnings: list[Object]) -> Iterator[Finding]:
    for event in warnings:
        subject, reason, message = (
            event["involvedObject"]["name"],
            event.get("reason"),
            event.get("message") or "",
        )
        if reason == "Unhealthy" and message.startswith("Startup probe"):
            yield Finding(
                subject,
                "still loading",
                "the startup probe allows 10 minutes; atelier deploy logs shows the progress",
            )
        elif reason == "Unhealthy" and message.startswith("Liveness probe"):
            remedy = "the event loop hangs: keep the log for a report; the kubelet restarts it"
            yield Finding(subject, f"does not answer: {message}", remedy)
        elif reason == "Unhealthy":
            remedy = "the model is not ready to answer: atelier deploy logs says what it does"
            yield Finding(subject, f"takes no traffic: {message}", remedy)
        elif reason == "FailedCreate":
            yield _no_pod(subject, message)
        elif reason in WARNINGS:
            cause, remedy = WARNINGS[reason]
            yield Finding(subject, f"{cause}: {message}", remedy)
