"""The component that puts the MCP server before an endpoint: the rules of every pod, its way to
the endpoint, and the container itself, started as the manifest says."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest

from atelier.settings import Settings
from tests.agents.conftest import mcp_server
from tests.conftest import free_port
from tests.manifests import test_policy as policy
from tests.manifests import validation
from tests.manifests.rendering import Object, Pod, combine, needs_kubectl, of_kind, pods

pytestmark = needs_kubectl

RULES = [
    policy.test_images_are_pinned_to_a_version,
    policy.test_every_container_has_requests_and_limits,
    policy.test_every_container_passes_the_restricted_profile,
    policy.test_every_pod_that_serves_is_probed,
    policy.test_folders_that_are_written_lie_on_writable_volumes,
    policy.test_every_mount_has_its_volume_and_none_is_on_the_node,
    policy.test_only_pods_that_ask_the_api_carry_a_token,
]


@pytest.fixture(scope="module")
def docs(tmp_path_factory: pytest.TempPathFactory) -> list[Object]:
    return combine(tmp_path_factory.mktemp("user"), "overlays/dev", ["auth/api-keys", "mcp"])


@pytest.fixture(scope="module")
def container(docs: list[Object]) -> Object:
    (deployment,) = of_kind(docs, "Deployment")
    (found,) = deployment["spec"]["template"]["spec"]["containers"]
    return found


@pytest.mark.parametrize("rule", RULES)
def test_its_pod_keeps_the_rules_of_every_pod(
    docs: list[Object], rule: Callable[[list[Pod]], None]
) -> None:
    assert any(pod.owner == "Deployment/atelier-mcp" for pod in pods(docs))
    rule(list(pods(docs)))
    assert validation.errors(docs) == []


def test_it_draws_with_the_endpoint_of_its_overlay(docs: list[Object], container: Object) -> None:
    services = {doc["metadata"]["name"]: doc["spec"] for doc in of_kind(docs, "Service")}
    name = of_kind(docs, "InferenceService")[0]["metadata"]["name"]
    endpoint = services["atelier-mcp-endpoint"]
    assert endpoint["selector"] == {"serving.kserve.io/inferenceservice": name}
    values = {entry["name"]: entry.get("value") for entry in container["env"]}
    port = endpoint["ports"][0]["port"]
    assert values["MCP_ENDPOINT"] == f"http://atelier-mcp-endpoint:{port}"
    runtime = of_kind(docs, "ServingRuntime")[0]["spec"]["containers"][0]
    assert endpoint["ports"][0]["targetPort"] == runtime["ports"][0]["containerPort"]


def test_service_and_policy_find_the_pod_and_its_port(
    docs: list[Object], container: Object
) -> None:
    (deployment,) = of_kind(docs, "Deployment")
    labels = deployment["spec"]["template"]["metadata"]["labels"]
    (policy_spec,) = [
        doc["spec"] for doc in of_kind(docs, "NetworkPolicy")
        if doc["metadata"]["name"] == "atelier-mcp"
    ]  # fmt: skip
    services = {doc["metadata"]["name"]: doc["spec"] for doc in of_kind(docs, "Service")}
    assert policy_spec["podSelector"]["matchLabels"] == labels
    assert services["atelier-mcp"]["selector"] == labels
    (port,) = container["ports"]
    assert services["atelier-mcp"]["ports"][0]["targetPort"] == port["name"]
    assert {rule["port"] for one in policy_spec["ingress"] for rule in one.get("ports", [])} == {
        port["containerPort"]
    }
    assert f"--port={port['containerPort']}" in container["args"]


def test_no_secret_stands_in_it_and_no_variable_is_unknown(container: Object) -> None:
    for entry in container["env"]:
        secret = re.search("KEY|TOKEN|SECRET|PASSWORD", entry["name"])
        assert not secret or "value" not in entry, entry["name"]
    names = {entry["name"] for entry in container["env"]}
    assert names <= {name.upper() for name in Settings.model_fields} | policy.NOT_OURS


def test_its_container_starts_as_the_manifest_says(container: Object, tmp_path: Path) -> None:
    given = {
        entry["name"]: f"{tmp_path}{entry['value']}" if entry["value"].startswith("/")
        else entry["value"]
        for entry in container["env"] if "value" in entry
    }  # fmt: skip
    assert container["args"][:2] == ["mcp", "--http"]
    for mount in container["volumeMounts"]:
        (tmp_path / mount["mountPath"].lstrip("/")).mkdir()
    unreachable = f"http://127.0.0.1:{free_port()}"
    with mcp_server(tmp_path, unreachable, **given, API_KEYS="a-key") as server:
        for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
            path = container[probe]["httpGet"]["path"]
            assert httpx.get(server.url + path).status_code == 200
        assert httpx.post(f"{server.url}/mcp", json={}).status_code == 401
    written = {path.name for path in tmp_path.iterdir()} - {"log"}
    assert written == {"pictures", "tmp"}, "nothing was written outside the volumes"
