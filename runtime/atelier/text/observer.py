"""What a language model reports about its start and its requests; telemetry implements it, and
nothing here knows how."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Protocol

from atelier.errors import AtelierError
from atelier.events import Event


class TextObserver(Protocol):
    """Told of every stage of the start, every refusal, and every event of a request."""

    def loaded(self, stage: str, seconds: float) -> None:
        """A stage of the start is done."""

    def refused(self, protocol: str, error: BaseException) -> None:
        """A request was not admitted."""

    def request(self, protocol: str) -> Callable[[Event], None]:
        """A request was admitted; its events go to what this returns."""


class SilentTextObserver:
    """Reports nothing."""

    def loaded(self, stage: str, seconds: float) -> None: ...

    def refused(self, protocol: str, error: BaseException) -> None: ...

    def request(self, protocol: str) -> Callable[[Event], None]:
        return lambda event: None


@contextmanager
def counted_refusals(observer: TextObserver, protocol: str) -> Iterator[None]:
    """Tell the observer of an error raised inside: a request of this protocol was not admitted."""
    try:
        yield
    except AtelierError as error:
        observer.refused(protocol, error)
        raise
