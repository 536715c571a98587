"""What can go wrong on the way from pictures to an endpoint. All are `AtelierError`s: one sentence,
no traceback."""

from __future__ import annotations

from atelier.errors import StartError


class DataError(StartError):
    """The pictures, captions or prompts cannot be trained on as they are."""


class OptionError(StartError):
    """An option has a value that is not allowed, or two options contradict each other."""


class TrainingFailed(StartError):
    """Training began and cannot go on."""


class GateClosed(StartError):
    """The evaluation is below the thresholds; nothing is published."""


class PublishError(StartError):
    """The result could not be stored completely; no manifest was written."""
