"""Brings an endpoint to readiness: apply, follow conditions and pods, and end with a URL or with
the reason."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace

from atelier.deploy.cluster import Cluster, Object
from atelier.deploy.diagnosis import Finding, diagnose
from atelier.deploy.manifest import DeployError, Endpoint, render
from atelier.deploy.readiness import behind, is_of, is_ready, newest

Say = Callable[[str], None]
FATAL_FOR_S = 30
"""A hopeless state must last this long: an image that was just pushed, or a Secret made late, still
counts as a start."""


def deploy(
    endpoint: Endpoint,
    *,
    wait_s: float = 900,
    say: Say = print,
    context: str = "",
    take_over: bool = False,
) -> str:
    """Apply an endpoint and wait until it is ready.

    Args:
        wait_s: seconds to wait; 0: do not wait.
        take_over: fields that somebody else set become ours.

    Returns:
        The endpoint's URL; empty if it was not waited for and KServe has given none yet.

    Raises:
        DeployError: it was refused, or did not get ready; the message holds the causes that were
            found.
    """
    cluster = Cluster(endpoint.namespace, context)
    cluster.apply(render(endpoint), take_over)
    say(f"InferenceService {endpoint.name} applied in {cluster.namespace}")
    if wait_s:
        return wait_ready(cluster, endpoint.name, wait_s, say)
    return url(cluster.service(endpoint.name))


def wait_ready(
    cluster: Cluster,
    name: str,
    wait_s: float,
    say: Say = print,
    poll_s: float = 3,
    fatal_for_s: float = FATAL_FOR_S,
) -> str:
    """Follow an endpoint until it is ready; each change of its state is said once.

    Returns:
        Its URL.

    Raises:
        DeployError: it is gone, hopeless for `fatal_for_s`, or not ready in time.
    """
    began, last, hopeless_since = time.monotonic(), "", None
    while True:
        service = cluster.service(name)
        if service is None:
            raise DeployError(f"InferenceService {name} is gone from {cluster.namespace}")
        deployment = cluster.deployment(name)
        if is_ready(service, deployment):
            say(f"{_clock(began)} ready: {url(service)}")
            return url(service)
        pods, findings = _look(cluster, service, deployment)
        if (now := _summary(service, pods, findings)) != last:
            say(f"{_clock(began)} {now}")
            last = now
        hopeless = any(finding.fatal for finding in findings)
        hopeless_since = (hopeless_since or time.monotonic()) if hopeless else None
        if hopeless_since and time.monotonic() - hopeless_since >= fatal_for_s:
            raise DeployError(_report(f"{name} cannot get ready", findings))
        if time.monotonic() - began > wait_s:
            raise DeployError(_report(f"{name} is not ready after {wait_s:g} s", findings))
        time.sleep(poll_s)


def _look(
    cluster: Cluster, service: Object, deployment: Object | None
) -> tuple[list[Object], list[Finding]]:
    """The pods, and what keeps the endpoint from being ready.

    Pods of an earlier change stay until the new ones are available, so they say nothing about it;
    and until KServe has seen the change, nothing that is there is hopeless.
    """
    name = service["metadata"]["name"]
    pods, sets = cluster.pods(name), newest(cluster.replica_sets(name))
    new = [pod for pod in pods if is_of(pod, sets)]
    names = {name, f"{name}-predictor"}
    names |= {each["metadata"]["name"] for each in [*new, *sets]}
    owners = [*([deployment] if deployment else []), *sets]
    findings = diagnose(service, new, cluster.warnings(names), owners)
    if deployment and any(behind(service, deployment)):
        findings = [replace(finding, fatal=False) for finding in findings]
    return pods, findings


def url(service: Object | None) -> str:
    """The endpoint's address, empty if KServe has given none yet."""
    return str(((service or {}).get("status") or {}).get("url") or "")


def status(cluster: Cluster, name: str) -> tuple[bool, str]:
    """Readiness, and a report for a person: URL, conditions, pods and why it is not ready.

    Raises:
        DeployError: there is no such endpoint.
    """
    service = cluster.service(name)
    if service is None:
        raise DeployError(f"there is no InferenceService {name} in {cluster.namespace}")
    deployment = cluster.deployment(name)
    pods, findings = _look(cluster, service, deployment)
    ready = is_ready(service, deployment)
    lines = [f"{name}  {'ready' if ready else 'not ready'}  {url(service)}".rstrip()]
    for condition in (service.get("status") or {}).get("conditions") or []:
        detail = " ".join(
            str(condition[key]) for key in ("reason", "message") if condition.get(key)
        )
        lines.append(f"  {condition['type']:<22} {condition['status']:<8} {detail}".rstrip())
    lines += [f"  pod {_pod_line(pod)}" for pod in pods]
    if not ready:
        lines += map(str, findings)
    return ready, "\n".join(lines)


def _summary(service: Object, pods: list[Object], findings: list[Finding]) -> str:
    if findings:
        return "; ".join(f"{finding.subject}: {finding.cause}" for finding in findings)
    return "; ".join(_pod_line(pod) for pod in pods) or "waiting for KServe to make a pod"


def _pod_line(pod: Object) -> str:
    status = pod.get("status") or {}
    containers = [
        *(status.get("initContainerStatuses") or []),
        *(status.get("containerStatuses") or []),
    ]
    states = [
        f"{each['name']}"
        f" {next(iter(each.get('state') or {'waiting': 0}))}{' ready' if each.get('ready') else ''}"
        for each in containers
    ]
    return f"{pod['metadata']['name']} {status.get('phase', '')}" + (
        f" ({', '.join(states)})" if states else ""
    )


def _report(headline: str, findings: list[Finding]) -> str:
    if not findings:
        return (
            f"{headline}, and neither its pods nor their events say why: atelier deploy logs shows"
            " the server's words"
        )
    return "\n".join([headline, *map(str, findings)])


def _clock(began: float) -> str:
    return f"{time.monotonic() - began:5.0f}s"
