"""`atelier deploy` through each failure that a real cluster has, against one that is no kinder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from atelier.cli.deploy import app
from atelier.deploy import DeployError, Endpoint, deploy
from atelier.deploy.canary import set_canary
from atelier.deploy.cluster import Cluster
from atelier.deploy.manifest import MODE
from atelier.deploy.rollout import wait_ready
from atelier.deploy.scheduling import explain
from tests.deploy.fake_api import FakeApi, Moment
from tests.deploy.test_diagnosis import event, pod
from tests.deploy.test_rollout import api, run

__all__ = ["api"]


def quiet(_: str) -> None:
    pass


def failure_of(api: FakeApi, *moments: Moment) -> str:
    """What a person is told about an endpoint that does not start."""
    deploy(Endpoint("sdxl", "builtin/shapes"), wait_s=0, say=quiet)
    api.scene = list(moments)
    with pytest.raises(DeployError) as caught:
        wait_ready(Cluster(), "sdxl", 0.3, quiet, poll_s=0.01, fatal_for_s=0.05)
    return caught.value.message


def test_what_keeps_pods_from_being_made_is_read_from_the_replica_set(api: FakeApi) -> None:
    """Every such refusal, in the words of any server: test_any_failure.py."""
    hard = {"hard": {"limits.memory": "4Gi"}}
    api.add("v1", "ResourceQuota", "project", spec=hard)
    said = failure_of(api, Moment(ready=True))
    assert "no pod may be made" in said and "exceeded quota" in said and "ResourceQuota" in said


def test_a_missing_service_account_is_named(api: FakeApi) -> None:
    api.store.delete(("serviceaccounts", "studio", "atelier"))
    said = failure_of(api, Moment(ready=True))
    assert 'serviceaccount "atelier" not found' in said and "make the ServiceAccount" in said


@pytest.mark.parametrize(
    ("warning", "cause"),
    [
        (event("FailedAttachVolume", "Multi-Attach error"), "cannot be attached"),
        (event("FailedCreatePodSandBox", "no IP"), "cannot make the pod's sandbox"),
        (event("UnexpectedAdmissionError", "no devices"), "the node refused it"),
        (event("Unhealthy", "Readiness probe failed: HTTP 503"), "takes no traffic"),
    ],
)
def test_what_goes_wrong_on_a_node_is_explained(
    api: FakeApi, warning: dict[str, Any], cause: str
) -> None:
    moment = Moment(pods=[pod()], events=[warning])
    said = failure_of(api, moment)
    assert cause in said and warning["message"] in said


def test_a_pod_that_the_node_refuses_is_explained(api: FakeApi) -> None:
    refused = pod(reason="UnexpectedAdmissionError", message="no healthy devices")
    assert "the node refused it" in failure_of(api, Moment(pods=[refused]))


def test_the_dashboards_stop_is_told(api: FakeApi) -> None:
    deploy(Endpoint("sdxl", "builtin/shapes"), wait_s=0, say=quiet)
    key = "inferenceservices", "studio", "sdxl"
    api.store.objects[key]["metadata"]["annotations"]["serving.kserve.io/stop"] = "true"
    api.scene = [Moment()]
    with pytest.raises(DeployError, match="was stopped"):
        wait_ready(Cluster(), "sdxl", 5, quiet, poll_s=0.01, fatal_for_s=0.02)


def test_a_webhooks_refusal_is_told_in_its_words(api: FakeApi) -> None:
    with pytest.raises(DeployError, match="PYTHONPATH"):
        deploy(Endpoint("sdxl", "builtin/shapes", env={"PYTHONPATH": "/x"}), say=quiet)


def test_more_replicas_are_ready_without_a_new_pod(api: FakeApi) -> None:
    """KServe copies the Deployment's observedGeneration, which a change of replicas leaves."""
    deploy(Endpoint("sdxl", "builtin/shapes"), say=quiet)
    deploy(Endpoint("sdxl", "builtin/shapes", max_replicas=4), say=quiet, wait_s=5)
    service = api.services["sdxl"]
    assert service["metadata"]["generation"] > service["status"]["observedGeneration"]


@pytest.mark.parametrize(("version", "word"), [(15, "RawDeployment"), (21, "Standard")])
def test_the_word_that_the_clusters_kserve_keeps_is_written(
    api: FakeApi, version: int, word: str
) -> None:
    api.facts["kserve"] = version
    deploy(Endpoint("sdxl", "builtin/shapes"), say=quiet)
    before = api.services["sdxl"]["metadata"]
    assert before["annotations"][MODE] == word
    deploy(Endpoint("sdxl", "builtin/shapes"), say=quiet)
    assert api.services["sdxl"]["metadata"]["resourceVersion"] == before["resourceVersion"]


