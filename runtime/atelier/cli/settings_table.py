"""The settings as a Markdown table, and its place in README.md between two markers. The table is
made, never edited."""

from __future__ import annotations

from pathlib import Path

from atelier.errors import SettingsError
from atelier.settings import rows

BEGIN, END = "<!-- settings -->", "<!-- /settings -->"


def markdown() -> str:
    """Every variable with its default and meaning; nothing of the current environment."""
    lines = ["| Variable | Default | Meaning |", "| --- | --- | --- |"]
    for row in rows():
        default = f"`{row.default}`" if row.default else ""
        lines.append(f"| `{row.variable}` | {default} | {row.help.replace('|', chr(92) + '|')} |")
    return "\n".join(lines)


def renewed(text: str, name: str) -> str:
    """`text` with the current table between the markers.

    Args:
        name: of the file the text is from, for the message.

    Raises:
        SettingsError: the markers are not there, each once and in order.
    """
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end) or BEGIN in rest or END in after:
        raise SettingsError(
            f"{name} needs the lines {BEGIN} and {END}, each once; the table goes between them"
        )
    return f"{before}{BEGIN}\n{markdown()}\n{END}{after}"


def renew(path: Path) -> bool:
    """Write the current table into the file; True if that changed it.

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
