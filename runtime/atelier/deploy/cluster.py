"""The few things `atelier deploy` asks of a cluster, through the `kubernetes` client. Knows no
rules about endpoints.

Works with clients from 23 to 37: kfp holds its environment to versions below 31.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, cast

from kubernetes import client, config
from kubernetes.dynamic import DynamicClient
from kubernetes.dynamic.exceptions import (
    ConflictError,
    NotFoundError,
    ResourceNotFoundError,
)
from urllib3.exceptions import HTTPError

from atelier.deploy.manifest import GROUP, KIND, MODE, RAW, STANDARD, VERSION, DeployError

FIELD_MANAGER = "atelier-deploy"
IN_CLUSTER_NAMESPACE = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")
POD_LABEL = "serving.kserve.io/inferenceservice"

Object = dict[str, Any]
REMEDIES = {
    "^Unauthorized": "the login is missing or over: oc login, or another context",
    r"User \"[^\"]*\" cannot": "an administrator gives the right: oc adm policy add-role-to-user"
    " admin YOU -n PROJECT",
    r'^namespaces "[^"]*" not found': "oc new-project makes it, --namespace names another",
    "is being terminated": "wait until the project is gone, and make it again",
}
"""Words of the API, as a pattern, and what to do."""


class Cluster:
    """One namespace of one cluster.

    Args:
        namespace: empty: the one of the current context, or of the pod this runs in.
        context: a context of the kubeconfig; empty: the current one, or the pod's own account.

    Raises:
        DeployError: there is no cluster to talk to, or no KServe on it.
    """

    def __init__(self, namespace: str = "", context: str = "") -> None:
        own = _configure(context)
        self.namespace = namespace or own
        api = client.ApiClient()
        self._core = client.CoreV1Api(api)
        try:
            known = DynamicClient(api).resources
            self._services = known.get(api_version=f"{GROUP}/{VERSION}", kind=KIND)
            # Plain objects: the typed client refuses a pod that has less than its model wants.
            self._pods = known.get(api_version="v1", kind="Pod")
            self._events = known.get(api_version="v1", kind="Event")
            self._deployments = known.get(api_version="apps/v1", kind="Deployment")
            self._replica_sets = known.get(api_version="apps/v1", kind="ReplicaSet")
        except ResourceNotFoundError:
            raise DeployError(
                f"the cluster has no {KIND} {GROUP}/{VERSION}: install KServe 0.15 or newer"
            ) from None
        except (client.ApiException, HTTPError, OSError) as error:
            raise DeployError(f"the cluster does not answer: {_words(error)}") from None

    def apply(self, document: Object, take_over: bool = False) -> None:
        """Make the InferenceService, or change the fields that are in the document and no others.

        The deployment mode goes by the word that this cluster's KServe keeps, or every apply would
        change it.

        Args:
            take_over: fields that another field manager set become ours.

        Raises:
            DeployError: the API refused it; its words are in the message.
        """
        name = document["metadata"]["name"]
        annotations = document["metadata"].get("annotations", {})
        try:
            if annotations.get(MODE) in (STANDARD, RAW):
                asked = _with_mode(document, RAW)
                kept = self.send(asked, True, dry_run="All")["metadata"]["annotations"][MODE]
                document = _with_mode(document, kept)
            self.send(document, take_over)
        except ConflictError as error:
            raise DeployError(_conflict(name, error)) from None

    def send(
        self, document: Object, force: bool, manager: str = FIELD_MANAGER, **query: str
    ) -> Object:
        """Apply an InferenceService as it is, server-side; returns what the server kept."""
        name = document["metadata"]["name"]
        with answering(f"{name} was refused", but=ConflictError):
            answer = self._services.server_side_apply(
                body=document,
                name=name,
                namespace=self.namespace,
                field_manager=manager,
                force_conflicts=force,
                **query,
            )
        return cast(Object, answer.to_dict())

    def service(self, name: str) -> Object | None:
        """The InferenceService, or None."""
        return self._get(self._services, name)

    def deployment(self, name: str) -> Object | None:
        """The Deployment of an endpoint's predictor, or None."""
        return self._get(self._deployments, f"{name}-predictor")

    def replica_sets(self, name: str) -> list[Object]:
        """ReplicaSets of an endpoint."""
        return self._list(self._replica_sets, label_selector=f"{POD_LABEL}={name}")

    def _get(self, resource: Any, name: str) -> Object | None:
        with answering(f"{resource.kind} {name} cannot be read"):
            try:
                return cast(Object, resource.get(name=name, namespace=self.namespace).to_dict())
            except NotFoundError:
                return None

    def delete(self, name: str) -> bool:
        """Delete the InferenceService; False if there was none."""
        with answering(f"{name} cannot be deleted"):
            try:
                self._services.delete(name=name, namespace=self.namespace)
            except NotFoundError:
                return False
        return True

    def pods(self, name: str) -> list[Object]:
        """Pods of an endpoint, newest first."""
        pods = self._list(self._pods, label_selector=f"{POD_LABEL}={name}")
        return sorted(
            pods, key=lambda pod: str(pod["metadata"].get("creationTimestamp", "")), reverse=True
        )

    def warnings(self, names: set[str]) -> list[Object]:
        """Warning events about the objects named, oldest first."""
        events = self._list(self._events, field_selector="type=Warning")
        return [event for event in events if event["involvedObject"].get("name") in names]

    def logs(
        self, pod: str, container: str, *, previous: bool = False, tail: int | None = None
    ) -> str:
        """Text of a container's log.

        Raises:
            DeployError: there is no such log.
        """
        with answering(f"{pod} has no log of {container}"):
            return self._core.read_namespaced_pod_log(
                pod, self.namespace, container=container, previous=previous, tail_lines=tail
            )

    def follow(self, pod: str, container: str) -> Iterator[str]:
        """Lines of a container's log as they come, until it ends."""
        with answering(f"{pod} has no log of {container}"):
            stream: Any = self._core.read_namespaced_pod_log(
                pod, self.namespace, container=container, follow=True, _preload_content=False
            )
            for line in stream:
                yield line.decode(errors="replace").rstrip("\n")

    def _list(self, resource: Any, **selector: str) -> list[Object]:
        with answering(f"{resource.kind}s of {self.namespace} cannot be read"):
            return list(resource.get(namespace=self.namespace, **selector).to_dict()["items"])


