"""Servers whose weights come from S3 straight to memory: they draw and write what servers of a
landed copy do, and no weights lie on a disk, during the load or after it."""

from __future__ import annotations

import os
import signal
import stat
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.conftest import ROOT, Server
from tests.gallery import difference
from tests.sources.stores import Fault, Proxy, client, environment, proxy, s3_server, upload
from tests.sources.test_opened import memory_files
from tests.tiny_pipelines import flux_1
from tests.workers.test_workers import picture, predict, wait_for, workers

SCENES = ROOT / "runtime" / "atelier" / "builtin" / "scenes"
SMALL = (".json", ".txt", ".jinja", ".py", ".md", ".model")


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory, tiny_checkpoint: Path) -> Iterator[int]:
    """The port of an S3 server with three checkpoints."""
    flux = flux_1(tmp_path_factory.mktemp("checkpoints"))
    with s3_server() as port:
        bucket = client(port)
        bucket.create_bucket(Bucket="models")
        for name, root in (("sd", tiny_checkpoint), ("flux", flux), ("scenes", SCENES)):
            upload(bucket, name, root)
        yield port


@pytest.fixture
def link(store: int) -> Iterator[Proxy]:
    with proxy(store) as running:
        yield running


def variables(port: int, folder: Path, **more: str) -> dict[str, str]:
    """What a server of the store is told; its files lie in `folder`."""
    (folder / "t").mkdir(exist_ok=True)  # a short name: sockets lie in it
    told = environment(port) | {"TMPDIR": str(folder / "t"), "CACHE_DIR": str(folder / "cache")}
    changed = {name: value for name, value in told.items() if os.environ.get(name) != value}
    return changed | {"WEIGHTS_CACHE": "off", "MODEL_ID": "s3://models/sd"} | more


@contextmanager
def watched(folder: Path) -> Iterator[set[str]]:
    """Every file that ever lies below the folder while the block runs, as often as can be looked;
    names that lead to memory are none."""
    seen: set[str] = set()
    over = threading.Event()

    def watch() -> None:
        while not over.wait(0.005):
            for place, _, names in os.walk(folder):
                for path in (Path(place) / name for name in names):
                    with suppress(FileNotFoundError):  # gone since it was listed
                        if stat.S_ISREG(path.lstat().st_mode):
                            seen.add(str(path))

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield seen
    finally:
        over.set()
        watcher.join()


def large(seen: set[str]) -> list[str]:
    """Those that are neither configuration nor compiled code nor the downloads of these."""
    plain = [one for one in seen if "/compile/" not in one and "/t/atelier-weights-" in one]
    stems = [one.removesuffix(".atelier-part").removesuffix(".atelier-journal") for one in plain]
    assert stems, "the watcher saw the small files"
    return [one for one in stems if not one.endswith(SMALL)]


def test_pictures_are_those_of_the_landed_copy_and_no_weights_lie_on_a_disk(
    start_server: Any, link: Proxy, tmp_path: Path, tiny_checkpoint: Path
) -> None:
    with start_server(model_id=str(tiny_checkpoint)) as landed:
        expected = picture(predict(landed, seed=5))
    with watched(tmp_path) as seen, start_server(**variables(link.port, tmp_path)) as server:
        drawn = picture(predict(server, seed=5))
        assert not list((tmp_path / "t").glob("atelier-weights-*"))
        assert "of weights came from s3://models/sd in" in server.log.read_text()
        assert not memory_files(workers(server)[0]["pid"]), "they are not held any more"
    assert not (drawn != expected).any()
    assert large(seen) == []
    assert not [one for one in seen if "safetensors" in one]


def test_a_restarted_worker_streams_again(start_server: Any, link: Proxy, tmp_path: Path) -> None:
    with start_server(**variables(link.port, tmp_path)) as server:
        expected, asked = picture(predict(server, seed=5)), len(link.gets(".safetensors"))
        pid = workers(server)[0]["pid"]
        os.kill(pid, signal.SIGKILL)
        wait_for(
            lambda: [one["state"] for one in workers(server) if one["pid"] != pid] == ["ready"]
        )
        assert difference(picture(predict(server, seed=5)), expected) == 0
        assert len(link.gets(".safetensors")) == 2 * asked


def test_each_worker_streams_for_itself(start_server: Any, link: Proxy, tmp_path: Path) -> None:
    told = variables(link.port, tmp_path, DATA_PARALLEL_SIZE="2")
    with start_server(**told) as server:
        wait_for(lambda: [one["state"] for one in workers(server)] == ["ready", "ready"])
        assert server.log.read_text().count("of weights came from") == 2
        assert not list((tmp_path / "t").glob("atelier-weights-*"))


def test_a_group_reads_one_copy(start_server: Any, link: Proxy, tmp_path: Path) -> None:
    told = variables(link.port, tmp_path, MODEL_ID="s3://models/flux", SEQUENCE_PARALLEL_SIZE="2")
    with start_server(**told, DTYPE="float32") as server:
        picture(predict(server, seed=1, width=64, height=64))
        assert server.log.read_text().count("of weights came from") == 1
        assert "2 ranks share transformer" in server.log.read_text()


def test_a_language_model_writes_what_it_writes_from_its_folder(
    start_server: Any, scenes: Server, link: Proxy, tmp_path: Path
) -> None:
    def written(server: Server) -> str:
        body = {"model": server.model, "prompt": "a red circle", "temperature": 0, "max_tokens": 40}
        answer = httpx.post(f"{server.url}/v1/completions", json=body, timeout=60)
        return str(answer.json()["choices"][0]["text"])

    def vector(server: Server) -> list[float]:
        body = {"model": server.model, "input": "a red circle"}
        answer = httpx.post(f"{server.url}/v1/embeddings", json=body, timeout=60)
        return list(answer.json()["data"][0]["embedding"])

    told = variables(link.port, tmp_path, MODEL_ID="s3://models/scenes")
    with watched(tmp_path) as seen, start_server(**told, model_name="scenes") as server:
        assert written(server) == written(scenes) != ""
        assert vector(server) == pytest.approx(vector(scenes), abs=1e-5)
    assert large(seen) == [] and not [one for one in seen if "safetensors" in one]


def test_sigterm_during_a_slow_stream_ends_within_five_seconds(
    start_server: Any, link: Proxy, tmp_path: Path
) -> None:
    link.plan = lambda method, path, headers: (
        Fault(delay=60) if method == "GET" and "safetensors" in path else None
    )
    with (
        pytest.raises(AssertionError, match="exit code 1"),  # stopped before it was ready
        start_server(**variables(link.port, tmp_path), ready=False) as server,
    ):
        wait_for(lambda: link.gets(".safetensors"))
        began = time.monotonic()
        server.stop()
        took = time.monotonic() - began
    assert took < 5
    assert not list((tmp_path / "t").glob("atelier-weights-*"))


def test_spoiled_weights_end_the_start_with_the_objects_name(
    start_server: Any, link: Proxy, tmp_path: Path
) -> None:
    name = "unet/diffusion_pytorch_model.safetensors"
    link.plan = lambda method, path, headers: (
        Fault(flip=True) if name in path and len(link.gets(name)) > 1 else None
    )  # what comes after the header
    told = variables(link.port, tmp_path)
    with (
        pytest.raises(AssertionError, match="exit code 1"),
        start_server(**told, ready=False) as server,
    ):
        server.process.wait(60)
    assert f"{name} is damaged" in server.log.read_text()
