"""Every overlay twice, and every pod template under Pod Security `restricted`: against the fake API
server, or unchanged against a real one (`TEST_KUBECONFIG=FILE make test-cluster`)."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from atelier.cli.deploy import app
from tests.deploy.any_server import REAL, AnyServer, any_server, only_the_fake
from tests.manifests.rendering import (
    COMBINATIONS,
    FOLDERS,
    ROOT,
    Object,
    combine,
    needs_kubectl,
    objects,
    of_kind,
    pods,
)

pytestmark = needs_kubectl

IN_ORDER = {"setup", "setup/project", "setup/workbench"}
"""Folders that setup.sh applies in parts: the workbench waits for a Secret that a Job makes."""
NO_PROJECT = {"Namespace", "LocalModelCache"}
"""Kinds of the whole cluster, which are left as they are."""
APPLIED = [folder for folder in FOLDERS if folder not in IN_ORDER]
POD_FIELDS = {
    *("containers", "initContainers", "volumes", "tolerations", "nodeSelector", "affinity"),
    *("securityContext", "automountServiceAccountToken", "restartPolicy", "resourceClaims"),
    *("terminationGracePeriodSeconds", "imagePullSecrets", "shareProcessNamespace"),
}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[AnyServer]:
    with any_server(tmp_path_factory.mktemp("server"), controllers=False) as made:
        yield made


def of_the_project(server: AnyServer, docs: list[Object]) -> list[Object]:
    """Objects for the server's project, whatever namespace they spell out."""
    docs = copy.deepcopy([doc for doc in docs if doc["kind"] not in NO_PROJECT])
    for doc in docs:
        doc["metadata"]["namespace"] = server.namespace
    return docs


def combined(folder: str) -> str:
    return f"{folder} with {', '.join(COMBINATIONS[folder])}"


@pytest.fixture(scope="module")
def rendered(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Object]]:
    """Every folder, and the components as people put them on overlays."""
    found = {folder: objects(folder) for folder in APPLIED}
    for folder, components in COMBINATIONS.items():
        place = tmp_path_factory.mktemp("combined")
        found[combined(folder)] = combine(place, folder, components)
    return found


@pytest.fixture(scope="module")
def batches(server: AnyServer, rendered: dict[str, list[Object]]) -> list[list[Object]]:
    """All objects, in as few batches as hold no object in two forms."""
    found: list[dict[tuple[str, str], Object]] = []
    for made in rendered.values():
        docs = {(d["kind"], d["metadata"]["name"]): d for d in of_the_project(server, made)}
        if not server.lacks(list(docs.values())):
            fits = (b for b in found if all(b.get(key, doc) == doc for key, doc in docs.items()))
            batch = next(fits, None)
            if batch is None:
                found.append(batch := {})
            batch |= docs
    assert found, "the server has KServe's kinds at least"
    return [list(batch.values()) for batch in found]


@pytest.mark.parametrize("name", [*APPLIED, *map(combined, COMBINATIONS)])
def test_the_server_has_every_kind(
    server: AnyServer, rendered: dict[str, list[Object]], name: str
) -> None:
    """Objects of which the server lacks a kind are in no batch, so that must be known."""
    missing = ", ".join(sorted(server.lacks(rendered[name])))
    if REAL and missing:
        pytest.skip(f"{name}: the server of TEST_KUBECONFIG has no {missing}")
    assert not missing


def test_a_second_apply_by_the_client_changes_nothing(
    server: AnyServer, batches: list[list[Object]]
) -> None:
    for docs in batches:
        server.told("apply", "--filename", "-", docs=docs)
        lines = server.told("apply", "--filename", "-", docs=docs).splitlines()
        assert len(lines) == len(docs)
        # kubectl says "configured" of every budget: its selector's patch strategy is `replace`.
        told = [line for line in lines if not line.startswith("poddisruptionbudget.policy/")]
        assert [line for line in told if not line.endswith(" unchanged")] == []


