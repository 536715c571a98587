"""The load: what is asked, how often, and when it ends. The same class describes it on the command
line, in a result, and in the plan of `atelier tune`."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from atelier.errors import SettingsError

SIZE = re.compile(r"([1-9]\d{0,4})x([1-9]\d{0,4})")


def _list(value: Any) -> Any:
    """`1,2` as a list; one number as a list of one."""
    if isinstance(value, str):
        return [part.strip() for part in value.split(",") if part.strip()]
    return value if isinstance(value, list | tuple) else [value]


Counts = Annotated[list[Annotated[int, Field(ge=1)]], BeforeValidator(_list)]
Sizes = Annotated[list[Annotated[str, Field(pattern=SIZE.pattern)]], BeforeValidator(_list)]
Scenario = Literal["chat", "completion", "tools", "json"]


class OfferedLoad(BaseModel):
    """One level of load. Lists (`prompt_tokens`, `sizes`, `steps`) are taken in turn, so a list of
    two is an even mix.

    `users` is a closed loop: each asks again when it is answered. `rate` is an open loop: requests
    begin whether or not others have ended. `trace` begins them at the times of a file.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Literal["auto", "text", "pictures"] = "auto"
    scenario: Scenario = "chat"
    users: int | None = Field(None, ge=1, le=10_000)
    rate: float | None = Field(None, gt=0, description="Requests a second.")
    burst: int = Field(1, ge=1, description="Requests that begin together in an open loop.")
    trace: Path | None = None

    requests: int = Field(100, ge=1, description="No more are begun.")
    seconds: float = Field(60, gt=0, description="None is begun later.")
    warmup: int = Field(4, ge=0, description="Requests before, which are not counted.")
    timeout: float = Field(600, gt=0, description="Seconds after which a request is given up.")
    seed: int = 0

    prompt_tokens: Counts = [128]
    output_tokens: int = Field(64, ge=1)
    shared_prefix: int = Field(0, ge=0, description="Tokens at the beginning that requests share.")
    prefixes: int = Field(1, ge=1, description="Different shared beginnings, taken in turn.")
    turns: int = Field(1, ge=1, description="Turns of a conversation; prompt_tokens is of each.")

    sizes: Sizes = ["128x128"]
    steps: Counts = [20]
    previews: int = Field(0, ge=0, le=3)

    @model_validator(mode="after")
    def _one_way_to_arrive(self) -> OfferedLoad:
        given = [name for name in ("users", "rate", "trace") if getattr(self, name) is not None]
        if len(given) > 1:
            raise ValueError(f"{' and '.join(given)} exclude each other: choose one")
        if not given:
            object.__setattr__(self, "users", 1)
        if self.burst > 1 and self.rate is None:
            raise ValueError("burst is of an open loop: it needs rate")
        if self.turns > 1 and self.scenario != "chat":
            raise ValueError(f"turns is of conversations: scenario {self.scenario} has one")
        return self

    @property
    def title(self) -> str:
        """What the level is called in tables and plots."""
        if self.users is not None:
            return f"{self.users} user{'s' if self.users > 1 else ''}"
        if self.rate is not None:
            return f"{self.rate:g}/s" + (f" in bursts of {self.burst}" if self.burst > 1 else "")
        return f"trace {self.trace}"


def make_load(fields: dict[str, Any]) -> OfferedLoad:
    """A load from fields of a command line or a file.

    Raises:
        SettingsError: one line for each field that is wrong.
    """
    try:
        return OfferedLoad(**fields)
    except ValidationError as error:
        raise SettingsError(explain(error, "load")) from None


def explain(error: ValidationError, where: str) -> str:
    """The faults pydantic found as lines that name field and value."""
    lines = []
    for fault in error.errors(include_url=False):
        name = ".".join(map(str, fault["loc"]))
        what = fault["msg"].removeprefix("Value error, ")
        lines.append(f"{where}: {name}={fault['input']!r}: {what}" if name else f"{where}: {what}")
    return "\n".join(lines)


def read_yaml(path: Path) -> dict[str, Any]:
    """A mapping from a YAML or JSON file.

    Raises:
        SettingsError: there is no such file, or no mapping in it.
    """
    try:
        body = yaml.safe_load(path.read_text())
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise SettingsError(f"{path} cannot be read: {error}") from None
    if not isinstance(body, dict):
        raise SettingsError(f"{path} must hold a mapping, not {type(body).__name__}")
    return body
