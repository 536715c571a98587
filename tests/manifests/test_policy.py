"""Rules that every pod and every InferenceService of this project keeps, walked over everything
that renders."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

import pytest

from atelier import profiles
from atelier.settings import Settings
from tests.manifests.rendering import (
    FOLDERS,
    OVERLAYS,
    Object,
    Pod,
    combine,
    merged_container,
    needs_kubectl,
    objects,
    of_kind,
    pods,
)

pytestmark = needs_kubectl

SERVING = ["base", *OVERLAYS]
SERVING.remove("overlays/llm-inference-service")  # has no InferenceService
NEEDS_TOKEN = {
    "Job/atelier-s3-setup": "makes Secrets",
    "Notebook/atelier-workbench": "its proxy asks who calls",
    "Deployment/atelier-studio": "its proxy asks who has logged in",
}
WRITES_ITS_ROOT = {
    "Notebook/atelier-workbench": "a workbench of OpenShift AI installs packages into its image"
}
VARIANTS = {"overlays/sdxl-production"}
"""Overlays that are another with more around it, and so share its name."""
WRITTEN = {
    "HOME",
    "XDG_CACHE_HOME",
    "CACHE_DIR",
    "HF_HOME",
    "TORCHINDUCTOR_CACHE_DIR",
    "TRITON_CACHE_DIR",
    "CUDA_CACHE_PATH",
    "VLLM_CACHE_ROOT",
}
"""Variables that name a folder a program writes."""
NOT_OURS = WRITTEN | {
    "USER",
    "LOGNAME",
    "POD_NAMESPACE",
    "NAMESPACE",
    "REPOSITORY",
    "NOTEBOOK_ARGS",
}
NOT_OURS |= {"RAY_ADDRESS", "OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_SERVICE_NAME"}
"""Variables read by other programs and libraries than Atelier's settings."""


@pytest.fixture(params=FOLDERS)
def every_pod(request: pytest.FixtureRequest) -> list[Pod]:
    return list(pods(objects(request.param)))


@pytest.fixture(params=SERVING)
def served(request: pytest.FixtureRequest) -> list[Object]:
    return objects(request.param)


def containers(every_pod: list[Pod], init: bool = True) -> Iterator[tuple[Pod, Object]]:
    for pod in every_pod:
        for container in [*pod.containers, *(pod.spec.get("initContainers", []) if init else [])]:
            yield pod, container


def test_images_are_pinned_to_a_version(every_pod: list[Pod]) -> None:
    for _, container in containers(every_pod):
        tag = container["image"].rpartition(":")[2]
        assert re.match(r"v?\d+\.\d+", tag), f"{container['image']} has no version"


def test_every_container_has_requests_and_limits(every_pod: list[Pod]) -> None:
    for pod, container in containers(every_pod):
        for part in ("requests", "limits"):
            assert {"cpu", "memory"} <= container["resources"][part].keys(), (
                f"{pod.owner}: {container['name']}"
            )
        gpus = [
            container["resources"][part].get("nvidia.com/gpu") for part in ("requests", "limits")
        ]
        assert gpus[0] == gpus[1], "a GPU cannot be overcommitted"


def test_every_container_passes_the_restricted_profile(every_pod: list[Pod]) -> None:
    for pod, container in containers(every_pod):
        context = {**pod.spec.get("securityContext", {}), **container["securityContext"]}
        assert context["runAsNonRoot"] is True
        assert context["allowPrivilegeEscalation"] is False
        assert context["privileged"] is False
        assert context["capabilities"] == {"drop": ["ALL"]}
        assert context["seccompProfile"] == {"type": "RuntimeDefault"}
        assert "runAsUser" not in context, "OpenShift gives each project a user range of its own"
        if pod.owner not in WRITES_ITS_ROOT:
            assert context["readOnlyRootFilesystem"] is True


def test_every_pod_that_serves_is_probed(every_pod: list[Pod]) -> None:
    for pod, container in containers([pod for pod in every_pod if pod.serves], init=False):
        assert {"startupProbe", "readinessProbe", "livenessProbe"} <= container.keys(), pod.owner


def test_folders_that_are_written_lie_on_writable_volumes(every_pod: list[Pod]) -> None:
    for pod, container in containers(every_pod, init=False):
        if pod.owner in WRITES_ITS_ROOT:
            continue
        mounts = [
            PurePosixPath(m["mountPath"])
            for m in container["volumeMounts"]
            if not m.get("readOnly")
        ]
        written = [entry["value"] for entry in container.get("env", []) if entry["name"] in WRITTEN]
        for path in [*written, "/tmp"]:
            assert any(PurePosixPath(path).is_relative_to(mount) for mount in mounts), (
                f"{pod.owner} writes {path}"
            )


