"""Brings the subject's pictures from where they are: an S3 prefix, an archive behind a URL, or a
mounted folder."""

from __future__ import annotations

import hashlib
import shutil
import stat
import tarfile
import zipfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory
from urllib.parse import urlsplit

from atelier.sources.checkpoint.listing import is_left_behind
from atelier_training.dreambooth.data import SUFFIXES, is_picture
from atelier_training.dreambooth.errors import DataError

LARGEST_BYTES = 4 * 2**30  # of an archive, packed or unpacked
MOST_FILES = 20_000


def get_data(source: str, folder: Path, sha256: str = "") -> int:
    """Put pictures and caption files from `source` into `folder`; returns the number of pictures.

    Raises:
        DataError: the source cannot be reached, is not what the checksum says, or holds no
            pictures.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory() as scratch:
        if source.startswith("s3://"):
            _take(_from_s3(source, Path(scratch) / "s3"), folder)
        elif source.startswith(("https://", "http://")):
            archive = download(source, Path(scratch), sha256)
            unpack(archive, Path(scratch) / "unpacked")
            _take(Path(scratch) / "unpacked", folder)
        else:
            _take(Path(source), folder)
    pictures = sum(is_picture(path.name) for path in folder.iterdir())
    if not pictures:
        raise DataError(f"{source} holds no pictures; readable: {', '.join(sorted(SUFFIXES))}")
    return pictures


def _from_s3(source: str, into: Path) -> Path:
    from atelier.errors import SourceError
    from atelier.settings import load_settings
    from atelier.sources import fetch

    try:
        return fetch(load_settings(model_id=source), into=into)
    except SourceError as error:
        raise DataError(error.message) from None


def download(url: str, folder: Path, sha256: str) -> Path:
    """The file behind `url`, checked.

    Raises:
        DataError: no checksum is given, the server refuses, the file is too large or not the
            expected one.
    """
    if len(sha256) != 64:
        raise DataError(f"{url} needs a checksum: give its SHA-256 in hexadecimal, not {sha256!r}")
    import httpx

    path, digest, size = folder / PurePosixPath(urlsplit(url).path).name, hashlib.sha256(), 0
    try:
        with (
            httpx.stream("GET", url, follow_redirects=True, timeout=60) as answer,
            path.open("wb") as file,
        ):
            answer.raise_for_status()
            for chunk in answer.iter_bytes(2**20):
                size += len(chunk)
                if size > LARGEST_BYTES:
                    raise DataError(f"{url} is larger than {LARGEST_BYTES >> 30} GiB")
                digest.update(chunk)
                file.write(chunk)
    except httpx.HTTPError as error:
        raise DataError(f"{url} cannot be fetched: {error}") from None
    if digest.hexdigest() != sha256.lower():
        raise DataError(f"{url} has SHA-256 {digest.hexdigest()}, not {sha256}")
    return path


def unpack(archive: Path, folder: Path) -> None:
    """Unpack pictures and captions of a zip or tar file; nothing else is written, and nothing
    outside `folder`.

    Raises:
        DataError: it is neither, its members would leave the folder, or it unpacks to too much.
    """
    folder.mkdir(parents=True)
    try:
        members = list(_members(archive))
    except (tarfile.TarError, zipfile.BadZipFile, OSError, EOFError) as error:
        raise DataError(f"{archive.name} cannot be unpacked: {error}") from None
    if len(members) > MOST_FILES or sum(size for _, size in members) > LARGEST_BYTES:
        raise DataError(
            f"{archive.name} unpacks to more than {MOST_FILES} files or {LARGEST_BYTES >> 30} GiB"
        )
    for name, _ in members:
        path = PurePosixPath(name)
        if path.is_absolute() or ".." in path.parts or "\\" in name:
            raise DataError(
                f"{archive.name} holds {name!r}, which would leave its folder; nothing was unpacked"
            )
    if zipfile.is_zipfile(archive):
        with zipfile.ZipFile(archive) as packed:
            for name, _ in members:
                packed.extract(name, folder)
        return
    with tarfile.open(archive) as tape:
        for name, _ in members:
            tape.extract(name, folder, filter="data")


def _members(archive: Path) -> Iterator[tuple[str, int]]:
    """Names and unpacked sizes of the regular files that are wanted."""
    if zipfile.is_zipfile(archive):
        with zipfile.ZipFile(archive) as packed:
            for info in packed.infolist():
                if not stat.S_ISLNK(info.external_attr >> 16) and _wanted(info.filename):
                    yield info.filename, info.file_size
        return
    with tarfile.open(archive) as tape:
        for member in tape:
            if member.isfile() and _wanted(member.name):
                yield member.name, member.size


def _wanted(name: str) -> bool:
    """A caption file or a picture. Pictures that cannot be read come along: training names them
    together with all other faults."""
    path = PurePosixPath(name)
    if any(map(is_left_behind, path.parts)):  # thumbnails, and copies that notebooks keep
        return False
    return path.suffix.lower() == ".txt" or is_picture(path.name)


def _take(source: Path, folder: Path) -> None:
    """Copy what is wanted, flat; two files of one name are refused."""
    if not source.is_dir():
        raise DataError(f"{source} is not a folder")
    for path in sorted(path for path in source.rglob("*") if path.is_file()):
        if not _wanted(path.relative_to(source).as_posix()):
            continue
        target = folder / path.name
        if target.exists():
            raise DataError(f"{source} holds two files named {path.name}")
        shutil.copyfile(path, target)