def _with_mode(document: Object, mode: str) -> Object:
    annotations = {**document["metadata"]["annotations"], MODE: mode}
    return {**document, "metadata": {**document["metadata"], "annotations": annotations}}


@contextmanager
def answering(what: str, but: type[Exception] | tuple[()] = ()) -> Iterator[None]:
    """Whatever the API says, or that it does not answer, as one line for a person."""
    try:
        yield
    except but:
        raise
    except (client.ApiException, HTTPError, OSError) as error:
        raise DeployError(f"{what}: {_words(error)}") from None


def _conflict(name: str, error: Exception) -> str:
    try:
        causes = json.loads(getattr(error, "body", "") or "{}")["details"]["causes"]
        fields = ", ".join(f"{each['field']} ({each['message']})" for each in causes)
    except (ValueError, KeyError):
        fields = _words(error)
    return (
        f"{name} has fields that somebody else set: {fields}. Change them where they were set, or"
        " take them over with --take-over"
    )


def _configure(context: str) -> str:
    """Load credentials; returns the namespace that goes with them."""
    if not context and IN_CLUSTER_NAMESPACE.exists():
        config.load_incluster_config()
        return IN_CLUSTER_NAMESPACE.read_text().strip()
    try:
        config.load_kube_config(context=context or None)
        contexts, current = config.list_kube_config_contexts()
    except (config.ConfigException, OSError) as error:
        raise DeployError(f"no cluster: {error}. Log in with oc login, or set KUBECONFIG") from None
    chosen = next((each for each in contexts if each["name"] == context), current)
    return str(chosen["context"].get("namespace") or "default")


def _words(error: Exception) -> str:
    """What the API said, without headers, and the remedy where it is always the same."""
    if isinstance(error, HTTPError):
        cause = str(getattr(error, "reason", None) or error)
        return f"the API server does not answer ({cause.rpartition('>: ')[2]})"
    said = str(getattr(error, "reason", None) or error)
    with suppress(ValueError, AttributeError):
        said = str(json.loads(getattr(error, "body", None) or "{}").get("message") or said)
    remedies = (remedy for words, remedy in REMEDIES.items() if re.search(words, said))
    return said + next((f"\n  -> {remedy}" for remedy in remedies), "")