def test_every_mount_has_its_volume_and_none_is_on_the_node(every_pod: list[Pod]) -> None:
    for pod, container in containers(every_pod):
        volumes = {volume["name"] for volume in pod.spec["volumes"]}
        assert {mount["name"] for mount in container["volumeMounts"]} <= volumes, pod.owner
        assert not any("hostPath" in volume for volume in pod.spec["volumes"])


def test_only_pods_that_ask_the_api_carry_a_token(every_pod: list[Pod]) -> None:
    for pod in every_pod:
        if not pod.owner.startswith("ServingRuntime") and pod.owner not in NEEDS_TOKEN:
            assert pod.spec["automountServiceAccountToken"] is False, pod.owner


@pytest.mark.parametrize("folder", FOLDERS)
def test_no_secret_stands_in_a_manifest(folder: str) -> None:
    docs = objects(folder)
    assert not of_kind(docs, "Secret")
    environments = [container.get("env", []) for _, container in containers(list(pods(docs)))]
    environments += [
        doc["spec"]["predictor"]["model"]["env"] for doc in of_kind(docs, "InferenceService")
    ]
    for entry in (entry for environment in environments for entry in environment):
        if re.search("KEY|TOKEN|SECRET|PASSWORD", entry["name"]):
            assert "value" not in entry, entry["name"]


@pytest.mark.parametrize("folder", FOLDERS)
def test_no_container_sets_pythonpath_which_kserve_refuses(folder: str) -> None:
    docs = objects(folder)
    environments = [container.get("env", []) for _, container in containers(list(pods(docs)))]
    environments += [
        doc["spec"]["predictor"]["model"]["env"] for doc in of_kind(docs, "InferenceService")
    ]
    assert not any(e["name"] == "PYTHONPATH" for environment in environments for e in environment)


@pytest.mark.parametrize("folder", FOLDERS)
def test_names_fit_into_a_hostname(folder: str) -> None:
    for doc in objects(folder):
        assert re.fullmatch(r"[a-z0-9]([a-z0-9-]{0,51}[a-z0-9])?", doc["metadata"]["name"])


def test_every_variable_is_a_setting_or_known_to_a_library(served: list[Object]) -> None:
    names = {entry["name"] for entry in merged_container(served)["env"]}
    assert names <= {name.upper() for name in Settings.model_fields} | NOT_OURS


def test_the_model_is_named_once_and_found_by_its_own_runtime(served: list[Object]) -> None:
    service = of_kind(served, "InferenceService")[0]
    model = service["spec"]["predictor"]["model"]
    assert [entry["name"] for entry in model["env"]].index("MODEL_ID") == 0
    assert len({entry["name"] for entry in model["env"]}) == len(model["env"]), (
        "a variable is set twice"
    )
    runtime = of_kind(served, "ServingRuntime")[0]
    assert model["runtime"] == runtime["metadata"]["name"]
    assert model["modelFormat"]["name"] in {
        entry["name"] for entry in runtime["spec"]["supportedModelFormats"]
    }


def test_weights_that_kserve_mounts_are_the_ones_that_are_read(served: list[Object]) -> None:
    """Without storage KServe takes a predictor for a multi-model one and injects an agent, except
    for one format."""
    model = of_kind(served, "InferenceService")[0]["spec"]["predictor"]["model"]
    stored = "storage" in model or "storageUri" in model
    assert (model["env"][0]["value"] == "/mnt/models") == stored
    assert (model["modelFormat"]["name"] == "huggingface") == (not stored)


def test_the_runtime_captures_nobody_elses_models(served: list[Object]) -> None:
    formats = of_kind(served, "ServingRuntime")[0]["spec"]["supportedModelFormats"]
    assert [entry["name"] for entry in formats if entry["autoSelect"]] == ["diffusers"]


def test_a_start_may_take_ten_minutes_and_traffic_waits_for_the_model(served: list[Object]) -> None:
    container = merged_container(served)
    name = of_kind(served, "InferenceService")[0]["metadata"]["name"]
    startup = container["startupProbe"]
    assert startup["periodSeconds"] == 10
    assert startup["failureThreshold"] >= 60
    for probe in (startup, container["readinessProbe"]):
        assert probe["httpGet"]["path"] == f"/v2/models/{name}/ready"
    assert container["livenessProbe"]["httpGet"]["path"] == "/v2/health/live"


def test_running_work_may_end_before_the_pod_is_killed(served: list[Object]) -> None:
    drain = Settings.model_fields["drain_seconds"].default
    pause = int(merged_container(served)["lifecycle"]["preStop"]["exec"]["command"][1])
    assert (
        of_kind(served, "InferenceService")[0]["spec"]["predictor"]["terminationGracePeriodSeconds"]
        > drain + pause
    )


