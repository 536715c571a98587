"""Everything under manifests/ renders and is valid, strictly."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import yaml

from tests.manifests import validation
from tests.manifests.rendering import (
    COMBINATIONS,
    FOLDERS,
    MANIFESTS,
    combine,
    kustomize,
    objects,
    of_kind,
)

from .rendering import needs_kubectl

pytestmark = needs_kubectl


@pytest.mark.parametrize("folder", FOLDERS)
def test_a_folder_renders_and_is_valid(folder: str) -> None:
    docs = objects(folder)
    assert docs
    assert validation.errors(docs) == []


@pytest.mark.parametrize("folder", COMBINATIONS)
def test_components_on_top_of_an_overlay_are_valid(folder: str, tmp_path: Path) -> None:
    docs = combine(tmp_path, folder, COMBINATIONS[folder])
    assert validation.errors(docs) == []


def test_every_component_is_used_by_an_overlay_or_a_combination() -> None:
    used = {name for names in COMBINATIONS.values() for name in names}
    for path in MANIFESTS.glob("*/*/**/kustomization.yaml"):
        for entry in yaml.safe_load(path.read_text()).get("components", []):
            used.add(str((path.parent / entry).resolve().relative_to(MANIFESTS / "components")))
    all_of_them = {
        str(path.parent.relative_to(MANIFESTS / "components"))
        for path in MANIFESTS.glob("components/**/kustomization.yaml")
    }
    assert all_of_them == used


@pytest.mark.parametrize(
    "template", sorted(MANIFESTS.glob("templates/*.yaml")), ids=lambda path: path.stem
)
def test_a_template_is_valid(template: Path) -> None:
    docs = [doc for doc in yaml.safe_load_all(template.read_text()) if doc]
    inner = [
        item for doc in docs for item in (doc["objects"] if doc["kind"] == "Template" else [doc])
    ]
    assert inner
    assert validation.errors(inner) == []


def test_a_data_connection_renders_from_the_users_file(tmp_path: Path) -> None:
    folder = tmp_path / "connection"
    shutil.copytree(MANIFESTS / "setup/connection", folder)
    (folder / "connection.env.example").rename(folder / "connection.env")
    secret = yaml.safe_load(kustomize(folder))
    assert validation.errors([secret]) == []
    assert set(secret["data"]) == {
        "AWS_ACCESS_KEY_ID",
        "AWS_SECRET_ACCESS_KEY",
        "AWS_S3_ENDPOINT",
        "AWS_DEFAULT_REGION",
        "AWS_S3_BUCKET",
    }
    assert secret["metadata"]["labels"] == {
        "opendatahub.io/dashboard": "true",
        "opendatahub.io/managed": "true",
    }
    assert secret["metadata"]["annotations"]["opendatahub.io/connection-type"] == "s3"


def test_an_unknown_field_is_an_error_with_and_without_the_crds() -> None:
    docs = [dict(doc) for doc in objects("base")]
    service = of_kind(docs, "InferenceService")[0]
    predictor = service["spec"]["predictor"]
    docs = [
        {
            **service,
            "spec": {"predictor": {**predictor, "model": {**predictor["model"], "enviroment": []}}},
        }
    ]
    found, unknown = validation.with_client_models(docs)
    assert found and "enviroment" in found[0] and not unknown
    if module := validation.validator():
        assert any("enviroment" in error for error in validation.with_crds(module, docs))


@pytest.mark.parametrize("folder", FOLDERS)
def test_a_clone_without_the_crds_can_still_check(folder: str) -> None:
    found, unknown = validation.with_client_models(objects(folder))
    assert found == []
    assert not unknown & {
        "ServingRuntime",
        "InferenceService",
        "Deployment",
        "Job",
        "Secret",
        "ServiceAccount",
    }


def test_a_device_claim_takes_the_place_of_the_gpu_resource(tmp_path: Path) -> None:
    docs = combine(tmp_path, "overlays/sd35-medium", ["dra"])
    (template,) = of_kind(docs, "ResourceClaimTemplate")
    (request,) = template["spec"]["spec"]["devices"]["requests"]
    assert request["exactly"]["deviceClassName"] == "gpu.nvidia.com"
    predictor = of_kind(docs, "InferenceService")[0]["spec"]["predictor"]
    (claim,) = predictor["resourceClaims"]
    assert claim["resourceClaimTemplateName"] == template["metadata"]["name"]
    assert predictor["model"]["resources"]["claims"] == [{"name": claim["name"]}]
    assert "nvidia.com/gpu" not in str(of_kind(docs, "ServingRuntime")[0]["spec"]["containers"])
    assert "nvidia.com/gpu" not in predictor["model"]["resources"]["limits"]


def test_a_canary_is_the_endpoint_with_another_image(tmp_path: Path) -> None:
    docs = combine(tmp_path, "overlays/glm-image", ["canary"])
    spec = of_kind(docs, "InferenceService")[0]["spec"]
    (canary,) = spec["canary"]
    stable, tried = spec["predictor"]["model"], canary["predictor"]["model"]
    assert canary["trafficPercent"] == 10
    assert tried["image"] and "image" not in stable
    for name in ("env", "resources", "runtime", "modelFormat"):
        assert tried[name] == stable[name], name


def test_the_build_in_the_cluster_uses_the_containerfile_and_hides_the_token() -> None:
    docs = objects("setup/build")
    build, stream = of_kind(docs, "BuildConfig")[0]["spec"], of_kind(docs, "ImageStream")[0]
    strategy = build["strategy"]["dockerStrategy"]
    assert strategy["dockerfilePath"] == "Containerfile"
    assert strategy["volumes"][0]["source"] == {
        "type": "Secret",
        "secret": {"secretName": "hf-token", "optional": True},
    }
    assert build["output"]["to"]["name"].split(":")[0] == stream["metadata"]["name"]
    assert stream["spec"]["lookupPolicy"] == {"local": True}
