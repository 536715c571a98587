"""Each kind of checksum a store may tell, right and wrong."""

import base64
import hashlib
import zlib

import pytest

from atelier.sources.checksums import MIB, Expected, fault

DATA = b"atelier" * MIB
MD5 = hashlib.md5(DATA).hexdigest()
SHA256 = base64.b64encode(hashlib.sha256(DATA).digest()).decode()
CRC32 = base64.b64encode(zlib.crc32(DATA).to_bytes(4, "big")).decode()


def of_parts(size: int) -> str:
    parts = [hashlib.md5(DATA[at : at + size]).digest() for at in range(0, len(DATA), size)]
    return f'"{hashlib.md5(b"".join(parts)).hexdigest()}-{len(parts)}"'


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    path = tmp_path_factory.mktemp("sums") / "file"
    path.write_bytes(DATA)
    return path


@pytest.mark.parametrize(
    "expected",
    [
        Expected(len(DATA), f'"{MD5}"'),
        Expected(len(DATA), '"x"', (("SHA256", SHA256),)),
        Expected(len(DATA), '"x"', (("CRC32", CRC32),)),
        Expected(len(DATA), of_parts(5 * MIB), part_bytes=5 * MIB),
        Expected(len(DATA), of_parts(3 * MIB), part_bytes=3 * MIB),
        Expected(len(DATA), f'"{"0" * 32}"', opaque_etag=True),
    ],
)
def test_a_right_file_passes(file, expected):
    assert fault(file, expected) is None


@pytest.mark.parametrize(
    ("expected", "said"),
    [
        (Expected(len(DATA) + 1, f'"{MD5}"'), "7,340,032 bytes instead of 7,340,033"),
        (Expected(len(DATA), f'"{"0" * 32}"'), f"MD5 {MD5} instead of {'0' * 32}"),
        (
            Expected(len(DATA), f'"{MD5}"', (("SHA256", "AAAA"),)),
            f"SHA256 {SHA256} instead of AAAA",
        ),
        (Expected(len(DATA), f'"{MD5}"', (("CRC32", "AAAA"),)), f"CRC32 {CRC32} instead of AAAA"),
        (Expected(len(DATA), f'"{"0" * 32}-2"', part_bytes=5 * MIB), "MD5 of parts"),
    ],
)
def test_a_wrong_file_is_told(file, expected, said):
    assert said in fault(file, expected)


def test_an_unknown_part_size_proves_nothing(file):
    assert fault(file, Expected(len(DATA), of_parts(2 * MIB + 1))) is None