def test_the_route_waits_as_long_as_the_server(served: list[Object]) -> None:
    service = of_kind(served, "InferenceService")[0]
    timeout = service["spec"]["predictor"]["timeout"]
    assert timeout >= Settings.model_fields["request_timeout"].default
    assert (
        service["metadata"]["annotations"]["haproxy.router.openshift.io/timeout"] == f"{timeout}s"
    )


def test_metrics_are_scraped_from_a_port_of_the_server(served: list[Object]) -> None:
    annotations = of_kind(served, "ServingRuntime")[0]["spec"]["annotations"]
    http = merged_container(served)["ports"][0]
    assert (
        annotations["prometheus.kserve.io/port"]
        == annotations["prometheus.io/port"]
        == str(http["containerPort"])
    )
    assert f"--http_port={http['containerPort']}" in merged_container(served)["args"]
    for monitor in of_kind(served, "PodMonitor"):
        assert monitor["spec"]["podMetricsEndpoints"][0]["port"] == http["name"]


def test_selectors_find_the_pods() -> None:
    docs = objects("overlays/sdxl-production")
    labels = of_kind(docs, "ServingRuntime")[0]["spec"]["labels"]
    selectors = [
        of_kind(docs, kind)[0]["spec"]["selector"] for kind in ("PodDisruptionBudget", "PodMonitor")
    ]
    selectors.append(of_kind(docs, "NetworkPolicy")[0]["spec"]["podSelector"])
    for selector in selectors:
        assert selector["matchLabels"].items() <= labels.items()


def test_overlays_live_side_by_side_in_one_namespace() -> None:
    """Objects of the same kind and name are equal, so that one overlay never changes another's
    server."""
    seen: dict[tuple[str, str], tuple[str, Object]] = {}
    for folder in OVERLAYS:
        for doc in objects(folder):
            key = doc["kind"], doc["metadata"]["name"]
            if doc["kind"] == "InferenceService":
                assert key not in seen or folder in VARIANTS, f"{key} is there twice"
                seen.setdefault(key, (folder, doc))
                continue
            other, first = seen.setdefault(key, (folder, doc))
            assert doc == first, f"{key} differs between {other} and {folder}"


def test_a_gpu_pod_tolerates_gpu_nodes_and_a_cpu_pod_asks_for_none(served: list[Object]) -> None:
    predictor = of_kind(served, "InferenceService")[0]["spec"]["predictor"]
    gpus = merged_container(served)["resources"]["limits"].get("nvidia.com/gpu")
    chosen = {"nodeSelector", "affinity"} & predictor.keys()
    assert not chosen or (int(gpus) >= 1 and predictor["tolerations"][0]["key"] == "nvidia.com/gpu")
    device = {entry["name"]: entry.get("value") for entry in predictor["model"]["env"]}.get(
        "DEVICE"
    )
    assert (device == "cpu") == (gpus is None)


def test_a_profile_is_for_the_model_and_the_gpus_of_its_overlay(served: list[Object]) -> None:
    env = {
        entry["name"]: entry["value"]
        for entry in merged_container(served)["env"]
        if "value" in entry
    }
    if "PROFILE" not in env:
        return
    profile = profiles.read(env["PROFILE"])
    assert env["MODEL_ID"] == profile.values["model_id"]
    assert merged_container(served)["resources"]["limits"]["nvidia.com/gpu"] == str(profile.gpus)
    for name, value in env.items():
        if name in ("ENGINE", "TASK"):
            assert profile.values[name.lower()] == value, "the overlay contradicts its profile"


def test_the_base_asks_for_one_gpu_and_64_gib() -> None:
    limits = of_kind(objects("base"), "ServingRuntime")[0]["spec"]["containers"][0]["resources"][
        "limits"
    ]
    assert limits["memory"] == "64Gi"
    assert limits["nvidia.com/gpu"] == "1"


def test_knative_gets_one_port_and_no_hook(tmp_path: Path) -> None:
    docs = combine(tmp_path, "overlays/huggingface", ["autoscaling/scale-to-zero"])
    container = merged_container(docs)
    assert len(container["ports"]) == 1
    assert "lifecycle" not in container
    assert of_kind(docs, "InferenceService")[0]["spec"]["predictor"]["minReplicas"] == 0


def test_the_air_gapped_overlay_names_the_internal_registry_only() -> None:
    docs = objects("overlays/air-gapped")
    model = of_kind(docs, "InferenceService")[0]["spec"]["predictor"]["model"]
    for reference in (merged_container(docs)["image"], model["storageUri"].removeprefix("oci://")):
        assert reference.startswith("registry.internal.example/")
    egress = of_kind(docs, "NetworkPolicy")[0]["spec"]["egress"]
    assert {port["port"] for rule in egress for port in rule.get("ports", [])} == {53, 5353}
    assert {"name": "HF_HUB_OFFLINE", "value": "1"} in model["env"]
