"""What a model says of itself, as the studio's forms need it: sizes, steps, adapters, schedulers,
limits. Read from the model's metadata."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

RATIOS = ((1, 1), (4, 3), (3, 4), (3, 2), (2, 3), (16, 9), (9, 16))
"""Width to height of the sizes on offer."""


@dataclass(frozen=True)
class ModelCard:
    """One endpoint's model. `problem` says why it cannot be used now; empty: it can. `away`: the
    endpoint does not answer, and the rest is what was known before."""

    url: str
    name: str = ""
    kind: Literal["pictures", "language", "unknown"] = "unknown"
    problem: str = ""
    away: bool = False
    properties: Mapping[str, Any] = field(default_factory=dict)

    @property
    def label(self) -> str:
        """The model and where it is served."""
        host = self.url.partition("://")[2]
        return f"{self.name} at {host}" if self.name else host

    @property
    def state(self) -> Literal["away", "waiting", "ready"]:
        """One word for people; waiting: the model is not ready."""
        return "away" if self.away else "waiting" if self.problem else "ready"

    def takes(self, argument: str) -> bool:
        """Whether the model's pipeline has this argument."""
        return argument in self.properties.get("arguments", ())

    @property
    def adapters(self) -> list[str]:
        return list(self.properties.get("adapters", ()))

    @property
    def controls(self) -> list[str]:
        return list(self.properties.get("controls", ()))

    @property
    def image_prompts(self) -> list[str]:
        return list(self.properties.get("image_prompts", ()))

    def enlargements(self) -> list[tuple[str, str]]:
        """What upscalers make of a picture, in words and as `TIMES NAME`: one of four times makes
        two as well."""
        upscalers = self.properties.get("upscalers", {})
        return [
            (f"{times} times" + (f", by {name}" if len(upscalers) > 1 else ""), f"{times} {name}")
            for times in (2, 4)
            for name, most in upscalers.items()
            if times <= most
        ]

    @property
    def schedulers(self) -> list[str]:
        return list(self.properties.get("schedulers", ()))

    @property
    def default_steps(self) -> int | None:
        return self.properties.get("default_steps")

    @property
    def default_guidance(self) -> float | None:
        return self.properties.get("default_guidance")

    def limit(self, name: str, otherwise: int) -> int:
        """A limit of the server, or `otherwise` if it tells none."""
        return int(self.properties.get("limits", {}).get(name, otherwise))

    @property
    def native(self) -> tuple[int, int] | None:
        """Width and height that the model draws if none are asked for."""
        native = self.properties.get("native_size")
        return (int(native[0]), int(native[1])) if native else None

    @property
    def multiple(self) -> int:
        """What width and height must be divisible by."""
        return int(self.properties.get("size_multiple", 8))

    def sizes(self) -> list[str]:
        """Sizes on offer as `WIDTHxHEIGHT`: the native area in the usual ratios, a quarter of it
        and four times it as squares, as far as the server draws them. The first is native."""
        if self.native is None:
            return []
        width, height = self.native
        most = self.limit("max_pixels", width * height)
        found = [(width, height)]
        for across, down in RATIOS:
            scale = (width * height / (across * down)) ** 0.5
            found.append((self._rounded(across * scale), self._rounded(down * scale)))
        found += [(self._rounded(width / 2), self._rounded(height / 2)), (2 * width, 2 * height)]
        fitting = [size for size in found if size[0] * size[1] <= most]
        return [f"{across}x{down}" for across, down in dict.fromkeys(fitting)]

    def _rounded(self, pixels: float) -> int:
        return max(self.multiple, round(pixels / self.multiple) * self.multiple)
