"""`atelier deploy` through each failure, on any API server: the refusals are the server's own, the
rest is written as schedulers and kubelets write it."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from atelier.cli.deploy import app
from atelier.deploy import DeployError
from atelier.deploy.canary import set_canary
from atelier.deploy.cluster import Cluster
from tests.deploy.any_server import ENFORCE, AnyServer, any_server
from tests.deploy.played import CONTAINER, Played
from tests.deploy.test_diagnosis import ended, waiting
from tests.deploy.test_failures import CONTROL, CORDONED, MIXED
from tests.manifests.rendering import Object, needs_kubectl

pytestmark = needs_kubectl
SERVICE = {"kind": "InferenceService", "apiVersion": "serving.kserve.io/v1beta1"}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[AnyServer]:
    with any_server(tmp_path_factory.mktemp("server"), controllers=False) as made:
        if missing := made.lacks([SERVICE]):
            pytest.skip(f"the server of TEST_KUBECONFIG has no {missing.pop()}")
        yield made


@pytest.fixture
def sdxl(server: AnyServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Played]:
    """An endpoint that nothing has been made of."""
    server.use(tmp_path, monkeypatch)
    made = CliRunner().invoke(app, ["apply", "sdxl", "builtin/shapes", "--no-wait"])
    assert made.exit_code == 0, made.output or made.exception
    played = Played(server.kubeconfig, server.namespace, "sdxl")
    yield played
    played.close()
    assert CliRunner().invoke(app, ["delete", "sdxl"]).exit_code == 0


def told() -> str:
    """What `atelier deploy status` says of an endpoint that is not ready."""
    done = CliRunner().invoke(app, ["status", "sdxl"])
    assert done.exit_code == 1 and not isinstance(done.exception, DeployError), done.exception
    return done.output


def unschedulable(message: str) -> Object:
    state = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable"}
    return {"conditions": [{**state, "message": message}]}


STATES: dict[str, tuple[Object, str, str]] = {
    "a node lacks memory": (
        unschedulable("0/3 nodes are available: 3 Insufficient memory."),
        "no node has the memory free",
        "requests.memory",
    ),
    "mixed reasons": (unschedulable(MIXED), "nearest to fitting: no node has the CPU", "taint"),
    "a cordoned node": (unschedulable(CORDONED), "a node is cordoned", "uncordon"),
    "the control plane": (unschedulable(CONTROL), "no node has the GPUs", "scale the GPU nodes"),
    "no such image": (
        {"containerStatuses": [waiting("ErrImagePull", "manifest unknown")]},
        "cannot be pulled (manifest unknown)",
        "does the tag exist",
    ),
    "initializer out of memory": (
        {"initContainerStatuses": [ended(137, "OOMKilled", name="storage-initializer")]},
        "killed for memory while it downloaded",
        "initializer's memory",
    ),
    "server out of memory": (
        {"containerStatuses": [ended(137, "OOMKilled")]},
        "killed for memory (host memory",
        "limits.memory",
    ),
    "crash loop": (
        {"containerStatuses": [ended(2, message="x\natelier: DTYPE=int4", restarts=4)]},
        "exit code 2: atelier: DTYPE=int4",
        "logs --previous",
    ),
}


@pytest.mark.parametrize("name", STATES)
def test_a_pods_state_is_explained(sdxl: Played, name: str) -> None:
    state, cause, remedy = STATES[name]
    sdxl.pod(state)
    said = told()
    assert cause in said and remedy in said


@pytest.mark.parametrize(
    ("reason", "message", "cause"),
    [
        ("Unhealthy", "Startup probe failed: HTTP 503", "still loading"),
        ("Unhealthy", "Readiness probe failed: HTTP 503", "takes no traffic"),
        ("FailedMount", 'secret "weights" not found', "a volume cannot be mounted"),
        ("FailedAttachVolume", "Multi-Attach error for volume", "cannot be attached"),
        ("FailedCreatePodSandBox", "no IP is left", "cannot make the pod's sandbox"),
    ],
)
def test_a_warning_about_a_pod_is_explained(
    sdxl: Played, reason: str, message: str, cause: str
) -> None:
    sdxl.warn(sdxl.pod({}), reason, message)
    said = told()
    assert cause in said and "  -> " in said


MEMORY = {"max": {"memory": "4Gi"}, "type": "Container"}
HARD = {"limits.memory": "4Gi", "requests.cpu": "20"}


def test_a_quota_is_told(sdxl: Played) -> None:
    sdxl.quota(HARD)
    sdxl.refused({"containers": [CONTAINER]})
    said = told()
    assert "exceeded quota: project, requested: limits.memory=6Gi" in said
    assert "have the project's ResourceQuota raised" in said


def test_a_quota_on_what_a_pod_does_not_name_is_told(sdxl: Played) -> None:
    sdxl.quota(HARD)
    sdxl.refused({"containers": [{**CONTAINER, "resources": {}}]})
    said = told()
    assert "failed quota: project: must specify limits.memory for: kserve-container" in said
    assert "wants requests and limits that the pod does not name" in said


def test_a_limit_range_is_told(sdxl: Played) -> None:
    limits = {"limits": [MEMORY]}
    sdxl.create("LimitRange", {"metadata": {"name": "project"}, "spec": limits})
    sdxl.refused({"containers": [CONTAINER]})
    said = told()
    assert "maximum memory usage per Container is 4Gi, but limit is 6Gi" in said
    assert "oc describe limitrange" in said


def test_pod_security_is_told(server: AnyServer, sdxl: Played) -> None:
    if ENFORCE not in server.told("get", "namespace", server.namespace, "--output=yaml"):
        pytest.skip(f"{server.namespace} is not under Pod Security, and its label is not ours")
    bare = copy.deepcopy(CONTAINER)
    del bare["securityContext"]
    sdxl.refused({"containers": [bare]})
    said = told()
    assert 'violates PodSecurity "restricted' in said and "set the securityContext" in said


def test_a_missing_account_is_told(sdxl: Played) -> None:
    sdxl.refused({"serviceAccountName": "gone", "containers": [CONTAINER]})
    said = told()
    assert 'serviceaccount "gone" not found' in said and "make the ServiceAccount" in said


def test_a_dead_webhook_is_told(server: AnyServer, sdxl: Played) -> None:
    if not server.may("create", "validatingwebhookconfigurations"):
        pytest.skip("the user of TEST_KUBECONFIG may make no webhook")
    rule = {"apiGroups": [""], "apiVersions": ["v1"], "operations": ["CREATE"]}
    hook: dict[str, Any] = {
        "name": "pods.atelier.example",
        "clientConfig": {"service": {"name": "gone", "namespace": server.namespace}},
        "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": server.namespace}},
        "rules": [{**rule, "resources": ["pods"]}],
        "sideEffects": "None",
        "admissionReviewVersions": ["v1"],
        "timeoutSeconds": 2,
    }
    meta = {"name": server.namespace}
    sdxl.create("ValidatingWebhookConfiguration", {"metadata": meta, "webhooks": [hook]})
    sdxl.refused({"containers": [CONTAINER]})
    said = told()
    assert 'failed calling webhook "pods.atelier.example"' in said
    assert "a webhook of the cluster is down" in said


def test_the_dashboards_stop_is_told_on_any_server(server: AnyServer, sdxl: Played) -> None:
    server.told("annotate", "inferenceservice", "sdxl", "serving.kserve.io/stop=true")
    assert "it was stopped" in told()


def test_a_runtime_that_is_missing_is_told(sdxl: Played) -> None:
    info = {"reason": "RuntimeNotRecognized", "message": "Waiting for runtime atelier-cpu"}
    sdxl.service(modelStatus={"transitionStatus": "InvalidSpec", "lastFailureInfo": info})
    said = told()
    assert "Waiting for runtime atelier-cpu" in said and "kubectl apply -k manifests/base" in said


def test_a_canary_that_never_gets_ready_is_told_on_any_server(sdxl: Played) -> None:
    never = {"type": "CanaryReady", "status": "False", "message": "its image cannot be pulled"}
    sdxl.service(conditions=[never])
    assert "the canary is not ready: its image cannot be pulled" in told()
    with pytest.raises(
        DeployError, match=r"cannot be pulled\n  -> its traffic|KServe 0.20 or newer"
    ):
        set_canary(Cluster(), "sdxl", 10, "r/a:2", wait_s=0.1, say=print, poll_s=0.01)
