"""`parallel_tool_calls: false`: of several tool calls that a model makes, the first is told."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest

from atelier.events import Event, Finished, Token
from atelier.protocols.anthropic.messages import message_request
from atelier.protocols.openai.text_bodies import chat_request
from atelier.protocols.text_requests import Piece, pieces
from atelier.text.calls import FORMATS
from atelier.text.parsing import AnswerParser
from atelier.text.request import TextRequest

CALL = '<tool_call>\n{{"name": "draw", "arguments": {{"size": "{}"}}}}\n</tool_call>\n'
TURN = [{"role": "user", "content": "Draw both."}]


class ParsingOnly:
    """The part of a text service that takes answers apart."""

    def parser(self, request: TextRequest) -> AnswerParser:
        return AnswerParser(FORMATS["hermes"], reasoning=False)


async def told(request: TextRequest) -> list[str]:
    """The arguments of the calls in the second choice of an answer with two calls each."""

    async def events() -> AsyncIterator[Event]:
        for choice in range(request.n):
            for piece in (CALL.format("large"), CALL.format("small"), "Done."):
                yield Token(choice, piece)
        yield Finished(reasons=("stop",) * request.n)

    parts = [
        part
        async for piece in pieces(ParsingOnly(), request, events())  # type: ignore[arg-type]
        if isinstance(piece, Piece) and piece.choice == 1
        for part in piece.parts
    ]
    assert "".join(part.content for part in parts).strip() == "Done."
    return [part.call.arguments for part in parts if part.call]


LARGE, SMALL = '{"size": "large"}', '{"size": "small"}'


@pytest.mark.parametrize(("parallel", "calls"), [(False, [LARGE]), (True, [LARGE, SMALL]),
                                                 (None, [LARGE, SMALL])])  # fmt: skip
async def test_one_call_at_most_where_openais_clients_ask_for_it(
    parallel: bool | None, calls: list[str]
) -> None:
    body: dict[str, Any] = {"messages": TURN, "n": 2, "parallel_tool_calls": parallel}
    assert await told(chat_request(body)) == calls


@pytest.mark.parametrize("alone", [True, False, None])
def test_anthropics_clients_say_it_in_the_tool_choice(alone: bool | None) -> None:
    choice = {"type": "auto", "disable_parallel_tool_use": alone}
    body = {"messages": TURN, "max_tokens": 9, "tool_choice": choice}
    assert message_request(body).parallel_tool_calls is not bool(alone)
    assert message_request(body | {"tool_choice": None}).parallel_tool_calls
