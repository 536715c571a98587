"""What a process and those that it has started take of a pod's memory.

A page that several of them share counts once, and not less for being mapped by strangers too, such
as other tests: so a file's pages count as often as the process has them that has most."""

from __future__ import annotations

import re
from collections import defaultdict
from contextlib import suppress
from pathlib import Path

import psutil

MAPPING = re.compile(r"^[0-9a-f]+-[0-9a-f]+ \S+ \S+ \S+ \S+ *(.*)$")
COUNTED = re.compile(r"^(Rss|Anonymous): *(\d+) kB$")


def held_bytes(pid: int) -> int:
    """Bytes in memory of the process and all below it: what is no file's, shared pages by their
    share, and the files that they have mapped."""
    root = psutil.Process(pid)
    anonymous, files = 0, defaultdict[str, int](int)
    for process in (root, *root.children(recursive=True)):
        with suppress(OSError):  # it has just ended
            anonymous += _anonymous(process.pid)
            for file, size in _files(process.pid).items():
                files[file] = max(files[file], size)
    return anonymous + sum(files.values())


def _anonymous(pid: int) -> int:
    told = Path(f"/proc/{pid}/smaps_rollup").read_text()
    return int(re.findall(r"^Pss_Anon: *(\d+) kB", told, re.MULTILINE)[0]) * 1024


def _files(pid: int) -> dict[str, int]:
    """Bytes of each mapped file that are in memory as they are on disk."""
    found = defaultdict[str, int](int)
    file = ""
    for line in Path(f"/proc/{pid}/smaps").read_text().splitlines():
        if mapping := MAPPING.match(line):
            file = mapping[1]
        elif file.startswith("/") and (told := COUNTED.match(line)):
            found[file] += int(told[2]) * (1024 if told[1] == "Rss" else -1024)
    return found
