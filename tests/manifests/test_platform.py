"""Components for what the platforms added: profiles, queues, connections, caches, image volumes."""

from __future__ import annotations

import re
from pathlib import Path

from atelier.settings import Settings
from tests.manifests import validation
from tests.manifests.rendering import Object, combine, needs_kubectl, objects, of_kind

pytestmark = needs_kubectl


def service_of(tmp_path: Path, folder: str, *components: str) -> Object:
    (service,) = of_kind(combine(tmp_path, folder, components), "InferenceService")
    return service


def test_the_hardware_profile_and_the_queue_are_named(tmp_path: Path) -> None:
    metadata = service_of(tmp_path, "overlays/sdxl", "hardware-profile", "queue")["metadata"]
    profile = "opendatahub.io/hardware-profile"
    assert metadata["annotations"][f"{profile}-name"] == "gpu"
    assert metadata["annotations"][f"{profile}-namespace"] == "redhat-ods-applications"
    (queue,) = of_kind(objects("setup/queue"), "LocalQueue")
    assert metadata["labels"]["kueue.x-k8s.io/queue-name"] == queue["metadata"]["name"]


def test_the_connection_is_the_one_that_the_endpoint_reads(tmp_path: Path) -> None:
    service = service_of(tmp_path, "overlays/s3", "connection")
    named = service["metadata"]["annotations"]["opendatahub.io/connections"]
    assert named == service["spec"]["predictor"]["model"]["storage"]["key"]


def test_several_sources_are_mounted_where_the_server_reads_them(tmp_path: Path) -> None:
    predictor = service_of(tmp_path, "base", "storage-uris")["spec"]["predictor"]
    weights, adapters = predictor["storageUris"]
    env = {entry["name"]: entry["value"] for entry in predictor["model"]["env"]}
    assert env["MODEL_ID"] == weights["mountPath"] and env["LORA_PATHS"] == adapters["mountPath"]
    assert Path(weights["mountPath"]).parent == Path(adapters["mountPath"]).parent != Path("/")
    assert "storageUri" not in predictor["model"]
    assert Settings(model_id="builtin/shapes", lora_paths=env["LORA_PATHS"]).lora_paths


def test_the_signing_keys_are_mounted_where_the_server_reads_them(tmp_path: Path) -> None:
    predictor = service_of(tmp_path, "base", "provenance")["spec"]["predictor"]
    env = {entry["name"]: entry["value"] for entry in predictor["model"]["env"]}
    (mount,) = predictor["model"]["volumeMounts"]
    (volume,) = predictor["volumes"]
    assert mount["name"] == volume["name"] and mount["readOnly"]
    settings = Settings(**{name.lower(): env[name] for name in ("PROVENANCE", "C2PA_CERTIFICATE")})
    assert settings.provenance == "c2pa"
    assert settings.c2pa_certificate == f"{mount['mountPath']}/tls.crt"
    assert env["C2PA_KEY"] == f"{mount['mountPath']}/tls.key"


def test_an_image_volume_is_given_by_digest(tmp_path: Path) -> None:
    service = service_of(tmp_path, "overlays/air-gapped", "oci-native")
    uri = service["spec"]["predictor"]["model"]["storageUri"]
    assert re.fullmatch(r"oci\+native://registry\.internal\.example/\S+@sha256:[0-9a-f]{64}", uri)


def test_a_projects_cache_holds_what_the_endpoint_reads(tmp_path: Path) -> None:
    docs = combine(tmp_path, "overlays/pvc", ["model-cache/local-model-namespace-cache"])
    (cache,) = of_kind(docs, "LocalModelNamespaceCache")
    model = of_kind(docs, "InferenceService")[0]["spec"]["predictor"]["model"]
    assert cache["spec"]["sourceModelUri"] == model["storageUri"]
    assert validation.with_client_models([cache]) == ([], set())


def test_what_stands_behind_the_inference_gateway_speaks_tls() -> None:
    """KServe mounts its certificate there, and renews it."""
    (service,) = of_kind(objects("overlays/llm-inference-service"), "LLMInferenceService")
    (container,) = service["spec"]["template"]["containers"]
    assert container["name"] == "main"  # the one that KServe's preset mounts it in
    mounted = "/var/run/kserve/tls"
    assert f"--ssl_certfile={mounted}/tls.crt" in container["args"]
    assert f"--ssl_keyfile={mounted}/tls.key" in container["args"]
    probes = [container[f"{name}Probe"] for name in ("startup", "readiness", "liveness")]
    assert {probe["httpGet"]["scheme"] for probe in probes} == {"HTTPS"}


def test_every_endpoint_gives_a_request_ten_minutes() -> None:
    predictor = of_kind(objects("base"), "InferenceService")[0]["spec"]["predictor"]
    assert predictor["timeout"] == 600 == Settings.model_fields["request_timeout"].default
