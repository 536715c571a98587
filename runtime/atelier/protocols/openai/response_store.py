"""Responses that are kept for a while, each for the key that asked for it."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import orjson

from atelier.caller import CALLER
from atelier.errors import GenerationFailed, NotFound, shown
from atelier.protocols.http.results import ResultStore
from atelier.protocols.openai.response_items import Item, key_of


@dataclass(frozen=True)
class KeptResponse:
    """An answer and all that it answered: the items of earlier turns, then its own."""

    response: dict[str, Any]
    items: list[Item]

    @property
    def conversation(self) -> list[Item]:
        """What a next turn goes on from."""
        return [*self.items, *self.response["output"]]


class ResponseStore:
    """Responses by id, within the bounds of a `ResultStore`. To one key, those of another are not
    there. For one event loop."""

    def __init__(self, results: ResultStore) -> None:
        self._results = results

    def put(self, kept: KeptResponse) -> bool:
        """Keep a response; the oldest give way. False: it is larger than the whole store."""
        data = orjson.dumps({"response": kept.response, "items": kept.items})
        try:
            self._results.put(data, "application/json", name=_name(kept.response["id"]))
        except GenerationFailed:
            return False
        return True

    def get(self, response_id: str) -> KeptResponse:
        """The response.

        Raises:
            NotFound: it was never kept for this key, has expired, or gave way to newer ones.
        """
        try:
            data = self._results.get(_name(response_id)).data
        except NotFound:
            raise NotFound(
                f"there is no response {shown(response_id)}: those asked for with store=true stay"
                f" for {self._results.seconds:g} s, or less under load; send the items instead"
            ) from None
        return KeptResponse(**orjson.loads(data))

    def item(self, item_id: str) -> Item:
        """The item of a kept response.

        Raises:
            NotFound: there is none.
        """
        with suppress(NotFound):
            for item in self.get(f"resp_{key_of(item_id)}").conversation:
                if item["id"] == item_id:
                    return item
        raise NotFound(f"there is no item {shown(item_id)}, or not any more: send it whole")

    def remove(self, response_id: str) -> None:
        """Forget a response.

        Raises:
            NotFound: it is not here.
        """
        self.get(response_id)
        self._results.remove(_name(response_id))


def _name(response_id: str) -> str:
    return f"{CALLER.get()}/{response_id}"
