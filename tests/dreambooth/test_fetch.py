"""Pictures come from S3, from a checked archive or from a folder, and nothing else comes along."""

from __future__ import annotations

import hashlib
import io
import tarfile
import threading
import zipfile
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import boto3
import pytest

from atelier_training.dreambooth.errors import DataError
from atelier_training.dreambooth.fetch import get_data, unpack


@pytest.fixture
def web(tmp_path: Path) -> Iterator[tuple[Path, str]]:
    """A folder, and the address at which its files are served."""
    folder = tmp_path / "web"
    folder.mkdir()
    handler = partial(SimpleHTTPRequestHandler, directory=str(folder))
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield folder, f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def zipped(path: Path, members: dict[str, bytes]) -> str:
    """Write a zip file; its SHA-256."""
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_an_archive_is_checked_and_only_pictures_and_captions_are_unpacked(
    web: tuple[Path, str], tmp_path: Path
) -> None:
    folder, address = web
    members = {
        "ring/1.png": b"one",
        "ring/1.txt": b"a ring",
        "ring/run.sh": b"#!",
        "__MACOSX/._1.png": b"",
    }
    checksum = zipped(folder / "ring.zip", members)
    assert get_data(f"{address}/ring.zip", tmp_path / "data", checksum) == 1
    assert sorted(path.name for path in (tmp_path / "data").iterdir()) == ["1.png", "1.txt"]


def test_a_wrong_or_missing_checksum_is_refused(web: tuple[Path, str], tmp_path: Path) -> None:
    folder, address = web
    zipped(folder / "ring.zip", {"1.png": b"one"})
    with pytest.raises(DataError, match="needs a checksum"):
        get_data(f"{address}/ring.zip", tmp_path / "data")
    with pytest.raises(DataError, match=f"not {'0' * 64}"):
        get_data(f"{address}/ring.zip", tmp_path / "data", "0" * 64)
    with pytest.raises(DataError, match=r"ring\.tar cannot be fetched"):
        get_data(f"{address}/ring.tar", tmp_path / "data", "0" * 64)


@pytest.mark.parametrize("name", ["../outside.png", "/outside.png", "a/../../outside.png"])
def test_members_that_would_leave_the_folder_are_refused(name: str, tmp_path: Path) -> None:
    zipped(tmp_path / "evil.zip", {"1.png": b"one", name: b"evil"})
    with tarfile.open(tmp_path / "evil.tar", "w") as tape:
        tape.addfile(tarfile.TarInfo(name), io.BytesIO())
    for archive in ("evil.zip", "evil.tar"):
        with pytest.raises(DataError, match="would leave its folder"):
            unpack(tmp_path / archive, tmp_path / f"{archive}.folder")
    assert not list(tmp_path.rglob("outside.png"))


def test_links_in_an_archive_are_left_out(tmp_path: Path) -> None:
    link = tarfile.TarInfo("link.png")
    link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
    with tarfile.open(tmp_path / "links.tar", "w") as tape:
        tape.addfile(link)
        tape.addfile(tarfile.TarInfo("1.png"), io.BytesIO())
    unpack(tmp_path / "links.tar", tmp_path / "out")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["1.png"]


def test_a_file_that_is_no_archive_is_named(tmp_path: Path) -> None:
    (tmp_path / "ring.zip").write_bytes(b"nothing")
    with pytest.raises(DataError, match=r"ring\.zip cannot be unpacked"):
        unpack(tmp_path / "ring.zip", tmp_path / "out")


def test_an_s3_prefix_is_a_folder(s3: str, tmp_path: Path) -> None:
    client = boto3.client("s3", endpoint_url=s3)
    for key in ("ring/1.png", "ring/1.txt", "ring-old/2.png"):
        client.put_object(Bucket="atelier", Key=key, Body=key.encode())
    assert get_data("s3://atelier/ring", tmp_path / "data") == 1
    assert sorted(path.name for path in (tmp_path / "data").iterdir()) == ["1.png", "1.txt"]
    with pytest.raises(DataError, match="s3://atelier/rings is empty"):
        get_data("s3://atelier/rings", tmp_path / "other")


def test_a_folder_without_pictures_is_named(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="holds no pictures"):
        get_data(str(tmp_path / "empty"), tmp_path / "data")


def test_copies_and_thumbnails_that_tools_keep_do_not_come_along(tmp_path: Path) -> None:
    for name in (
        "ring/1.PNG",
        "ring/1.TXT",
        "ring/.ipynb_checkpoints/1-checkpoint.png",
        "ring/@eaDir/1.png/SYNOPHOTO_THUMB_M.jpg",
        "__MACOSX/ring/2.png",
        "ring/._1.PNG",
    ):
        (tmp_path / "from" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "from" / name).write_bytes(b"x")
    assert get_data(str(tmp_path / "from"), tmp_path / "to") == 1
    assert sorted(path.name for path in (tmp_path / "to").iterdir()) == ["1.PNG", "1.TXT"]
