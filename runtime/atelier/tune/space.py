"""The settings that are searched, each with its choices or its range."""

from __future__ import annotations

from typing import Annotated, Any

import optuna
from pydantic import BaseModel, ConfigDict, Field, model_validator

Value = None | bool | int | float | str


class Span(BaseModel):
    """A range of numbers, whole if both ends are."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    low: float
    high: float
    log: bool = False

    @model_validator(mode="after")
    def _in_order(self) -> Span:
        if self.low >= self.high:
            raise ValueError(f"low {self.low:g} must be less than high {self.high:g}")
        if self.log and self.low <= 0:
            raise ValueError(f"a logarithmic range cannot begin at {self.low:g}")
        return self

    @property
    def whole(self) -> bool:
        return self.low.is_integer() and self.high.is_integer()

    def ends(self) -> list[Value]:
        return [int(end) if self.whole else end for end in (self.low, self.high)]


Choices = Annotated[list[Value], Field(min_length=1)]
Space = dict[str, Choices | Span]
Point = dict[str, Value]
"""A value for every setting of the space."""


def completed(space: Space, start: Point) -> Space:
    """The space with the start in it: a value that is not among the choices becomes one.

    Raises:
        ValueError: the start lies outside of a range.
    """
    whole: Space = {}
    for name, dimension in space.items():
        value = start[name]
        if isinstance(dimension, Span):
            inside = isinstance(value, int | float) and dimension.low <= value <= dimension.high
            if not inside:
                raise ValueError(
                    f"{name}: the start, {value!r}, is outside of {dimension.low:g} to"
                    f" {dimension.high:g}: give it under `start`"
                )
            whole[name] = dimension
        else:
            whole[name] = dimension if value in dimension else [value, *dimension]
    return whole


def suggest(trial: optuna.Trial, space: Space) -> Point:
    """The point that Optuna proposes."""
    point: Point = {}
    for name, dimension in space.items():
        if not isinstance(dimension, Span):
            point[name] = trial.suggest_categorical(name, dimension)
        elif dimension.whole:
            low, high = int(dimension.low), int(dimension.high)
            point[name] = trial.suggest_int(name, low, high, log=dimension.log)
        else:
            point[name] = trial.suggest_float(
                name, dimension.low, dimension.high, log=dimension.log
            )
    return point


def one_by_one(space: Space, start: Point) -> list[Point]:
    """Points that differ from the start in one setting: every choice, or both ends of a range."""
    points = []
    for name, dimension in space.items():
        values = dimension.ends() if isinstance(dimension, Span) else dimension
        points += [start | {name: value} for value in values if value != start[name]]
    return points


def size(space: Space) -> int | None:
    """How many points there are; None: a range has too many to count."""
    total = 1
    for dimension in space.values():
        if isinstance(dimension, Span):
            return None
        total *= len(dimension)
    return total


def told(point: dict[str, Any], start: Point) -> str:
    """What differs from the start, in words."""
    changes = [f"{name}={value}" for name, value in point.items() if start.get(name) != value]
    return ", ".join(changes) or "the start"
