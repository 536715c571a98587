"""Weights that lie on a disk, brought into the page cache before somebody reads them.

Plain reads by several threads: what the kernel is merely advised to read ahead it cuts to the
device's read-ahead window (`force_page_cache_ra` in mm/readahead.c), which is far too little for a
network volume.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from atelier.hardware.container import host_memory

READERS = 8
"""What one reader gets of a network volume is a fraction of what it gives."""

BLOCK_BYTES = 4 * 2**20

SHARE = 0.75
"""Of the memory that is free: beyond it the first bytes would be evicted before they are used, and
what is being imported meanwhile needs some."""


def read_ahead(files: Sequence[Path]) -> int:
    """Bring the files into the page cache, in this order, as far as memory allows; returns the
    bytes that were read.

    Raises:
        OSError: a file cannot be read.
    """
    room = int(SHARE * host_memory()[1])
    buffers = threading.local()

    def read(block: tuple[Path, int]) -> int:
        if not hasattr(buffers, "own"):
            buffers.own = bytearray(BLOCK_BYTES)
        path, start = block
        with path.open("rb", buffering=0) as file:
            return os.preadv(file.fileno(), [buffers.own], start)

    with ThreadPoolExecutor(READERS, thread_name_prefix="read ahead") as pool:
        return sum(pool.map(read, _blocks(files, room)))


def _blocks(files: Sequence[Path], room: int) -> Iterator[tuple[Path, int]]:
    """The blocks of the files, as many as there is room for."""
    for path in files:
        for start in range(0, path.stat().st_size, BLOCK_BYTES):
            room -= BLOCK_BYTES
            if room < 0:
                return
            yield path, start
