"""What an endpoint is, and the InferenceService that makes it. Pure: knows no cluster.

The ServingRuntime is not rendered here: manifests/ installs it once, and every endpoint names it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import yaml

from atelier.errors import StartError
from atelier.settings import current_model

GROUP, VERSION, KIND = "serving.kserve.io", "v1beta1", "InferenceService"
NAME = re.compile(r"[a-z]([a-z0-9-]{0,51}[a-z0-9])?")
"""KServe makes host names of it: at most 53 characters."""
HUB_ID = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*(@[\w./-]+)?")
MODE = "serving.kserve.io/deploymentMode"
STANDARD, RAW = "Standard", "RawDeployment"
"""The mode without Knative: the word of KServe 0.16 and newer, and the one that all understand."""
MOUNT = "/mnt/models"
TIMEOUT_S = 600
"""The server's own REQUEST_TIMEOUT; a Route would give up after 30 s."""
PUBLIC_FILTERS = {"configMapRef": {"name": "atelier-filters", "optional": True}}
"""What `components/expose` gives a public endpoint: filters, if somebody has set them."""


class DeployError(StartError):
    """The endpoint cannot be described, made or brought to readiness; the message says why and what
    to do."""


@dataclass(frozen=True)
class Gpu:
    """What a pod asks for on one kind of node; the same as manifests/components/gpu-*."""

    products: tuple[str, ...]
    """Values of the node label nvidia.com/gpu.product."""
    requests: Mapping[str, str]
    limits: Mapping[str, str]
    max_batch_size: int


GPUS = {
    "h100": Gpu(
        ("NVIDIA-H100-80GB-HBM3", "NVIDIA-H100-PCIe", "NVIDIA-H100-NVL"),
        {"cpu": "8", "memory": "64Gi"},
        {"cpu": "16", "memory": "128Gi"},
        32,
    ),
    "l40s": Gpu(
        ("NVIDIA-L40S",), {"cpu": "6", "memory": "32Gi"}, {"cpu": "12", "memory": "64Gi"}, 16
    ),
    "a10g": Gpu(
        ("NVIDIA-A10G",), {"cpu": "4", "memory": "16Gi"}, {"cpu": "7", "memory": "28Gi"}, 8
    ),
}
CPU = Gpu((), {"cpu": "1", "memory": "2Gi"}, {"cpu": "4", "memory": "6Gi"}, 0)


@dataclass(frozen=True)
class Endpoint:
    """An endpoint as a person describes it.

    Raises:
        DeployError: a field has a value that cannot work; the message names the field.
    """

    name: str
    source: str
    """Hub id, builtin/shapes, s3://bucket/folder (with `connection`), pvc://claim/folder or
    oci://image."""
    gpu: str = "cpu"
    """cpu, or a key of `GPUS`."""
    gpus: int = 1
    """How many, of one node."""
    profile: str = ""
    """PROFILE of the server."""
    connection: str = ""
    """Data connection: the Secret with AWS_* keys."""
    namespace: str = ""
    """Empty: the one of the current context."""
    runtime: str = ""
    """ServingRuntime; empty: atelier, or atelier-cpu."""
    env: Mapping[str, str] = field(default_factory=dict)
    min_replicas: int = 1
    max_replicas: int = 1
    expose: bool = False
    token: bool = False
    """OpenShift AI's proxy asks callers for a token."""
    service_account: str = "atelier"
    open: bool = False
    """Exposed to anybody: without it `expose` wants `token`, or API_KEYS in `env`."""
    hardware_profile: str = ""
    """OpenShift AI's, as name or namespace/name."""
    queue: str = ""
    """Kueue's LocalQueue."""

    def __post_init__(self) -> None:
        if not NAME.fullmatch(self.name):
            raise DeployError(
                f"name={self.name!r}: lower-case letters, digits and dashes, a letter first, at"
                " most 53 characters"
            )
        if self.gpu != "cpu" and self.gpu not in GPUS:
            raise DeployError(f"gpu={self.gpu!r} is not known: choose cpu, {', '.join(GPUS)}")
        if self.gpus < 1 or (self.gpu == "cpu" and self.gpus != 1):
            raise DeployError(f"gpus={self.gpus} does not go with gpu={self.gpu!r}")
        if not 0 <= self.min_replicas <= self.max_replicas or self.max_replicas < 1:
            raise DeployError(
                f"replicas {self.min_replicas} to {self.max_replicas}: the first must not be the"
                " larger"
            )
        if self.source.startswith("s3://") and not self.connection:
            raise DeployError(
                f"source={self.source} needs a connection: the name of the Secret with its AWS_*"
                " keys"
            )
        if self.expose and not (self.token or self.open or "API_KEYS" in self.env):
            raise DeployError(
                f"{self.name} would be exposed to anybody: ask for a token (--token), or say that"
                " you want that (--open)"
            )
        _storage(self)
        object.__setattr__(self, "source", current_model(self.source))


