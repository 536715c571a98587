"""Pictures in an S3 bucket, below one prefix: an object appears whole or not at all. Endpoint and
keys are those of the settings, as everywhere."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

from botocore import exceptions

from atelier.agents.store import NAME, PictureStore, StoredPicture, media_type
from atelier.errors import SourceError, StoreFailed
from atelier.settings import Settings
from atelier.sources.s3 import Address, explained, make_client, parse

log = logging.getLogger(__name__)

BATCH = 1000
"""Keys of one DeleteObjects call (S3 API reference)."""

LONGEST_LINK_SECONDS = 7 * 24 * 3600
"""Of a presigned URL (signature version 4)."""


class S3Store(PictureStore):
    """`s3://bucket/prefix`, or `s3:///prefix` with the bucket of AWS_S3_BUCKET."""

    def __init__(self, settings: Settings) -> None:
        """
        Raises:
            SourceError: the address names no bucket.
        """
        super().__init__(settings.result_seconds, settings.result_bytes)
        self._settings = settings
        self._address: Address = parse(settings.mcp_store, settings.aws_s3_bucket)
        self._folder = f"{self._address.prefix}/" if self._address.prefix else ""
        self._client = make_client(settings)

    def link(self, picture: StoredPicture) -> str:
        left = int(min(self.seconds, LONGEST_LINK_SECONDS))
        url = self._client.generate_presigned_url(
            "get_object", Params=self._where(picture.name), ExpiresIn=max(1, left)
        )
        return str(url)

    def _where(self, name: str) -> dict[str, str]:
        return {"Bucket": self._address.bucket, "Key": self._folder + name}

    def _write(self, name: str, data: bytes) -> None:
        with self._told():
            self._client.put_object(**self._where(name), Body=data, ContentType=media_type(name))

    def _look(self, name: str) -> StoredPicture | None:
        with self._told():
            try:
                found = self._client.head_object(**self._where(name))
            except exceptions.ClientError as error:
                if _missing(error):
                    return None
                raise
        return StoredPicture(name, found["ContentLength"], found["LastModified"].timestamp())

    def _read(self, name: str, start: int, end: int) -> bytes | None:
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

    def _entries(self) -> Iterator[StoredPicture]:
        with self._told():
            pages = self._client.get_paginator("list_objects_v2").paginate(
                Bucket=self._address.bucket, Prefix=self._folder
            )
            for page in pages:
                for entry in page.get("Contents", ()):
                    name = entry["Key"].removeprefix(self._folder)
                    if NAME.fullmatch(name):
                        yield StoredPicture(name, entry["Size"], entry["LastModified"].timestamp())

    def _remove(self, names: list[str]) -> None:
        with self._told():
            for first in range(0, len(names), BATCH):
                keys = [{"Key": self._folder + name} for name in names[first : first + BATCH]]
                done = self._client.delete_objects(
                    Bucket=self._address.bucket, Delete={"Objects": keys, "Quiet": True}
                )
                for refused in done.get("Errors", ()):
                    log.warning("%s is not removed: %s", refused["Key"], refused.get("Code"))

    @contextmanager
    def _told(self) -> Iterator[None]:
        """What boto3 says, in terms of settings."""
        try:
            with explained(self._settings, self._address):
                yield
        except SourceError as error:
            words = error.message.replace("MODEL_ID", "MCP_STORE")
            raise StoreFailed(f"the picture store failed: {words}") from None


def _missing(error: exceptions.ClientError) -> bool:
    return str(error.response.get("Error", {}).get("Code")) in ("404", "NoSuchKey", "NotFound")
