"""Settings read from the command line, the environment and the profile, in this order; and the old
names of variables, which still work with a warning."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from atelier.errors import SettingsError
from atelier.profiles import read as read_profile
from atelier.settings.fields import Settings
from atelier.settings.rows import is_secret
from atelier.settings.values import OLD_MODELS, bare

log = logging.getLogger(__name__)


def _same(text: str) -> str:
    return text


def _off_if_true(text: str) -> str:
    """What SKIP_WARMUP meant. Raises ValidationError if it is not true or false."""
    return "off" if TypeAdapter(bool).validate_python(text) else "auto"


@dataclass(frozen=True)
class OldName:
    """A variable that was renamed. `applies` tells from its text that the old meaning is meant,
    for a name that is still in use; `convert` makes the new field's text of it."""

    variable: str
    field: str
    convert: Callable[[str], str] = _same
    applies: Callable[[str], bool] = lambda text: True


def _has_lengths(text: str) -> bool:
    return all(part.strip().isdigit() for part in text.split(",") if part.strip())


OLD_NAMES = (
    OldName("GPU_MEMORY_UTILIZATION", "memory_fraction"),
    OldName("SKIP_WARMUP", "warmup", _off_if_true),
    OldName("WARMUP", "warmup_prompts", applies=_has_lengths),
)
GONE = {"STEP_CACHE_THRESHOLD": "STEP_CACHE names a level, a request's step_cache may be a bound"}


def load_settings(**overrides: Any) -> Settings:
    """Read settings from the environment; `overrides` (from the command line) win.

    Raises:
        SettingsError: one line for each bad value: variable, value (hidden if secret) and what is
            allowed.
    """
    given = {name: value for name, value in overrides.items() if value is not None}
    # an empty one, as manifests leave it, is unset
    variables = {name.upper(): text for name, value in os.environ.items() if (text := bare(value))}
    for gone in GONE.keys() & variables.keys():
        log.warning("%s=%s is ignored: %s", gone, variables[gone], GONE[gone])
    renamed, sources, faults = _from_old_names(variables, given)
    chosen = str(given.get("profile") or variables.get("PROFILE") or "")
    present = {name.lower() for name in variables} | set(renamed)
    try:
        settings = Settings(**(_profile_values(chosen, present) | renamed | given))
    except ValidationError as error:
        faults += _lines(error, sources)
    if faults:
        raise SettingsError("\n".join(faults)) from None
    if settings.model_id in OLD_MODELS and not Path(settings.model_id).exists():
        return settings.model_copy(update={"model_id": current_model(settings.model_id)})
    return settings


def current_model(model_id: str) -> str:
    """What a model is called today: the old name of a built-in one is replaced, with a warning."""
    current = OLD_MODELS.get(model_id, model_id)
    if current != model_id:
        log.warning("MODEL_ID=%s is the old name of MODEL_ID=%s: use that", model_id, current)
    return current


def _from_old_names(
    variables: dict[str, str], given: dict[str, Any]
) -> tuple[dict[str, Any], dict[str, str], list[str]]:
    """Fields set by old names, which variable each came from, and what is wrong with some.

    The new name wins where both are set.
    """
    values: dict[str, Any] = {}
    sources: dict[str, str] = {}
    faults: list[str] = []
    for old in OLD_NAMES:
        text = variables.get(old.variable)
        if text is None or not old.applies(text):
            continue
        new = old.field.upper()
        still_a_name = old.variable.lower() in Settings.model_fields
        if still_a_name:  # its text is not what the field of this name takes
            field = old.variable.lower()
            values.setdefault(field, Settings.model_fields[field].default)
        if old.field in given or _sets(variables, new):
            log.warning("%s is the old name of %s, which is set too and wins", old.variable, new)
            continue
        try:
            values[old.field] = old.convert(text)
        except ValidationError as error:
            faults += _lines(error, {}, old.variable)
            continue
        sources[old.field] = old.variable
        log.warning(
            "%s=%s is the old form of %s=%s: use that", old.variable, text, new, values[old.field]
        )
    return values, sources, faults


def _sets(variables: dict[str, str], name: str) -> bool:
    """Whether a variable is set, and not with an old meaning of its name."""
    text = variables.get(name)
    meant = (old.applies(text) for old in OLD_NAMES if text is not None and old.variable == name)
    return text is not None and not any(meant)


def _profile_values(name: str, present: set[str]) -> dict[str, Any]:
    """What the profile sets and no environment variable does; none without a name."""
    if not name:
        return {}
    values = read_profile(name).values
    if unknown := set(values) - set(Settings.model_fields):
        raise SettingsError(
            f"profile {name} sets {', '.join(sorted(unknown))}, which are no settings"
        )
    return {field: value for field, value in values.items() if field not in present}


def _lines(error: ValidationError, sources: dict[str, str], variable: str = "") -> Iterator[str]:
    """A line for each fault. Args: `sources`, old names that fields were set by; `variable`, the
    one all of the error is about."""
    for fault in error.errors(include_url=False):
        field = str(fault["loc"][0]) if fault["loc"] else ""
        name = variable or sources.get(field, field.upper())
        secret = not variable and is_secret(Settings.model_fields[field])
        value = "(hidden)" if secret else repr(fault["input"])
        allowed = fault["msg"].removeprefix("Value error, ").removeprefix("Input should be ")
        allowed = (
            "true or false" if fault["type"].startswith("bool") else allowed.split(", unable to")[0]
        )
        yield (
            f"{name}={value} is not valid:"
            f" {allowed if 'allowed' in allowed else 'allowed: ' + allowed}"
        )
