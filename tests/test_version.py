"""The version stands in one place; what else names it is rendered from there, and a release changes
all of it at once."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import atelier
from make import release
from tests.test_structure import ROOT

# Versions of others may be the same as ours; the changelog is history.
NOT_OURS = {"constraints.txt", "CHANGELOG.md"}
ANYWHERE = re.compile(rf"(?<![\d.]){re.escape(atelier.__version__)}(?![\d.]|rc)")


def generated() -> set[Path]:
    return {path for pattern in release.GENERATED for path in ROOT.glob(pattern)}


def texts() -> dict[Path, str]:
    """Every file of the repository that holds the version as text."""
    listed = subprocess.run(
        ["git", "grep", "--untracked", "-lIF", atelier.__version__],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    paths = (ROOT / name for name in listed.stdout.splitlines() if name not in NOT_OURS)
    return {path: text for path in paths if ANYWHERE.search(text := path.read_text())}


def test_the_version_stands_in_one_place() -> None:
    assert release.current() == atelier.__version__
    rendered = set(release.written_by_hand()) | generated() | {release.SOURCE}
    assert set(texts()) <= rendered, "render it from atelier.__version__: see make/release.py"


def test_what_holds_the_version_holds_it_only_where_it_is_rendered() -> None:
    for path in release.written_by_hand():
        assert not ANYWHERE.search(release.RENDERED.sub("", path.read_text())), path


def test_everything_rendered_is_current() -> None:
    assert release.stale() == {}
    for path in generated():  # whether they are current otherwise, other tests check
        for found in release.RENDERED.finditer(path.read_text()):
            assert found[0].endswith(atelier.__version__), path


def test_images_are_named_and_labelled_with_it() -> None:
    held = {str(path.relative_to(ROOT)) for path in release.written_by_hand()}
    assert {
        "Containerfile",
        "manifests/base/servingruntime.yaml",
        "pipelines/trainjob.yaml",
    } <= held
    labels = (ROOT / "Containerfile").read_text()
    assert f"ARG VERSION={atelier.__version__}\n" in labels
    assert 'org.opencontainers.image.version="${VERSION}"' in labels


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """What holds the version, in a folder of its own."""
    for path in (*release.written_by_hand(), release.SOURCE, release.CHANGELOG, ROOT / "setup.sh"):
        target = tmp_path / path.relative_to(ROOT)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, target)
    (tmp_path / "make").mkdir()
    shutil.copy(ROOT / "make" / "release.py", tmp_path / "make")
    return tmp_path


def run(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "make/release.py", *words]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True)


def test_a_release_changes_every_place_and_heads_the_notes(copy: Path) -> None:
    notes = "# Changelog\n\n## Unreleased\n\n- News.\n\n## 0.0.1, 2020-01-01\n\n- Old.\n"
    (copy / "CHANGELOG.md").write_text(notes)
    assert run(copy, "--check").returncode == 0
    done = run(copy, "98.7.6")
    assert done.returncode == 0, done.stderr
    for path in copy.rglob("*"):
        if path.is_file() and path.suffix in (".py", ".yaml", "") and path.name != "release.py":
            assert not ANYWHERE.search(path.read_text()), path
    assert '__version__ = "98.7.6"' in (copy / "runtime/atelier/__init__.py").read_text()
    assert ":98.7.6" in (copy / "manifests/base/servingruntime.yaml").read_text()
    written = (copy / "CHANGELOG.md").read_text()
    assert re.search(r"## Unreleased\n\n## 98\.7\.6, \d{4}-\d\d-\d\d\n\n- News\.\n", written)
    assert run(copy, "--check").returncode == 0
    again = run(copy, "98.7.6")
    assert again.returncode == 1 and "not later than 98.7.6" in again.stderr


def test_a_place_that_was_left_behind_is_found(copy: Path) -> None:
    trainjob = copy / "pipelines" / "trainjob.yaml"
    trainjob.write_text(trainjob.read_text().replace(atelier.__version__, "0.0.1"))
    done = run(copy, "--check")
    assert (done.returncode, done.stdout) == (
        1,
        "pipelines/trainjob.yaml names another version: run make version\n",
    )


@pytest.mark.parametrize(
    ("version", "why"),
    [("v9.0.0", "three numbers"), ("9.0", "three numbers"), ("0.0.1", "not later than")],
)
def test_a_version_that_cannot_be_is_refused(version: str, why: str, copy: Path) -> None:
    done = run(copy, version)
    assert done.returncode == 1 and why in done.stderr
    assert run(copy, "--check").returncode == 0


def test_a_release_without_notes_is_refused(copy: Path) -> None:
    (copy / "CHANGELOG.md").write_text(
        "# Changelog\n\n## Unreleased\n\n## 0.0.1, long ago\n\n- Old\n"
    )
    done = run(copy, "98.7.6")
    assert done.returncode == 1 and "nothing under '## Unreleased'" in done.stderr


def test_a_candidate_comes_before_its_release() -> None:
    order = release._order
    assert order("1.2.0rc1") < order("1.2.0rc2") < order("1.2.0") < order("1.10.0rc1")
