"""Both stores of pictures: bounds, expiry, what they leave alone, and what they say when disk or S3
server fail."""

from __future__ import annotations

import os
import re
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import boto3
import httpx
import pytest

from atelier.agents.store import NAME, PictureStore
from atelier.agents.stores import open_store
from atelier.errors import NotFound, SourceError, StartError, StoreFailed
from atelier.settings import Settings
from tests.agents.conftest import McpServer, http_client, mcp_server
from tests.conftest import ROOT, Server, free_port
from tests.sources.stores import Fault, Proxy, proxy, s3_server

BUCKET = "kept"
Open = Callable[..., PictureStore]


@pytest.fixture(scope="module")
def s3() -> Iterator[Any]:
    """moto's S3 server with one bucket: its port, and a client."""
    with s3_server() as port:
        client = boto3.client(
            "s3",
            "us-east-1",
            endpoint_url=f"http://127.0.0.1:{port}",
            aws_access_key_id="key",
            aws_secret_access_key="secret",
        )
        client.create_bucket(Bucket=BUCKET)
        yield SimpleNamespace(port=port, client=client)


def s3_settings(port: int, prefix: str, **more: Any) -> Settings:
    return Settings(
        mcp_store=f"s3://{BUCKET}/{prefix}",
        aws_s3_endpoint=f"http://127.0.0.1:{port}",
        aws_access_key_id="key",
        aws_secret_access_key="secret",
        **more,
    )


@pytest.fixture(params=["file", "s3"])
def opened(request: pytest.FixtureRequest, tmp_path: Path) -> Open:
    """Opens the same empty store each time, with settings such as `result_seconds`."""
    if request.param == "file":
        return lambda **more: open_store(Settings(mcp_store=str(tmp_path / "store"), **more))
    port = request.getfixturevalue("s3").port
    return lambda **more: open_store(s3_settings(port, tmp_path.name, **more))


def test_a_picture_is_kept_whole_under_a_name_of_its_own(opened: Open) -> None:
    store = opened()
    one, other = store.put(b"0123456789", "png"), store.put(b"0123456789", "webp")
    assert one.name != other.name and NAME.fullmatch(one.name)
    assert (other.media_type, other.size) == ("image/webp", 10)
    found = opened().find(one.name)  # another process
    assert (found.size, store.read(found), store.read(found, 2, 5)) == (10, b"0123456789", b"234")
    assert abs(store.expires(found) - time.time() - store.seconds) < 5


def test_a_picture_expires_and_is_cleaned_up(opened: Open) -> None:
    store = opened(result_seconds=2)
    picture = store.put(b"data", "png")
    assert store.read(store.find(picture.name)) == b"data"
    found = store.find(picture.name)
    time.sleep(2.1)
    with pytest.raises(NotFound, match="stay for 2 s"):
        store.find(picture.name)
    store.clean()
    with pytest.raises(NotFound, match="is not here"):
        store.read(found)  # expired during a read
    assert list(store._entries()) == []


def test_the_oldest_give_way_to_what_is_new(opened: Open) -> None:
    store = opened(result_bytes=2**16)
    names = [store.put(bytes(30_000), "png").name]
    time.sleep(1.1)  # S3 tells whole seconds
    names += [store.put(bytes(30_000), "png").name for _ in range(2)]
    assert opened().find(names[2]) and opened().find(names[1])
    with pytest.raises(NotFound):
        store.find(names[0])
    with pytest.raises(StoreFailed, match="RESULT_BYTES=65536"):
        store.put(bytes(2**16 + 1), "png")
    assert opened().find(names[2])


def test_many_writers_keep_to_the_bound(tmp_path: Path) -> None:
    store = open_store(Settings(mcp_store=str(tmp_path), result_bytes=2**16))
    with ThreadPoolExecutor(8) as threads:
        list(threads.map(lambda size: store.put(bytes(size), "png"), [9000, 40_000] * 30))
        sizes = [path.stat().st_size for path in tmp_path.iterdir()]
    assert 0 < sum(sizes) <= 2**16
    assert store.find(store.put(bytes(40_000), "png").name)


