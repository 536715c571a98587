"""The settings as rows of a table, and those that were set but are not read by what is served."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pydantic.fields import FieldInfo

from atelier.settings.fields import Settings
from atelier.settings.groups import GROUPS, Server, group_of, heeds


@dataclass(frozen=True)
class SettingRow:
    """One line of the settings table."""

    group: str
    variable: str
    default: str
    value: str
    help: str


def rows(settings: Settings | None = None) -> list[SettingRow]:
    """The table of variables, group by group: default, current value (secrets shown as set or
    unset) and help."""
    current: Mapping[str, Any] = dict(settings) if settings else {}
    table = []
    for name, field in Settings.model_fields.items():
        value = current.get(name)
        shown = ("set" if value else "unset") if is_secret(field) else _text(value)
        default, meaning = _text(field.default), field.description or ""
        table.append(SettingRow(group_of(field), name.upper(), default, shown, meaning))
    order = [group.title for group in GROUPS]
    return sorted(table, key=lambda row: order.index(row.group))


def ignored(settings: Settings, server: Server) -> list[str]:
    """Variables that were set, by whatever way and to another value than the default, and that
    this server does not read."""
    return [
        name.upper()
        for name, field in Settings.model_fields.items()
        if name in settings.model_fields_set
        and not heeds(server, field)
        and getattr(settings, name) != field.default
    ]


def is_secret(field: FieldInfo) -> bool:
    """Whether the value may never be shown."""
    return "SecretStr" in str(field.annotation)


def _text(value: Any) -> str:
    if value is None or value == []:
        return ""
    if isinstance(value, list):
        return ",".join(map(str, value))
    return str(value).lower() if isinstance(value, bool) else str(value)
