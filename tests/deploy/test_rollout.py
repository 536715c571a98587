"""`atelier deploy` against an API server, through the real Kubernetes client and the real command
line."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner, Result

from atelier.cli.deploy import app
from atelier.deploy import DeployError, Endpoint, deploy
from atelier.deploy.cluster import Cluster
from atelier.deploy.rollout import wait_ready
from tests.deploy.any_server import only_the_fake
from tests.deploy.fake_api import FakeApi, Moment
from tests.deploy.test_diagnosis import CASES, ended, pod, waiting
from tests.manifests import validation

LOADING = pod(
    {"name": "kserve-container", "state": {"running": {}}, "ready": False, "restartCount": 0},
    phase="Running",
)


@pytest.fixture
def api(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeApi]:
    only_the_fake("play scenes of a rollout")
    server = FakeApi(check=lambda document: validation.errors([document]))
    monkeypatch.setenv("KUBECONFIG", str(server.kubeconfig(tmp_path)))
    monkeypatch.setattr(
        "kubernetes.config.kube_config.KUBE_CONFIG_DEFAULT_LOCATION", str(tmp_path / "kubeconfig")
    )
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(
        "tempfile.tempdir", str(tmp_path)
    )  # the client keeps what it discovered there
    yield server
    server.close()


def run(*words: str) -> Result:
    return CliRunner().invoke(app, list(words))


def test_apply_makes_the_endpoint_and_says_when_it_is_ready(api: FakeApi) -> None:
    said: list[str] = []
    deploy(Endpoint("shapes", "builtin/shapes"), wait_s=0, say=said.append)
    api.scene = [Moment(), Moment(), Moment(pods=[LOADING]), Moment(ready=True)]
    address = wait_ready(Cluster(), "shapes", 30, said.append, poll_s=0.01)
    assert address == "https://shapes.example.com"
    assert (
        api.services["shapes"]["spec"]["predictor"]["model"]["env"][0]["value"] == "builtin/shapes"
    )
    assert said[0] == "InferenceService shapes applied in studio"
    assert "kserve-container running" in said[-2]
    assert said[-1].endswith("ready: https://shapes.example.com")


def test_the_second_apply_changes_the_endpoint_and_waits_for_the_change(api: FakeApi) -> None:
    deploy(Endpoint("shapes", "builtin/shapes"), say=lambda _: None)
    deploy(Endpoint("shapes", "builtin/shapes", max_replicas=3), say=lambda _: None, wait_s=0)
    assert wait_ready(Cluster(), "shapes", 5, lambda _: None, poll_s=0.01), "no pod changed"
    late = Moment(ready=True, reconciled=False)
    api.scene = [late, late, late, late, Moment(), Moment(ready=True)]
    deploy(
        Endpoint("shapes", "builtin/shapes", env={"LOG_LEVEL": "debug"}),
        say=lambda _: None,
        wait_s=0,
    )
    wait_ready(Cluster(), "shapes", 30, lambda _: None, poll_s=0.01)
    service = api.services["shapes"]
    assert service["metadata"]["generation"] == 3
    assert service["status"]["observedGeneration"] == 2, "KServe copies the Deployment's"
    assert len(api.scene) == 1, "the readiness of the old pods was taken for that of the new"


@pytest.mark.parametrize("name", ["no such image", "OOMKilled again", "initializer keys"])
def test_a_hopeless_start_ends_early_with_the_reason(api: FakeApi, name: str) -> None:
    trouble, cause, remedy, _ = CASES[name]
    deploy(Endpoint("sdxl", "builtin/shapes"), wait_s=0, say=lambda _: None)
    api.scene = [Moment(pods=[trouble])]
    with pytest.raises(DeployError) as caught:
        wait_ready(Cluster(), "sdxl", 600, lambda _: None, poll_s=0.01, fatal_for_s=0.05)
    assert "cannot get ready" in caught.value.message
    assert cause in caught.value.message and remedy in caught.value.message


def test_a_start_that_may_still_work_is_waited_for_until_the_time_is_up(api: FakeApi) -> None:
    trouble, cause, _, _ = CASES["GPUs taken"]
    deploy(Endpoint("sdxl", "builtin/shapes"), wait_s=0, say=lambda _: None)
    api.scene = [Moment(pods=[trouble])]
    with pytest.raises(DeployError, match=r"not ready after 0\.2 s") as caught:
        wait_ready(Cluster(), "sdxl", 0.2, lambda _: None, poll_s=0.01, fatal_for_s=0)
    assert cause in caught.value.message


def test_a_hopeless_state_that_heals_is_forgiven(api: FakeApi) -> None:
    deploy(Endpoint("sdxl", "builtin/shapes"), wait_s=0, say=lambda _: None)
    missing = Moment(pods=[pod(waiting("ErrImagePull", "manifest unknown"))])
    api.scene = [missing, missing, Moment(pods=[LOADING]), Moment(ready=True)]
    assert wait_ready(Cluster(), "sdxl", 30, lambda _: None, poll_s=0.01, fatal_for_s=10)


def test_what_the_api_refuses_is_told_in_its_words(api: FakeApi) -> None:
    api.check = lambda document: ["admission webhook denied the request: no quota"]
    with pytest.raises(DeployError, match="sdxl was refused: admission webhook denied"):
        deploy(Endpoint("sdxl", "builtin/shapes"))


def test_a_cluster_without_kserve_is_named(api: FakeApi) -> None:
    api.has_kserve = False
    with pytest.raises(DeployError, match="install KServe"):
        Cluster()


def test_without_a_cluster_it_says_how_to_log_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    nothing = str(tmp_path / "nothing")
    monkeypatch.setenv("KUBECONFIG", nothing)
    monkeypatch.setattr("kubernetes.config.kube_config.KUBE_CONFIG_DEFAULT_LOCATION", nothing)
    with pytest.raises(DeployError, match="oc login"):
        Cluster()


def test_render_prints_what_apply_sends(api: FakeApi) -> None:
    options = ["shapes", "builtin/shapes", "--gpu", "l40s", "--env", "LOG_LEVEL=debug"]
    options += ["--expose", "--open"]
    printed = yaml.safe_load(run("render", *options).stdout)
    assert run("apply", *options, "--no-wait").exit_code == 0
    sent = {k: v for k, v in api.services["shapes"].items() if k != "status"}
    meta = sent["metadata"]
    for added in ("generation", "resourceVersion", "uid", "creationTimestamp", "namespace"):
        meta.pop(added)
    assert sent == printed
    assert {"name": "LOG_LEVEL", "value": "debug"} in printed["spec"]["predictor"]["model"]["env"]


def test_status_says_why_and_ends_with_1_until_ready(api: FakeApi) -> None:
    deploy(Endpoint("sdxl", "builtin/shapes"), wait_s=0, say=lambda _: None)
    api.scene = [Moment(pods=[pod(ended(137, "OOMKilled"))])]
    broken = run("status", "sdxl")
    assert broken.exit_code == 1
    assert "not ready" in broken.stdout and "raise limits.memory" in broken.stdout
    api.scene = [Moment(ready=True)]
    fine = run("status", "sdxl")
    assert fine.exit_code == 0
    assert "https://sdxl.example.com" in fine.stdout


def test_logs_are_those_of_the_newest_pod(api: FakeApi) -> None:
    deploy(Endpoint("sdxl", "builtin/shapes"), wait_s=0, say=lambda _: None)
    older, newer = pod(), pod()
    older["metadata"] = {"name": "old", "creationTimestamp": "2026-01-01T00:00:00Z"}
    newer["metadata"] = {"name": "new", "creationTimestamp": "2026-01-02T00:00:00Z"}
    api.scene = [Moment(pods=[older, newer])]
    api.logs = {
        ("new", "kserve-container", False): "loading\n",
        ("new", "kserve-container", True): "crashed\n",
    }
    assert run("logs", "sdxl").stdout == "loading\n"
    assert run("logs", "sdxl", "--previous").stdout == "crashed\n"
    assert run("logs", "sdxl", "--follow").stdout == "loading\n"
    missing = run("logs", "sdxl", "--container", "storage-initializer")
    assert isinstance(missing.exception, DeployError)


def test_delete_removes_it_and_is_content_when_it_is_gone(api: FakeApi) -> None:
    deploy(Endpoint("sdxl", "builtin/shapes"), wait_s=0, say=lambda _: None)
    assert "deleted" in run("delete", "sdxl").stdout
    assert api.services == {}
    assert "was not there" in run("delete", "sdxl").stdout
