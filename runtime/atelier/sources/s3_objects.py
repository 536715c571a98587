"""Objects of ours below one prefix of an S3 store, written and read whole or in ranges: an object
appears whole or not at all. Endpoint and keys are those of the settings, as everywhere."""

from __future__ import annotations

import base64
import hashlib
import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

from botocore import exceptions

from atelier.errors import SourceError, StoreFailed
from atelier.settings import Settings
from atelier.sources.s3 import Address, explained, make_client
from atelier.sources.transfer import retried

log = logging.getLogger(__name__)

BATCH = 1000
"""Keys of one DeleteObjects call (S3 API reference)."""

LONGEST_LINK_SECONDS = 7 * 24 * 3600
"""Of a presigned URL (signature version 4)."""

ATTEMPTS = 3
"""Someone waits for a write."""


@dataclass(frozen=True)
class ObjectInfo:
    """What the store says of one object: its name below the prefix, its bytes, and when it was
    written, in seconds since the epoch."""

    name: str
    size: int
    created: float


class S3Objects:
    """One prefix; for any thread. Its methods block, and raise StoreFailed in words that name
    `variable` where the address is at fault."""

    def __init__(
        self, settings: Settings, address: Address, variable: str, client: Any = None
    ) -> None:
        self.address = address
        self._settings = settings
        self._variable = variable
        self._folder = f"{address.prefix}/" if address.prefix else ""
        self._client = client or make_client(settings)

    def key(self, name: str) -> str:
        """The whole key of an object."""
        return self._folder + name

    def put(self, name: str, data: bytes, media_type: str) -> None:
        """Write an object, in one try."""
        with self._told():
            self._put(name, data, media_type)

    def put_surely(self, name: str, data: bytes, media_type: str) -> None:
        """Write an object, again after passing faults, and see that it is there as it was sent:
        servers between may answer for a store that never heard of it."""
        with self._told():
            retried(partial(self._put, name, data, media_type), f"writing {name}", tries=ATTEMPTS)
            found = retried(
                partial(self._client.head_object, **self._where(name)),
                f"looking for {name}",
                tries=ATTEMPTS,
            )
        if fault := _difference(found, data):
            self.remove([name])
            raise StoreFailed(
                f"the store failed: {self.address} holds {name} otherwise than it was sent: {fault}"
            )

    def _put(self, name: str, data: bytes, media_type: str) -> None:
        digest = hashlib.md5(data, usedforsecurity=False).digest()
        self._client.put_object(
            **self._where(name),
            Body=data,
            ContentType=media_type,
            ContentMD5=base64.b64encode(digest).decode(),
        )

    def link(self, name: str, seconds: float) -> str:
        """A presigned URL, for at most a week."""
        left = max(1, int(min(seconds, LONGEST_LINK_SECONDS)))
        url = self._client.generate_presigned_url(
            "get_object", Params=self._where(name), ExpiresIn=left
        )
        return str(url)

    def look(self, name: str) -> ObjectInfo | None:
        """What is there; None if nothing is."""
        with self._told():
            try:
                found = self._client.head_object(**self._where(name))
            except exceptions.ClientError as error:
                if _missing(error):
                    return None
                raise
        return ObjectInfo(name, found["ContentLength"], found["LastModified"].timestamp())

    def read(self, name: str, start: int, end: int) -> bytes | None:
        """The bytes from `start` up to `end`; None if the object is gone."""
        if start == end:
            return b""
        with self._told():
            try:
                found = self._client.get_object(
                    **self._where(name), Range=f"bytes={start}-{end - 1}"
                )
                return bytes(found["Body"].read())
            except exceptions.ClientError as error:
                if _missing(error):
                    return None
                raise

    def entries(self) -> Iterator[ObjectInfo]:
        """Everything below the prefix."""
        with self._told():
            pages = self._client.get_paginator("list_objects_v2").paginate(
                Bucket=self.address.bucket, Prefix=self._folder
            )
            for page in pages:
                for entry in page.get("Contents", ()):
                    name = entry["Key"].removeprefix(self._folder)
                    yield ObjectInfo(name, entry["Size"], entry["LastModified"].timestamp())

    def remove(self, names: list[str]) -> None:
        """Remove objects; those that the store keeps are named in the log."""
        with self._told():
            for first in range(0, len(names), BATCH):
                keys = [{"Key": self.key(name)} for name in names[first : first + BATCH]]
                done = self._client.delete_objects(
                    Bucket=self.address.bucket, Delete={"Objects": keys, "Quiet": True}
                )
                for refused in done.get("Errors", ()):
                    log.warning("%s is not removed: %s", refused["Key"], refused.get("Code"))

    def _where(self, name: str) -> dict[str, str]:
        return {"Bucket": self.address.bucket, "Key": self.key(name)}

    @contextmanager
    def _told(self) -> Iterator[None]:
        """What boto3 says, in terms of settings."""
        try:
            with explained(self._settings, self.address):
                yield
        except SourceError as error:
            words = error.message.replace("MODEL_ID", self._variable)
            raise StoreFailed(f"the picture store failed: {words}") from None


def _missing(error: exceptions.ClientError) -> bool:
    return str(error.response.get("Error", {}).get("Code")) in ("404", "NoSuchKey", "NotFound")


def _difference(found: dict[str, Any], data: bytes) -> str | None:
    """What differs between an object and what was sent, as far as the store tells: an ETag is an
    MD5, unless a key of KMS or of the caller encrypts the object."""
    if found["ContentLength"] != len(data):
        return f"{found['ContentLength']} bytes instead of {len(data)}"
    etag = found.get("ETag", "").strip('"')
    opaque = found.get("SSEKMSKeyId") or found.get("SSECustomerAlgorithm")
    digest = hashlib.md5(data, usedforsecurity=False).hexdigest()
    if re.fullmatch(r"[0-9a-f]{32}", etag) and not opaque and etag != digest:
        return f"MD5 {etag} instead of {digest}"
    return None
