"""The API server of a test that any real one passes too: the one that TEST_KUBECONFIG names, else
the fake. A real one gets a project of its own, with Pod Security as strict as it can be, which is
removed afterwards; what needs rights or kinds that it lacks is skipped with the reason."""

from __future__ import annotations

import functools
import os
import secrets
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

from tests.deploy.fake_api import FakeApi
from tests.manifests.rendering import Object

REAL = os.environ.get("TEST_KUBECONFIG", "")
ENFORCE = "pod-security.kubernetes.io/enforce"


def only_the_fake(what: str) -> None:
    """Skip on a real server, which cannot be brought into this state from outside."""
    if REAL:
        pytest.skip(f"only the fake API server can {what}; TEST_KUBECONFIG names a real one")


@dataclass(frozen=True)
class AnyServer:
    """An API server, a project in it, and kubectl."""

    kubeconfig: Path
    namespace: str

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
        done = self.kubectl(*words, stdin=yaml.safe_dump_all(docs))
        assert done.returncode == 0, f"kubectl {' '.join(words)}: {done.stderr}"
        return done.stdout

    @functools.cached_property
    def kinds(self) -> set[str]:
        """What the server serves."""
        listed = self.told("api-resources", "--no-headers")
        return {line.split()[-1] for line in listed.splitlines()}


@contextmanager
def any_server(folder: Path) -> Iterator[AnyServer]:
    namespace = f"atelier-test-{secrets.token_hex(4)}"
    labels = {"labels": {ENFORCE: "restricted"}}
    project = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": namespace, **labels}}
    if REAL:
        server = AnyServer(Path(REAL).resolve(), namespace)
        server.told("create", "--filename", "-", docs=[project])
        try:
            yield server
        finally:
            server.told("delete", "namespace", namespace, "--wait=false")
        return
    api = FakeApi(check=lambda _: [], namespace="")
    try:
        server = AnyServer(api.kubeconfig(folder, namespace), namespace)
        server.told("create", "--validate=false", "--filename", "-", docs=[project])
        yield server
    finally:
        api.close()
