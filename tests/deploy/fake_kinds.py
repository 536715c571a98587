"""The kinds that the fake API server has, and its discovery documents: every served version."""

from __future__ import annotations

from typing import Any, NamedTuple

VERBS = ["create", "delete", "get", "list", "patch", "update", "watch"]
CLUSTER_WIDE = {"Namespace", "Node", "StorageClass", "LocalModelCache", "Project"}
CLUSTER_WIDE |= {"SelfSubjectAccessReview", "ValidatingWebhookConfiguration"}


class Kind(NamedTuple):
    api_version: str
    kind: str

    @property
    def group(self) -> str:
        return self.api_version.rpartition("/")[0]

    @property
    def version(self) -> str:
        return self.api_version.rpartition("/")[2]

    @property
    def resource(self) -> str:
        name = self.kind.lower()
        if name.endswith("cy"):
            return name[:-1] + "ies"
        return name + ("es" if name.endswith("ss") else "" if name.endswith("s") else "s")

    @property
    def plural(self) -> str:
        return f"{self.resource}.{self.group}" if self.group else self.resource

    @property
    def namespaced(self) -> bool:
        return self.kind not in CLUSTER_WIDE


CORE = ["Namespace", "Node", "Pod", "Event", "ServiceAccount", "Service", "ConfigMap", "Secret"]
CORE += ["PersistentVolumeClaim", "ResourceQuota", "LimitRange"]
# The first version of a group is the preferred one.
ALL = [
    *(Kind("v1", kind) for kind in CORE),
    Kind("apps/v1", "Deployment"),
    Kind("apps/v1", "ReplicaSet"),
    Kind("batch/v1", "Job"),
    Kind("storage.k8s.io/v1", "StorageClass"),
    Kind("rbac.authorization.k8s.io/v1", "Role"),
    Kind("rbac.authorization.k8s.io/v1", "RoleBinding"),
    Kind("authorization.k8s.io/v1", "SelfSubjectAccessReview"),
    Kind("admissionregistration.k8s.io/v1", "ValidatingWebhookConfiguration"),
    Kind("policy/v1", "PodDisruptionBudget"),
    Kind("networking.k8s.io/v1", "NetworkPolicy"),
    Kind("project.openshift.io/v1", "Project"),
    Kind("serving.kserve.io/v1beta1", "InferenceService"),
    Kind("serving.kserve.io/v1alpha2", "LLMInferenceService"),
    Kind("serving.kserve.io/v1alpha1", "LLMInferenceService"),
    Kind("serving.kserve.io/v1alpha1", "ServingRuntime"),
    Kind("serving.kserve.io/v1alpha1", "LocalModelCache"),
    Kind("serving.kserve.io/v1alpha1", "LocalModelNamespaceCache"),
    Kind("resource.k8s.io/v1", "ResourceClaimTemplate"),
    Kind("monitoring.coreos.com/v1", "PodMonitor"),
    Kind("monitoring.coreos.com/v1", "PrometheusRule"),
    Kind("datasciencepipelinesapplications.opendatahub.io/v1", "DataSciencePipelinesApplication"),
    Kind("kubeflow.org/v1", "Notebook"),
    Kind("kubeflow.org/v1", "PyTorchJob"),
    Kind("trainer.kubeflow.org/v1alpha1", "TrainJob"),
    Kind("route.openshift.io/v1", "Route"),
    Kind("image.openshift.io/v1", "ImageStream"),
    Kind("image.openshift.io/v1", "ImageStreamTag"),
    Kind("build.openshift.io/v1", "BuildConfig"),
    Kind("tekton.dev/v1", "Task"),
    Kind("tekton.dev/v1", "Pipeline"),
    Kind("kueue.x-k8s.io/v1beta2", "LocalQueue"),
    Kind("kueue.x-k8s.io/v1beta1", "LocalQueue"),
    Kind("keda.sh/v1alpha1", "ScaledObject"),
]


def discovery(path: str, kinds: list[Kind], dead: str = "") -> dict[str, Any] | None:
    """The answer to a discovery request; None if it is none.

    Args:
        dead: a group and version that is listed and has nobody behind it.
    """
    groups: dict[str, list[str]] = {}
    for kind in kinds:
        if kind.version not in groups.setdefault(kind.group, []):
            groups[kind.group].append(kind.version)
    if dead:
        groups[dead.partition("/")[0]] = [dead.partition("/")[2]]
    if path == "/version":
        return {"major": "1", "minor": "36", "gitVersion": "v1.36.0"}
    if path == "/api":
        return {"kind": "APIVersions", "versions": ["v1"]}
    if path == "/apis":
        return {
            "kind": "APIGroupList",
            "apiVersion": "v1",
            "groups": [_group(name, versions) for name, versions in groups.items() if name],
        }
    if path == "/openapi/v3":
        versions = {
            _place(kind): {"serverRelativeURL": f"/openapi/v3/{_place(kind)}"} for kind in kinds
        }
        return {"paths": versions}
    for kind in kinds:
        if path == f"/{_place(kind)}":
            return _resources(kind.api_version, kinds)
        if path == f"/openapi/v3/{_place(kind)}":
            return _openapi(kind.api_version, kinds)
    return None


def _place(kind: Kind) -> str:
    return f"apis/{kind.api_version}" if kind.group else f"api/{kind.version}"


def _group(name: str, versions: list[str]) -> dict[str, Any]:
    listed = [{"groupVersion": f"{name}/{v}", "version": v} for v in versions]
    return {"name": name, "versions": listed, "preferredVersion": listed[0]}


def _resources(api_version: str, kinds: list[Kind]) -> dict[str, Any]:
    resources = [
        {
            "name": kind.resource,
            "singularName": kind.kind.lower(),
            "namespaced": kind.namespaced,
            "kind": kind.kind,
            "verbs": VERBS,
        }
        for kind in kinds
        if kind.api_version == api_version
    ]
    return {
        "kind": "APIResourceList",
        "apiVersion": "v1",
        "groupVersion": api_version,
        "resources": resources,
    }


def _openapi(api_version: str, kinds: list[Kind]) -> dict[str, Any]:
    """So much that kubectl leaves the validation to the server."""
    names = ("fieldValidation", "fieldManager", "dryRun", "force")
    parameters = [{"name": n, "in": "query", "schema": {"type": "string"}} for n in names]
    paths = {
        f"/{_place(kind)}/{kind.resource}/{{name}}": {
            "patch": {
                "parameters": parameters,
                "responses": {},
                "x-kubernetes-group-version-kind": {
                    "group": kind.group,
                    "version": kind.version,
                    "kind": kind.kind,
                },
            }
        }
        for kind in kinds
        if kind.api_version == api_version
    }
    return {"openapi": "3.0.0", "info": {"title": "fake", "version": "1"}, "paths": paths}
