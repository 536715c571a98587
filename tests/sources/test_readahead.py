"""Weights on a disk are brought into the page cache, as the kernel itself says (mincore)."""

from __future__ import annotations

import ctypes
import mmap
import os
from pathlib import Path

import pytest

from atelier.sources import readahead
from atelier.sources.readahead import BLOCK_BYTES, SHARE, read_ahead

libc = ctypes.CDLL(None, use_errno=True)


def cached(path: Path) -> float:
    """The share of a file's pages that are in the page cache."""
    size = path.stat().st_size
    pages = -(-size // mmap.PAGESIZE)
    states = (ctypes.c_ubyte * pages)()
    with path.open("r+b") as file, mmap.mmap(file.fileno(), size) as mapped:
        view = ctypes.c_char.from_buffer(mapped)
        address = ctypes.c_void_p(ctypes.addressof(view))
        assert libc.mincore(address, ctypes.c_size_t(size), states) == 0
        del view
    return sum(state & 1 for state in states) / pages


def uncached(path: Path, size: int) -> Path:
    """A file that lies on the disk alone."""
    with path.open("wb") as file:
        file.write(os.urandom(size))
        file.flush()
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    if cached(path) > 0.5:
        pytest.skip("this file system keeps its files in memory")
    return path


def test_files_are_in_the_page_cache_to_the_last_byte(tmp_path: Path) -> None:
    sizes = (3 * BLOCK_BYTES + 5, 10)
    files = [uncached(tmp_path / str(size), size) for size in sizes]
    assert read_ahead(files) == sum(sizes)
    assert [cached(file) for file in files] == [1.0, 1.0]


def test_no_more_is_read_than_memory_has_room_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = (uncached(tmp_path / name, 4 * BLOCK_BYTES) for name in "ab")
    room = 5 * BLOCK_BYTES
    monkeypatch.setattr(readahead, "host_memory", lambda: (2**40, int(room / SHARE) + 1))
    assert read_ahead([first, second]) == room
    assert cached(first) == 1.0 and cached(second) < 1.0
