"""A checkpoint that is about to be loaded: where it lies, and, where nothing may lie on a disk, its
weights on their way from an S3 store to memory.

Streamed weights come in two goes. Their headers are there at once, so the checkpoint can be looked
at and the memory plan be made; `fill` brings the rest of those files that will be read.
"""

from __future__ import annotations

import logging
import os
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType

from atelier.errors import SettingsError, SourceError
from atelier.hardware.container import host_memory
from atelier.settings import Settings
from atelier.sources import s3
from atelier.sources.checkpoint.contents import PICKLES, Checkpoint
from atelier.sources.checkpoint.folder import inspect
from atelier.sources.checkpoint.headers import HEADER_LIMIT
from atelier.sources.memory_folder import MemoryFile, MemoryFolder
from atelier.sources.part_file import Object
from atelier.sources.source import fetch, on_this_machine
from atelier.sources.transfer import WORKERS, Transfer
from atelier.units import gib

log = logging.getLogger(__name__)

WEIGHTS = (".safetensors", *PICKLES, ".gguf", ".onnx", ".onnx_data", ".msgpack", ".h5", ".tflite")
"""Ends of the names of files that never lie on a disk when weights are streamed, read or not."""

BEGINNING_BYTES = 256 * 2**10
"""Most headers are shorter, so one request brings them."""


class OpenedCheckpoint:
    """A checkpoint on this machine. `path` is what is read; `identity` is a path that is the same
    at every start."""

    def __init__(self, settings: Settings, path: Path, identity: Path | None = None) -> None:
        self._settings = settings
        self.path = path
        self.identity = identity or path

    def inspect(self) -> Checkpoint:
        """What it holds, by its headers; see `inspect` of `checkpoint/folder.py`."""
        settings = self._settings
        return inspect(
            self.path,
            variant=settings.variant,
            allow_pickle=settings.allow_pickle,
            trust_remote_code=settings.trust_remote_code,
        )

    def fill(self, checkpoint: Checkpoint) -> None:
        """Bring the weights that `checkpoint`, as read from `path`, names. Blocks.

        Raises:
            SourceError: they cannot be brought, are damaged or changed, or memory is short.
        """

    def close(self) -> None:
        """All is loaded: nothing at `path` is needed any more. Once more is harmless."""

    def __enter__(self) -> OpenedCheckpoint:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


class StreamedCheckpoint(OpenedCheckpoint):
    """A checkpoint of an S3 store whose weights never lie on a disk."""

    def __init__(self, settings: Settings) -> None:
        """Bring all but the weights, and the headers of these.

        Raises:
            SourceError: as `fetch`.
            SettingsError: this system has no files in memory.
        """
        if not hasattr(os, "memfd_create"):
            raise SettingsError("WEIGHTS_CACHE=off needs Linux: set WEIGHTS_CACHE=disk")
        self._address = s3.parse(settings.model_id, settings.aws_s3_bucket)
        landed = s3.cache_folder(settings, self._address)
        self._files: dict[Path, MemoryFile] = {}
        with _writing(self._address):
            self._folder = MemoryFolder(landed.name)
        try:
            with _writing(self._address):
                single = self._begin(settings)
        except BaseException:
            self.close()
            raise
        super().__init__(settings, self._folder.path / single, landed / single)

    def _begin(self, settings: Settings) -> str:
        """Fill the folder but for weights; the file's name if the address is one object's."""
        with s3.explained(settings, self._address):
            client = s3.make_client(settings)
            objects = s3.list_objects(client, self._address)
            self._transfer = Transfer(client, self._address.bucket)
            weights = [one for one in objects if one.path.lower().endswith(WEIGHTS)]
            small = [one for one in objects if one not in weights]
            self._transfer.bring(small, self._folder.path)
            for one in weights:
                self._files[self._folder.path / one.path] = self._folder.add(one)
            with ThreadPoolExecutor(WORKERS, thread_name_prefix="headers") as pool:
                list(pool.map(self._look, self._files.values()))
        return objects[0].path if s3.is_single(objects, self._address) else ""

    def _look(self, file: MemoryFile) -> None:
        """Bring a file's header, if it may have one."""
        one: Object = file.object
        if not one.path.lower().endswith(".safetensors"):
            return
        data = self._transfer.beginning(one, BEGINNING_BYTES)
        length = 8 + int.from_bytes(data[:8], "little")
        if len(data) < length <= min(one.size, HEADER_LIMIT):
            data = self._transfer.beginning(one, length)
        file.write(data)

    def fill(self, checkpoint: Checkpoint) -> None:
        """Bring what will be read. The names of all other weights go, so that nobody reads
        zeros."""
        wanted = {file for part in checkpoint.components for file in part.files}
        for name in self._files.keys() - wanted:
            name.unlink()
        files = [file for name, file in self._files.items() if name in wanted]
        size = sum(file.object.size for file in files)
        free = host_memory()[1]
        if size > free:
            raise SourceError(
                f"{self._address}: {gib(size)} of weights do not fit into the {gib(free)} of memory"
                " that are free: give it more, or set WEIGHTS_CACHE=disk"
            )
        began = time.monotonic()
        with s3.explained(self._settings, self._address):
            self._transfer.fill(files)
        seconds = time.monotonic() - began
        log.info(
            "%s of weights came from %s in %.1f s (%s a second)",
            gib(size),
            self._address,
            seconds,
            gib(size / seconds),
        )

    def close(self) -> None:
        self._folder.remove()


@contextmanager
def _writing(address: s3.Address) -> Iterator[None]:
    """Say which folder does not take the small files."""
    try:
        yield
    except OSError as error:
        raise SourceError(
            f"{address}: its configuration cannot be written to {tempfile.gettempdir()}:"
            f" {error.strerror or error}: set TMPDIR to a writable folder"
        ) from error


def streams(settings: Settings) -> bool:
    """Whether the weights of MODEL_ID go from their store to memory. Child engines read folders.

    Raises:
        SettingsError: WEIGHTS_CACHE=off, and they come from the Hub.
    """
    off = settings.weights_cache == "off" and settings.engine == "transformers"
    if not off or on_this_machine(settings) is not None:
        return False
    if settings.model_id.startswith("s3://"):
        return True
    raise SettingsError(
        f"WEIGHTS_CACHE=off is for s3:// addresses: MODEL_ID={settings.model_id} comes from the"
        " Hub, whose client keeps a copy; set WEIGHTS_CACHE=disk"
    )


def open_checkpoint(settings: Settings) -> OpenedCheckpoint:
    """The checkpoint that MODEL_ID names, downloaded first if it is not on this machine, unless
    WEIGHTS_CACHE is off.

    Raises:
        SourceError: as `fetch`.
        SettingsError: WEIGHTS_CACHE is off where that is impossible.
    """
    if streams(settings):
        return StreamedCheckpoint(settings)
    return OpenedCheckpoint(settings, fetch(settings))
