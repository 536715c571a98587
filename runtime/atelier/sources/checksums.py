"""Whether a downloaded object is what the store holds: size, then the best checksum that the store
tells.

A stored checksum of the whole object is preferred; else the ETag, which is an MD5 of the object, or
of the parts it was uploaded in. Where neither can be computed (encryption with a KMS key, unknown
part size, CRC32C without awscrt), the size is all there is, and that is said. The ETag's form:
https://docs.aws.amazon.com/AmazonS3/latest/userguide/checking-object-integrity-upload.html
"""

from __future__ import annotations

import base64
import hashlib
import importlib.util
import re
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from atelier.hardware.container import usable_cpus

MIB = 2**20
BLOCK = 4 * MIB

UPLOAD_PART_SIZES = tuple(size * MIB for size in (8, 16, 5, 32, 64, 15, 10, 50, 100, 128, 256, 512))
"""Part sizes that upload tools use, tried where the store does not tell; the AWS command line's
first."""


@dataclass(frozen=True)
class Expected:
    """What the store says of one object. `checksums` are whole-object ones by algorithm, in base64;
    `part_bytes` is the size of the first part if the store tells it; `opaque_etag`: the ETag is no
    MD5 (encrypted objects)."""

    size: int
    etag: str
    checksums: tuple[tuple[str, str], ...] = ()
    part_bytes: int | None = None
    opaque_etag: bool = False


def fault(path: Path, expected: Expected) -> str | None:
    """What differs, in words, or None if the file is right as far as can be told."""
    size = path.stat().st_size
    if size != expected.size:
        return f"{size:,} bytes instead of {expected.size:,}"
    for algorithm, stored in expected.checksums:
        compute = _algorithms().get(algorithm)
        if compute:
            found = base64.b64encode(compute(path)).decode()
            return None if found == stored else f"{algorithm} {found} instead of {stored}"
    return None if expected.opaque_etag else _etag_fault(path, expected)


def _etag_fault(path: Path, expected: Expected) -> str | None:
    etag = expected.etag.strip('"')
    if re.fullmatch(r"[0-9a-f]{32}", etag):
        found = _digest(path, "md5").hex()
        return None if found == etag else f"MD5 {found} instead of {etag}"
    match = re.fullmatch(r"[0-9a-f]{32}-(\d+)", etag)
    if not match:
        return None
    parts = int(match[1])
    told = expected.part_bytes
    sizes = (
        (told,)
        if told
        else tuple(one for one in UPLOAD_PART_SIZES if -(-expected.size // one) == parts)
    )
    made = [_multipart_etag(path, one) for one in sizes]
    if etag in made or not told:
        return None  # an unknown part size proves nothing
    return f"MD5 of parts {made[0]} instead of {etag}"


def _multipart_etag(path: Path, part_bytes: int) -> str:
    """The MD5 of the parts' MD5s, and their number; several parts at once, since MD5 is slower than
    disks and networks are."""
    starts = range(0, path.stat().st_size, part_bytes)
    with ThreadPoolExecutor(max(1, int(usable_cpus()))) as pool:
        digests = list(pool.map(lambda at: _part_digest(path, at, part_bytes), starts))
    return f"{hashlib.md5(b''.join(digests), usedforsecurity=False).hexdigest()}-{len(digests)}"


def _part_digest(path: Path, start: int, length: int) -> bytes:
    digest = hashlib.md5(usedforsecurity=False)
    with path.open("rb") as file:
        file.seek(start)
        while block := file.read(min(BLOCK, length)):
            digest.update(block)
            length -= len(block)
    return digest.digest()


def _algorithms() -> dict[str, Callable[[Path], bytes]]:
    """What can be computed here, strongest first."""
    known: dict[str, Callable[[Path], bytes]] = {
        "SHA256": lambda path: _digest(path, "sha256"),
        "SHA1": lambda path: _digest(path, "sha1"),
        "CRC32": lambda path: _crc(path, zlib.crc32, 4),
    }
    if importlib.util.find_spec("awscrt"):
        from awscrt import checksums

        known["CRC64NVME"] = lambda path: _crc(path, checksums.crc64nvme, 8)
        known["CRC32C"] = lambda path: _crc(path, checksums.crc32c, 4)
    return known


def _digest(path: Path, name: str) -> bytes:
    digest = hashlib.new(name, usedforsecurity=False)
    for block in _blocks(path):
        digest.update(block)
    return digest.digest()


def _crc(path: Path, step: Callable[[bytes, int], int], width: int) -> bytes:
    value = 0
    for block in _blocks(path):
        value = step(block, value)
    return value.to_bytes(width, "big")


def _blocks(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        while block := file.read(BLOCK):
            yield block
