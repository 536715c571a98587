"""The same troubles in the words of other versions, other containers, other nodes; and troubles
that are over, which nobody is told of."""

from __future__ import annotations

from typing import Any

import pytest

from atelier.deploy import DeployError, Endpoint, deploy
from atelier.deploy.cluster import Cluster
from atelier.deploy.diagnosis import diagnose
from atelier.deploy.readiness import quantity
from atelier.deploy.rollout import status, wait_ready
from atelier.deploy.scheduling import explain
from tests.deploy.fake_api import FakeApi, Moment
from tests.deploy.test_diagnosis import SERVICE, ended, event, pod, waiting
from tests.deploy.test_failures import quiet
from tests.deploy.test_rollout import LOADING, api, run
from tests.manifests.rendering import Object

__all__ = ["api"]

NODES = "0/5 nodes are available: "
MESSAGES = {
    "1.24 and older": (
        "2 node(s) had taint {gpu: yes}, that the pod didn't tolerate, 3 Insufficient cpu.",
        "nearest to fitting: no node has the CPU free that it asks for on 3 node(s)",
        "lower requests.cpu",
    ),
    "1.35 and newer": (
        "5 node(s) had untolerated taint(s). preemption: 0/5 nodes are available: 5 Preemption is"
        " not helpful for scheduling.",
        "nodes refuse pods without a toleration, the control plane's among them perhaps on 5",
        "TAINTS:.spec.taints",
    ),
    "two taints": (
        "1 node(s) had untolerated taint {a: b}, 2 node(s) had untolerated taint {c: d}, 2 node(s)"
        " didn't match Pod's node affinity/selector.",
        "the nodes that fit refuse pods without a toleration on 3 node(s)",
        "add the node's taint",
    ),
    "a node that is not ready": (
        "5 node(s) had untolerated taint {node.kubernetes.io/not-ready: }.",
        "a node is in trouble or not ready yet on 5 node(s)",
        "a toleration would not help",
    ),
    "a GPU in slices": (
        "5 Insufficient nvidia.com/mig-3g.40gb.",
        "no node has the GPU slice free",
        "a slice that the nodes have",
    ),
    "several lacks": (
        "2 Insufficient cpu, 3 Insufficient memory, 5 Too many pods.",
        "nearest to fitting: no node has the memory free that it asks for on 3 node(s)",
        "lower requests.memory",
    ),
    "disk": ("5 Insufficient ephemeral-storage.", "no node has the disk free", "on a volume"),
    "a claim in use": (
        "5 node(s) unavailable due to PersistentVolumeClaim with ReadWriteOncePod access mode"
        " already in-use by another pod.",
        "another pod holds its volume",
        "ReadWriteMany",
    ),
    "a claim's class": (
        'storageclass.storage.k8s.io "fast" not found.',
        "the claim's storage class does not exist",
        "kubectl get storageclass",
    ),
    "a claim that goes": (
        'persistentvolumeclaim "weights" is being deleted.',
        "the volume claim that it names does not exist",
        "make the PersistentVolumeClaim",
    ),
    "a zone": (
        "2 node(s) had volume node affinity conflict, 3 node(s) were unschedulable.",
        "nearest to fitting: its volume is not bound, or not where the node is on 2 node(s)",
        "zone",
    ),
    "devices": ("5 cannot allocate all claims.", "resource claim wants", "resourceslices"),
    "other pods": (
        "5 node(s) didn't match pod topology spread constraints.",
        "its rules about other pods leave no node",
        "topologySpreadConstraints",
    ),
}


@pytest.mark.parametrize("name", MESSAGES)
def test_the_scheduler_is_understood_in_other_words(name: str) -> None:
    message, cause, remedy = MESSAGES[name]
    why = explain(NODES + message)
    assert why.cause.startswith(cause) or (cause in why.cause and "nearest" not in cause)
    assert remedy in why.remedy.split("; or:")[0]


def test_an_empty_cluster_is_told() -> None:
    assert "no node" in explain("no nodes available to schedule pods").cause


