"""Compile and kernel caches that outlive a start and are shared by replicas: one folder a key, on a
volume that several may mount.

A cache is trusted only as far as it was sealed after a good start: what was left unsealed by a
process that died is dropped, and so is all of it if a sealed file has another size, since a
half-written kernel fails later and far from its cause. Whoever uses a folder holds a shared lock on
it, and only who gets the lock for itself may drop anything.
"""

from __future__ import annotations

import fcntl
import itertools
import json
import logging
import os
import shutil
from pathlib import Path
from typing import IO

log = logging.getLogger(__name__)

SEAL = "sealed.json"
VARIABLES = {
    "TORCHINDUCTOR_CACHE_DIR": "inductor",
    "TRITON_CACHE_DIR": "triton",
    "VLLM_CACHE_ROOT": "vllm",
}


class KernelCache:
    """One folder of caches, `folder`. Another one beside it is used while a neighbour works in a
    damaged one."""

    def __init__(self, folder: Path) -> None:
        self.folder = self._wanted = folder
        self._lock: IO[str] | None = None

    def prepare(self) -> None:
        """Make the folder and hold it until `release` or the end of the process; drop what is
        damaged, or was never sealed, unless a neighbour is at work there."""
        self.release()
        self._wanted.parent.mkdir(parents=True, exist_ok=True)
        for number in itertools.count():
            suffix = f".{number}" if number else ""
            self.folder = self._wanted.with_name(self._wanted.name + suffix)
            self._lock = self.folder.with_name(self.folder.name + ".lock").open("a")
            alone = _try_lock(self._lock, fcntl.LOCK_EX)
            if alone:
                self._clean()
            if alone or self._sizes_hold():
                self.folder.mkdir(exist_ok=True)
                _try_lock(self._lock, fcntl.LOCK_SH)
                return
            log.warning("the compile cache %s is damaged and in use; another is made", self.folder)
            self.release()

    def seal(self) -> None:
        """Note the files and sizes of a good start."""
        sizes = {str(path.relative_to(self.folder)): path.stat().st_size for path in self._files()}
        written = self.folder / f"{SEAL}.{os.getpid()}.tmp"
        written.write_text(json.dumps(sizes))
        written.replace(self.folder / SEAL)

    def release(self) -> None:
        """Let others drop it."""
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def environment(self) -> dict[str, str]:
        """Variables that point the compilers here."""
        return {variable: str(self.folder / name) for variable, name in VARIABLES.items()}

    def _clean(self) -> None:
        """Nobody else is here: drop what is not sealed, or all if a sealed file is damaged."""
        if not self.folder.exists():
            return
        sealed = self._sealed()
        if not sealed or not self._sizes_hold():
            log.warning("the compile cache %s is damaged or unfinished and is dropped", self.folder)
            shutil.rmtree(self.folder)
            return
        for path in self._files():
            if str(path.relative_to(self.folder)) not in sealed:
                path.unlink()

    def _sealed(self) -> dict[str, int]:
        try:
            sizes: dict[str, int] = json.loads((self.folder / SEAL).read_text())
            return sizes
        except (OSError, ValueError):
            return {}

    def _sizes_hold(self) -> bool:
        """Whether every sealed file is there in its size; true if nothing is sealed yet."""
        try:
            return all(
                (self.folder / name).stat().st_size == size for name, size in self._sealed().items()
            )
        except OSError:
            return False

    def _files(self) -> list[Path]:
        """All but seals and what compilers are still writing."""
        return [
            path
            for path in self.folder.rglob("*")
            if path.is_file() and not path.name.startswith(SEAL) and path.suffix != ".tmp"
        ]


def _try_lock(file: IO[str], kind: int) -> bool:
    """Without waiting. A file system that has no locks counts as one with neighbours."""
    try:
        fcntl.flock(file, kind | fcntl.LOCK_NB)
    except OSError:
        return False
    return True