def render(endpoint: Endpoint) -> dict[str, Any]:
    """The InferenceService, ready for `apply`."""
    gpu = GPUS.get(endpoint.gpu, CPU)
    storage = _storage(endpoint)
    metadata: dict[str, Any] = {
        "name": endpoint.name,
        "labels": {"opendatahub.io/dashboard": "true"},
        "annotations": {
            MODE: STANDARD,
            "haproxy.router.openshift.io/timeout": f"{TIMEOUT_S}s",
        },
    }
    if endpoint.namespace:
        metadata["namespace"] = endpoint.namespace
    if endpoint.expose:
        metadata["labels"]["networking.kserve.io/visibility"] = "exposed"
    if endpoint.queue:
        metadata["labels"]["kueue.x-k8s.io/queue-name"] = endpoint.queue
    if endpoint.hardware_profile:
        place, _, profile = endpoint.hardware_profile.rpartition("/")
        metadata["annotations"]["opendatahub.io/hardware-profile-name"] = profile
        if place:
            metadata["annotations"]["opendatahub.io/hardware-profile-namespace"] = place
    if endpoint.connection and endpoint.source.startswith("s3://"):
        metadata["annotations"]["opendatahub.io/connections"] = endpoint.connection
    if endpoint.token:
        metadata["annotations"]["security.opendatahub.io/enable-auth"] = "true"
    predictor: dict[str, Any] = {
        "minReplicas": endpoint.min_replicas,
        "maxReplicas": endpoint.max_replicas,
        "timeout": TIMEOUT_S,
        "serviceAccountName": endpoint.service_account,
        # Only OpenShift AI's proxy, in the same pod, asks the API anything.
        "automountServiceAccountToken": endpoint.token,
        "terminationGracePeriodSeconds": 60,
        "model": {
            "runtime": endpoint.runtime or ("atelier-cpu" if endpoint.gpu == "cpu" else "atelier"),
            # Without storage KServe injects a model agent, except for this format.
            "modelFormat": {"name": "diffusers" if storage else "huggingface"},
            **storage,
            "env": _environment(endpoint, gpu, bool(storage)),
            "resources": _resources(gpu, endpoint),
            **({"envFrom": [PUBLIC_FILTERS]} if endpoint.expose else {}),
        },
    }
    if gpu.products:
        predictor["tolerations"] = [
            {"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}
        ]
        predictor["affinity"] = _on_nodes_with(gpu.products)
    return {
        "apiVersion": f"{GROUP}/{VERSION}",
        "kind": KIND,
        "metadata": metadata,
        "spec": {"predictor": predictor},
    }


def to_yaml(document: Mapping[str, Any]) -> str:
    """As a person writes it: fields in the order of the code."""
    return yaml.safe_dump(dict(document), sort_keys=False, width=120)


def _storage(endpoint: Endpoint) -> dict[str, Any]:
    """`storage` or `storageUri` of the model; empty if the server finds or fetches the weights
    itself."""
    source = endpoint.source
    if source.startswith("s3://"):
        path = source.removeprefix("s3://").partition("/")[2].strip("/")
        if not path:
            raise DeployError(f"source={source} names no folder in the bucket")
        # KServe's initializer would take the connection's own bucket, whatever the address says.
        bucket = {"type": "s3", "bucket": source.removeprefix("s3://").partition("/")[0]}
        return {"storage": {"key": endpoint.connection, "path": path, "parameters": bucket}}
    if re.fullmatch(r"(pvc|oci|oci\+native)://[^/]+.*", source):
        return {"storageUri": source}
    if HUB_ID.fullmatch(source):
        return {}
    raise DeployError(
        f"source={source!r} is none of: Hub id owner/name[@revision], builtin/shapes,"
        " s3://bucket/folder, pvc://claim/folder, oci://image, oci+native://image"
    )


def _environment(endpoint: Endpoint, gpu: Gpu, stored: bool) -> list[dict[str, Any]]:
    """MODEL_ID first, as in manifests/; values given by the caller win over ours."""
    given = {"MODEL_ID": MOUNT if stored else endpoint.source}
    if gpu.products:
        given["MAX_BATCH_SIZE"] = str(gpu.max_batch_size)
    else:
        given["DEVICE"] = "cpu"
    if endpoint.profile:
        given["PROFILE"] = endpoint.profile
    if endpoint.gpus > 1:
        given["TENSOR_PARALLEL_SIZE"] = str(endpoint.gpus)
    given.update(endpoint.env)
    entries: list[dict[str, Any]] = [
        {"name": name, "value": value} for name, value in given.items()
    ]
    if not stored and not endpoint.source.startswith("builtin/"):
        entries.append(_from_secret("HF_TOKEN", "hf-token"))
    if any(value.startswith("s3://") for value in given.values()):
        # KServe gives a connection's keys to its initializer only; this server reads S3 itself.
        if not endpoint.connection:
            raise DeployError("a variable names s3://: give the connection whose keys open it")
        names = (
            "AWS_ACCESS_KEY_ID",
            "AWS_SECRET_ACCESS_KEY",
            "AWS_S3_ENDPOINT",
            "AWS_DEFAULT_REGION",
        )
        entries.extend(_from_secret(name, endpoint.connection) for name in names)
    return entries


def _from_secret(name: str, secret: str) -> dict[str, Any]:
    return {
        "name": name,
        "valueFrom": {"secretKeyRef": {"name": secret, "key": name, "optional": True}},
    }


def _resources(gpu: Gpu, endpoint: Endpoint) -> dict[str, Any]:
    amounts = {"nvidia.com/gpu": str(endpoint.gpus)} if gpu.products else {}
    return {"requests": {**gpu.requests, **amounts}, "limits": {**gpu.limits, **amounts}}


def _on_nodes_with(products: tuple[str, ...]) -> dict[str, Any]:
    expression = {"key": "nvidia.com/gpu.product", "operator": "In", "values": list(products)}
    terms = {"nodeSelectorTerms": [{"matchExpressions": [expression]}]}
    return {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": terms}}