START = 'pods "sdxl-predictor-5" is forbidden: '
REFUSALS = {
    "quota without a count": (START + "status unknown for quota: team, resources: pods", "wait"),
    "quota on other classes": (
        START + "insufficient quota to match these scopes: [{PriorityClass In [high]}]",
        "has no quota for this",
    ),
    "too little": (
        START + "minimum memory usage per Container is 8Gi, but request is 2Gi",
        "Limit",
    ),
    "no limit": (START + "maximum cpu usage per Pod is 8.  No limit is specified", "LimitRange"),
    "a ratio": (
        START + "memory max limit to request ratio per Container is 1, but provided ratio is 3.0",
        "requests nearer to limits",
    ),
    "a policy": (
        'admission webhook "validate.kyverno.svc-fail" denied the request: no label team',
        "a policy of the cluster",
    ),
    "a policy in CEL": (
        START + "ValidatingAdmissionPolicy 'p' with binding 'b' denied request: no label team",
        "a policy of the cluster",
    ),
    "SCC": (
        START + 'unable to validate against any security context constraint: [provider "anyuid":'
        " Forbidden: not usable by user or serviceaccount]",
        "restricted-v2",
    ),
    "priority": (START + "no PriorityClass with name high was found", "kubectl get priorityclass"),
    "time-out of a webhook": (
        'Internal error occurred: failed calling webhook "mpod.kb.io": failed to call webhook: Post'
        ' "https://odh.svc:443/mutate?timeout=10s": context deadline exceeded',
        "a webhook of the cluster is down",
    ),
    "a default that a LimitRange filled in": (
        'Pod "sdxl-5" is invalid: spec.containers[0].resources.requests: Invalid value: "4": must'
        " be less than or equal to cpu limit of 2",
        "correct the field",
    ),
}


@pytest.mark.parametrize("name", REFUSALS)
def test_a_pod_that_was_not_made_is_explained_in_other_words(name: str) -> None:
    message, remedy = REFUSALS[name]
    condition = {"type": "ReplicaFailure", "status": "True", "message": message}
    owner = {"metadata": {"name": "sdxl-predictor-5"}, "status": {"conditions": [condition]}}
    (finding,) = diagnose(SERVICE, [], [], [owner])
    assert message in finding.cause and remedy in finding.remedy
    assert finding.fatal is not any(word in message for word in ("unknown", "failed calling"))


PODS: dict[str, tuple[Object, str, str]] = {
    "a pull secret": (
        pod(waiting("ImagePullBackOff", "no basic auth credentials")),
        "no basic auth",
        "pull secret",
    ),
    "a name": (pod(waiting("InvalidImageName", "")), "InvalidImageName", "tag exist"),
    "a signature": (pod(waiting("SignatureValidationFailed", "x")), "cannot be pulled", "tag"),
    "a command": (pod(waiting("RunContainerError", "no such file")), "no such file", "command"),
    "a sidecar": (
        pod(ended(1, name="kube-rbac-proxy")),
        "exit code 1",
        "logs --container kube-rbac-proxy --previous",
    ),
    "ends well": (
        pod(
            waiting(
                "CrashLoopBackOff", lastState={"terminated": {"exitCode": 0, "reason": "Completed"}}
            )
        ),
        "ends again and again",
        "logs --previous",
    ),
    "a faster pod": (pod(reason="OutOfnvidia.com/gpu", message="x"), "OutOfnvidia", "faster"),
    "a node going down": (pod(reason="Terminated", message="node shutdown"), "shutdown", "shut"),
    "a queue": (
        {
            **pod(conditions=[{"type": "PodScheduled", "reason": "SchedulingGated"}]),
            "spec": {"schedulingGates": [{"name": "kueue.x-k8s.io/admission"}]},
        },
        "waits at the gate kueue.x-k8s.io/admission",
        "its turn",
    ),
}


@pytest.mark.parametrize("name", PODS)
def test_a_pod_is_explained_in_other_words(name: str) -> None:
    trouble, cause, remedy = PODS[name]
    (finding,) = diagnose(SERVICE, [trouble], [])
    assert cause in finding.cause and remedy in finding.remedy


def test_two_containers_in_trouble_are_two_findings() -> None:
    both = pod(ended(1), init=ended(137, "OOMKilled", name="storage-initializer"))
    assert len(diagnose(SERVICE, [both], [])) == 2