def test_a_field_that_kubectl_set_is_named_and_can_be_taken_over(api: FakeApi) -> None:
    deploy(Endpoint("sdxl", "builtin/shapes"), say=quiet)
    key = "inferenceservices", "studio", "sdxl"
    document = api.store.objects[key]
    predictor = {**document["spec"]["predictor"], "maxReplicas": 7}
    changed = {**document, "spec": {"predictor": predictor}}
    api.store.write(key, changed, "kubectl-client-side-apply")
    with pytest.raises(DeployError, match="somebody else set") as caught:
        deploy(Endpoint("sdxl", "builtin/shapes", max_replicas=2), say=quiet)
    for part in ("spec.predictor.maxReplicas", "kubectl-client-side-apply", "--take-over"):
        assert part in caught.value.message
    deploy(Endpoint("sdxl", "builtin/shapes", max_replicas=2), say=quiet, take_over=True)
    assert api.services["sdxl"]["spec"]["predictor"]["maxReplicas"] == 2


def test_a_server_that_is_down_is_a_line(api: FakeApi) -> None:
    cluster = Cluster()
    api.close()
    for ask in (cluster.service, cluster.pods, cluster.delete):
        with pytest.raises(DeployError, match="does not answer"):
            ask("sdxl")


def test_a_server_that_was_always_down_is_a_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = FakeApi(check=lambda _: [])
    config = str(server.kubeconfig(tmp_path))
    server.close()
    monkeypatch.setenv("KUBECONFIG", config)
    monkeypatch.setattr("kubernetes.config.kube_config.KUBE_CONFIG_DEFAULT_LOCATION", config)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    result = run("status", "sdxl")
    assert isinstance(result.exception, DeployError) and "does not answer" in str(result.exception)


def test_rights_that_are_missing_are_a_line(api: FakeApi) -> None:
    deploy(Endpoint("sdxl", "builtin/shapes"), say=quiet)
    api.facts["forbidden"] = ["get deployments"]
    result = run("status", "sdxl")
    assert isinstance(result.exception, DeployError) and "forbidden" in str(result.exception)


MIXED = "0/2 nodes are available: 1 Insufficient cpu, 1 node(s) had untolerated taint {gpu: yes}."
CORDONED = (
    "0/3 nodes are available: 1 node(s) were unschedulable, 2 node(s) didn't match Pod's node"
    " affinity/selector. preemption: 0/3 nodes are available: 3 Preemption is not helpful."
)
CONTROL = (
    "0/4 nodes are available: 1 node(s) had untolerated taint {node-role.kubernetes.io/master: },"
    " 3 Insufficient nvidia.com/gpu."
)


@pytest.mark.parametrize(
    ("message", "cause", "remedy"),
    [
        (MIXED, "nearest to fitting: no node has the CPU free", "lower requests.cpu"),
        (CORDONED, "nearest to fitting: a node is cordoned", "uncordon"),
        (CONTROL, "nearest to fitting: no node has the GPUs free", "scale the GPU nodes"),
        (
            '0/3 nodes are available: persistentvolumeclaim "weights" not found.',
            "claim that it names does not exist",
            "make the PersistentVolumeClaim",
        ),
    ],
)
def test_the_nodes_that_are_nearest_to_fitting_are_said_first(
    message: str, cause: str, remedy: str
) -> None:
    why = explain(message)
    assert why.cause.startswith(cause) or cause in why.cause
    assert why.remedy.startswith(remedy) or remedy in why.remedy.split("; or:")[0]


def test_a_canary_takes_its_share_and_is_ended(api: FakeApi) -> None:
    deploy(Endpoint("sdxl", "builtin/shapes"), say=quiet)
    said: list[str] = []
    set_canary(Cluster(), "sdxl", 10, "r/a:2", {"LOG_LEVEL": "debug"}, 5, said.append, 0.01)
    (canary,) = api.services["sdxl"]["spec"]["canary"]
    assert canary["trafficPercent"] == 10
    assert canary["predictor"]["model"]["image"] == "r/a:2"
    set_canary(Cluster(), "sdxl", 50, wait_s=5, say=said.append, poll_s=0.01)
    (canary,) = api.services["sdxl"]["spec"]["canary"]
    assert canary["trafficPercent"] == 50 and canary["predictor"]["model"]["image"] == "r/a:2"
    set_canary(Cluster(), "sdxl", 0, say=said.append)
    assert "canary" not in api.services["sdxl"]["spec"]
    assert "50 %" in said[-2] and "no canary any more" in said[-1]


def test_a_canary_that_never_gets_ready_is_told(api: FakeApi) -> None:
    deploy(Endpoint("sdxl", "builtin/shapes"), say=quiet)
    false = {"type": "CanaryReady", "status": "False", "message": "its image cannot be pulled"}
    api.scene = [Moment(ready=True, status={"conditions": [false]})]
    with pytest.raises(DeployError, match=r"cannot be pulled\n  -> its traffic stays"):
        set_canary(Cluster(), "sdxl", 10, "r/a:2", wait_s=0.1, say=quiet, poll_s=0.01)


@pytest.mark.parametrize(("percent", "message"), [(101, "from 0 to 100"), (10, "something to try")])
def test_a_canary_that_cannot_be_is_refused(api: FakeApi, percent: int, message: str) -> None:
    deploy(Endpoint("sdxl", "builtin/shapes"), say=quiet)
    result = run("canary", "sdxl", "--percent", str(percent))
    assert isinstance(result.exception, DeployError) and message in str(result.exception)
    assert app
