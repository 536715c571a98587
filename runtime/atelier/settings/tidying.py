"""What is done with the text of every variable before its type is looked at."""

from __future__ import annotations

from typing import Any, Literal, get_origin

from pydantic import ValidationInfo, field_validator
from pydantic_settings import BaseSettings

from atelier.settings.values import bare


class TidySettings(BaseSettings):
    """Settings whose texts are tidied."""

    @field_validator("*", mode="before")
    @classmethod
    def _tidied(cls, value: Any, info: ValidationInfo) -> Any:
        """White space around a value goes: a key in a Secret often ends in a line break, and one
        that was left empty is nothing but that. Words from a fixed list may come in any case, as
        `True` does from Python scripts and Helm values."""
        if not isinstance(value, str):
            return value
        field = cls.model_fields[info.field_name or ""]
        text = bare(value)
        if not text and value:
            return field.get_default(call_default_factory=True)
        return text.lower() if get_origin(field.annotation) is Literal else text