def test_what_kept_a_pod_from_starting_is_over_once_it_runs() -> None:
    warnings = [event("FailedMount", 'secret "late" not found')]
    assert diagnose(SERVICE, [LOADING], warnings) == []
    assert diagnose(SERVICE, [pod(waiting("ContainerCreating"))], warnings) != []


def test_a_refusal_that_is_over_is_not_told_though_its_event_stays() -> None:
    past = event("FailedCreate", START + "exceeded quota: team")
    past["involvedObject"]["name"] = "sdxl-predictor-5"
    owner: dict[str, Any] = {"metadata": {"name": "sdxl-predictor-5"}, "status": {"replicas": 1}}
    assert diagnose(SERVICE, [pod()], [past], [owner]) == []


def test_the_old_pods_trouble_does_not_end_the_wait_for_the_new_ones(api: FakeApi) -> None:
    """Who repairs a crash loop by another deploy would be told that it is hopeless."""
    deploy(Endpoint("sdxl", "builtin/shapes"), say=quiet)
    (old,) = [doc for key, doc in api.store.objects.items() if key[0] == "replicasets"]
    crashing = pod(ended(1, restarts=9))
    hashed = old["metadata"]["labels"]["pod-template-hash"]
    crashing["metadata"] = {"name": "old", "labels": {"pod-template-hash": hashed}}
    deploy(Endpoint("sdxl", "builtin/shapes", env={"DTYPE": "bfloat16"}), say=quiet, wait_s=0)
    api.scene = [Moment(pods=[crashing, LOADING])] * 20 + [Moment(ready=True)]
    assert wait_ready(Cluster(), "sdxl", 30, quiet, poll_s=0.01, fatal_for_s=0)
    api.scene = [Moment(pods=[crashing, LOADING])]
    assert "exit code" not in status(Cluster(), "sdxl")[1]


def test_a_variable_without_a_value_is_no_change_that_is_waited_for(api: FakeApi) -> None:
    """The Deployment leaves an empty value out."""
    empty = Endpoint("sdxl", "builtin/shapes", env={"ADAPTERS": ""})
    assert deploy(empty, say=quiet, wait_s=5)


def test_a_login_that_is_over_and_a_right_that_is_missing_come_with_a_remedy(api: FakeApi) -> None:
    api.facts["forbidden"] = ["get inferenceservices"]
    with pytest.raises(DeployError, match=r"cannot get resource.*\n  -> an administrator"):
        Cluster().service("sdxl")
    api.facts["logged_in"] = False
    said = run("status", "sdxl").exception
    assert isinstance(said, DeployError) and "oc login" in said.message


def test_a_project_that_is_not_there_is_told_with_a_remedy(api: FakeApi) -> None:
    with pytest.raises(DeployError, match=r'namespaces "none" not found\n  -> oc new-project'):
        deploy(Endpoint("sdxl", "builtin/shapes", namespace="none"), say=quiet)


def test_a_project_that_is_being_deleted_is_told_with_a_remedy(api: FakeApi) -> None:
    api.store.objects["namespaces", "", "studio"]["status"] = {"phase": "Terminating"}
    with pytest.raises(DeployError, match=r"being terminated\n  -> wait until the project is gone"):
        deploy(Endpoint("sdxl", "builtin/shapes"), say=quiet)


def test_an_api_of_the_cluster_that_is_down_is_nothing_to_an_endpoint(api: FakeApi) -> None:
    api.facts["dead_api"] = "metrics.k8s.io/v1beta1"
    assert deploy(Endpoint("sdxl", "builtin/shapes"), say=quiet)


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("500m", 0.5),
        ("1Gi", 2**30),
        ("1e3", 1000),
        ("2E", 2e18),
        ("1Pi", 2**50),
        (4, 4),
        ("5u", 5e-6),
    ],
)
def test_a_quantity_is_read_with_every_suffix(text: str | int, number: float) -> None:
    assert quantity(text) == pytest.approx(number)


def test_what_is_no_quantity_is_named() -> None:
    with pytest.raises(ValueError, match="'much' is no quantity"):
        quantity("much")
