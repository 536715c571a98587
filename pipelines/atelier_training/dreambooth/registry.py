"""An entry in an OpenShift AI (Kubeflow) model registry: model, version and artifact, through its
REST API v1alpha3."""

from __future__ import annotations

import os
import ssl
from pathlib import Path
from typing import Any

import httpx

from atelier_training.dreambooth.errors import PublishError

BASE = "/api/model_registry/v1alpha3"
ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")


def register(registry: str, name: str, published: dict[str, Any], connection: str) -> str:
    """Enter the version `published` of model `name`; returns the version's id. One that is there
    already is kept.

    The bearer token is the variable MODEL_REGISTRY_TOKEN, else the one of the pod's own account.
    The authority behind its certificate is the file MODEL_REGISTRY_CA, else the one that OpenShift
    gives to pods, else the machine's.

    Raises:
        PublishError: the registry does not answer or refuses.
    """
    token = os.environ.get("MODEL_REGISTRY_TOKEN", "")
    if not token and registry.startswith("https://"):  # never in the clear
        token = _content(ACCOUNT / "token")
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    base = registry.rstrip("/") + BASE
    with httpx.Client(base_url=base, headers=headers, timeout=30, verify=_trust()) as client:
        try:
            model = _ensure(client, "/registered_model", "/registered_models", {"name": name})
            versions = f"/registered_models/{model}/versions"
            version_body = {"name": published["version"], "registeredModelId": model}
            known = _find(
                client, "/model_version", {"name": published["version"], "parentResourceId": model}
            )
            version = known or _create(client, versions, version_body)
            artifact = {
                "artifactType": "model-artifact",
                "name": f"{name}-{published['version']}",
                "uri": published["uri"],
                "storageKey": connection,
                "storagePath": published["uri"].removeprefix("s3://").partition("/")[2],
                "modelFormatName": "diffusers",
            }
            if not known:
                _create(client, f"/model_versions/{version}/artifacts", artifact)
            return version
        except (httpx.HTTPError, KeyError, ValueError) as error:
            raise PublishError(f"registry={registry}: {error}") from None


def _trust() -> ssl.SSLContext | bool:
    """What the registry's certificate is checked against, besides the machine's authorities."""
    files = (
        [Path(named)]
        if (named := os.environ.get("MODEL_REGISTRY_CA"))
        else [path for path in (ACCOUNT / "service-ca.crt", ACCOUNT / "ca.crt") if path.is_file()]
    )
    if not files:
        return True
    context = ssl.create_default_context()
    for file in files:
        try:
            context.load_verify_locations(file)
        except (OSError, ssl.SSLError) as error:
            raise PublishError(f"MODEL_REGISTRY_CA={file}: {error}") from None
    return context


def _content(path: Path) -> str:
    return path.read_text().strip() if path.is_file() else ""


def _ensure(client: httpx.Client, one: str, many: str, body: dict[str, str]) -> str:
    return _find(client, one, body) or _create(client, many, body)


def _find(client: httpx.Client, path: str, query: dict[str, str]) -> str:
    answer = client.get(path, params=query)
    if answer.status_code == 404:
        return ""
    answer.raise_for_status()
    return str(answer.json()["id"])


def _create(client: httpx.Client, path: str, body: dict[str, str]) -> str:
    answer = client.post(path, json=body)
    answer.raise_for_status()
    return str(answer.json()["id"])
