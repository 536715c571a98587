"""Each usual failure is explained in words, with a remedy."""

from __future__ import annotations

from typing import Any

import pytest

from atelier.deploy.diagnosis import diagnose

SERVICE = {"metadata": {"name": "sdxl"}, "spec": {"predictor": {"model": {"runtime": "atelier"}}}}


def pod(
    container: dict[str, Any] | None = None, init: dict[str, Any] | None = None, **status: Any
) -> dict[str, Any]:
    statuses = {
        "containerStatuses": [container] if container else [],
        "initContainerStatuses": [init] if init else [],
    }
    return {"metadata": {"name": "sdxl-1"}, "status": {**statuses, **status}}


def waiting(
    reason: str, message: str = "", name: str = "kserve-container", **more: Any
) -> dict[str, Any]:
    return {
        "name": name,
        "image": "r/a:1",
        "state": {"waiting": {"reason": reason, "message": message}},
        **more,
    }


def ended(
    code: int,
    reason: str = "Error",
    message: str = "",
    name: str = "kserve-container",
    restarts: int = 0,
) -> Any:
    last = {"terminated": {"exitCode": code, "reason": reason, "message": message}}
    return waiting("CrashLoopBackOff", name=name, lastState=last, restartCount=restarts)


def unschedulable(message: str) -> dict[str, Any]:
    return pod(
        conditions=[
            {
                "type": "PodScheduled",
                "status": "False",
                "reason": "Unschedulable",
                "message": message,
            }
        ]
    )


def event(reason: str, message: str) -> dict[str, Any]:
    return {"involvedObject": {"name": "sdxl-1"}, "reason": reason, "message": message}


CASES: dict[str, tuple[dict[str, Any], str, str, bool]] = {
    "GPUs taken": (
        unschedulable("0/3 nodes: 3 Insufficient nvidia.com/gpu."),
        "GPUs free",
        "scale the GPU nodes",
        False,
    ),
    "wrong GPU": (
        unschedulable("3 node(s) didn't match Pod's node affinity/selector."),
        "GPU product",
        "product",
        False,
    ),
    "tainted": (
        unschedulable("node(s) had untolerated taint {gpu: yes}"),
        "refuse pods",
        "tolerations",
        False,
    ),
    "host memory": (
        unschedulable("0/3 nodes: 3 Insufficient memory."),
        "memory free",
        "requests.memory",
        False,
    ),
    "volume": (
        unschedulable("pod has unbound immediate PersistentVolumeClaims"),
        "not bound",
        "storage class",
        False,
    ),
    "no such image": (
        pod(waiting("ErrImagePull", "manifest unknown")),
        "cannot be pulled",
        "tag exist",
        True,
    ),
    "registry down": (
        pod(waiting("ImagePullBackOff", "i/o timeout")),
        "cannot be pulled",
        "pull secret",
        False,
    ),
    "no Secret": (
        pod(waiting("CreateContainerConfigError", 'secret "x" not found')),
        'secret "x"',
        "make",
        False,
    ),
    "OOMKilled once": (
        pod(ended(137, "OOMKilled")),
        "killed for memory (host",
        "limits.memory",
        False,
    ),
    "OOMKilled again": (
        pod(ended(137, "OOMKilled", restarts=3)),
        "killed for memory",
        "limits.memory",
        True,
    ),
    "killed silently": (pod(ended(137)), "exit code 137", "failed probe", False),
    "bad setting": (
        pod(ended(1, message="x\natelier: DTYPE=int4")),
        "atelier: DTYPE=int4",
        "--previous",
        False,
    ),
    "initializer memory": (
        pod(init=ended(137, "OOMKilled", name="storage-initializer")),
        "while it downloaded",
        "initializer's memory",
        False,
    ),
    "initializer keys": (
        pod(init=ended(1, message="AccessDenied", name="storage-initializer", restarts=4)),
        "AccessDenied",
        "keys open it",
        True,
    ),
    "evicted": (
        pod(reason="Evicted", message="ephemeral-storage"),
        "evicted",
        "on a volume",
        False,
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_a_pods_trouble_is_explained(name: str) -> None:
    trouble, cause, remedy, fatal = CASES[name]
    (finding,) = diagnose(SERVICE, [trouble], [])
    assert cause in finding.cause
    assert remedy in finding.remedy
    assert finding.fatal is fatal


@pytest.mark.parametrize(
    ("warning", "cause", "remedy"),
    [
        (event("Unhealthy", "Startup probe failed: HTTP 503"), "still loading", "10 minutes"),
        (
            event("Unhealthy", "Liveness probe failed: timeout"),
            "does not answer",
            "kubelet restarts",
        ),
        (event("FailedMount", 'secret "y" not found'), "cannot be mounted", "exist"),
        (
            event("FailedCreate", "pods is forbidden: exceeded quota: gpus"),
            "exceeded quota",
            "quota",
        ),
    ],
)
def test_a_warning_is_explained(warning: dict[str, Any], cause: str, remedy: str) -> None:
    (finding,) = diagnose(SERVICE, [], [warning, warning])
    assert cause in finding.cause
    assert remedy in finding.remedy


def test_a_missing_runtime_is_explained() -> None:
    failure = {
        "transitionStatus": "InvalidSpec",
        "lastFailureInfo": {"message": "Waiting for runtime"},
    }
    (finding,) = diagnose({**SERVICE, "status": {"modelStatus": failure}}, [], [])
    assert "ServingRuntime atelier" in finding.remedy
    assert finding.fatal


def test_the_fatal_cause_comes_first() -> None:
    troubles = [CASES["GPUs taken"][0], CASES["no such image"][0]]
    assert [finding.fatal for finding in diagnose(SERVICE, troubles, [])] == [True, False]


def test_a_healthy_pod_has_no_finding() -> None:
    running = {
        "name": "kserve-container",
        "state": {"running": {}},
        "ready": True,
        "restartCount": 0,
    }
    assert diagnose(SERVICE, [pod(running)], []) == []
