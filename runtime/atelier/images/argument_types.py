"""What a request may send for a pipeline's own arguments: types read from the signature, numbers
within bounds told by the name.

Pipelines check little of this, and fail on it deep inside, or work for hours.
"""

from __future__ import annotations

import inspect
import math
import re
from typing import Any

from atelier.bounds import MAX_ENTRIES
from atelier.errors import InvalidRequest, shown

LISTS = {"list", "List", "tuple", "Tuple", "Sequence", "Iterable"}
SCALARS = {"int", "float", "bool", "str"}

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


def check_argument(
    name: str, parameter: inspect.Parameter, value: Any, max_steps: int, max_pixels: int
) -> None:
    """See that a pipeline can take `value` for the parameter.

    Raises:
        InvalidRequest: it is of another type, or a number beyond the bound.
    """
    kinds = sendable(parameter)
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


def _bound(name: str, max_steps: int, max_pixels: int) -> float:
    if re.search(r"steps|iter", name):
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
