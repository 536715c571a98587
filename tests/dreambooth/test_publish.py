"""A version is stored whole or without a manifest, passes the gate first, and never harms the
endpoint before it."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import boto3
import httpx
import pytest
from moto.server import ThreadedMotoServer
from PIL import Image

from atelier.deploy.manifest import DeployError
from atelier.sources import s3 as store
from atelier_training.dreambooth.card import RECORD, read_record
from atelier_training.dreambooth.deploy import deploy, endpoint_for
from atelier_training.dreambooth.errors import GateClosed, OptionError, PublishError
from atelier_training.dreambooth.gate import require
from atelier_training.dreambooth.options import TrainOptions
from atelier_training.dreambooth.publish import MANIFEST, Published, publish
from atelier_training.dreambooth.train import train
from tests.conftest import StartServer
from tests.deploy.fake_api import FakeApi, Moment
from tests.gallery import difference, pixels

DESTINATION = "s3://atelier/models/ring"
SCORES = {"subject": 0.9, "leak": 0.02}


@pytest.fixture
def trained(options: Callable[..., TrainOptions]) -> Path:
    return train(options(steps=1)).path


def keys(endpoint: str) -> list[str]:
    client = boto3.client("s3", endpoint_url=endpoint)
    return sorted(
        entry["Key"] for entry in client.list_objects_v2(Bucket="atelier").get("Contents", ())
    )


def test_the_manifest_lists_every_file_with_its_checksum(s3: str, trained: Path) -> None:
    published = publish(trained, DESTINATION)
    body = boto3.client("s3", endpoint_url=s3).get_object(
        Bucket="atelier", Key=f"models/ring/{published.version}/{MANIFEST}"
    )["Body"]
    manifest = json.load(body)
    assert manifest["kind"] == "adapter" and manifest["uri"] == published.uri
    stored = [f"models/ring/{published.version}/{name}" for name in (*manifest["files"], MANIFEST)]
    assert keys(s3) == sorted(stored)
    assert publish(trained, DESTINATION) == published, "the same content has the same version"


def test_a_training_that_came_out_equal_is_published_once(s3: str, trained: Path) -> None:
    """However long it took; other scores are another version."""
    first = publish(trained, DESTINATION)
    record = read_record(trained)
    (trained / RECORD).write_text(json.dumps(record | {"result": {"seconds": 1e6}}))
    assert publish(trained, DESTINATION) == first
    kept = boto3.client("s3", endpoint_url=s3).get_object(
        Bucket="atelier", Key=f"models/ring/{first.version}/{RECORD}"
    )["Body"]
    assert json.load(kept) == record
    (trained / RECORD).write_text(json.dumps(record | {"scores": {"subject": 0.5}}))
    assert publish(trained, DESTINATION).version != first.version


def test_a_published_adapter_is_served_from_its_address(
    s3: str, options: Callable[..., TrainOptions], start_server: StartServer
) -> None:
    published = publish(train(options(steps=3, learning_rate=1.0)).path, DESTINATION)
    # As the pipeline's last step sets it; the connection's variables are in the environment
    # already.
    endpoint = endpoint_for(
        "ring", published, "builtin/shapes", connection="models", gpu="cpu", namespace=""
    )
    fields = {
        "prompt": "a zqx ring",
        "seed": 3,
        "num_inference_steps": 2,
        "width": 64,
        "height": 64,
    }
    with (
        TemporaryDirectory() as cache,
        start_server(model_id=str(options().model), cache_dir=cache, **endpoint.env) as server,
    ):
        instances = [fields, fields | {"lora": {published.version: 1.0}}, fields | {"lora": {}}]
        answer = httpx.post(
            f"{server.url}/v1/models/tiny:predict", json={"instances": instances}, timeout=60
        )
        pictures = [
            base64.b64decode(one["image"]["b64"])
            for one in answer.raise_for_status().json()["predictions"]
        ]
    default, named, without = map(pixels, pictures)
    # Not byte for byte: the two are rows of one batch, or the first was alone for a step.
    assert difference(default, named) <= 2
    assert difference(default, without) > 20


def test_a_store_that_goes_down_leaves_no_manifest_and_a_rerun_completes(
    s3_server: ThreadedMotoServer, s3: str, trained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    uploads: list[str] = []

    def client_of_a_failing_store(settings: Any) -> Any:
        client = make_client(settings)
        upload = client.upload_file

        def upload_file(path: str, bucket: str, key: str, **more: Any) -> None:
            upload(path, bucket, key, **more)
            uploads.append(key)
            if len(uploads) == 2:
                s3_server.stop()

        client.upload_file = upload_file
        return client

    make_client = store.make_client
    monkeypatch.setattr(store, "make_client", client_of_a_failing_store)
    with pytest.raises(PublishError, match=r"has no manifest.*run again to complete it"):
        publish(trained, DESTINATION)
    s3_server.start()
    assert len(keys(s3)) == 2 and not any(key.endswith(MANIFEST) for key in keys(s3))
    publish(trained, DESTINATION)
    assert len(uploads) == len(set(uploads)) == 3, "what was there already is not sent again"
    assert any(key.endswith(MANIFEST) for key in keys(s3))


def test_an_unfinished_training_is_not_published(s3: str, trained: Path) -> None:
    (trained / "training.json").unlink()
    with pytest.raises(PublishError, match=r"training\.json is missing"):
        publish(trained, DESTINATION)


def test_the_gate_names_every_condition_that_fails() -> None:
    require(SCORES, "subject>=0.8, leak<=0.1")
    require(SCORES, "")
    with pytest.raises(
        GateClosed, match=r"subject is 0\.900, wanted >= 0\.95; leak is 0\.020, wanted <= 0\.01"
    ):
        require(SCORES, "subject>=0.95, leak<=0.01")
    with pytest.raises(OptionError, match=r"no score 'clip_i'; measured: subject, leak"):
        require(SCORES, "clip_i>=0.5")
    with pytest.raises(OptionError, match="'subject=1' is not of the form"):
        require(SCORES, "subject=1")


@pytest.fixture
def api(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeApi]:
    server = FakeApi(check=lambda document: [])
    monkeypatch.setenv("KUBECONFIG", str(server.kubeconfig(tmp_path)))
    monkeypatch.setattr(
        "kubernetes.config.kube_config.KUBE_CONFIG_DEFAULT_LOCATION", str(tmp_path / "kubeconfig")
    )
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    yield server
    server.close()


OLD, NEW = (
    Published(f"{DESTINATION}/{version}", version, True)
    for version in ("aaaaaaaa1111", "bbbbbbbb2222")
)


def endpoint_of(published: Published) -> Any:
    return endpoint_for(
        "ring", published, "builtin/shapes", connection="models", gpu="cpu", namespace="studio"
    )


def test_a_deploy_that_never_gets_ready_fails_clearly_and_leaves_the_old_endpoint(
    api: FakeApi, tmp_path: Path
) -> None:
    from atelier.deploy.cluster import Cluster
    from atelier.deploy.manifest import render

    Cluster("studio").apply(render(endpoint_of(OLD)))
    old, new = endpoint_of(OLD).name, endpoint_of(NEW).name
    assert old.startswith("ring-aaaaaaaa-") and new.startswith("ring-bbbbbbbb-")
    before = api.services[old]
    api.scene = [Moment()]
    said: list[str] = []
    with pytest.raises(DeployError, match=r"ring-bbbbbbbb-\w+ is not ready after 0\.5 s"):
        deploy(endpoint_of(NEW), "a ring", tmp_path / "drawn.png", wait_s=0.5, say=said.append)
    assert list(api.services) == [old]
    for part in ("metadata", "spec"):
        assert api.services[old][part] == before[part]
    assert said[-1] == f"InferenceService {new} removed; all others are untouched"
    assert not (tmp_path / "drawn.png").exists()


def test_a_deploy_that_fails_keeps_an_endpoint_that_it_did_not_make(
    api: FakeApi, tmp_path: Path
) -> None:
    from atelier.deploy.cluster import Cluster
    from atelier.deploy.manifest import render

    Cluster("studio").apply(render(endpoint_of(NEW)))
    api.scene = [Moment()]
    said: list[str] = []
    with pytest.raises(DeployError):
        deploy(endpoint_of(NEW), "a ring", tmp_path / "drawn.png", wait_s=0.2, say=said.append)
    assert endpoint_of(NEW).name in api.services
    assert "was there before and is kept" in said[-1]


def test_other_options_are_another_endpoint() -> None:
    others = [
        endpoint_for("ring", NEW, base, connection="models", gpu=gpu, namespace="studio").name
        for base, gpu in (("builtin/shapes", "cpu"), ("builtin/shapes", "a10g"), ("a/b", "cpu"))
    ]
    assert len(set(others)) == 3


def test_a_ready_endpoint_is_asked_for_a_picture(
    api: FakeApi, start_server: StartServer, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    name = endpoint_of(NEW).name
    with start_server(model_id=str(tiny_checkpoint), model_name=name) as server:
        api.scene = [Moment(ready=True, status={"url": server.url})]
        url = deploy(endpoint_of(NEW), "a ring", tmp_path / "drawn.png", say=lambda _: None)
    assert url == server.url
    assert Image.open(io.BytesIO((tmp_path / "drawn.png").read_bytes())).format == "PNG"
    environment = {
        e["name"]: e.get("value") for e in api.services[name]["spec"]["predictor"]["model"]["env"]
    }
    assert environment["LORA_PATHS"] == NEW.uri
    assert environment["DEFAULT_LORA"] == NEW.version
