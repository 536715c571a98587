"""Bounds that a request must keep to count as good: `ttft=500ms,itl=50ms`."""

from __future__ import annotations

import re

from pydantic import BaseModel

from atelier.bench.record import Record
from atelier.errors import SettingsError

UNITS = {"us": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0}
DURATION = re.compile(r"(\d+(?:\.\d+)?)(us|ms|s|m)")


def duration(text: str) -> float:
    """Seconds of `500ms`, `2s` or `1.5m`.

    Raises:
        SettingsError: it is none of these.
    """
    found = DURATION.fullmatch(text.strip())
    if not found:
        raise SettingsError(f"{text!r} is no duration: write a number with us, ms, s or m")
    return float(found[1]) * UNITS[found[2]]


class Slo(BaseModel):
    """Upper bounds in seconds; None: not bounded. `itl` bounds a request's mean time between
    tokens, as AIPerf has it, which is its `tpot`."""

    ttft: float | None = None
    itl: float | None = None
    tpot: float | None = None
    e2e: float | None = None
    preview: float | None = None

    @classmethod
    def parse(cls, text: str) -> Slo:
        """From `name=duration` pairs with commas between.

        Raises:
            SettingsError: an unknown name or a bad duration.
        """
        bounds = {}
        for part in filter(None, (part.strip() for part in text.split(","))):
            name, _, value = part.partition("=")
            if name not in cls.model_fields:
                raise SettingsError(
                    f"--slo {part!r}: {name!r} is not one of {', '.join(cls.model_fields)}"
                )
            bounds[name] = duration(value)
        return cls(**bounds)

    @property
    def bounded(self) -> bool:
        return any(bound is not None for bound in self.model_dump().values())

    def kept_by(self, record: Record) -> bool:
        """Whether a request went well within every bound; what it has no figure for breaks one."""
        seen = {
            "ttft": record.ttft,
            "itl": record.tpot,
            "tpot": record.tpot,
            "e2e": record.seconds,
            "preview": record.first_preview,
        }
        if not record.ok:
            return False
        for name, bound in self.model_dump().items():
            value = seen[name]
            if bound is not None and (value is None or value > bound):
                return False
        return True
