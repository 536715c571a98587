"""What the platform's webhooks rewrite and refuse, and what keeps a pod from being made.

The words are those of the real KServe, OpenShift AI, Kubernetes.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from tests.deploy.fake_store import Object, Refused, Store
from tests.manifests.rendering import pods as pods_of

MODE = "serving.kserve.io/deploymentMode"
IMMUTABLE = {"jobs": ("template", "selector"), "deployments": ("selector",)}


def admit(store: Store, resource: str, document: Object, old: Object | None, facts: Object) -> None:
    """Change the document as the webhooks do.

    Raises:
        Refused: one of them says no.
    """
    for field in IMMUTABLE.get(resource, ()):
        if old and old["spec"].get(field) != document["spec"].get(field):
            raise Refused(
                422,
                "Invalid",
                f'The {document["kind"]} "{document["metadata"]["name"]}" is invalid: spec.{field}:'
                " Invalid value: field is immutable",
            )
    if resource == "pods" and old is None:
        place = document["metadata"]["namespace"]
        name = document["metadata"]["name"]
        if said := refusal_of_pod(store, place, name, document["spec"]):
            internal = said.startswith("Internal error")
            code = (500, "InternalError") if internal else (403, "Forbidden")
            raise Refused(*code, said)
    _fill_in(resource, document.get("spec", {}))
    if resource == "inferenceservices":
        _inference_service(document, facts)
    if resource == "servingruntimes":
        _no_python_path(document["spec"]["containers"], "servingruntime")
    if resource == "notebooks":
        wanted = document["metadata"]["annotations"].get("opendatahub.io/connections", "")
        for name in filter(None, wanted.split(",")):
            namespace, _, secret = name.partition("/")
            if ("secrets", namespace, secret) not in store.objects:
                raise Refused(
                    403,
                    "Forbidden",
                    'admission webhook "connection-notebook.opendatahub.io" denied the request:'
                    f" connection secret {name} not found",
                )
    labels = document["metadata"].get("labels", {})
    kind = document["metadata"].get("annotations", {}).get("opendatahub.io/connection-type")
    protocol = "opendatahub.io/connection-type-protocol"
    connects = resource == "secrets" and labels.get("opendatahub.io/managed") and kind
    if connects and protocol not in document["metadata"]["annotations"]:
        raise Refused(403, "Forbidden", f"connection Secret lacks annotation {protocol}")


def _fill_in(resource: str, spec: Object) -> None:
    """Defaults in lists, which kubectl takes for somebody's change if they are not spelled out."""
    if resource == "podmonitors":
        for endpoint in spec["podMetricsEndpoints"]:
            for rule in endpoint.get("relabelings", []):
                rule.setdefault("action", "replace")
    if resource == "resourceclaimtemplates":
        for request in spec["spec"]["devices"]["requests"]:
            request["exactly"].setdefault("allocationMode", "ExactCount")
            request["exactly"].setdefault("count", 1)


def _inference_service(document: Object, facts: Object) -> None:
    annotations = document["metadata"].setdefault("annotations", {})
    if facts["kserve"] >= 16 and annotations.get(MODE) == "RawDeployment":
        annotations[MODE] = "Standard"
    predictor = document["spec"]["predictor"]
    hook = (
        'admission webhook "inferenceservice.kserve-webhook-server.validator" denied the request: '
    )
    for metric in predictor.get("autoScaling", {}).get("metrics", []):
        if metric["type"] == "External" and not metric["external"]["target"].get("value"):
            raise Refused(
                400, "BadRequest", hook + "the target threshold value should not be empty"
            )
    _no_python_path([predictor["model"], *predictor.get("containers", [])], "inferenceservice")
    if facts["refusal"]:
        raise Refused(403, "Forbidden", f"admission webhook denied the request: {facts['refusal']}")


def _no_python_path(containers: list[Object], kind: str) -> None:
    for container in containers:
        if any(entry["name"] == "PYTHONPATH" for entry in container.get("env", [])):
            raise Refused(
                400,
                "BadRequest",
                f'admission webhook "{kind}.kserve-webhook-server.validator" denied the request:'
                ' environment variable "PYTHONPATH" is not allowed',
            )


