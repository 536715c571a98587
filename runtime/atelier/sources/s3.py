"""Weights from an S3-compatible store: `s3://bucket/prefix`, or `s3:///prefix` with the bucket of
AWS_S3_BUCKET.

The prefix is a folder: `sd` takes what lies under `sd/`, never `sd-refiner/`. How objects are
brought is `transfer.py`'s work, whether they are right `checksums.py`'s, where they land
`landing.py`'s.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

from atelier.errors import SourceError
from atelier.settings import Settings
from atelier.sources import crt
from atelier.sources.landing import check_space, holds, land
from atelier.sources.part_file import Object
from atelier.sources.progress import Progress
from atelier.sources.transfer import WORKERS, Transfer, missing_bytes, retried
from atelier.units import gib

log = logging.getLogger(__name__)

CONNECT_SECONDS = 10
READ_SECONDS = 60


@dataclass(frozen=True)
class Address:
    """A place in a store. `prefix` has no slash at either end."""

    bucket: str
    prefix: str

    def __str__(self) -> str:
        return f"s3://{self.bucket}/{self.prefix}"


def fetch(
    settings: Settings, *, into: Path | None = None, progress: Progress | None = None
) -> Path:
    """Bring everything under the address MODEL_ID into a folder, or a single object into a file in
    that folder.

    Args:
        into: the folder to fill; empty: one under CACHE_DIR named after the store and the address.
        progress: told of bytes done and bytes in all, from the threads that download.

    Raises:
        SourceError: address, credentials, endpoint, content or disk stand in the way; the message
            names which.
    """
    address = parse(settings.model_id, settings.aws_s3_bucket)
    with explained(settings, address):
        client = make_client(settings)
        objects = list_objects(client, address)
        target = into or cache_folder(settings, address)
        large = any(one.size >= crt.WORTH_BYTES for one in objects)
        whole = crt.whole_objects(client, address.bucket, settings.aws_ca_bundle) if large else None
        transfer = Transfer(client, address.bucket, progress, whole)

        def fill(staging: Path) -> None:
            check_space(staging, missing_bytes(staging, objects), str(address))
            transfer.bring(objects, staging)

        land(target, str(address), _versions(objects), fill)
    return target / objects[0].path if is_single(objects, address) else target


def outlook(settings: Settings) -> tuple[Path | None, str, int]:
    """For `doctor`: the folder if it was fetched and is still current; else what a fetch would
    bring, in words and bytes.

    Raises:
        SourceError: as `fetch`.
    """
    address = parse(settings.model_id, settings.aws_s3_bucket)
    with explained(settings, address):
        objects = list_objects(make_client(settings), address)
    target = cache_folder(settings, address)
    if holds(target, str(address), _versions(objects)):
        return (target / objects[0].path if is_single(objects, address) else target), "", 0
    lacking = missing_bytes(target.with_name(f"{target.name}.partial"), objects)
    return None, f"{len(objects)} objects, {gib(lacking)} to fetch", lacking


def file_names(settings: Settings) -> list[str]:
    """The objects below MODEL_ID, as `fetch` would lay them down.

    Raises:
        SourceError: as `fetch`.
    """
    address = parse(settings.model_id, settings.aws_s3_bucket)
    with explained(settings, address):
        return [one.path for one in list_objects(make_client(settings), address)]


def _versions(objects: list[Object]) -> dict[str, str]:
    return {one.path: one.etag for one in objects}


def is_single(objects: list[Object], address: Address) -> bool:
    """Whether the address names one object, not a folder."""
    return len(objects) == 1 and objects[0].key == address.prefix


def parse(model_id: str, default_bucket: str) -> Address:
    """The address that MODEL_ID means."""
    bucket, _, prefix = model_id.removeprefix("s3://").partition("/")
    if not bucket and not default_bucket:
        raise SourceError(
            f"MODEL_ID={model_id} names no bucket: set AWS_S3_BUCKET or write s3://bucket/prefix"
        )
    return Address(bucket or default_bucket, prefix.strip("/"))


def cache_folder(settings: Settings, address: Address) -> Path:
    """Where an address is kept: readable, and apart for each endpoint."""
    name = address.prefix.replace("/", "--") or "all"
    if name.replace("--", "/") != address.prefix and address.prefix:
        name += f"-{_digest(address.prefix)}"  # `p--q` may not share a folder with `p/q`
    store = _digest(settings.aws_s3_endpoint)
    return settings.cache_dir / "models" / f"s3-{store}" / address.bucket / name


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def make_client(settings: Settings) -> Any:
    """A boto3 client. Without AWS_ACCESS_KEY_ID, boto3's own chain applies (web identity, instance
    roles).

    Retries are left to `transfer.retried`, which also covers a body that breaks off half-way.
    """
    import boto3
    from botocore.config import Config

    def secret(value: Any) -> str | None:
        return value.get_secret_value() if value else None

    endpoint = settings.aws_s3_endpoint
    if endpoint and "://" not in endpoint:
        endpoint = f"https://{endpoint}"  # data connections are often written without a scheme
    session = boto3.session.Session(
        aws_access_key_id=secret(settings.aws_access_key_id),
        aws_secret_access_key=secret(settings.aws_secret_access_key),
        aws_session_token=secret(settings.aws_session_token),
        region_name=settings.aws_default_region,
    )
    config = Config(
        s3={"addressing_style": "path" if endpoint else "auto"},
        signature_version="s3v4",
        retries={"total_max_attempts": 1, "mode": "standard"},
        max_pool_connections=WORKERS + 2,
        connect_timeout=CONNECT_SECONDS,
        read_timeout=READ_SECONDS,
        request_checksum_calculation="when_required",
        response_checksum_validation="when_required",
    )
    return session.client(
        "s3", endpoint_url=endpoint or None, verify=settings.aws_ca_bundle or None, config=config
    )


def list_objects(client: Any, address: Address) -> list[Object]:
    """The objects under the address, with their paths in the folder to be.

    Raises:
        SourceError: there are none, or a key would leave the folder or stand in another's way.
    """
    folder = f"{address.prefix}/" if address.prefix else ""
    found = [
        Object(entry["Key"], _safe_path(entry["Key"], folder), entry["Size"], entry["ETag"])
        for entry in _entries(client, Bucket=address.bucket, Prefix=folder)
        if not entry["Key"].endswith("/")  # a console's marker of a folder
    ]
    if not found and address.prefix:
        for entry in _entries(client, Bucket=address.bucket, Prefix=address.prefix):
            if entry["Key"] == address.prefix:
                found = [
                    Object(
                        entry["Key"], PurePosixPath(entry["Key"]).name, entry["Size"], entry["ETag"]
                    )
                ]
    if not found:
        raise SourceError(
            f"{address} is empty: no object begins with {folder!r}; {_beside(client, address)}"
        )
    paths: dict[str, Object] = {}
    for one in found:
        if one.path in paths:
            raise SourceError(
                f"{address} holds {paths[one.path].key!r} and {one.key!r}: both would be the file"
                f" {one.path!r}"
            )
        paths[one.path] = one
    for one in found:
        above = next(
            (str(parent) for parent in PurePosixPath(one.path).parents if str(parent) in paths),
            None,
        )
        if above:
            raise SourceError(
                f"{address} holds both {above!r} and {one.path!r}: a file cannot be a folder as"
                " well"
            )
    return found


def _entries(client: Any, **where: str) -> Iterator[dict[str, Any]]:
    token: dict[str, str] = {}
    while True:
        page = retried(
            partial(client.list_objects_v2, **where, **token), f"listing s3://{where['Bucket']}"
        )
        yield from page.get("Contents", ())
        if not page.get("IsTruncated"):
            return
        token = {"ContinuationToken": page["NextContinuationToken"]}


def _safe_path(key: str, folder: str) -> str:
    """The key's path in the folder. Empty parts, as a slash too many in an upload makes them, are
    passed over."""
    parts = [part for part in key.removeprefix(folder).split("/") if part]
    if "\\" in key or "\0" in key or not parts or {".", ".."} & set(parts):
        raise SourceError(f"the object key {key!r} would leave its folder: it is refused")
    return "/".join(parts)


def _beside(client: Any, address: Address) -> str:
    """What there is instead, for the message."""
    parent = address.prefix.rpartition("/")[0]
    above = f"{parent}/" if parent else ""
    page = client.list_objects_v2(Bucket=address.bucket, Prefix=above, Delimiter="/", MaxKeys=20)
    names = [one["Prefix"].removeprefix(above) for one in page.get("CommonPrefixes", ())]
    return f"beside it are: {', '.join(names)}" if names else "the bucket holds no folder there"


@contextmanager
def explained(settings: Settings, address: Address) -> Iterator[None]:
    """Say what boto3's errors mean in terms of settings. The store's own message is left out: it
    may quote keys."""
    from botocore import exceptions

    endpoint = settings.aws_s3_endpoint or "AWS"
    try:
        yield
    except exceptions.ClientError as error:
        raise SourceError(_refusal(error, address, endpoint)) from None
    except (exceptions.NoCredentialsError, exceptions.PartialCredentialsError):
        raise SourceError(f"{address}: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY") from None
    except exceptions.SSLError as error:
        hint = f"AWS_CA_BUNDLE={settings.aws_ca_bundle or '(unset)'}"
        raise SourceError(
            f"{address}: the certificate of {endpoint} is not trusted ({hint}): {error}"
        ) from None
    except (
        exceptions.EndpointConnectionError,
        exceptions.ConnectTimeoutError,
        exceptions.HTTPClientError,
    ) as error:
        raise SourceError(
            f"{address}: AWS_S3_ENDPOINT={endpoint} does not answer: {error}"
        ) from None
    except (exceptions.BotoCoreError, ValueError) as error:
        raise SourceError(f"{address}: {error}") from None


def _refusal(error: Any, address: Address, endpoint: str) -> str:
    code = str(error.response.get("Error", {}).get("Code", "unknown"))
    status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode")
    if code == "NoSuchBucket":
        return (
            f"{address}: there is no bucket {address.bucket!r} at {endpoint}: look at MODEL_ID and"
            " AWS_S3_BUCKET"
        )
    if code == "RequestTimeTooSkewed":
        return f"{address}: {endpoint} refuses this machine's clock ({code}): set it right"
    if status in (401, 403):
        return (
            f"{address}: {endpoint} refuses access ({code}): look at AWS_ACCESS_KEY_ID,"
            " AWS_SECRET_ACCESS_KEY and AWS_DEFAULT_REGION, and whether they may list and read"
            f" bucket {address.bucket!r}"
        )
    return f"{address}: {endpoint} answered {code} (HTTP {status})"
