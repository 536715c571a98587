"""The version of the project: it stands in `runtime/atelier/__init__.py`, and all else that must
name it is rendered from there.

    python make/release.py            write it into what is rendered by hand
    python make/release.py --check    fail if that is not current
    python make/release.py 1.2.0      make it 1.2.0, and the changelog's notes those of 1.2.0

`make release VERSION=1.2.0` does this, renders templates and pipelines, and runs every check.
"""

from __future__ import annotations

import datetime
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SOURCE = ROOT / "runtime" / "atelier" / "__init__.py"
CHANGELOG = ROOT / "CHANGELOG.md"
VERSION = r"\d+\.\d+\.\d+(?:rc\d+)?"
STATED = re.compile(rf'^__version__ = "({VERSION})"$', re.MULTILINE)
UNRELEASED = "## Unreleased"

RENDERED = re.compile(
    rf'(quay\.io/atelier/atelier:|ImageStreamTag, name: "atelier:|^ARG VERSION=){VERSION}',
    re.MULTILINE,
)
"""What stands before the version, and the version, in files that people write."""
GENERATED = ("manifests/templates/*.yaml", "pipelines/atelier_training/dreambooth/pipeline*.yaml")
"""Written by `make templates` and `make pipeline`, from files that are current by then."""


class ReleaseError(Exception):
    """This version cannot be made; the message says why."""


def current() -> str:
    """The version."""
    found = STATED.search(SOURCE.read_text())
    if not found:
        raise ReleaseError(f"{SOURCE} holds no line __version__ = ...")
    return found[1]


def written_by_hand() -> list[Path]:
    """The files that hold the version, besides the one where it is stated and the generated."""
    generated = {path for pattern in GENERATED for path in ROOT.glob(pattern)}
    found = [path for path in (ROOT / "manifests").rglob("*.yaml") if path not in generated]
    found += [ROOT / "Containerfile", ROOT / "pipelines" / "trainjob.yaml"]
    return sorted(path for path in found if RENDERED.search(path.read_text()))


def stale() -> dict[Path, str]:
    """Files that name another version, with what they should hold."""
    version = current()
    wanted = {
        path: RENDERED.sub(lambda found: found[1] + version, path.read_text())
        for path in written_by_hand()
    }
    return {path: text for path, text in wanted.items() if text != path.read_text()}


def release(version: str, today: datetime.date) -> None:
    """State a new version and head the changelog's notes with it.

    Raises:
        ReleaseError: it is no version, not a later one, or there is nothing to tell of it.
    """
    if not re.fullmatch(VERSION, version):
        raise ReleaseError(
            f"VERSION={version!r}: three numbers with dots, such as 1.2.0 or 1.2.0rc1"
        )
    if _order(version) <= _order(current()):
        raise ReleaseError(f"VERSION={version} is not later than {current()}, the present one")
    notes = CHANGELOG.read_text()
    _, heading, rest = notes.partition(f"{UNRELEASED}\n")
    if not heading or not rest.partition("\n## ")[0].strip():
        raise ReleaseError(f"CHANGELOG.md has nothing under {UNRELEASED!r}")
    headed = f"{UNRELEASED}\n\n## {version}, {today.isoformat()}\n"
    CHANGELOG.write_text(notes.replace(heading, headed, 1))
    SOURCE.write_text(STATED.sub(f'__version__ = "{version}"', SOURCE.read_text()))


def _order(version: str) -> tuple[float, ...]:
    """Larger for later versions; a candidate comes before what it is a candidate for."""
    numbers, _, candidate = version.partition("rc")
    return (*map(int, numbers.split(".")), int(candidate) if candidate else float("inf"))


def main() -> int:
    words = sys.argv[1:]
    try:
        if words and words != ["--check"]:
            release(words[0], datetime.date.today())
        changes = stale()
    except ReleaseError as error:
        print(f"release: {error}", file=sys.stderr)
        return 1
    if words == ["--check"]:
        for path in changes:
            print(f"{path.relative_to(ROOT)} names another version: run make version")
        return 1 if changes else 0
    for path, text in changes.items():
        path.write_text(text)
    print(f"{current()}: {len(changes)} files changed")
    return 0


if __name__ == "__main__":
    sys.exit(main())
