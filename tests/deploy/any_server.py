"""The API server of a test that any real one passes too: the one that TEST_KUBECONFIG names, else
the fake. What needs rights or kinds that a real one lacks is skipped with the reason.

A real one gets a project of its own, with Pod Security as strict as it can be, which is removed
afterwards. Who may make no project gives an empty one: the namespace of the kubeconfig's context.
"""

from __future__ import annotations

import json
import os
import secrets
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import yaml

from tests.deploy.fake_api import FakeApi
from tests.manifests.rendering import Object

REAL = os.environ.get("TEST_KUBECONFIG", "")
ENFORCE = "pod-security.kubernetes.io/enforce"
ACCOUNT_WAIT_S = 10


def only_the_fake(what: str) -> None:
    """Skip on a real server, which cannot be brought into this state from outside."""
    if REAL:
        pytest.skip(f"only the fake API server can {what}; TEST_KUBECONFIG names a real one")


@dataclass(frozen=True, eq=False)
class AnyServer:
    """An API server, a project in it, and kubectl."""

    kubeconfig: Path
    namespace: str
    made: dict[tuple[str, str], Object] = field(default_factory=dict)
    """What was sent, without its contents, to be removed where the project stays."""
    served: dict[str, set[str]] = field(default_factory=dict)
    """Kinds by version, as far as they were asked for."""
    fake: FakeApi | None = None

    def kubectl(self, *words: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["kubectl", "--namespace", self.namespace, *words],
            env={**os.environ, "KUBECONFIG": str(self.kubeconfig)},
            input=stdin,
            capture_output=True,
            text=True,
            timeout=120,
        )

    def told(self, *words: str, docs: Sequence[Object] = ()) -> str:
        """What kubectl prints; an error of it fails the test with its words."""
        for doc in docs:
            bare = {name: doc[name] for name in ("apiVersion", "kind")}
            meta = {"name": doc["metadata"]["name"]}
            self.made[doc["kind"], meta["name"]] = {**bare, "metadata": meta}
        done = self.kubectl(*words, stdin=yaml.safe_dump_all(docs))
        assert done.returncode == 0, f"kubectl {' '.join(words)}: {done.stderr}"
        return done.stdout

    def use(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Make this project that of `atelier deploy`, as `oc project` does."""
        document = yaml.safe_load(self.kubeconfig.read_text())
        for each in document["contexts"]:
            each["context"]["namespace"] = self.namespace
        own = folder / "own-kubeconfig"
        own.write_text(yaml.safe_dump(document))
        monkeypatch.setenv("KUBECONFIG", str(own))
        monkeypatch.setattr("kubernetes.config.kube_config.KUBE_CONFIG_DEFAULT_LOCATION", str(own))
        # The client keeps what it discovered there.
        monkeypatch.setattr("tempfile.tempdir", str(folder))

    def may(self, verb: str, resource: str) -> bool:
        return self.kubectl("auth", "can-i", verb, resource).stdout.strip() == "yes"

    def lacks(self, docs: Sequence[Object]) -> set[str]:
        """Kinds of the objects that the server does not serve, in the objects' own versions."""
        return {
            f"{doc['kind']} {doc['apiVersion']}"
            for doc in docs
            if doc["kind"] not in self._kinds(doc["apiVersion"])
        }

    def _kinds(self, version: str) -> set[str]:
        """Kinds that are served in a version, which need not be the preferred one."""
        if version not in self.served:
            path = f"/apis/{version}" if "/" in version else f"/api/{version}"
            done = self.kubectl("get", "--raw", path)
            assert done.returncode == 0 or "NotFound" in done.stderr, done.stderr
            listed = json.loads(done.stdout)["resources"] if done.returncode == 0 else []
            self.served[version] = {entry["kind"] for entry in listed}
        return self.served[version]


@contextmanager
def any_server(folder: Path, controllers: bool = True) -> Iterator[AnyServer]:
    """A server with a project.

    Args:
        controllers: the fake has those of Kubernetes and KServe; a real one has what it has.
    """
    if REAL:
        yield from _real(Path(REAL).resolve())
        return
    api = FakeApi(check=lambda _: [], namespace="")
    api.controllers = controllers
    namespace = _fresh_name()
    try:
        server = AnyServer(api.kubeconfig(folder, namespace), namespace, fake=api)
        server.told("create", "--validate=false", "--filename", "-", docs=[_project(namespace)])
        yield server
    finally:
        api.close()


def _fresh_name() -> str:
    return f"atelier-test-{secrets.token_hex(4)}"


def _project(name: str) -> Object:
    meta = {"name": name, "labels": {ENFORCE: "restricted"}}
    return {"apiVersion": "v1", "kind": "Namespace", "metadata": meta}


def _real(kubeconfig: Path) -> Iterator[AnyServer]:
    assert kubeconfig.is_file(), f"TEST_KUBECONFIG={kubeconfig} is no file"
    server = AnyServer(kubeconfig, _fresh_name())
    own = server.may("create", "namespaces")
    if own:
        server.told("create", "--filename", "-", docs=[_project(server.namespace)])
    else:
        server = AnyServer(kubeconfig, _namespace_of(kubeconfig))
        _must_be_empty(server)
    try:
        _await_account(server)
        yield server
    finally:
        left = [doc for doc in server.made.values() if doc["kind"] != "Namespace"]
        if left:
            words = ("delete", "--ignore-not-found", "--wait=false", "--filename", "-")
            server.told(*words, docs=left)
        if own:
            server.told("delete", "namespace", server.namespace, "--wait=false")


def _namespace_of(kubeconfig: Path) -> str:
    document = yaml.safe_load(kubeconfig.read_text())
    contexts = {each["name"]: each["context"] for each in document["contexts"]}
    return str(contexts[document["current-context"]].get("namespace") or "default")


def _must_be_empty(server: AnyServer) -> None:
    """The tests' objects have the names that a person's would have."""
    kinds = "inferenceservices.serving.kserve.io,servingruntimes.serving.kserve.io,jobs.batch"
    there = server.told("get", kinds, "--output=name").split()
    assert not there, (
        f"TEST_KUBECONFIG may make no project, and its own, {server.namespace}, has"
        f" {', '.join(there)}: the tests need an empty one"
    )


def _await_account(server: AnyServer) -> None:
    """A server without controllers makes no account `default`, without which there is no pod."""
    ends = time.monotonic() + ACCOUNT_WAIT_S
    while server.kubectl("get", "serviceaccount", "default").returncode:
        if time.monotonic() > ends:
            server.told("create", "serviceaccount", "default")
            return
        time.sleep(0.2)
