"""The quality gate between evaluation and publication."""

from __future__ import annotations

import re
from collections.abc import Mapping

from atelier_training.dreambooth.errors import GateClosed, OptionError

_CONDITION = re.compile(r"\s*(\w+)\s*(>=|<=)\s*(-?[\d.]+)\s*")


def require(scores: Mapping[str, float], conditions: str) -> None:
    """Check `conditions`, such as "subject>=0.8, leak<=0.1", against `scores`. Empty: everything
    passes.

    Raises:
        OptionError: a condition cannot be read, or names a score that was not measured.
        GateClosed: names every condition that does not hold, with the score.
    """
    failed = []
    for text in filter(None, map(str.strip, conditions.split(","))):
        match = _CONDITION.fullmatch(text)
        if not match:
            raise OptionError(f"gate: {text!r} is not of the form score>=number or score<=number")
        name, sign, bound = match[1], match[2], float(match[3])
        if name not in scores:
            raise OptionError(f"gate: there is no score {name!r}; measured: {', '.join(scores)}")
        if not (scores[name] >= bound if sign == ">=" else scores[name] <= bound):
            failed.append(f"{name} is {scores[name]:.3f}, wanted {sign} {bound:g}")
    if failed:
        raise GateClosed("not published: " + "; ".join(failed))
