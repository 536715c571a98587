"""Memory of a server: of all its processes, and on GPUs."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

QUERY_SECONDS = 30


def family(pid: int) -> set[int]:
    """A process and all that descend from it, or belong to its session."""
    parents = {}
    for entry in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = entry.read_text().rpartition(")")[2].split()
        except OSError:  # it has just ended
            continue
        parents[int(entry.parent.name)] = int(fields[1])
    found, grown = {pid}, True
    while grown:
        more = {child for child, parent in parents.items() if parent in found} - found
        grown = bool(more)
        found |= more
    return found


def host_bytes(pid: int) -> int:
    """Memory of the family; pages that processes share are counted once (PSS)."""
    total = 0
    for member in family(pid):
        try:
            lines = Path(f"/proc/{member}/smaps_rollup").read_text().splitlines()
        except OSError:
            continue
        total += sum(int(line.split()[1]) for line in lines if line.startswith("Pss:")) * 1024
    return total


def gpu_bytes(pid: int) -> int:
    """GPU memory of the family by nvidia-smi; in a container that hides process ids, of all."""
    lines = _nvidia("--query-compute-apps=pid,used_memory")
    used = [(int(one.split(",")[0]), int(one.split(",")[1].split()[0])) for one in lines]
    members = family(pid)
    own = [size for owner, size in used if owner in members] or [size for _, size in used]
    return sum(own) * 2**20


def gpus() -> list[int]:
    """Total bytes of each GPU here."""
    return [int(line.split()[0]) * 2**20 for line in _nvidia("--query-gpu=memory.total")]


def _nvidia(query: str) -> list[str]:
    program = shutil.which("nvidia-smi")
    if not program:
        return []
    command = [program, query, "--format=csv,noheader"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=QUERY_SECONDS)
    # MIG slices and some drivers say [N/A] or Insufficient Permissions where a number belongs.
    return [
        line for line in done.stdout.splitlines() if any(part.isdigit() for part in line.split())
    ]
