"""Where a download lands: one process at a time, whole or not at all.

Files are gathered in `<target>.partial` beside the target and moved there by one rename, after a
manifest of what was fetched has been written into it. So a folder without `.partial` in its name is
complete, also after a crash, a full disk or a kill; what was gathered stays for the next try. A
lock file beside it keeps two processes (two pods on one volume) from filling it at once.
"""

from __future__ import annotations

import errno
import fcntl
import json
import logging
import os
import shutil
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from atelier.errors import SourceError
from atelier.units import gib

log = logging.getLogger(__name__)

MANIFEST = ".atelier-source.json"

NO_LOCKS = {errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS}
"""What file systems without POSIX locks answer."""

FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
"""Disk full, quota used up, file larger than the process may write."""

LOCK_POLL_SECONDS = 0.1
LOCK_NOTICE_SECONDS = 30.0

Versions = Mapping[str, str]
"""Relative path of each file to what identifies its content at the source (an ETag, a commit)."""


def land(target: Path, source: str, versions: Versions, fill: Callable[[Path], None]) -> Path:
    """Make `target` hold the files of `versions`, by `fill(staging folder)` if it does not already.

    Args:
        source: the address, for the manifest and messages.
        versions: what must be there; a target whose manifest says the same is returned untouched.

    Raises:
        SourceError: the place cannot be written, is full, or holds files that did not come from
            `source`.
    """
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with _locked(target) as locked:
            if holds(target, source, versions):
                return target
            staging = target.with_name(
                f"{target.name}.partial" if locked else f"{target.name}.partial-{uuid.uuid4()}"
            )
            staging.mkdir(exist_ok=True)
            fill(staging)
            _write_manifest(staging, source, versions)
            _swap(staging, target, source, versions)
    except OSError as error:
        raise _explained(error, target, source) from error
    return target


def check_space(folder: Path, needed: int, source: str) -> None:
    """Raise SourceError if the disk under `folder` has less than `needed` bytes free."""
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise SourceError(
            f"{source} needs {gib(needed)} more, but only {gib(free)} are free under"
            f" {folder.parent}: make room or set CACHE_DIR to a larger volume"
        )


@contextmanager
def _locked(target: Path) -> Iterator[bool]:
    """Hold the target's lock; yields False where the file system has none."""
    path = target.with_name(f"{target.name}.lock")
    with path.open("a") as file:
        said = -LOCK_NOTICE_SECONDS
        while True:
            try:
                fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except OSError as error:
                if error.errno in NO_LOCKS:
                    log.warning(
                        "%s: this file system has no locks; two processes may download the same",
                        path,
                    )
                    yield False
                    return
                if error.errno not in (errno.EACCES, errno.EAGAIN):
                    raise
            if time.monotonic() - said >= LOCK_NOTICE_SECONDS:
                log.info("another process is filling %s; waiting for it", target)
                said = time.monotonic()
            time.sleep(LOCK_POLL_SECONDS)
        # closing the file gives the lock back; the empty lock file stays, since removing it would
        # race
        yield True


def holds(target: Path, source: str, versions: Versions) -> bool:
    """Whether a target is complete and of these versions.

    Raises:
        SourceError: it holds files of another origin.
    """
    manifest = target / MANIFEST
    if not manifest.is_file():
        if target.exists() and any(target.iterdir()):
            raise SourceError(
                f"{target} holds files that did not come from {source}: name an empty or a new"
                " folder"
            )
        return False
    told = json.loads(manifest.read_text())
    if told["source"] != source:
        raise SourceError(
            f"{target} holds what was fetched from {told['source']}, not {source}: name another"
            " folder"
        )
    return bool(told["files"] == dict(versions))


def _write_manifest(staging: Path, source: str, versions: Versions) -> None:
    with (staging / MANIFEST).open("w") as file:
        json.dump({"source": source, "files": dict(versions)}, file, indent=1)
        file.flush()
        os.fsync(file.fileno())


def _swap(staging: Path, target: Path, source: str, versions: Versions) -> None:
    """Put the staging folder in the target's place; an older version there is removed."""
    if target.is_mount():
        raise SourceError(
            f"{target} is a mount point, which cannot be replaced: name a folder inside it"
        )
    old = target.with_name(f"{target.name}.old-{uuid.uuid4()}")
    if (target / MANIFEST).is_file():
        if holds(target, source, versions):  # without locks, another process may have been first
            shutil.rmtree(staging)
            return
        target.rename(old)
    staging.rename(target)
    shutil.rmtree(old, ignore_errors=True)


def _explained(error: OSError, target: Path, source: str) -> SourceError:
    if error.errno in FULL:
        return SourceError(
            f"the disk is full: {source} does not fit under {target.parent}"
            f" ({os.strerror(error.errno or 0)}). Make room or set CACHE_DIR to a larger volume;"
            f" what was fetched stays in {target.name}.partial and is used again"
        )
    where = error.filename or target
    return SourceError(
        f"{source} cannot be written to {where}: {error.strerror or error}: set CACHE_DIR to a"
        " writable folder"
    )
