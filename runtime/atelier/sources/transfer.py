"""Brings objects of an S3 store into a folder: parallel ranges, bounded retries, resumed after a
break, verified.

A file is written beside its place, with a journal of finished ranges; it gets its name once its
checksum is right. Each range asks for the version that was listed (If-Match), so two versions are
never mixed.
"""

from __future__ import annotations

import contextlib
import glob
import json
import logging
import os
import random
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from atelier.errors import SourceError
from atelier.sources import crt
from atelier.sources.checksums import Expected, fault
from atelier.sources.progress import Counter, Progress

log = logging.getLogger(__name__)

WORKERS = 16
"""Ranges fetched at once."""

RANGE_BYTES = 16 * 2**20
"""Large enough that a round trip is lost in it, small enough that little is repeated after a
break."""

READ_BYTES = 2**20

PART = ".atelier-part"
JOURNAL = ".atelier-journal"

ATTEMPTS = 6
FIRST_DELAY_SECONDS = 0.5
LONGEST_DELAY_SECONDS = 20.0
"""Delays of half to one and a half times 0.5, 1, 2, 4, 8 seconds: a burst of 503 of some ten
seconds is outlasted."""

Result = TypeVar("Result")


@dataclass(frozen=True)
class Object:
    """One object as listed: its key, its path in the folder, its bytes and its ETag."""

    key: str
    path: str
    size: int
    etag: str


class ShortBody(Exception):
    """The store closed a body before all bytes were sent."""


def missing_bytes(staging: Path, objects: list[Object]) -> int:
    """Bytes that an interrupted download of the same objects still lacks on the disk."""
    return sum(one.size - sum(_Landing(staging, one).done.values()) for one in objects)


class Transfer:
    """A download over one client, which boto3 lets threads share."""

    def __init__(
        self,
        client: Any,
        bucket: str,
        progress: Progress | None = None,
        whole: crt.Whole | None = None,
    ) -> None:
        self._client = client
        self._bucket = bucket
        self._progress = progress
        self._whole = whole
        self._stop = threading.Event()

    def bring(self, objects: list[Object], staging: Path) -> None:
        """Fetch all objects; after the first failure the rest is stopped, and what is there is kept
        for the next try.

        Raises:
            SourceError: an object's content is wrong.
            OSError: the disk does not take it.
            botocore exceptions: the store refuses, or does not answer after all attempts.
        """
        counter = Counter(sum(one.size for one in objects), self._progress)
        for stray in staging.rglob(f"*{PART}.*"):  # of a killed Common Runtime transfer
            stray.unlink()
        with ThreadPoolExecutor(WORKERS, thread_name_prefix="s3") as pool:
            running = [job for one in objects for job in self._start(one, staging, pool, counter)]
            try:
                for job in running:
                    job.result()
            except BaseException:
                self._stop.set()
                pool.shutdown(wait=True, cancel_futures=True)
                raise
        for journal in staging.rglob("*" + JOURNAL):
            journal.unlink()

    def _start(
        self, one: Object, staging: Path, pool: ThreadPoolExecutor, counter: Counter
    ) -> Iterator[Future[None]]:
        landing = _Landing(staging, one)
        if landing.whole:
            counter.add(one.size)
            return
        counter.add(sum(landing.done.values()))
        landing.open()
        if self._whole and not landing.done and one.size >= crt.WORTH_BYTES:
            yield pool.submit(self._at_once, landing, self._whole, counter)
            return
        lacking = (
            landing.lacking
        )  # once: after the loop all may be there, and the last range has finished the file
        for start, length in lacking:
            yield pool.submit(self._range, landing, start, length, counter)
        if not lacking:
            yield pool.submit(self._finish, landing)

    def _at_once(self, landing: _Landing, whole: crt.Whole, counter: Counter) -> None:
        """Fetch an object by the Common Runtime; if that fails, in ranges, whose errors say what is
        wrong."""
        try:
            whole(landing.object.key, landing.part)
        except Exception as error:
            log.warning("%s: %s; it is fetched in ranges instead", landing.object.key, error)
            for stray in landing.part.parent.glob(glob.escape(landing.part.name) + ".*"):
                stray.unlink()
            landing.open()
            for start, length in landing.lacking:
                self._range(landing, start, length, counter)
            return
        counter.add(landing.object.size)
        self._finish(landing)

    def _range(self, landing: _Landing, start: int, length: int, counter: Counter) -> None:
        retried(lambda: self._get(landing, start, length, counter), landing.object.key, self._stop)
        if landing.finished(start, length):
            self._finish(landing)

    def _get(self, landing: _Landing, start: int, length: int, counter: Counter) -> None:
        """Fetch one range into its place in the file. The journal hears of it only when it is all
        there."""
        one, written = landing.object, 0
        if not length:
            return
        arguments = {"Bucket": self._bucket, "Key": one.key, "IfMatch": one.etag}
        body = self._client.get_object(**arguments, Range=f"bytes={start}-{start + length - 1}")[
            "Body"
        ]
        try:
            with contextlib.closing(body), landing.part.open("r+b") as file:
                file.seek(start)
                for block in body.iter_chunks(READ_BYTES):
                    if self._stop.is_set():
                        raise SourceError("the download was stopped")
                    file.write(block)
                    written += len(block)
                    counter.add(len(block))
            if written != length:
                raise ShortBody(f"{written} of {length} bytes")
        except BaseException:
            counter.add(-written)
            raise

    def _finish(self, landing: _Landing) -> None:
        one = landing.object
        wrong = fault(landing.part, self._expected(one))
        if wrong:
            landing.discard()
            raise SourceError(
                f"s3://{self._bucket}/{one.key} is damaged: {wrong}; it was removed, fetch it again"
            )
        landing.accept()

    def _expected(self, one: Object) -> Expected:
        """Ask the store for the checksums it keeps. The first part's size tells how a multipart
        ETag was made."""
        where = {"Bucket": self._bucket, "Key": one.key}
        head = retried(
            lambda: self._client.head_object(**where, ChecksumMode="ENABLED"), one.key, self._stop
        )
        whole = head.get("ChecksumType", "FULL_OBJECT") == "FULL_OBJECT"
        names = ("SHA256", "CRC64NVME", "CRC32C", "SHA1", "CRC32")
        sums = tuple(
            (name, str(head[f"Checksum{name}"])) for name in names if head.get(f"Checksum{name}")
        )
        sums = tuple(pair for pair in sums if whole and "-" not in pair[1])
        part_bytes = None
        if "-" in one.etag:
            first = retried(
                lambda: self._client.head_object(**where, PartNumber=1), one.key, self._stop
            )
            part_bytes = first["ContentLength"] if first["ContentLength"] < one.size else None
        opaque = (
            head.get("ServerSideEncryption", "AES256") != "AES256" or "SSECustomerAlgorithm" in head
        )
        return Expected(one.size, one.etag, sums, part_bytes, opaque)


