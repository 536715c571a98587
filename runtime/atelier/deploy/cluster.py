"""The few things `atelier deploy` asks of a cluster, through the `kubernetes` client. Knows no
rules about endpoints.

Works with clients from 23 to 37: kfp holds its environment to versions below 31.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

from kubernetes import client, config
from kubernetes.dynamic import DynamicClient
from kubernetes.dynamic.exceptions import (
    ConflictError,
    DynamicApiError,
    NotFoundError,
    ResourceNotFoundError,
)

from atelier.deploy.manifest import GROUP, KIND, VERSION, DeployError

FIELD_MANAGER = "atelier-deploy"
IN_CLUSTER_NAMESPACE = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")
POD_LABEL = "serving.kserve.io/inferenceservice"

Object = dict[str, Any]


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
        except ResourceNotFoundError:
            raise DeployError(
                f"the cluster has no {KIND} {GROUP}/{VERSION}: install KServe 0.15 or newer"
            ) from None
        except (client.ApiException, OSError) as error:
            raise DeployError(f"the cluster does not answer: {_words(error)}") from None

    def apply(self, document: Object) -> None:
        """Make the InferenceService, or change the fields that are in the document and no others.

        Raises:
            DeployError: the API refused it; its words are in the message.
        """
        name = document["metadata"]["name"]
        try:
            self._services.server_side_apply(
                body=document, name=name, namespace=self.namespace, field_manager=FIELD_MANAGER
            )
        except ConflictError as error:
            raise DeployError(
                f"{name} has fields that somebody else set: {_words(error)}. Delete it first, or"
                " change it by its owner"
            ) from None
        except DynamicApiError as error:
            raise DeployError(f"{name} was refused: {_words(error)}") from None

    def service(self, name: str) -> Object | None:
        """The InferenceService, or None."""
        try:
            return cast(Object, self._services.get(name=name, namespace=self.namespace).to_dict())
        except NotFoundError:
            return None
        except DynamicApiError as error:
            raise DeployError(f"{name} cannot be read: {_words(error)}") from None

    def delete(self, name: str) -> bool:
        """Delete the InferenceService; False if there was none."""
        try:
            self._services.delete(name=name, namespace=self.namespace)
        except NotFoundError:
            return False
        except DynamicApiError as error:
            raise DeployError(f"{name} cannot be deleted: {_words(error)}") from None
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
        try:
            return self._core.read_namespaced_pod_log(
                pod, self.namespace, container=container, previous=previous, tail_lines=tail
            )
        except client.ApiException as error:
            raise DeployError(f"{pod} has no log of {container}: {_words(error)}") from None

    def follow(self, pod: str, container: str) -> Iterator[str]:
        """Lines of a container's log as they come, until it ends."""
        stream: Any = self._core.read_namespaced_pod_log(
            pod, self.namespace, container=container, follow=True, _preload_content=False
        )
        for line in stream:
            yield line.decode(errors="replace").rstrip("\n")

    def _list(self, resource: Any, **selector: str) -> list[Object]:
        try:
            return list(resource.get(namespace=self.namespace, **selector).to_dict()["items"])
        except DynamicApiError as error:
            raise DeployError(
                f"{resource.kind}s of {self.namespace} cannot be read: {_words(error)}"
            ) from None


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
    """What the API said, without headers."""
    reason = str(getattr(error, "reason", None) or error)
    try:
        return str(json.loads(getattr(error, "body", None) or "{}").get("message") or reason)
    except (ValueError, AttributeError):
        return reason
