"""What KServe would start, started here: command line, environment and volumes of the rendered
container.

The container of a ServingRuntime and an InferenceService is merged as KServe merges it. Its paths
are moved below a temporary folder, its ports to free ones; everything else is as in the cluster.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import boto3
import httpx
import pytest
from moto.server import ThreadedMotoServer

from atelier.deploy.manifest import Endpoint, render
from tests.conftest import free_port
from tests.manifests.rendering import (
    ROOT,
    Object,
    combine,
    merged_container,
    needs_kubectl,
    objects,
    of_kind,
)

pytestmark = needs_kubectl

PICTURE = {"prompt": "a red circle", "seed": 7, "num_inference_steps": 2, "width": 32, "height": 32}
CONNECTION = {
    "AWS_ACCESS_KEY_ID": "key",
    "AWS_SECRET_ACCESS_KEY": "secret",
    "AWS_DEFAULT_REGION": "us-east-1",
}


class Container:
    """A container as the kubelet would run it, with its volumes as folders below `root`."""

    def __init__(
        self, docs: list[Object], root: Path, secrets: dict[str, str] | None = None
    ) -> None:
        docs = [*docs]
        service = of_kind(docs, "InferenceService")[0]
        self.port = free_port()
        model = service["spec"]["predictor"]["model"]
        more = [f"--http_port={self.port}", f"--grpc_port={free_port()}"]
        predictor = {
            **service["spec"]["predictor"],
            "model": {**model, "args": [*model.get("args", []), *more]},
        }
        docs[docs.index(service)] = {**service, "spec": {"predictor": predictor}}
        self.grace = predictor["terminationGracePeriodSeconds"]
        self.name = service["metadata"]["name"]
        self.spec = merged_container(docs)
        self.root = root
        for mount in self.spec["volumeMounts"]:
            (root / mount["mountPath"].lstrip("/")).mkdir(parents=True, exist_ok=True)
        self.models = root / "mnt/models"
        self.models.mkdir(parents=True)
        self.environment = {
            entry["name"]: self._value(entry, secrets or {}) for entry in self.spec["env"]
        }
        self.log = root / "log"

    def _value(self, entry: Object, secrets: dict[str, str]) -> str:
        if "value" not in entry:
            return secrets.get(entry["valueFrom"]["secretKeyRef"]["key"], "")
        value = str(entry["value"])
        return (
            f"{self.root}{value}" if value.startswith(("/cache", "/mnt/models", "/tmp")) else value
        )

    def url(self, path: str) -> str:
        return f"http://127.0.0.1:{self.port}{path}"

    def probe(self, name: str) -> int:
        return httpx.get(self.url(self.spec[name]["httpGet"]["path"]), timeout=5).status_code

    @contextmanager
    def running(self) -> Iterator[subprocess.Popen[bytes]]:
        """The process, ready; leaving the block sends SIGTERM and wants exit code 0 within the
        grace period."""
        inherited = {
            name: os.environ[name]
            for name in ("PATH", "LANG", "LD_LIBRARY_PATH")
            if name in os.environ
        }
        ours = {"PYTHONPATH": f"{ROOT / 'runtime'}:{ROOT}", "OMP_NUM_THREADS": "1", "DEVICE": "cpu"}
        given = {name: value for name, value in self.environment.items() if value}
        command = [*read_only(self.models), sys.executable, "-m", "atelier", *self.spec["args"]]
        with self.log.open("wb") as output:
            process = subprocess.Popen(
                command, env=inherited | ours | given, stdout=output, stderr=output
            )
        try:
            self.wait_ready(process)
            yield process
            process.send_signal(signal.SIGTERM)
            assert process.wait(self.grace) == 0, self.log.read_text()[-3000:]
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()

    def wait_ready(self, process: subprocess.Popen[bytes]) -> None:
        startup = self.spec["startupProbe"]
        ends = time.monotonic() + startup["periodSeconds"] * startup["failureThreshold"]
        while time.monotonic() < ends and process.poll() is None:
            try:
                if self.probe("startupProbe") == 200:
                    return
            except httpx.TransportError:
                pass
            time.sleep(0.2)
        raise AssertionError(
            f"not ready (exit code {process.poll()}):\n{self.log.read_text()[-3000:]}"
        )

    def draw(self, **headers: str) -> httpx.Response:
        body = {"instances": [PICTURE]}
        return httpx.post(
            self.url(f"/v1/models/{self.name}:predict"), json=body, headers=headers, timeout=120
        )


def read_only(folder: Path) -> list[str]:
    """A prefix that runs a command with `folder` mounted read-only; nothing where only its rights
    can be taken away."""
    script = 'mount --bind "$0" "$0" && mount -o remount,bind,ro "$0" && exec "$@"'
    prefix = ["unshare", "--mount", "sh", "-c", script, str(folder)]
    if os.getuid() == 0 and subprocess.run([*prefix, "true"], capture_output=True).returncode == 0:
        assert (
            subprocess.run([*prefix, "touch", str(folder / "x")], capture_output=True).returncode
            != 0
        )
        return prefix
    for path in [folder, *folder.rglob("*")]:
        path.chmod(path.stat().st_mode & ~0o222)
    return []


def test_weights_from_the_initializer_are_served(tiny_checkpoint: Path, tmp_path: Path) -> None:
    """overlays/s3: storage.key makes the initializer fill /mnt/models, which the server sees
    read-only."""
    container = Container(objects("overlays/s3"), tmp_path)
    shutil.copytree(tiny_checkpoint, container.models, dirs_exist_ok=True)
    with container.running():
        assert container.probe("readinessProbe") == 200
        assert container.probe("livenessProbe") == 200
        answer = container.draw().json()
        assert answer["predictions"][0]["seed"] == 7
        assert "atelier_queue_depth" in httpx.get(container.url("/metrics")).text
    lines = container.log.read_text().splitlines()
    assert any(json.loads(line) for line in lines if line.startswith("{")), (
        "LOG_FORMAT=json reached the server"
    )
    written = {path.name for path in tmp_path.iterdir()} - {"mnt", "log"}
    assert written == {"cache", "tmp", "dev"}, "nothing was written outside the volumes"


def test_an_api_key_from_a_secret_guards_the_models_and_not_the_probes(
    tiny_checkpoint: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "user"
    folder.mkdir()
    docs = combine(folder, "overlays/pvc", ["auth/api-keys"])
    container = Container(docs, tmp_path / "pod", secrets={"API_KEYS": "first,second"})
    shutil.copytree(tiny_checkpoint, container.models, dirs_exist_ok=True)
    with container.running():
        assert container.draw().status_code == 401
        assert container.draw(Authorization="Bearer second").status_code == 200
        assert container.probe("readinessProbe") == container.probe("livenessProbe") == 200
        assert httpx.get(container.url("/metrics")).status_code == 200


@pytest.fixture
def s3() -> Iterator[str]:
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


def test_a_server_that_downloads_by_itself_uses_the_data_connection(
    s3: str, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    """`atelier deploy` gives the connection's variables to the server when a variable names
    s3://."""
    client: Any = boto3.client(
        "s3",
        endpoint_url=s3,
        aws_access_key_id="key",
        aws_secret_access_key="secret",
        region_name="us-east-1",
    )
    client.create_bucket(Bucket="models")
    for path in tiny_checkpoint.rglob("*"):
        if path.is_file():
            client.upload_file(str(path), "models", f"tiny/{path.relative_to(tiny_checkpoint)}")
    env = {"MODEL_ID": "s3://models/tiny"}
    endpoint = Endpoint("tiny", "builtin/shapes", connection="atelier-models", env=env)
    docs = [*objects("overlays/dev"), render(endpoint)]
    docs.remove(of_kind(docs, "InferenceService")[0])
    container = Container(docs, tmp_path / "pod", secrets={**CONNECTION, "AWS_S3_ENDPOINT": s3})
    with container.running():
        assert container.draw().status_code == 200
    assert list((tmp_path / "pod/cache").rglob("*.safetensors")), (
        "the download lies on the cache volume"
    )
