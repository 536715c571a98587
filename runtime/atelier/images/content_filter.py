"""What the settings do not let through: words, prompts and pictures that a classifier gives a
label. A filter that fails lets nothing through.

A prompt is refused before anything is drawn. A picture is looked at on the device when it is drawn,
and refused, blurred or flagged on its way out.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import functional

from atelier.errors import ContentRefused
from atelier.images.classifiers import PictureClassifier, PromptClassifier
from atelier.images.own_checker import OwnChecker
from atelier.images.request import ImageRequest
from atelier.images.word_list import WordList
from atelier.settings import Settings
from atelier.sources.checkpoint.classifier import OWN, classifiers

Told = Callable[[str, str, str], None]

CELLS = 8
"""Of a blurred picture along its shorter side: colours stay, nothing else."""


class ContentFilter:
    """The filters of one model. `told` hears of everything that was stopped or flagged: what it is
    (`prompt`, `picture`), the label, and what was done."""

    def __init__(self, settings: Settings, device: str, told: Told) -> None:
        """
        Raises:
            SettingsError, CheckpointError: a list or a classifier cannot be used.
        """
        found = classifiers(settings)
        words, prompts, pictures = (
            settings.prompt_blocklist,
            found.get("PROMPT_CHECKER"),
            found.get("SAFETY_CHECKER"),
        )
        self._judges_own = settings.safety_checker == OWN
        self.action = settings.safety_action
        self._told = told
        self._words = WordList.read(words) if words else None
        self._prompts = PromptClassifier(prompts, device) if prompts else None
        self._pictures = PictureClassifier(pictures, device) if pictures else None

    @property
    def withholds(self) -> bool:
        """Whether a picture may be kept back: its previews are too, then."""
        looks = self._pictures is not None or self._judges_own
        return looks and self.action != "flag"

    def guard(self, request: ImageRequest, pipeline: Any = None) -> RequestGuard | None:
        """What looks at this request; None if nothing does. For a thread: it tokenizes. `pipeline`
        may bring a checker of its own.

        Raises:
            ContentRefused: a prompt has a word of the list.
        """
        texts = prompts_of(request)
        if self._words:
            for name, text in texts.items():
                if phrase := self._words.find(text):
                    self.tell("prompt", "list", "block")
                    raise ContentRefused(
                        f"{name}: this server draws nothing with {phrase!r}; leave it out"
                    )
        own = OwnChecker.of(pipeline, blackens=not self._judges_own)
        if not (self._prompts or self._pictures or own):
            return None
        rows = self._prompts.prepare(list(texts.values())) if self._prompts else None
        return RequestGuard(self, rows, self._prompts, self._pictures, own)

    @property
    def action_on_bad(self) -> str:
        """What becomes of a bad picture: what the setting says, but if SAFETY_CHECKER is empty what
        the pipeline's own checker does."""
        return self.action if self._pictures or self._judges_own else "black"

    def tell(self, what: str, label: str, action: str) -> None:
        """Pass on to `told`."""
        self._told(what, label, action)


def prompts_of(request: ImageRequest) -> dict[str, str]:
    """Everything that a request asks to see, by field: not what it asks to leave out."""
    further = {
        name: value
        for name, value in request.extra.items()
        if "prompt" in name and "negative" not in name and isinstance(value, str)
    }
    return {"prompt": request.prompt} | further


@dataclass(frozen=True)
class RequestGuard:
    """The filters at one request. `check_prompt` and `scores` are called from its greenlet, and
    their modules' calls park there; `judged` wherever the pictures go out."""

    filter: ContentFilter
    rows: dict[str, Any] | None
    prompts: PromptClassifier | None
    pictures: PictureClassifier | None
    own: OwnChecker | None = None

    @property
    def parts(self) -> dict[str, Any]:
        """What the request's copy of the pipeline is given in place of shared modules."""
        return {"safety_checker": self.own} if self.own else {}

    def check_prompt(self) -> None:
        """See that the prompt's labels let it be drawn. Waits for the device.

        Raises:
            ContentRefused: they do not.
        """
        if self.prompts is None or self.rows is None:
            return
        flags = self.prompts.flags(self.prompts.scores(self.prompts.on_device(self.rows)))
        if labels := _all(flags):
            for label in labels:
                self.filter.tell("prompt", label, "block")
            raise ContentRefused(
                f"the prompt is refused: it was classified as {', '.join(labels)}; change it"
            )

    def scores(self, pixels: torch.Tensor) -> torch.Tensor | None:
        """Scores of finished pictures, rows x height x width x channels in 0..1."""
        return self.pictures.scores(self.pictures.prepare(pixels)) if self.pictures else None

    def judged(
        self, pixels: torch.Tensor, scores: torch.Tensor | None
    ) -> tuple[torch.Tensor, list[tuple[str, ...]]]:
        """The pictures as they may go out, and the labels of each.

        Raises:
            ContentRefused: one of them may not.
        """
        flags: list[tuple[str, ...]] = [()] * len(pixels)
        action = self.filter.action_on_bad
        if self.pictures is not None and scores is not None:
            flags = self.pictures.flags(scores)
        if self.own is not None:
            found = self.own.flags(len(pixels))
            flags = [(*each, *further) for each, further in zip(flags, found, strict=True)]
        for label in (label for each in flags for label in each):
            self.filter.tell("picture", label, action)
        labels = _all(flags)
        if labels and action == "block":
            raise ContentRefused(
                f"the picture was drawn and is not given out: it was classified as"
                f" {', '.join(labels)}; change the prompt or the seed"
            )
        if labels and action == "blur":
            shown = [
                blurred(picture) if each else picture
                for picture, each in zip(pixels, flags, strict=True)
            ]
            pixels = torch.stack(shown)
        return pixels, flags


def blurred(picture: torch.Tensor) -> torch.Tensor:
    """Height x width x channels, of which no shape can be told any more."""
    height, width = picture.shape[:2]
    short = min(height, width)
    cells = (max(1, CELLS * height // short), max(1, CELLS * width // short))
    rows = picture.permute(2, 0, 1)[None]
    small = functional.interpolate(rows, cells, mode="area")
    large = functional.interpolate(small, (height, width), mode="bilinear", align_corners=False)
    return large[0].permute(1, 2, 0)


def _all(flags: list[tuple[str, ...]]) -> list[str]:
    """Every label once, in order."""
    return list(dict.fromkeys(label for each in flags for label in each))
