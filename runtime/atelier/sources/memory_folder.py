"""A folder whose weight files are in memory: their names lead to files of this process that no disk
holds (memfd_create), so whatever reads a checkpoint's folder reads this one.

The small files beside them lie on the disk. Other processes of the same user read the weights by
the same names, as the ranks of a group do.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

from atelier.sources.part_file import Object


class MemoryFolder:
    """One such folder, named `name`. Memory is taken as bytes are written, and given back after
    `remove`, as soon as nothing maps it any more."""

    def __init__(self, name: str) -> None:
        self._root = Path(tempfile.mkdtemp(prefix=_prefix(os.getpid())))
        self.path = self._root / name
        self.path.mkdir()
        self._files: list[MemoryFile] = []

    def add(self, one: Object) -> MemoryFile:
        """A file of the object's length, without content."""
        file = MemoryFile(self.path / one.path, one)
        self._files.append(file)
        return file

    def remove(self) -> None:
        """The folder goes, and with it the memory of all files. Once more is harmless."""
        shutil.rmtree(self._root, ignore_errors=True)
        for file in self._files:
            file.close()
        self._files.clear()


class MemoryFile:
    """One object's place in memory; a `Landing` of `transfer.py`."""

    def __init__(self, name: Path, one: Object) -> None:
        self.object = one
        self.name = name
        self.done: dict[int, int] = {}
        self.whole = False
        self._descriptor = os.memfd_create(name.name)
        os.ftruncate(self._descriptor, one.size)
        self.part = Path(f"/proc/{os.getpid()}/fd/{self._descriptor}")
        name.parent.mkdir(parents=True, exist_ok=True)
        name.symlink_to(self.part)

    def write(self, data: bytes) -> None:
        """Put bytes at the beginning, for those who look at headers alone."""
        with self.part.open("r+b") as file:
            file.write(data)

    def open(self) -> None:
        """It has its length already."""

    def note(self, start: int, length: int) -> None:
        """A range is there."""
        self.done[start] = length

    def accept(self) -> None:
        """All is there and right."""
        self.whole = True

    def discard(self) -> None:
        """What is there is wrong, and so is its name."""
        self.name.unlink(missing_ok=True)
        self.done.clear()

    def close(self) -> None:
        """Give its memory back."""
        os.close(self._descriptor)


def forget(process: int) -> None:
    """Remove the folders of a process that was killed; its memory went with it."""
    for root in Path(tempfile.gettempdir()).glob(_prefix(process) + "*"):
        shutil.rmtree(root, ignore_errors=True)


def _prefix(process: int) -> str:
    return f"atelier-weights-{process}-"
