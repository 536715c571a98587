"""Brings objects of an S3 store to files, on a disk or in memory: parallel ranges, bounded retries,
verified.

What becomes of the bytes is a `Landing`'s business: `part_file.py` resumes after a break,
`memory_folder.py` keeps nothing on a disk. Each range asks for the version that was listed
(If-Match), so two versions are never mixed.
"""

from __future__ import annotations

import contextlib
import glob
import logging
import random
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, Protocol, TypeVar

from atelier.errors import SourceError
from atelier.sources import crt
from atelier.sources.checksums import Expected, fault
from atelier.sources.part_file import JOURNAL, PART, Object, PartFile
from atelier.sources.progress import Counter, Progress

log = logging.getLogger(__name__)

WORKERS = 16
"""Ranges fetched at once."""

RANGE_BYTES = 16 * 2**20
"""Large enough that a round trip is lost in it, small enough that little is repeated after a
break."""

READ_BYTES = 2**20

ATTEMPTS = 6
FIRST_DELAY_SECONDS = 0.5
LONGEST_DELAY_SECONDS = 20.0
"""Delays of half to one and a half times 0.5, 1, 2, 4, 8 seconds: a burst of 503 of some ten
seconds is outlasted."""

CHANGED = {404: "removed", 412: "changed"}
"""What an HTTP status says of an object that was listed a moment ago."""

Result = TypeVar("Result")


class ShortBody(Exception):
    """The store closed a body before all bytes were sent."""


class Landing(Protocol):
    """Where one object's bytes go. `part` is the file that they are written to and verified in,
    `done` are the ranges that are there, by start and length; `whole`: nothing is left to do."""

    object: Object
    part: Path
    done: dict[int, int]
    whole: bool

    def open(self) -> None:
        """Make the part file in its full length."""

    def note(self, start: int, length: int) -> None:
        """A range is there. One call at a time."""

    def accept(self) -> None:
        """All is there and right."""

    def discard(self) -> None:
        """What is there is wrong: forget it."""


def missing_bytes(staging: Path, objects: list[Object]) -> int:
    """Bytes that an interrupted download of the same objects still lacks on the disk."""
    return sum(one.size - sum(PartFile(staging, one).done.values()) for one in objects)


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
        self._noting = threading.Lock()

    def bring(self, objects: list[Object], staging: Path) -> None:
        """Fetch all objects; after the first failure the rest is stopped, and what is there is kept
        for the next try.

        Raises:
            SourceError: an object's content is wrong.
            OSError: the disk does not take it.
            botocore exceptions: the store refuses, or does not answer after all attempts.
        """
        for stray in staging.rglob(f"*{PART}.*"):  # of a killed Common Runtime transfer
            stray.unlink()
        self.fill([PartFile(staging, one) for one in objects])
        for journal in staging.rglob("*" + JOURNAL):
            journal.unlink()

    def fill(self, landings: Sequence[Landing]) -> None:
        """Fetch what each of them lacks; the rest is as `bring` has it."""
        counter = Counter(sum(one.object.size for one in landings), self._progress)
        with ThreadPoolExecutor(WORKERS, thread_name_prefix="s3") as pool:
            running = [job for one in landings for job in self._start(one, pool, counter)]
            try:
                for job in running:
                    job.result()
            except BaseException:
                self._stop.set()
                pool.shutdown(wait=True, cancel_futures=True)
                raise

    def _start(
        self, landing: Landing, pool: ThreadPoolExecutor, counter: Counter
    ) -> Iterator[Future[None]]:
        if landing.whole:
            counter.add(landing.object.size)
            return
        counter.add(sum(landing.done.values()))
        landing.open()
        if self._whole and not landing.done and landing.object.size >= crt.WORTH_BYTES:
            yield pool.submit(self._at_once, landing, self._whole, counter)
            return
        # Once: after the loop all may be there, and the last range has finished the file.
        lacking = _lacking(landing)
        for start, length in lacking:
            yield pool.submit(self._range, landing, start, length, counter)
        if not lacking:
            yield pool.submit(self._finish, landing)

    def _at_once(self, landing: Landing, whole: crt.Whole, counter: Counter) -> None:
        """Fetch an object by the Common Runtime; if that fails, in ranges, whose errors say what is
        wrong."""
        try:
            whole(landing.object.key, landing.part)
        except Exception as error:
            log.warning("%s: %s; it is fetched in ranges instead", landing.object.key, error)
            for stray in landing.part.parent.glob(glob.escape(landing.part.name) + ".*"):
                stray.unlink()
            landing.open()
            for start, length in _lacking(landing):
                self._range(landing, start, length, counter)
            return
        counter.add(landing.object.size)
        self._finish(landing)

    def _range(self, landing: Landing, start: int, length: int, counter: Counter) -> None:
        with self._unchanged(landing.object):
            retried(
                lambda: self._get(landing, start, length, counter), landing.object.key, self._stop
            )
        with self._noting:
            landing.note(start, length)
            last = not _lacking(landing)
        if last:
            self._finish(landing)

    @contextlib.contextmanager
    def _unchanged(self, one: Object) -> Iterator[None]:
        """Say which object is no longer the one that was listed."""
        from botocore.exceptions import ClientError

        try:
            yield
        except ClientError as error:
            done = CHANGED.get(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
            if done is None:
                raise
            raise SourceError(
                f"s3://{self._bucket}/{one.key} was {done} while it was downloaded: start again"
            ) from None

    def _get(self, landing: Landing, start: int, length: int, counter: Counter) -> None:
        """Fetch one range into its place in the file. The journal hears of it only when it is all
        there."""
        written = 0
        body = self._body(landing.object, start, length)
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

    def _body(self, one: Object, start: int, length: int) -> Any:
        """The bytes of a range, of the version that was listed, still to be read."""
        arguments = {"Bucket": self._bucket, "Key": one.key, "IfMatch": one.etag}
        return self._client.get_object(**arguments, Range=f"bytes={start}-{start + length - 1}")[
            "Body"
        ]

    def beginning(self, one: Object, length: int) -> bytes:
        """The first `length` bytes of an object, or all if it is shorter; errors as `bring`."""
        length = min(length, one.size)

        def get() -> bytes:
            with contextlib.closing(self._body(one, 0, length)) as body:
                found = bytes(body.read())
            if len(found) != length:
                raise ShortBody(f"{len(found)} of {length} bytes")
            return found

        if not length:
            return b""
        with self._unchanged(one):
            return retried(get, one.key, self._stop)

    def _finish(self, landing: Landing) -> None:
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
        # A store that does not tell keeps the sum of the parts' sums, as all of them once did.
        untold = "COMPOSITE" if "-" in one.etag else "FULL_OBJECT"
        whole = head.get("ChecksumType", untold) == "FULL_OBJECT"
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


def _lacking(landing: Landing) -> list[tuple[int, int]]:
    """Ranges still to be fetched, as start and length."""
    size = landing.object.size
    starts = range(0, size, RANGE_BYTES)
    return [(at, min(RANGE_BYTES, size - at)) for at in starts if at not in landing.done]


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
