"""From a published version to an endpoint that has drawn a picture.

Each version with its options gets an InferenceService of its own name, so whatever happens to it,
the endpoint of the version before goes on serving. One that this step made and that does not get
ready is removed again; one that was there before is left as it is.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import httpx

from atelier.deploy.cluster import Cluster
from atelier.deploy.manifest import DeployError, Endpoint
from atelier.deploy.rollout import deploy as roll_out
from atelier_training.dreambooth.publish import Published

REQUEST_SECONDS = 300


def endpoint_for(
    name: str, published: Published, base: str, connection: str, gpu: str, namespace: str
) -> Endpoint:
    """The endpoint of one version: the base model with the adapter on, or the fine-tuned
    pipeline.

    Its name tells the data and the options: the same version on another base or GPU is another
    endpoint.
    """
    options = hashlib.sha256(json.dumps([base, connection, gpu]).encode()).hexdigest()
    versioned = f"{name}-{published.version[:8]}-{options[:4]}"
    if not published.is_adapter:
        source = f"{published.uri}/model"
        return Endpoint(versioned, source, gpu=gpu, connection=connection, namespace=namespace)
    env = {"LORA_PATHS": published.uri, "DEFAULT_LORA": published.version}
    return Endpoint(versioned, base, gpu=gpu, connection=connection, namespace=namespace, env=env)


def deploy(
    endpoint: Endpoint,
    prompt: str,
    picture: Path,
    wait_s: float = 900,
    say: Callable[[str], None] = print,
) -> str:
    """Apply, wait until ready, draw `prompt` into the file `picture`; returns the endpoint's URL.

    Raises:
        DeployError: it did not get ready or did not answer; an InferenceService that was made here
            was removed, no other.
    """
    cluster = Cluster(endpoint.namespace)
    was_there = cluster.service(endpoint.name) is not None
    try:
        url = roll_out(endpoint, wait_s=wait_s, say=say)
        picture.write_bytes(draw(url, endpoint.name, prompt))
    except DeployError:
        if was_there:
            say(f"InferenceService {endpoint.name} was there before and is kept")
        else:
            cluster.delete(endpoint.name)
            say(f"InferenceService {endpoint.name} removed; all others are untouched")
        raise
    return url


def draw(url: str, name: str, prompt: str) -> bytes:
    """One picture from the endpoint through KServe's v1 protocol, as encoded by the server."""
    body = {"instances": [{"prompt": prompt, "seed": 0}]}
    try:
        answer = httpx.post(
            f"{url.rstrip('/')}/v1/models/{name}:predict", json=body, timeout=REQUEST_SECONDS
        )
        answer.raise_for_status()
        return base64.b64decode(answer.json()["predictions"][0]["image"]["b64"])
    except (httpx.HTTPError, ValueError, LookupError) as error:
        raise DeployError(f"{name} is ready but drew nothing: {error}") from None
