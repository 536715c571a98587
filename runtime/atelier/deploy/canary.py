"""A canary of an endpoint: a changed copy of its predictor that takes a share of the traffic.

KServe 0.20 and newer, standard mode: `spec.canary`, told ready by the condition CanaryReady. The
endpoint itself is left alone.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Mapping
from typing import Any

from atelier.deploy.cluster import Cluster
from atelier.deploy.manifest import GROUP, KIND, VERSION, DeployError
from atelier.deploy.readiness import CONTAINER

Object = dict[str, Any]
MANAGER = "atelier-canary"


def set_canary(
    cluster: Cluster,
    name: str,
    percent: int,
    image: str = "",
    env: Mapping[str, str] | None = None,
    wait_s: float = 900,
    say: Callable[[str], None] = print,
    poll_s: float = 3,
) -> None:
    """Give a copy with another image or variables `percent` of the traffic; 0 ends it.

    A canary that is there keeps what it was given, so that its share can be raised step by step.

    Raises:
        DeployError: no such endpoint, no change to try, a KServe without canaries, or the canary
            did not get ready in `wait_s` seconds; its traffic then stays with the endpoint.
    """
    if not 0 <= percent <= 100:
        raise DeployError(f"--percent {percent}: from 0 to 100")
    service = cluster.service(name)
    if service is None:
        raise DeployError(f"there is no InferenceService {name} in {cluster.namespace}")
    spec = _canary_spec(service, percent, image, env or {}) if percent else {}
    meta = {"name": name, "namespace": cluster.namespace}
    document: Object = {"apiVersion": f"{GROUP}/{VERSION}", "kind": KIND, "metadata": meta}
    # What this field manager no longer sends is taken away.
    document |= {"spec": spec} if spec else {}
    kept = cluster.send(document, force=True, manager=MANAGER)
    if percent and not kept["spec"].get("canary"):
        raise DeployError("this cluster's KServe drops spec.canary: it needs KServe 0.20 or newer")
    if not percent:
        say(f"{name} has no canary any more: all traffic goes to the endpoint")
        return
    _wait(cluster, name, percent, wait_s, say, poll_s)


def _canary_spec(service: Object, percent: int, image: str, env: Mapping[str, str]) -> Object:
    there = service["spec"].get("canary") or []
    if not (image or env or there):
        raise DeployError("a canary needs something to try: --image or --env NAME=VALUE")
    predictor = copy.deepcopy(there[0]["predictor"] if there else service["spec"]["predictor"])
    predictor["name"] = "canary"
    model = predictor["model"]
    # An endpoint's own container gets this name from KServe; the CRD wants it spelled out here.
    model.setdefault("name", CONTAINER)
    if image:
        model["image"] = image
    entries = {entry["name"]: entry for entry in model.get("env") or []}
    entries.update({key: {"name": key, "value": value} for key, value in env.items()})
    model["env"] = list(entries.values())
    return {"canary": [{"trafficPercent": percent, "predictor": predictor}]}


def _wait(
    cluster: Cluster,
    name: str,
    percent: int,
    wait_s: float,
    say: Callable[[str], None],
    poll_s: float,
) -> None:
    ends, said = time.monotonic() + wait_s, "KServe has not said anything about it yet"
    while True:
        service = cluster.service(name) or {}
        for condition in (service.get("status") or {}).get("conditions") or []:
            if condition["type"] == "CanaryReady":
                if condition["status"] == "True":
                    say(f"the canary of {name} is ready and takes {percent} % of the traffic")
                    return
                said = condition.get("message") or condition.get("reason") or "not ready"
        if time.monotonic() > ends:
            raise DeployError(
                f"the canary of {name} is not ready after {wait_s:g} s: {said}\n  -> its traffic"
                f" stays with the endpoint; atelier deploy canary {name} --percent 0 ends it"
            )
        time.sleep(poll_s)
