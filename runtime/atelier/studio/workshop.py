"""What all tabs share: the endpoints with what they serve now, and what is being drawn."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import replace

from atelier.studio.board import Boards
from atelier.studio.card import ModelCard
from atelier.studio.client import EndpointClient, EndpointError

FRESH_SECONDS = 2.0
"""How long a look at the endpoints is good for, however many browsers ask."""


class Workshop:
    """The endpoints of one studio. For one event loop."""

    def __init__(self, endpoints: Sequence[EndpointClient]) -> None:
        self.endpoints = list(endpoints)
        self.boards = Boards()
        self._looked = 0.0
        self._cards = [ModelCard(one.url) for one in self.endpoints]
        self._looking = asyncio.Lock()

    async def cards(self) -> list[ModelCard]:
        """What the endpoints serve, in their order. Of one that is away it is what was known
        before, with the problem: the forms stay as they are."""
        async with self._looking:
            if time.monotonic() - self._looked > FRESH_SECONDS:
                cards = await asyncio.gather(*(one.card() for one in self.endpoints))
                self._cards = [
                    replace(old, problem=card.problem, away=True) if card.away else card
                    for old, card in zip(self._cards, cards, strict=True)
                ]
                self._looked = time.monotonic()
        return self._cards

    async def of_kind(self, kind: str) -> list[ModelCard]:
        """The models of a kind."""
        return [card for card in await self.cards() if card.kind == kind]

    async def choose(self, kind: str, url: str | None) -> tuple[EndpointClient, ModelCard]:
        """The endpoint at `url`, or the first that serves this kind.

        Raises:
            EndpointError: there is none.
        """
        cards = await self.cards()
        fitting = [card for card in cards if card.kind == kind and url in (None, "", card.url)]
        if not fitting:
            told = "; ".join(card.problem for card in cards if card.problem)
            raise EndpointError(told or f"no endpoint of this studio serves {kind}")
        return self.endpoint(fitting[0].url), fitting[0]

    def endpoint(self, url: str) -> EndpointClient:
        return next(one for one in self.endpoints if one.url == url)

    def key(self, url: str, keys: Sequence[str]) -> str:
        """The key that was entered for an endpoint; keys are in the endpoints' order."""
        return keys[[one.url for one in self.endpoints].index(url)].strip()
