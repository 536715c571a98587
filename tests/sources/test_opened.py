"""WEIGHTS_CACHE=off: weights of a real S3 server in memory, and none on a disk."""

from __future__ import annotations

import os
import tempfile
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from atelier.cli.doctor import examine
from atelier.errors import SettingsError, SourceError
from atelier.settings import Settings, load_settings
from atelier.sources import inspect, opened, s3, transfer
from atelier.sources.memory_folder import forget
from atelier.sources.opened import StreamedCheckpoint, open_checkpoint
from tests.sources.checkpoints import pipeline
from tests.sources.stores import Fault, Proxy, client, proxy, s3_server, upload

UNET = "unet/diffusion_pytorch_model.safetensors"


@pytest.fixture(scope="module")
def server() -> Iterator[int]:
    with s3_server() as port:
        yield port


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """The checkpoint as it lies on a disk, with another variant that is not to be read."""
    root = pipeline(tmp_path / "local")
    values = np.random.default_rng(7)
    tensors = {name: values.random((40, 40)) for name in ("conv.weight", "to_q.weight")}
    save_file(tensors, root / UNET)
    (root / UNET.replace(".safetensors", ".fp16.safetensors")).write_bytes(b"\0" * 2**20)
    return root


@pytest.fixture
def bucket(server: int, model: Path) -> Iterator[Any]:
    store = client(server)
    store.create_bucket(Bucket="models")
    upload(store, "sd", model)
    yield store
    for entry in store.list_objects_v2(Bucket="models").get("Contents", ()):
        store.delete_object(Bucket="models", Key=entry["Key"])
    store.delete_bucket(Bucket="models")


@pytest.fixture
def link(server: int, bucket: Any) -> Iterator[Proxy]:
    with proxy(server) as running:
        yield running