def quantity(text: Any) -> float:
    """A Kubernetes quantity as a number."""
    text = str(text)
    for suffix, factor in {"Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40, "m": 1e-3}.items():
        if text.endswith(suffix):
            return float(text.removesuffix(suffix)) * factor
    return float(text)


def must_not_be_leaving(store: Store, plural: str, key: tuple[str, str, str]) -> None:
    """Refuse what is new in a namespace that is being deleted."""
    status = store.objects["namespaces", "", key[1]].get("status") or {}
    if status.get("phase") == "Terminating":
        raise Refused(
            403,
            "Forbidden",
            f'{plural} "{key[2]}" is forbidden: unable to create new content in namespace {key[1]}'
            " because it is being terminated",
        )


def refusal_of_pod(store: Store, namespace: str, name: str, spec: Object) -> str:
    """Why no such pod may be made, in the API server's words and order; empty if it may."""
    start = f'pods "{name}" is forbidden: '
    account = spec.get("serviceAccountName", "default")
    if account != "default" and ("serviceaccounts", namespace, account) not in store.objects:
        return (
            f"{start}error looking up service account {namespace}/{account}: serviceaccount"
            f' "{account}" not found'
        )
    for _, limits in _of(store, "limitranges", namespace):
        for limit in limits["spec"]["limits"]:
            if said := "; ".join(_out_of_range(spec, limit)):
                return start + said
    labels = store.objects[("namespaces", "", namespace)]["metadata"].get("labels", {})
    restricted = labels.get("pod-security.kubernetes.io/enforce") == "restricted"
    if restricted and (said := ", ".join(not_restricted(spec))):
        return f'{start}violates PodSecurity "restricted:latest": {said}'
    for _, hooks in _of(store, "validatingwebhookconfigurations", ""):
        for hook in hooks["webhooks"]:
            if any("pods" in rule["resources"] for rule in hook["rules"]):
                return _unreachable(hook)
    for quota, document in _of(store, "resourcequotas", namespace):
        # What its controller has counted, not what is written.
        if said := _over(quota, document.get("status", {}).get("hard", {}), spec):
            return start + said
    return ""


def _of(store: Store, resource: str, namespace: str) -> list[tuple[str, Object]]:
    objects = store.objects.items()
    return [(key[2], doc) for key, doc in objects if key[:2] == (resource, namespace)]


def _out_of_range(spec: Object, limit: Object) -> Iterator[str]:
    for container in spec["containers"] if limit["type"] == "Container" else []:
        for resource, most in limit.get("max", {}).items():
            asked = container["resources"]["limits"].get(resource, 0)
            if quantity(asked) > quantity(most):
                yield f"maximum {resource} usage per Container is {most}, but limit is {asked}"


def _unreachable(hook: Object) -> str:
    service = hook["clientConfig"]["service"]
    place = f"{service['name']}.{service['namespace']}.svc:443{service.get('path', '')}"
    return (
        f'Internal error occurred: failed calling webhook "{hook["name"]}": failed to call webhook:'
        f' Post "https://{place}?timeout={hook.get("timeoutSeconds", 10)}s": service'
        f' "{service["name"]}" not found'
    )


def _over(quota: str, hard: Object, spec: Object) -> str:
    wanting, over = [], []
    for resource, most in hard.items():
        part, _, what = resource.partition(".")
        if not what:  # a number of objects
            continue
        amounts = [c.get("resources", {}).get(part, {}).get(what) for c in spec["containers"]]
        if None in amounts:
            names = [c["name"] for c, n in zip(spec["containers"], amounts, strict=True) if not n]
            wanting.append(f"{resource} for: {','.join(names)}")
        elif sum(map(quantity, amounts)) > quantity(most):
            over.append((resource, "+".join(map(str, amounts)), most))
    if wanting:
        return f"failed quota: {quota}: must specify {'; '.join(wanting)}"
    if not over:
        return ""
    asked = ",".join(f"{resource}={amount}" for resource, amount, _ in over)
    used = ",".join(f"{resource}=0" for resource, _, _ in over)
    limited = ",".join(f"{resource}={most}" for resource, _, most in over)
    return f"exceeded quota: {quota}, requested: {asked}, used: {used}, limited: {limited}"


def not_restricted(spec: Object) -> Iterator[str]:
    """What Pod Security's profile `restricted` holds against a pod."""
    for container in [*spec["containers"], *spec.get("initContainers", [])]:
        context = {**spec.get("securityContext", {}), **container.get("securityContext", {})}
        name = container["name"]
        if context.get("allowPrivilegeEscalation") is not False:
            yield f'allowPrivilegeEscalation != false (container "{name}")'
        if "ALL" not in context.get("capabilities", {}).get("drop", []):
            yield f'unrestricted capabilities (container "{name}")'
        if context.get("runAsNonRoot") is not True:
            yield f'runAsNonRoot != true (container "{name}")'
        if context.get("seccompProfile", {}).get("type") not in ("RuntimeDefault", "Localhost"):
            yield f'seccompProfile (container "{name}")'
    for volume in spec.get("volumes", []):
        if "hostPath" in volume:
            yield f'restricted volume types (volume "{volume["name"]}")'


def templates(document: Object) -> list[Object]:
    """Every pod spec that an object makes."""
    return [pod.spec for pod in pods_of([document])]
