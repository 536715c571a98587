"""The pages are true where a machine can check it: names of the walks and of the glossary exist,
links lead somewhere, and prose ends at 100 columns."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import ROOT

PAGES = sorted(
    page
    for pattern in ("*.md", "docs/**/*.md", "examples/*.md", "runtime/atelier/**/*.md")
    for page in ROOT.glob(pattern)
)
SOURCE = "\n".join(path.read_text() for path in (ROOT / "runtime/atelier").rglob("*.py"))
KNOWN = SOURCE + " ".join(path.stem for path in (ROOT / "runtime/atelier").rglob("*.py"))
ARCHITECTURE = (ROOT / "docs/architecture.md").read_text()


def prose(text: str) -> Iterator[str]:
    """Lines that could have been wrapped: no code, no tables, no lone code span or link."""
    fenced = False
    for line in text.splitlines():
        if line.lstrip().startswith("```"):
            fenced = not fenced
        elif not fenced and not line.startswith(("|", "    ")):
            yield line


@pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_prose_ends_at_a_hundred_columns(page: Path) -> None:
    long = [line for line in prose(page.read_text()) if len(line) > 100]
    assert [line for line in long if " " in re.sub(r"`[^`]*`|\([^)]*\)", "", line).strip()] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    links = re.findall(r"\]\((?!https?:|#)([^)#\s]+)", "\n".join(prose(page.read_text())))
    assert [link for link in links if not (page.parent / link).exists()] == []


def names(text: str) -> set[str]:
    """Words that are meant as code: with a capital or an underscore, with a dot between two of
    them, or at an arrow."""
    marked = {word for word in re.findall(r"\b[A-Za-z_]\w+\b", text) if re.search(r"[A-Z]|_", word)}
    dotted = {word for pair in re.findall(r"\b([a-z]\w+|[A-Z]\w+)\.(\w+)", text) for word in pair}
    arrows = set(re.findall(r"-> (\w+)", text)) | set(re.findall(r"(\w+) ->", text))
    return marked | dotted | arrows


def test_every_name_of_the_walks_is_in_the_code() -> None:
    walks = ARCHITECTURE.partition("## Three walks")[2].partition("## Step batching")[0]
    blocks = re.findall(r"```\n(.*?)```", walks, re.S) + re.findall(r"`([^`\n]+)`", walks)
    told = set().union(*map(names, blocks))
    assert len(told) > 80
    assert [name for name in sorted(told) if not re.search(rf"\b{name}\b", KNOWN)] == []


def test_every_file_of_the_house_is_there() -> None:
    house = ARCHITECTURE.partition("## The house")[2].partition("```\n")[2].partition("```")[0]
    told = set(re.findall(r"^    (\w+)/  ", house, re.M))
    rooms = {path.name for path in (ROOT / "runtime/atelier").iterdir() if path.is_dir()}
    assert told == rooms - {"__pycache__"}


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) <= 120


def test_the_page_of_limits_says_what_the_code_holds() -> None:
    from docs import limits

    text = limits.PAGE.read_text()
    assert limits.renewed(text) == text, "run: python docs/limits.py"