@pytest.mark.parametrize(
    "name", ["../secret.png", "/etc/passwd", "a" * 32, "a" * 32 + ".svg", "a" * 31 + "/.png", "",
             "a" * 32 + ".png\n", "..%2f" + "a" * 27 + ".png", "a" * 31 + "\0.png"]
)  # fmt: skip
def test_what_is_no_name_is_not_looked_for(opened: Open, name: str) -> None:
    with pytest.raises(NotFound):
        opened().find(name)


def test_what_is_not_a_picture_of_ours_stays(s3: Any, tmp_path: Path) -> None:
    ours = "A" * 32 + ".png"
    for key in (f"x/{ours}", "x/notes.txt", f"x/deeper/{ours}", ours, f"xy/{ours}"):
        s3.client.put_object(Bucket=BUCKET, Key=key, Body=b"1")
        path = tmp_path / "store" / key
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"1")
    time.sleep(1.1)
    for settings in (
        s3_settings(s3.port, "x", result_seconds=0.01),
        Settings(mcp_store=str(tmp_path / "store/x"), result_seconds=0.01),
    ):
        open_store(settings).clean()
    left = {entry["Key"] for entry in s3.client.list_objects_v2(Bucket=BUCKET)["Contents"]}
    assert {"x/notes.txt", f"x/deeper/{ours}", ours, f"xy/{ours}"} <= left
    assert f"x/{ours}" not in left
    files = {str(path.relative_to(tmp_path / "store")) for path in tmp_path.rglob("*.*")}
    assert files == {"x/notes.txt", f"x/deeper/{ours}", ours, f"xy/{ours}"}


def test_a_link_in_the_folder_leads_nowhere(tmp_path: Path) -> None:
    secret, name = tmp_path / "secret", "L" * 32 + ".png"
    secret.write_bytes(b"secret")
    store = open_store(Settings(mcp_store=str(tmp_path / "store")))
    (tmp_path / "store" / name).symlink_to(secret)
    with pytest.raises(StoreFailed):
        store.find(name)


@contextmanager
def small_disk(limit: int) -> Iterator[None]:
    """No file of this process may grow beyond `limit` bytes, as on a disk that is full."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_full_disk_leaves_nothing_half_written(tmp_path: Path) -> None:
    store = open_store(Settings(mcp_store=str(tmp_path)))
    kept = store.put(b"small", "png")
    with small_disk(4096), pytest.raises(StoreFailed, match=f"kept in {tmp_path}: File too large"):
        store.put(bytes(100_000), "png")
    assert [path.name for path in tmp_path.iterdir()] == [kept.name]
    assert store.read(store.put(bytes(100_000), "png")) == bytes(100_000)


WRITER = """
from pathlib import Path
from atelier.agents.file_store import FileStore
store = FileStore(Path({folder!r}), 3600, 2**40)
print("here", flush=True)
while True:
    store.put(bytes(2_000_000), "png")
