"""Stores a training under a versioned S3 prefix. The manifest comes last: where there is one, the
version is whole.

The version is the hash of the weights, of how they came about and of their scores, but not of how
long that took: a rerun after a fault completes the same prefix and uploads only what lacks, and a
training that comes out equal is the version that is there already.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from atelier.errors import SourceError
from atelier.settings import Settings, load_settings
from atelier.sources import s3
from atelier_training.dreambooth.adaptation import LORA_FILE
from atelier_training.dreambooth.card import CARD, RECORD, read_record
from atelier_training.dreambooth.errors import PublishError

MANIFEST = "manifest.json"


@dataclass(frozen=True)
class Published:
    """Where a version lies: `s3://bucket/prefix/version`, the folder to serve from, and whether it
    is an adapter."""

    uri: str
    version: str
    is_adapter: bool


@dataclass(frozen=True)
class StoredFile:
    path: Path
    key: str
    sha256: str

    @property
    def size(self) -> int:
        return self.path.stat().st_size


def publish(trained: Path, destination: str, extra: dict[str, Path] | None = None) -> Published:
    """Upload the training in folder `trained`, and `extra` files by key, below `destination`
    (s3://bucket/prefix).

    Raises:
        PublishError: the folder holds no result, or the store failed; no manifest was written then.
    """
    settings = load_settings(model_id=destination)
    files = [*result_files(trained), *(_stored(path, key) for key, path in (extra or {}).items())]
    record = read_record(trained)
    version = _version(files, record)
    listing = {file.key: {"size": file.size, "sha256": file.sha256} for file in files}
    try:
        address = s3.parse(destination, settings.aws_s3_bucket)
    except SourceError as error:
        raise PublishError(error.message) from None
    prefix = f"{address.prefix}/{version}".strip("/")
    uri = f"s3://{address.bucket}/{prefix}"
    manifest = {
        "version": version,
        "uri": uri,
        "kind": "adapter" if is_adapter(trained) else "pipeline",
        **{
            name: record[name]
            for name in ("base_model", "pipeline_class", "data", "scores", "versions")
        },
        "files": listing,
    }
    _upload(settings, address, prefix, files, json.dumps(manifest, indent=2).encode())
    return Published(uri, version, is_adapter(trained))


def _version(files: list[StoredFile], record: dict[str, Any]) -> str:
    made = {file.key: file.sha256 for file in files if file.key not in (CARD, RECORD)}
    about = {name: value for name, value in record.items() if name != "result"}
    return hashlib.sha256(json.dumps([made, about], sort_keys=True).encode()).hexdigest()[:12]


def is_adapter(trained: Path) -> bool:
    """Whether a training made an adapter; else it made a whole pipeline."""
    return (trained / LORA_FILE).is_file()


def result_files(trained: Path) -> Iterator[StoredFile]:
    """What a training made, card and record first.

    Raises:
        PublishError: it is not finished.
    """
    names = [CARD, RECORD, *([LORA_FILE] if is_adapter(trained) else [])]
    for name in names:
        if not (trained / name).is_file():
            raise PublishError(f"{trained} holds no finished training: {name} is missing")
        yield _stored(trained / name, name)
    for path in sorted((trained / "model").rglob("*")) if not is_adapter(trained) else ():
        if path.is_file():
            yield _stored(path, str(path.relative_to(trained)))


def _stored(path: Path, key: str) -> StoredFile:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(1 << 20):
            digest.update(piece)
    return StoredFile(path, key, digest.hexdigest())


def _upload(
    settings: Settings, address: s3.Address, prefix: str, files: list[StoredFile], manifest: bytes
) -> None:
    from boto3.exceptions import Boto3Error
    from botocore.exceptions import BotoCoreError, ClientError

    client = s3.make_client(settings)
    try:
        if _head(client, address.bucket, f"{prefix}/{MANIFEST}") is not None:
            return  # whole
        for file in files:
            if not _is_there(client, address.bucket, f"{prefix}/{file.key}", file):
                extra = {"Metadata": {"sha256": file.sha256}}
                client.upload_file(
                    str(file.path), address.bucket, f"{prefix}/{file.key}", ExtraArgs=extra
                )
        client.put_object(
            Bucket=address.bucket,
            Key=f"{prefix}/{MANIFEST}",
            Body=manifest,
            ContentType="application/json",
        )
    except (Boto3Error, BotoCoreError, ClientError) as error:
        raise PublishError(
            f"s3://{address.bucket}/{prefix} is not complete and has no manifest: {error}; run"
            " again to complete it"
        ) from None


def _is_there(client: Any, bucket: str, key: str, file: StoredFile) -> bool:
    head = _head(client, bucket, key)
    return bool(
        head
        and head["ContentLength"] == file.size
        and head["Metadata"].get("sha256") == file.sha256
    )


def _head(client: Any, bucket: str, key: str) -> Any:
    """What the store says of an object; None if it is not there."""
    from botocore.exceptions import ClientError

    try:
        return client.head_object(Bucket=bucket, Key=key)
    except ClientError as error:
        if error.response["ResponseMetadata"]["HTTPStatusCode"] == 404:
            return None
        raise
