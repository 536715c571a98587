"""What the tests of manifests share: folders to render, their objects, and a walk over every pod in
them."""

from __future__ import annotations

import functools
import os
import re
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
MANIFESTS = ROOT / "manifests"
Object = dict[str, Any]

needs_kubectl = pytest.mark.skipif(
    not shutil.which("kubectl"), reason="kubectl (with kustomize) is not on PATH"
)

OVERLAYS = sorted(
    f"overlays/{path.parent.name}" for path in MANIFESTS.glob("overlays/*/kustomization.yaml")
)
SETUP = [
    "setup",
    *sorted(f"setup/{p.parent.name}" for p in MANIFESTS.glob("setup/*/kustomization.yaml")),
]
SETUP.remove(
    "setup/connection"
)  # needs the user's own connection.env; test_render.py renders it with the example
FOLDERS = ["base", *OVERLAYS, *SETUP]

COMBINATIONS: dict[str, tuple[str, ...]] = {
    "base": ("storage-uris",),
    "overlays/dev": ("auth/api-keys", "mcp"),
    "overlays/s3": (
        *("gpu-l40s", "expose", "auth/openshift-token", "pod-disruption-budget"),
        *("connection", "studio"),
    ),
    "overlays/pvc": (
        *("gpu-a10g", "auth/api-keys", "autoscaling/hpa", "tracing"),
        "model-cache/local-model-namespace-cache",
    ),
    "overlays/huggingface": ("gpu-l40s", "autoscaling/scale-to-zero", "expose"),
    "overlays/sdxl": ("autoscaling/keda", "monitoring", "model-cache/prefetch"),
    "overlays/flux": ("auth/openshift-token", "autoscaling/keda-openshift", "network-policy"),
    "overlays/air-gapped": ("model-cache/local-model-cache", "monitoring", "oci-native"),
    "overlays/glm-image": ("canary", "provenance"),
    "overlays/sd35-medium": ("dra",),
    "overlays/gemma-3": ("engine-vllm", "expose", "tracing", "hardware-profile", "queue"),
}
"""Components on top of overlays, as the documentation tells people to combine them."""


def kustomize(folder: Path) -> str:
    done = subprocess.run(["kubectl", "kustomize", str(folder)], capture_output=True, text=True)
    assert done.returncode == 0, f"{folder.name} does not render: {done.stderr}"
    return done.stdout


@functools.cache
def objects(folder: str) -> list[Object]:
    """Every object that a folder under manifests/ renders to."""
    return [doc for doc in yaml.safe_load_all(kustomize(MANIFESTS / folder)) if doc]


def combine(tmp_path: Path, folder: str, components: Sequence[str]) -> list[Object]:
    """A user's own kustomization: an overlay with components on top."""
    relative = os.path.relpath(MANIFESTS, tmp_path)
    kustomization = {
        "apiVersion": "kustomize.config.k8s.io/v1beta1",
        "kind": "Kustomization",
        "resources": [f"{relative}/{folder}"],
        "components": [f"{relative}/components/{name}" for name in components],
    }
    (tmp_path / "kustomization.yaml").write_text(yaml.safe_dump(kustomization))
    return [doc for doc in yaml.safe_load_all(kustomize(tmp_path)) if doc]


def of_kind(docs: Sequence[Object], kind: str) -> list[Object]:
    return [doc for doc in docs if doc["kind"] == kind]


@dataclass(frozen=True)
class Pod:
    """A pod that an object makes. `spec` is a pod spec; `serves` says that its containers run until
    told to stop."""

    owner: str
    spec: Object
    serves: bool
    labels: Object

    @property
    def containers(self) -> list[Object]:
        return self.spec["containers"]


def pods(docs: Sequence[Object]) -> Iterator[Pod]:
    """Every pod spec in the objects. A ServingRuntime's comes as it is, without an
    InferenceService's changes."""
    for doc in docs:
        kind, name, spec = doc["kind"], doc["metadata"]["name"], doc.get("spec", {})
        owner = f"{kind}/{name}"
        if kind == "ServingRuntime":
            yield Pod(owner, spec, True, spec.get("labels", {}))
            if "workerSpec" in spec:
                yield Pod(
                    f"{owner} (worker)",
                    spec["workerSpec"],
                    True,
                    spec["workerSpec"].get("labels", {}),
                )
        elif kind == "LLMInferenceService":
            yield Pod(owner, spec["template"], True, {})
        elif kind in ("Deployment", "StatefulSet", "Job", "Notebook"):
            template = spec["template"]
            yield Pod(
                owner,
                template["spec"],
                kind != "Job",
                template.get("metadata", {}).get("labels", {}),
            )


def merged_container(docs: Sequence[Object]) -> Object:
    """The container KServe makes of a ServingRuntime and the InferenceService that names it.

    Arguments are appended; env merges by name, volumeMounts by path, ports by number; the rest is
    replaced; then `{{.Name}}` is rendered from the InferenceService's metadata.
    """
    service = of_kind(docs, "InferenceService")[0]
    model = service["spec"]["predictor"]["model"]
    runtime = next(
        doc
        for doc in of_kind(docs, "ServingRuntime")
        if doc["metadata"]["name"] == model["runtime"]
    )
    base = runtime["spec"]["containers"][0]
    keys = {"env": "name", "volumeMounts": "mountPath", "ports": "containerPort"}
    merged = dict(base)
    for field, value in model.items():
        if field in (
            "modelFormat",
            "runtime",
            "runtimeVersion",
            "protocolVersion",
            "storage",
            "storageUri",
        ):
            continue
        if field == "args":
            merged["args"] = [*base.get("args", []), *value]
        elif field in keys:
            entries = {entry[keys[field]]: entry for entry in base.get(field, [])}
            entries.update({entry[keys[field]]: entry for entry in value})
            merged[field] = list(entries.values())
        elif field == "resources":
            merged[field] = {
                part: {**base["resources"].get(part, {}), **value.get(part, {})} for part in value
            }
        else:
            merged[field] = value
    name = service["metadata"]["name"]
    return _render(merged, name)


def _render(value: Any, name: str) -> Any:
    if isinstance(value, str):
        return re.sub(r"\{\{\s*\.Name\s*\}\}", name, value)
    if isinstance(value, list):
        return [_render(item, name) for item in value]
    if isinstance(value, dict):
        return {key: _render(item, name) for key, item in value.items()}
    return value
