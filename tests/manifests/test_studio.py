"""The component that puts the studio before an endpoint: the rules of every pod, the login in front
of it, its way to the endpoint, and the container itself, started as the manifest says."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest

from atelier.settings import Settings
from tests.conftest import free_port
from tests.manifests import test_policy as policy
from tests.manifests import validation
from tests.manifests.rendering import Object, Pod, combine, needs_kubectl, of_kind, pods
from tests.manifests.test_mcp import RULES
from tests.processes import Forked
from tests.studio.conftest import answers, wait_for

pytestmark = needs_kubectl


@pytest.fixture(scope="module")
def docs(tmp_path_factory: pytest.TempPathFactory) -> list[Object]:
    return combine(tmp_path_factory.mktemp("user"), "overlays/dev", ["auth/api-keys", "studio"])


def container(docs: list[Object], name: str) -> Object:
    (deployment,) = of_kind(docs, "Deployment")
    found = {one["name"]: one for one in deployment["spec"]["template"]["spec"]["containers"]}
    return found[name]


@pytest.mark.parametrize("rule", RULES)
def test_its_pod_keeps_the_rules_of_every_pod(
    docs: list[Object], rule: Callable[[list[Pod]], None]
) -> None:
    assert any(pod.owner == "Deployment/atelier-studio" for pod in pods(docs))
    rule(list(pods(docs)))
    assert validation.errors(docs) == []


def test_people_reach_it_through_the_login_alone(docs: list[Object]) -> None:
    studio, proxy = container(docs, "studio"), container(docs, "proxy")
    port = next(re.findall(r"--port=(\d+)", one) for one in studio["args"] if "--port" in one)[0]
    assert "--host=127.0.0.1" in studio["args"] and "ports" not in studio
    assert f"--upstream=http://127.0.0.1:{port}" in proxy["args"]
    (policy_spec,) = [
        doc["spec"] for doc in of_kind(docs, "NetworkPolicy")
        if doc["metadata"]["name"] == "atelier-studio"
    ]  # fmt: skip
    assert [rule["ports"] for rule in policy_spec["ingress"]] == [
        [{"port": proxy["ports"][0]["containerPort"], "protocol": "TCP"}]
    ]
    (route,) = of_kind(docs, "Route")
    services = {doc["metadata"]["name"]: doc["spec"] for doc in of_kind(docs, "Service")}
    service = services[route["spec"]["to"]["name"]]
    assert service["ports"][0]["targetPort"] == proxy["ports"][0]["name"]
    assert route["spec"]["tls"]["termination"] == "reencrypt"


def test_who_may_get_the_endpoint_may_draw(docs: list[Object]) -> None:
    proxy = container(docs, "proxy")
    name = of_kind(docs, "InferenceService")[0]["metadata"]["name"]
    values = {entry["name"]: entry.get("value") for entry in proxy["env"]}
    assert values["INFERENCE_SERVICE"] == name
    (sar,) = [one.partition("=")[2] for one in proxy["args"] if one.startswith("--openshift-sar")]
    assert json.loads(sar)["resourceName"] == "$(INFERENCE_SERVICE)"
    (account,) = [
        doc for doc in of_kind(docs, "ServiceAccount")
        if doc["metadata"]["name"] == "atelier-studio"
    ]  # fmt: skip
    (reference,) = account["metadata"]["annotations"].values()
    assert json.loads(reference)["reference"] == {"kind": "Route", "name": "atelier-studio"}


def test_it_draws_with_the_endpoint_of_its_overlay(docs: list[Object]) -> None:
    services = {doc["metadata"]["name"]: doc["spec"] for doc in of_kind(docs, "Service")}
    endpoint = services["atelier-studio-endpoint"]
    name = of_kind(docs, "InferenceService")[0]["metadata"]["name"]
    assert endpoint["selector"] == {"serving.kserve.io/inferenceservice": name}
    port = endpoint["ports"][0]["port"]
    assert f"--endpoint=http://atelier-studio-endpoint:{port}" in container(docs, "studio")["args"]
    runtime = of_kind(docs, "ServingRuntime")[0]["spec"]["containers"][0]
    assert endpoint["ports"][0]["targetPort"] == runtime["ports"][0]["containerPort"]


def test_no_variable_is_unknown(docs: list[Object]) -> None:
    names = {entry["name"] for entry in container(docs, "studio")["env"]}
    known = {name.upper() for name in Settings.model_fields} | policy.NOT_OURS
    assert names <= known | {"GRADIO_TEMP_DIR"}


def test_its_container_starts_as_the_manifest_says(docs: list[Object], tmp_path: Path) -> None:
    studio = container(docs, "studio")
    port = str(free_port())
    arguments = [one.replace("7860", port) for one in studio["args"]]
    given = {
        entry["name"]: f"{tmp_path}{entry['value']}" if entry["value"].startswith("/")
        else entry["value"] for entry in studio["env"]
    }  # fmt: skip
    (tmp_path / "tmp").mkdir()
    log = tmp_path / "log"
    process = Forked("atelier.cli.main", arguments, given, log)
    try:
        wait_for(lambda: answers(f"http://127.0.0.1:{port}/health"), 60, log)
        command = [one.replace("7860", port) for one in studio["readinessProbe"]["exec"]["command"]]
        assert subprocess.run(command).returncode == 0
        assert "Atelier" in httpx.get(f"http://127.0.0.1:{port}/studio/").text
        process.terminate()
        assert process.wait(20) == 0
    finally:
        process.kill()
    assert {path.name for path in tmp_path.iterdir()} == {"log", "tmp"}, (
        "only its volume is written"
    )