def test_a_second_apply_by_the_server_changes_nothing(
    server: AnyServer, batches: list[list[Object]]
) -> None:
    words = ("apply", "--server-side", "--force-conflicts", "--filename", "-", "--output=json")

    def generations(docs: list[Object]) -> dict[str, int]:
        """Of each object, after it was applied: a change of its spec raises it."""
        return {
            f"{item['kind']}/{item['metadata']['name']}": item["metadata"].get("generation", 0)
            for item in json.loads(server.told(*words, docs=docs))["items"]
        }

    for docs in batches:
        first = generations(docs)
        assert generations(docs) == first and len(first) == len(docs)


def test_every_pod_template_passes_restricted(server: AnyServer) -> None:
    """Each template as a bare pod, which the server judges without keeping it."""
    made = {}
    for folder in FOLDERS:
        for pod in pods(objects(folder)):
            spec = {name: value for name, value in pod.spec.items() if name in POD_FIELDS}
            made[f"{folder} {pod.owner}"] = spec
    docs = [pod_of(f"template-{number}", spec) for number, spec in enumerate(made.values())]
    assert len(docs) > 20
    lines = server.told("create", "--dry-run=server", "--filename", "-", docs=docs).splitlines()
    assert len(lines) == len(docs)


def test_the_server_takes_the_jobs_of_several_nodes(server: AnyServer) -> None:
    docs = list(yaml.safe_load_all((ROOT / "pipelines" / "trainjob.yaml").read_text()))
    taken = [doc for doc in docs if not server.lacks([doc])]
    if REAL and not taken:
        pytest.skip("the server of TEST_KUBECONFIG has neither TrainJob nor PyTorchJob")
    assert len(server.told("create", "--dry-run=server", "--filename", "-", docs=taken)) > 0
    assert REAL or len(taken) == 2


def test_a_pod_that_is_not_restricted_is_refused(server: AnyServer) -> None:
    """The server judges: the same pod without its security context may not be made."""
    spec = copy.deepcopy(next(iter(pods(objects("base")))).spec)
    bare = {name: value for name, value in spec.items() if name in POD_FIELDS}
    del bare["containers"][0]["securityContext"]
    done = server.kubectl(
        *("create", "--dry-run=server", "--filename", "-"),
        stdin=yaml.safe_dump(pod_of("bare", bare)),
    )
    assert done.returncode != 0 and 'violates PodSecurity "restricted:' in done.stderr


def pod_of(name: str, spec: Object) -> Object:
    return {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": spec}


def test_kserves_webhook_refuses_a_metric_without_a_value(server: AnyServer) -> None:
    only_the_fake("be sure to have KServe's webhooks")
    docs = of_the_project(server, objects("overlays/sdxl-production"))
    (service,) = of_kind(docs, "InferenceService")
    del service["spec"]["predictor"]["autoScaling"]["metrics"][0]["external"]["target"]["value"]
    done = server.kubectl("apply", "--filename", "-", stdin=yaml.safe_dump(service))
    assert done.returncode != 0 and "threshold value should not be empty" in done.stderr


def test_atelier_deploy_makes_repeats_and_deletes(
    server: AnyServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.use(tmp_path, monkeypatch)
    server.told("apply", "--filename", "-", docs=of_the_project(server, objects("base")))
    for replicas in ("1", "3"):
        words = ["apply", "tried", "builtin/shapes", "--no-wait", "--max-replicas", replicas]
        done = CliRunner().invoke(app, words)
        assert done.exit_code == 0, done.output
        found = server.told("get", "inferenceservice", "tried", "--output=json")
        assert json.loads(found)["spec"]["predictor"]["maxReplicas"] == int(replicas)
    assert CliRunner().invoke(app, ["delete", "tried"]).exit_code == 0
    assert server.kubectl("get", "inferenceservice", "tried").returncode != 0