@pytest.fixture(autouse=True)
def small_and_quick(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Several ranges make a file of a few KiB, delays are short, temporary files are watched."""
    monkeypatch.setattr(transfer, "RANGE_BYTES", 1024)
    monkeypatch.setattr(opened, "BEGINNING_BYTES", 64)
    monkeypatch.setattr(transfer, "FIRST_DELAY_SECONDS", 0.01)
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))


def settings(port: int, tmp_path: Path, model_id: str = "s3://models/sd", **more: Any) -> Settings:
    return load_settings(
        model_id=model_id,
        cache_dir=tmp_path / "cache",
        weights_cache="off",
        aws_s3_endpoint=f"http://127.0.0.1:{port}",
        aws_access_key_id="tester",
        aws_secret_access_key="secret",
        **more,
    )


def on_disk(tmp_path: Path) -> set[str]:
    """Endings of the files that are there, leaving out names that lead to memory."""
    places = [tmp_path / "tmp", tmp_path / "cache"]
    files = [one for place in places for one in place.rglob("*")]
    return {one.suffix for one in files if one.is_file() and not one.is_symlink()}


def memory_files(process: int) -> list[str]:
    """Files that no disk holds and the process has open."""
    found = []
    for one in Path(f"/proc/{process}/fd").iterdir():
        with suppress(FileNotFoundError):  # the descriptor of this very list
            found.append(str(one.readlink()))
    return [one for one in found if one.startswith("/memfd:")]


def in_memory() -> list[str]:
    return memory_files(os.getpid())


def test_a_streamed_folder_reads_like_the_one_on_disk(
    link: Proxy, tmp_path: Path, model: Path
) -> None:
    with open_checkpoint(settings(link.port, tmp_path)) as source:
        found = source.inspect()
        assert found.problems == () and found.components != ()
        source.fill(found)
        names = sorted(str(one.relative_to(model)) for one in model.rglob("*") if one.is_file())
        names.remove(UNET.replace(".safetensors", ".fp16.safetensors"))
        for name in names:
            assert (source.path / name).read_bytes() == (model / name).read_bytes(), name
        assert [(one.name, one.bytes) for one in found.components] == [
            (one.name, one.bytes) for one in inspect(model).components
        ]
        assert on_disk(tmp_path) == {".json"}


def test_headers_are_there_before_the_weights_are_asked_for(link: Proxy, tmp_path: Path) -> None:
    with open_checkpoint(settings(link.port, tmp_path)) as source:
        found = source.inspect()
        asked = [one[2] for one in link.gets(UNET)]
        assert asked[0] == "bytes=0-63" and len(asked) <= 2, "the header, however long it is"
        assert found.bytes > 0
        source.fill(found)
        assert len(link.gets(UNET)) > len(asked)


def test_what_will_not_be_read_is_not_brought_and_has_no_name(link: Proxy, tmp_path: Path) -> None:
    other = UNET.replace(".safetensors", ".fp16.safetensors")
    with open_checkpoint(settings(link.port, tmp_path)) as source:
        before = len(link.gets(other))
        assert (source.path / other).exists()
        source.fill(source.inspect())
        assert len(link.gets(other)) == before
        assert not (source.path / other).is_symlink()


def test_memory_and_folder_go_when_all_is_loaded(link: Proxy, tmp_path: Path) -> None:
    with open_checkpoint(settings(link.port, tmp_path)) as source:
        source.fill(source.inspect())
        assert in_memory()
    assert not in_memory() and not list((tmp_path / "tmp").iterdir())
    with pytest.raises(SourceError, match="is empty"):
        open_checkpoint(settings(link.port, tmp_path, "s3://models/nothing"))
    assert not in_memory() and not list((tmp_path / "tmp").iterdir())


def test_the_folder_of_a_killed_process_is_removed_by_its_number(
    link: Proxy, tmp_path: Path
) -> None:
    source = open_checkpoint(settings(link.port, tmp_path))
    forget(os.getpid() + 1)
    assert source.path.exists()
    forget(os.getpid())
    assert not list((tmp_path / "tmp").iterdir())
    source.close()


def test_a_single_file_is_streamed_too(link: Proxy, tmp_path: Path, model: Path) -> None:
    with open_checkpoint(settings(link.port, tmp_path, f"s3://models/sd/{UNET}")) as source:
        found = source.inspect()
        source.fill(found)
        assert source.path.name == Path(UNET).name
        assert source.path.read_bytes() == (model / UNET).read_bytes()
        address = s3.parse(f"s3://models/sd/{UNET}", "")
        landed = s3.cache_folder(settings(link.port, tmp_path), address)
        assert source.identity == landed / Path(UNET).name, "the same at every start"


def test_a_connection_cut_mid_read_is_taken_up_again(
    link: Proxy, tmp_path: Path, model: Path
) -> None:
    seen = set()

    def cut_each_range_once(method: str, path: str, headers: Any) -> Fault | None:
        asked = headers.get("Range")
        if method == "GET" and asked and path.endswith(UNET) and asked not in seen:
            seen.add(asked)
            return Fault(cut=10)
        return None

    link.plan = cut_each_range_once
    with open_checkpoint(settings(link.port, tmp_path)) as source:
        source.fill(source.inspect())
        assert (source.path / UNET).read_bytes() == (model / UNET).read_bytes()
    assert len(seen) > 2 and len(link.gets(UNET)) == 2 * len(seen)


def test_an_object_that_changes_mid_read_is_named(
    link: Proxy, tmp_path: Path, bucket: Any, model: Path
) -> None:
    replaced = threading.Event()
    with open_checkpoint(settings(link.port, tmp_path)) as source:
        found, headers = source.inspect(), len(link.gets(UNET))

        def replace_it(method: str, path: str, told: Any) -> None:
            if len(link.gets(UNET)) == headers + 2 and not replaced.is_set():
                replaced.set()
                other = (model / UNET).read_bytes()[::-1]
                bucket.put_object(Bucket="models", Key=f"sd/{UNET}", Body=other)

        link.plan = replace_it
        with pytest.raises(SourceError, match=rf"s3://models/sd/{UNET} was changed while"):
            source.fill(found)


def test_an_object_that_goes_mid_read_is_named(link: Proxy, tmp_path: Path, bucket: Any) -> None:
    with open_checkpoint(settings(link.port, tmp_path)) as source:
        found = source.inspect()
        bucket.delete_object(Bucket="models", Key=f"sd/{UNET}")
        with pytest.raises(SourceError, match=rf"s3://models/sd/{UNET} was removed while"):
            source.fill(found)


def test_spoiled_bytes_are_refused_before_anybody_reads_them(link: Proxy, tmp_path: Path) -> None:
    with open_checkpoint(settings(link.port, tmp_path)) as source:
        found = source.inspect()
        link.plan = lambda method, path, headers: Fault(flip=True) if path.endswith(UNET) else None
        with pytest.raises(SourceError, match=rf"{UNET} is damaged: \w+ .* instead of"):
            source.fill(found)
        assert not (source.path / UNET).is_symlink()


def test_weights_that_do_not_fit_are_refused_before_they_are_asked_for(
    link: Proxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with open_checkpoint(settings(link.port, tmp_path)) as source:
        found, before = source.inspect(), len(link.gets(UNET))
        monkeypatch.setattr(opened, "host_memory", lambda: (2**30, 1000))
        with pytest.raises(SourceError, match=r"do not fit into the .* set WEIGHTS_CACHE=disk"):
            source.fill(found)
        assert len(link.gets(UNET)) == before


def test_a_temporary_folder_that_cannot_be_written_is_named(
    link: Proxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "nowhere"))
    with pytest.raises(SourceError, match=r"nowhere.*set TMPDIR to a writable folder"):
        open_checkpoint(settings(link.port, tmp_path))


def test_what_is_streamed_depends_on_address_and_engine(tmp_path: Path, model: Path) -> None:
    local = settings(1, tmp_path, str(model))
    with open_checkpoint(local) as source:
        assert source.path == source.identity == model and not isinstance(
            source, StreamedCheckpoint
        )
    assert not opened.streams(settings(1, tmp_path, engine="vllm"))
    assert opened.streams(settings(1, tmp_path))
    with pytest.raises(SettingsError, match="MODEL_ID=owner/name comes from the Hub"):
        open_checkpoint(settings(1, tmp_path, "owner/name"))


def test_a_stream_holds_a_few_blocks_besides_the_weights(
    server: int, bucket: Any, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transfer, "RANGE_BYTES", 16 * 2**20)
    save_file({"conv.weight": np.zeros(96 * 2**20, np.uint8)}, model / UNET)
    bucket.put_object(Bucket="models", Key=f"sd/{UNET}", Body=(model / UNET).read_bytes())
    with open_checkpoint(settings(server, tmp_path)) as source:
        found = source.inspect()
        before, highest, over = own_memory(), [0], threading.Event()

        def watch() -> None:
            while not over.wait(0.005):
                highest[0] = max(highest[0], own_memory())

        watcher = threading.Thread(target=watch)
        watcher.start()
        source.fill(found)
        over.set()
        watcher.join()
    assert 0 < highest[0] - before < 48 * 2**20


def own_memory() -> int:
    """Bytes of this process that no file stands behind."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition("RssAnon:")[2].split()[0]) * 1024


def test_doctor_says_that_nothing_is_kept(
    link: Proxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(total=2**40, free=0))
    report = examine(settings(link.port, tmp_path))
    told = dict(report.sections)["Checkpoint s3://models/sd"]
    assert told[0].startswith("not kept on this machine (WEIGHTS_CACHE=off): ")
    assert told[0].endswith(" to fetch at every start")
    assert not [one for one in report.problems if "CACHE_DIR" in one], "it needs no room there"
