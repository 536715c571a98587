"""What a request may send for a pipeline's own arguments: types read from the signature, numbers
within bounds told by the name.

Pipelines check little of this, and fail on it deep inside, or work for hours.
"""

from __future__ import annotations

import inspect
import math
import re
from collections.abc import Collection
from typing import Any

import orjson
from pydantic import TypeAdapter, ValidationError

from atelier.bounds import MAX_ENTRIES, MAX_PICTURE_TEXT
from atelier.errors import InvalidRequest, shown

LISTS = {"list", "List", "tuple", "Tuple", "Sequence", "Iterable"}
SCALARS = {"int", "float", "bool", "str"}
READERS: dict[str, TypeAdapter[Any]] = {
    "int": TypeAdapter(int),
    "float": TypeAdapter(float),
    "bool": TypeAdapter(bool),
}

MOST = 100_000
"""Of a number whose name says nothing: more than any picture has pixels on a side."""

MOST_BY_NAME = (
    (re.compile(r"guidance|scale|strength|weight"), 100),
    (re.compile(r"frames|batch|ensemble|length|tokens|layers"), 4096),
)


def sendable(parameter: inspect.Parameter) -> set[str]:
    """The types that a request may send for a parameter: of `int`, `float`, `bool`, `str` and
    `list`; none for tensors, pictures and callables."""
    annotation = parameter.annotation
    if annotation is parameter.empty:
        default = parameter.default
        known = type(default).__name__ if type(default).__name__ in SCALARS else None
        return {known} if known else set(SCALARS)
    named = annotation.__name__ if isinstance(annotation, type) else str(annotation)
    words = set(re.findall(r"\w+", named))
    kinds = words & SCALARS
    if words & LISTS and (kinds or words <= LISTS):
        kinds.add("list")
    return kinds


def read_argument(
    name: str, parameter: inspect.Parameter, value: Any, max_steps: int, max_pixels: int
) -> Any:
    """What a pipeline is given for the parameter: `value`, read as its type where a form or a
    tensor has sent text.

    Raises:
        InvalidRequest: it is of another type, or a number beyond the bound.
    """
    kinds = sendable(parameter)
    value = _read(value, kinds)
    bound = _bound(name, max_steps, max_pixels)
    if isinstance(value, list):
        fits = "list" in kinds and len(value) <= MAX_ENTRIES
        for one in value if fits else ():
            rows = one if isinstance(one, list) and len(one) <= MAX_ENTRIES else [one]
            fits = fits and all(_fits(each, kinds, name, bound) for each in rows)
    else:
        fits = _fits(value, kinds, name, bound)
    if not fits:
        raise InvalidRequest(
            f"{name}: {shown(value)} is not what this model takes for it:"
            f" {' or '.join(sorted(kinds))}",
            name,
        )
    return value


def _read(value: Any, kinds: set[str]) -> Any:
    short = isinstance(value, str) and len(value) <= MAX_PICTURE_TEXT
    if short and "list" in kinds and value.lstrip().startswith("["):
        try:
            value = orjson.loads(value)
        except orjson.JSONDecodeError:
            return value
    if isinstance(value, list):
        return [from_text(one, kinds) for one in value] if len(value) <= MAX_ENTRIES else value
    return from_text(value, kinds)


def from_text(value: Any, kinds: Collection[str]) -> Any:
    """A number or a truth value of `kinds` that is written as text, as pydantic reads one; anything
    else as it is."""
    if not isinstance(value, str) or "str" in kinds:
        return value
    for kind, read in READERS.items():
        if kind in kinds:
            try:
                return read.validate_python(value)
            except ValidationError:
                continue
    return value


def _bound(name: str, max_steps: int, max_pixels: int) -> float:
    if re.search(r"(?<!time)steps|iter", name):
        return max_steps
    if "area" in name:
        return max_pixels
    return next((most for pattern, most in MOST_BY_NAME if pattern.search(name)), MOST)


def _fits(value: Any, kinds: set[str], name: str, bound: float) -> bool:
    if isinstance(value, bool):
        return "bool" in kinds
    if isinstance(value, str):
        return "str" in kinds
    if not isinstance(value, int | float) or not kinds & {"int", "float"}:
        return False
    if not math.isfinite(value) or abs(value) > bound:
        raise InvalidRequest(f"{name}: {shown(value)} is beyond {bound:g}", name)
    return "float" in kinds or float(value).is_integer()
