"""What protocols ask of a language model, whether it runs in this process or in a worker."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any, Protocol

from atelier.streams import EventStream
from atelier.text.observer import TextObserver
from atelier.text.parsing import AnswerParser
from atelier.text.request import TextRequest


class Names(Protocol):
    """What token ids are called."""

    def pieces(self, ids: list[int]) -> list[str]:
        """Text of each id by itself."""

    def raw(self, token: int) -> bytes:
        """The bytes that an id stands for, of half a character as well."""


class TextService(Protocol):
    """`TextModel` and `workers.text_front.TextFront` are two."""

    name: str
    observer: TextObserver

    @property
    def forwards(self) -> tuple[str, ...]:
        """Paths that a child engine answers itself."""

    @property
    def ready(self) -> bool:
        """Whether a request would be served now."""

    @property
    def progress(self) -> str:
        """What the start is doing."""

    @property
    def context(self) -> int:
        """Tokens of prompt and answer together."""

    @property
    def vocabulary_size(self) -> int:
        """Token ids go from 0 to one less."""

    @property
    def template_takes(self) -> list[str]:
        """Of the protocols' fields those that the chat template reads."""

    @property
    def names(self) -> Names:
        """What token ids are called; NotReady before the tokenizer is loaded."""

    async def submit(self, request: TextRequest) -> EventStream:
        """Have a request admitted; its events follow."""

    def parser(self, request: TextRequest) -> AnswerParser:
        """What takes the answer of an admitted request apart."""

    async def tokenize(self, request: TextRequest) -> list[int]:
        """The prompt's token ids."""

    async def detokenize(self, ids: list[int]) -> str:
        """Text of token ids, special tokens included."""

    async def embed(self, text: str | list[int]) -> tuple[list[float], int]:
        """The vector of a text and how many tokens it has."""

    def refusals(self, protocol: str) -> AbstractContextManager[None]:
        """Count an error raised inside as a request that was not admitted."""

    def check_ready(self) -> None:
        """Raise NotReady unless requests can be served."""

    def metadata(self) -> dict[str, Any]:
        """What the model's metadata endpoint adds."""
