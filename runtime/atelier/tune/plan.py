"""The plan of a search, from YAML: where it starts, what it may change, under which load, to what
end and within which bounds."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from atelier.bench.load import OfferedLoad, explain, read_yaml
from atelier.bench.slo import Slo
from atelier.errors import SettingsError
from atelier.settings import Settings
from atelier.settings.rows import is_secret
from atelier.tune.goal import check_goal, more_is_better, parse_bound
from atelier.tune.space import Point, Space, Value, completed

NOT_SEARCHED = ("model_id", "model_name", "profile", "task")


class TunePlan(BaseModel):
    """See docs/benchmarking.md. Names in `start` and `space` are settings of the server; in both, a
    name that begins with `--` is an option of the child engine."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    start: dict[str, Value] = {}
    space: Space = Field(min_length=1)
    load: OfferedLoad
    goal: str
    bounds: dict[str, float] = {}
    slo: Slo = Slo()
    trials: int = Field(30, ge=1)
    repeats: int = Field(2, ge=1, description="Times that a trial runs the load.")
    final_rounds: int = Field(2, ge=0, description="Turns of the final A/B.")
    ready_seconds: float = Field(600, gt=0)
    seed: int = 0

    @field_validator("goal")
    @classmethod
    def _known(cls, name: str) -> str:
        return check_goal(name)

    @field_validator("bounds", mode="before")
    @classmethod
    def _numbers(cls, bounds: Any) -> Any:
        if not isinstance(bounds, dict):
            return bounds
        return {name: parse_bound(name, value) for name, value in bounds.items()}

    @field_validator("slo", mode="before")
    @classmethod
    def _from_text(cls, slo: Any) -> Any:
        if not isinstance(slo, str):
            return slo
        try:
            return Slo.parse(slo)
        except SettingsError as error:
            raise ValueError(str(error)) from None

    @model_validator(mode="after")
    def _fits(self) -> TunePlan:
        for name in (*self.start, *self.space):
            _check_name(name)
        for name in self.space:
            if name in NOT_SEARCHED:
                raise ValueError(f"space: {name} cannot be searched: give it under `start`")
        if self.goal == "goodput_per_s" and not self.slo.bounded:
            raise ValueError("goal goodput_per_s needs slo: what counts as good")
        object.__setattr__(self, "space", completed(self.space, self.start_point))
        return self

    @property
    def start_point(self) -> Point:
        """The value of every searched setting at the start: given, or the server's default."""
        defaults = {name: field.default for name, field in Settings.model_fields.items()}
        return {name: self.start.get(name, defaults.get(name)) for name in self.space}

    @property
    def direction(self) -> str:
        return "maximize" if more_is_better(self.goal) else "minimize"

    @property
    def identity(self) -> str:
        """A digest of what makes trials comparable: not how many there are."""
        body = self.model_dump_json(exclude={"trials", "final_rounds", "ready_seconds", "seed"})
        return hashlib.sha256(body.encode()).hexdigest()[:16]

    def settings_of(self, point: Point) -> dict[str, Value]:
        """The server's settings at a point, options of the child engine in `engine_args`; what is
        unset is left out."""
        whole = self.start | point
        options = [
            name if value is True else f"{name}={_quoted(value)}"
            for name, value in whole.items()
            if name.startswith("--") and value not in (None, False, "")
        ]
        settings: dict[str, Value] = {
            name: value
            for name, value in whole.items()
            if not name.startswith("--") and value is not None
        }
        if options:
            settings["engine_args"] = " ".join(
                [*filter(None, [str(settings.get("engine_args", ""))]), *options]
            )
        return settings


def _quoted(value: Value) -> str:
    import shlex

    return shlex.quote(str(value))


def _check_name(name: str) -> None:
    if name.startswith("--"):
        return
    if name not in Settings.model_fields:
        raise ValueError(
            f"{name!r} is no setting: `atelier settings` lists them; an option of a child engine"
            " begins with --"
        )
    if is_secret(Settings.model_fields[name]):
        raise ValueError(f"{name} is secret: set {name.upper()} in the environment, not in a plan")


def read_plan(path: Path) -> TunePlan:
    """The plan in a YAML file.

    Raises:
        SettingsError: a line for each fault.
    """
    try:
        return TunePlan(**read_yaml(path))
    except ValidationError as error:
        raise SettingsError(explain(error, str(path))) from None
