"""The settings as Markdown, a table a group, and their place in docs/settings.md between two
markers. The tables are made, never edited."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import groupby
from pathlib import Path

from atelier.errors import SettingsError
from atelier.settings import SettingRow, Settings, rows

BEGIN, END = "<!-- settings -->", "<!-- /settings -->"


def markdown() -> str:
    """Every variable with its default and meaning; nothing of the current environment."""
    return "\n\n".join(_section(title, list(group)) for title, group in by_group())


def by_group(settings: Settings | None = None) -> Iterator[tuple[str, Iterator[SettingRow]]]:
    """The rows of each group, under its title."""
    return groupby(rows(settings), key=lambda row: row.group)


def _section(title: str, group: list[SettingRow]) -> str:
    lines = [f"## {title}", "", "| Variable | Default | Meaning |", "| --- | --- | --- |"]
    for row in group:
        default = f"`{row.default}`" if row.default else ""
        lines.append(f"| `{row.variable}` | {default} | {row.help.replace('|', chr(92) + '|')} |")
    return "\n".join(lines)


def renewed(text: str, name: str) -> str:
    """`text` with the current tables between the markers.

    Args:
        name: of the file the text is from, for the message.

    Raises:
        SettingsError: the markers are not there, each once and in order.
    """
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end) or BEGIN in rest or END in after:
        raise SettingsError(
            f"{name} needs the lines {BEGIN} and {END}, each once; the tables go between them"
        )
    return f"{before}{BEGIN}\n\n{markdown()}\n\n{END}{after}"


def renew(path: Path) -> bool:
    """Write the current tables into the file; True if that changed it.

    Raises:
        SettingsError: the file cannot be read, or has no place for the table.
    """
    try:
        text = path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(f"{path} cannot be read: {error}") from None
    fresh = renewed(text, str(path))
    if fresh != text:
        path.write_text(fresh)
    return fresh != text