class _Landing:
    """One file on its way: the part file, its journal, and which ranges are in it."""

    def __init__(self, staging: Path, one: Object) -> None:
        self.object = one
        self.final = staging / one.path
        self.part = self.final.with_name(self.final.name + PART)
        self.journal = self.final.with_name(self.final.name + JOURNAL)
        self.whole = self.final.is_file() and self._stamp() == one.etag
        self.done: dict[int, int] = {0: one.size} if self.whole else self._resumed()
        self._lock = threading.Lock()

    @property
    def lacking(self) -> list[tuple[int, int]]:
        """Ranges still to be fetched, as start and length; an empty object is one empty range."""
        starts = range(0, self.object.size, RANGE_BYTES)
        return [
            (at, min(RANGE_BYTES, self.object.size - at)) for at in starts if at not in self.done
        ]

    def open(self) -> None:
        """Make the part file in its full length, and a journal that names the version."""
        self.part.parent.mkdir(parents=True, exist_ok=True)
        if not self.done:
            self.journal.write_text(json.dumps(self.object.etag) + "\n")
        with self.part.open("ab") as file:
            file.truncate(self.object.size)

    def finished(self, start: int, length: int) -> bool:
        """Note a range in the journal; True if it was the last."""
        with self._lock:
            with self.journal.open("a") as file:
                file.write(f"[{start}, {length}]\n")
            self.done[start] = length
            return not self.lacking

    def accept(self) -> None:
        """Give the verified file its name; the journal stays, as the note of its version, until the
        folder is moved."""
        with self.part.open("rb") as file:
            os.fsync(file.fileno())
        self.part.rename(self.final)

    def discard(self) -> None:
        """Forget what was fetched."""
        self.part.unlink(missing_ok=True)
        self.journal.unlink(missing_ok=True)

    def _stamp(self) -> str:
        lines = self.journal.read_text().splitlines() if self.journal.is_file() else []
        return str(json.loads(lines[0])) if lines else ""

    def _resumed(self) -> dict[int, int]:
        """The ranges that the journal of the same version notes; a last line cut short by a crash
        is dropped."""
        if not self.part.is_file() or self._stamp() != self.object.etag:
            return {}
        done = {}
        for line in self.journal.read_text().splitlines()[1:]:
            with contextlib.suppress(ValueError):
                start, length = json.loads(line)
                done[int(start)] = int(length)
        return done


def retried(
    act: Callable[[], Result],
    what: str,
    stop: threading.Event | None = None,
    tries: int = ATTEMPTS,
) -> Result:
    """Do something with the store, again after each passing fault, with growing random delays
    between; `tries` times in all."""
    for attempt in range(1, tries + 1):
        try:
            return act()
        except Exception as error:
            if attempt == tries or not _passing(error) or (stop and stop.is_set()):
                raise
            delay = min(
                LONGEST_DELAY_SECONDS, FIRST_DELAY_SECONDS * 2 ** (attempt - 1)
            ) * random.uniform(0.5, 1.5)
            log.warning(
                "%s: %s; attempt %d of %d in %.1f s", what, error, attempt + 1, tries, delay
            )
            time.sleep(delay)
    raise AssertionError("the last attempt returns or raises")


def _passing(error: Exception) -> bool:
    """Faults that a later attempt may not meet: broken connections and bodies, overload."""
    from botocore import exceptions

    if isinstance(error, exceptions.ClientError):
        status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
        return status >= 500 or status == 429
    if isinstance(error, (exceptions.SSLError, exceptions.ProxyConnectionError)):
        return False
    return isinstance(
        error, (ShortBody, exceptions.HTTPClientError, exceptions.IncompleteReadError)
    )
