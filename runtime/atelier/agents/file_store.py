"""Pictures in a folder of this machine. Names alone become paths, links are not followed, and what
is not a picture of ours is left as it is."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from atelier.agents.store import NAME, PictureStore, StoredPicture
from atelier.errors import StartError, StoreFailed

UNFINISHED = re.compile(rf"\.{NAME.pattern}\.part")
ABANDONED_SECONDS = 3600
"""Age of an unfinished file whose writer must have died."""


class FileStore(PictureStore):
    """A folder, made if it is missing. Several processes may share it; each then keeps to the bound
    as it last saw the folder."""

    def __init__(self, folder: Path, seconds: float, max_bytes: int) -> None:
        """
        Raises:
            StartError: the folder cannot be made or written.
        """
        super().__init__(seconds, max_bytes)
        self.folder = folder.absolute()
        try:
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise StartError(f"MCP_STORE={folder} cannot be made: {error.strerror}") from None
        if not os.access(self.folder, os.W_OK | os.X_OK):
            raise StartError(f"MCP_STORE={folder} cannot be written")

    def link(self, picture: StoredPicture) -> str:
        return (self.folder / picture.name).as_uri()

    def _write(self, name: str, data: bytes) -> None:
        unfinished = self.folder / f".{name}.part"
        try:
            with unfinished.open("xb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            unfinished.replace(self.folder / name)
        except OSError as error:
            raise StoreFailed(
                f"the picture cannot be kept in {self.folder}: {error.strerror}"
            ) from None
        finally:
            unfinished.unlink(missing_ok=True)

    def _look(self, name: str) -> StoredPicture | None:
        try:
            with _opened(self.folder / name) as file:
                found = os.fstat(file.fileno())
        except FileNotFoundError:
            return None
        except OSError as error:
            raise self._unreadable(error) from None
        return StoredPicture(name, found.st_size, found.st_mtime)

    def _read(self, name: str, start: int, end: int) -> bytes | None:
        try:
            with _opened(self.folder / name) as file:
                file.seek(start)
                return file.read(end - start)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise self._unreadable(error) from None

    def _entries(self) -> Iterator[StoredPicture]:
        try:
            with os.scandir(self.folder) as entries:
                for entry in entries:
                    yield from self._entry(entry)
        except OSError as error:
            raise self._unreadable(error) from None

    def _entry(self, entry: os.DirEntry[str]) -> Iterator[StoredPicture]:
        try:
            if not entry.is_file(follow_symlinks=False):
                return
            found = entry.stat(follow_symlinks=False)
        except FileNotFoundError:  # another process cleans too
            return
        if NAME.fullmatch(entry.name):
            yield StoredPicture(entry.name, found.st_size, found.st_mtime)
        elif UNFINISHED.fullmatch(entry.name) and time.time() - found.st_mtime > ABANDONED_SECONDS:
            self._remove([entry.name])

    def _remove(self, names: list[str]) -> None:
        try:
            for name in names:
                (self.folder / name).unlink(missing_ok=True)
        except OSError as error:
            raise StoreFailed(
                f"pictures cannot be removed from {self.folder}: {error.strerror}"
            ) from None

    def _unreadable(self, error: OSError) -> StoreFailed:
        return StoreFailed(f"{self.folder} cannot be read: {error.strerror}")


def _opened(path: Path) -> BinaryIO:
    """The file itself: a link of this name leads elsewhere and is refused."""
    return os.fdopen(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC), "rb")
