"""One object on its way to a file: written beside its place, with a journal of the ranges that are
there, so that a download goes on where it was broken off."""

from __future__ import annotations

import contextlib
import json
import os
from dataclasses import dataclass
from pathlib import Path

PART = ".atelier-part"
JOURNAL = ".atelier-journal"


@dataclass(frozen=True)
class Object:
    """One object as listed: its key, its path in the folder, its bytes and its ETag."""

    key: str
    path: str
    size: int
    etag: str


class PartFile:
    """The part file, its journal, and which ranges are in it: `done` by start and length."""

    def __init__(self, staging: Path, one: Object) -> None:
        self.object = one
        self.final = staging / one.path
        self.part = self.final.with_name(self.final.name + PART)
        self.journal = self.final.with_name(self.final.name + JOURNAL)
        self.whole = self.final.is_file() and self._stamp() == one.etag
        self.done: dict[int, int] = {0: one.size} if self.whole else self._resumed()

    def open(self) -> None:
        """Make the part file in its full length, and a journal that names the version."""
        self.part.parent.mkdir(parents=True, exist_ok=True)
        if not self.done:
            self.journal.write_text(json.dumps(self.object.etag) + "\n")
        with self.part.open("ab") as file:
            file.truncate(self.object.size)

    def note(self, start: int, length: int) -> None:
        """A range is there. One call at a time."""
        with self.journal.open("a") as file:
            file.write(f"[{start}, {length}]\n")
        self.done[start] = length

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