"""


def test_a_crash_leaves_no_half_written_picture(tmp_path: Path) -> None:
    for patience in (0.05, 0.15, 0.25):
        program = WRITER.format(folder=str(tmp_path))
        environment = os.environ | {"PYTHONPATH": str(ROOT / "runtime")}
        writer = subprocess.Popen(
            [sys.executable, "-c", program], stdout=subprocess.PIPE, env=environment
        )
        assert writer.stdout and writer.stdout.readline()
        time.sleep(patience)
        writer.send_signal(signal.SIGKILL)
        writer.wait()
    names = [path for path in tmp_path.iterdir() if NAME.fullmatch(path.name)]
    assert names and {path.stat().st_size for path in names} == {2_000_000}
    abandoned = tmp_path / f".{'U' * 32}.png.part"
    abandoned.write_bytes(b"half")
    hours_ago = time.time() - 7200
    os.utime(abandoned, (hours_ago, hours_ago))
    open_store(Settings(mcp_store=str(tmp_path))).clean()
    assert not abandoned.exists()


def test_an_s3_server_that_is_down_is_named(s3: Any) -> None:
    store = open_store(s3_settings(free_port(), "x"))
    for act in (lambda: store.put(b"1", "png"), lambda: store.find("A" * 32 + ".png"), store.clean):
        with pytest.raises(StoreFailed, match=r"AWS_S3_ENDPOINT=.* does not answer"):
            act()
    other = s3_settings(s3.port, "x").model_copy(update={"mcp_store": "s3://missing/x"})
    with pytest.raises(StoreFailed, match=r"no bucket 'missing' .* MCP_STORE"):
        open_store(other).put(b"1", "png")
    assert not s3.client.list_objects_v2(Bucket=BUCKET, Prefix="x/A").get("Contents")


@pytest.fixture
def faulty(s3: Any) -> Iterator[Proxy]:
    with proxy(s3.port) as between:
        yield between


def test_a_body_that_breaks_off_is_no_picture(s3: Any, faulty: Proxy) -> None:
    name = open_store(s3_settings(s3.port, "cut")).put(bytes(100_000), "png").name
    store = open_store(s3_settings(faulty.port, "cut"))
    found = store.find(name)
    faulty.plan = lambda method, path, headers: Fault(cut=50_000) if method == "GET" else None
    with pytest.raises(StoreFailed, match="picture store failed"):
        store.read(found)
    faulty.plan = lambda method, path, headers: Fault(status=503)
    with pytest.raises(StoreFailed, match=r"SlowDown|503"):
        store.read(found)
    faulty.plan = None
    assert store.read(found) == bytes(100_000)


def test_a_store_that_cannot_be_had_is_told_at_the_start(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(StartError, match=r"MCP_STORE=.* cannot be made"):
        open_store(Settings(mcp_store=str(tmp_path / "file" / "store")))
    with pytest.raises(SourceError, match="names no bucket"):
        open_store(Settings(mcp_store="s3:///x"))


def test_a_presigned_url_reads_the_picture(s3: Any) -> None:
    store = open_store(s3_settings(s3.port, "signed"))
    answer = httpx.get(store.link(store.put(b"data", "jpeg")))
    assert (answer.content, answer.headers["content-type"]) == (b"data", "image/jpeg")


@pytest.fixture
def over_s3(s3: Any, shapes: Server, tmp_path: Path) -> Iterator[McpServer]:
    """An MCP server whose pictures are in S3, for some seconds."""
    environment = {
        "MCP_STORE": f"s3://{BUCKET}/served",
        "MCP_ENDPOINT_KEY": "of-the-endpoint",
        "AWS_S3_ENDPOINT": f"http://127.0.0.1:{s3.port}",
        "AWS_ACCESS_KEY_ID": "key",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "RESULT_SECONDS": "5",
    }
    with mcp_server(tmp_path, shapes.url, **environment) as server:
        yield server


async def test_pictures_in_s3_are_served_cleaned_and_missed(over_s3: McpServer, s3: Any) -> None:
    arguments = {"prompt": "a red circle", "size": "64x64", "steps": 2}
    async with http_client(over_s3.url) as client, httpx.AsyncClient() as http:
        result = await client.call_tool("generate_image", arguments)
        (told,) = result.structured_content["pictures"]
        assert told["url"].startswith(f"{over_s3.url}/images/")
        part = await http.get(told["url"], headers={"Range": "bytes=0-7"})
        assert (part.status_code, part.content) == (206, b"\x89PNG\r\n\x1a\n")

        s3.client.delete_object(Bucket=BUCKET, Key=f"served/{told['name']}")
        gone = await http.get(told["url"])
        assert gone.status_code == 404 and "is not here" in gone.json()["error"]

        for entry in s3.client.list_objects_v2(Bucket=BUCKET).get("Contents", ()):
            s3.client.delete_object(Bucket=BUCKET, Key=entry["Key"])
        s3.client.delete_bucket(Bucket=BUCKET)
        try:
            lost = await client.call_tool("generate_image", arguments)
        finally:
            s3.client.create_bucket(Bucket=BUCKET)
        assert not lost.is_error and [one.type for one in lost.content] == ["text", "image"]
        assert lost.structured_content["pictures"][0]["url"] is None
        (warning,) = lost.structured_content["warnings"]
        assert re.search("not kept .* no bucket", warning)

        kept = await client.call_tool("generate_image", arguments)
        name = kept.structured_content["pictures"][0]["name"]
        ends = time.monotonic() + 15
        while s3.client.list_objects_v2(Bucket=BUCKET).get("Contents"):
            assert time.monotonic() < ends, f"{name} was not cleaned up"
            time.sleep(0.2)  # noqa: ASYNC251 - nothing else runs here
