"""setup.sh on any API server: plan, run, rerun, other image, uninstall, by the cluster's and by a
project's administrator, and what it says where something is missing."""

from __future__ import annotations

import os
import re
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from tests.deploy.any_member import LOOK, member
from tests.deploy.any_server import REAL, AnyServer, any_server
from tests.manifests.rendering import ROOT, needs_kubectl, objects

pytestmark = needs_kubectl
SHAPES = "inferenceservice", "shapes"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[AnyServer]:
    with any_server(tmp_path_factory.mktemp("server")) as made:
        if missing := made.lacks(objects("overlays/dev")):
            pytest.skip(f"the server of TEST_KUBECONFIG has no {', '.join(sorted(missing))}")
        yield made


@pytest.fixture
def project(
    server: AnyServer, tmp_path: Path, request: pytest.FixtureRequest
) -> Iterator[AnyServer]:
    """The server as its administrator sees it, or as the project's does."""
    if request.param == "cluster":
        if not server.may("create", "namespaces"):
            pytest.skip("the user of TEST_KUBECONFIG administers a project alone")
        yield server
    elif not server.may("create", "namespaces"):
        yield server
    else:
        with member(server, tmp_path, "administrator", ["*"]) as made:
            yield made


def run(server: AnyServer, folder: Path, *options: str) -> subprocess.CompletedProcess[str]:
    """setup.sh in the server's project; what it says is in `stdout`."""
    # There is no registry: skopeo's part is played, so that the image counts as found.
    tool = folder / "bin" / "skopeo"
    tool.parent.mkdir(exist_ok=True)
    tool.write_text("#!/bin/sh\n")
    tool.chmod(0o755)
    shell = {
        **os.environ,
        "PATH": f"{tool.parent}:{os.environ['PATH']}",
        "KUBECONFIG": str(server.kubeconfig),
        "HOME": str(folder),
        "POLL_SECONDS": "0.1",
    }
    # Where no kubelet runs nothing gets ready: a real server is waited for no longer than needed.
    command = ["bash", str(ROOT / "setup.sh"), "--namespace", server.namespace]
    command += ["--timeout", "2" if REAL else "30", *options]
    return subprocess.run(
        command,
        env=shell,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=300,
    )


# The fake's two differ in what test_setup.py looks at; the one with fewer rights runs.
@pytest.mark.parametrize("project", ["cluster", "project"] if REAL else ["project"], indirect=True)
def test_setup_plans_runs_repeats_and_uninstalls(project: AnyServer, tmp_path: Path) -> None:
    def setup(*options: str) -> str:
        done = run(project, tmp_path, "--open", *options)
        late = REAL and "InferenceService/shapes is not ready after 2 s" in done.stdout
        assert done.returncode == 0 or late, done.stdout
        return done.stdout

    def there() -> bool:
        return project.kubectl("get", *SHAPES).returncode == 0

    plan = setup("--dry-run")
    assert re.search("would create +InferenceService/shapes", plan) and not there()
    setup()
    assert there()
    again = setup()
    states = re.findall(r"^\S+/\S+ (created|configured|unchanged)$", again, re.MULTILINE)
    assert "inferenceservice.serving.kserve.io/shapes unchanged" in again
    assert set(states) == {"unchanged"}
    setup("--image", "registry.example/me/atelier:2")
    runtimes = project.told("get", "servingruntimes", "--output=yaml")
    assert "image: registry.example/me/atelier:2" in runtimes
    removed = setup("--uninstall")
    assert not there() and f"kept Namespace/{project.namespace}" in removed
    left = project.told("get", "servingruntimes", "--output=name")
    assert "cpu" not in left


def test_setup_without_rights_names_them_and_applies_nothing(
    server: AnyServer, tmp_path: Path
) -> None:
    with member(server, tmp_path, "onlooker", LOOK) as onlooker:
        done = run(onlooker, tmp_path)
    assert done.returncode == 1, done.stdout
    for right in ("create", "patch"):
        wanted = f"the right to {right} inferenceservices.serving.kserve.io in {server.namespace}"
        assert f"MISSING  {wanted}" in done.stdout
    assert "oc adm policy add-role-to-user" in done.stdout
    assert "nothing was applied" in done.stdout
    assert server.kubectl("get", *SHAPES).returncode != 0


def test_setup_names_what_the_cluster_lacks(server: AnyServer, tmp_path: Path) -> None:
    """Kinds, GPUs and a storage class, by what the server itself tells."""
    # The fake has every kind, so there is nothing to find in more of them.
    overlay, parts = ("sdxl-production", ("--with", "all")) if REAL else ("sdxl", ())
    done = run(server, tmp_path, "--overlay", overlay, *parts, "--dry-run")
    docs = [*objects(f"overlays/{overlay}"), *(objects("setup") if parts else [])]
    lacking = [f"{kind} {version}" for kind, version in map(str.split, server.lacks(docs))]
    gpus = "--output=jsonpath={.items[*].status.allocatable.nvidia\\.com/gpu}"
    if not server.may("list", "nodes"):
        assert "GPU nodes were not checked" in done.stdout
    elif not server.told("get", "nodes", gpus).strip("0 "):
        lacking.append("a node with an NVIDIA GPU")
    if not server.may("list", "storageclasses"):
        assert not parts or "storage classes were not checked" in done.stdout
    elif parts and "is-default-class" not in server.told("get", "storageclasses", "--output=yaml"):
        lacking.append("a default storage class")
    if not lacking:
        pytest.skip("the server of TEST_KUBECONFIG lacks nothing")
    missing = re.findall(r"MISSING  (.*)\n +-> \S", done.stdout)
    assert all(any(what in line for line in missing) for what in lacking), done.stdout
    assert done.returncode == 1 and "nothing was applied" in done.stdout
    assert f"{len(missing)} thing(s) missing" in done.stdout


def test_a_server_that_is_down_is_a_line_of_setup(server: AnyServer, tmp_path: Path) -> None:
    document = yaml.safe_load(server.kubeconfig.read_text())
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        for cluster in document["clusters"]:
            scheme = cluster["cluster"]["server"].partition(":")[0]
            cluster["cluster"] = {"server": f"{scheme}://127.0.0.1:{nobody.getsockname()[1]}"}
        down = tmp_path / "down"
        down.write_text(yaml.safe_dump(document))
        done = run(AnyServer(down, server.namespace), tmp_path)
    assert done.returncode == 1
    assert "the API server does not answer" in done.stdout.splitlines()[-1]
