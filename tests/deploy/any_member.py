"""Somebody with rights in one project alone, on any API server: its administrator, as OpenShift's
role `admin` makes one, or somebody who may only look.

On a real server that is a ServiceAccount with a Role; the fake is told what it forbids.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from tests.deploy.any_server import AnyServer
from tests.deploy.fake_kinds import ALL
from tests.manifests.rendering import Object

RBAC = "rbac.authorization.k8s.io"
LOOK = ["get", "list", "watch"]
CLUSTERS = ["namespaces", "list nodes", "list storageclasses"]
"""What no Role of a project gives."""


@contextmanager
def member(server: AnyServer, folder: Path, name: str, verbs: list[str]) -> Iterator[AnyServer]:
    """The server as seen by an account that may do `verbs` with everything in the project."""
    if server.fake:
        written = [] if "*" in verbs else [kind.resource for kind in ALL]
        server.fake.facts["forbidden"] = [*CLUSTERS, *written]
        yield server
        server.fake.facts["forbidden"] = []
        return
    if not (server.may("escalate", "roles") and server.may("create", "serviceaccounts/token")):
        pytest.skip("the user of TEST_KUBECONFIG may make no Role with others' rights, or no token")
    named = {"metadata": {"name": name}}
    role = {"apiGroup": RBAC, "kind": "Role", "name": name}
    subject = {"kind": "ServiceAccount", "name": name, "namespace": server.namespace}
    docs: list[Object] = [
        {"apiVersion": "v1", "kind": "ServiceAccount", **named},
        {"apiVersion": f"{RBAC}/v1", "kind": "Role", **named, "rules": _rules(server, verbs)},
        {
            **{"apiVersion": f"{RBAC}/v1", "kind": "RoleBinding", **named},
            **{"roleRef": role, "subjects": [subject]},
        },
    ]
    server.told("create", "--filename", "-", docs=docs)
    token = server.told("create", "token", name).strip()
    document = yaml.safe_load(server.told("config", "view", "--raw", "--minify", "--flatten"))
    document["users"] = [{"name": name, "user": {"token": token}}]
    document["contexts"][0]["context"] |= {"user": name, "namespace": server.namespace}
    path = folder / f"{name}-kubeconfig"
    path.write_text(yaml.safe_dump(document))
    yield replace(server, kubeconfig=path)


def _rules(server: AnyServer, verbs: list[str]) -> list[Object]:
    """Every kind in the project; to see the project itself is in all of OpenShift's roles."""
    groups: dict[str, list[str]] = defaultdict(list)
    for line in server.told("api-resources", "--namespaced=true", "--output=name").split():
        resource, _, group = line.partition(".")
        groups[group].append(resource)
    looked: Object = {"apiGroups": [""], "resources": ["namespaces"], "verbs": LOOK}
    return [looked] + [
        {"apiGroups": [group], "resources": names, "verbs": verbs}
        for group, names in groups.items()
    ]
