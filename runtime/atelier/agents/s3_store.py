"""Pictures in an S3 bucket, below one prefix."""

from __future__ import annotations

from collections.abc import Iterator

from atelier.agents.store import NAME, PictureStore, StoredPicture, media_type
from atelier.settings import Settings
from atelier.sources.s3 import parse
from atelier.sources.s3_objects import ObjectInfo, S3Objects


class S3Store(PictureStore):
    """`s3://bucket/prefix`, or `s3:///prefix` with the bucket of AWS_S3_BUCKET."""

    def __init__(self, settings: Settings) -> None:
        """
        Raises:
            SourceError: the address names no bucket.
        """
        super().__init__(settings.result_seconds, settings.result_bytes)
        address = parse(settings.mcp_store, settings.aws_s3_bucket)
        self._objects = S3Objects(settings, address, "MCP_STORE")

    def link(self, picture: StoredPicture) -> str:
        return self._objects.link(picture.name, self.seconds)

    def _write(self, name: str, data: bytes) -> None:
        self._objects.put(name, data, media_type(name))

    def _look(self, name: str) -> StoredPicture | None:
        found = self._objects.look(name)
        return _picture(found) if found else None

    def _read(self, name: str, start: int, end: int) -> bytes | None:
        return self._objects.read(name, start, end)

    def _entries(self) -> Iterator[StoredPicture]:
        return (_picture(one) for one in self._objects.entries() if NAME.fullmatch(one.name))

    def _remove(self, names: list[str]) -> None:
        self._objects.remove(names)


def _picture(found: ObjectInfo) -> StoredPicture:
    return StoredPicture(found.name, found.size, found.created)
