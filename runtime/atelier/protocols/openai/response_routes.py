"""OpenAI's Responses API for the embedded engine: an answer, whole or as events, and what is kept
of it for a while.

A response is a chat with another form: nothing of how the model answers is decided here.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import replace
from typing import Any

from fastapi import APIRouter, Request, Response

from atelier.errors import AtelierError, InvalidRequest, shown
from atelier.events import Finished
from atelier.protocols.http.bodies import json_response, read_object
from atelier.protocols.http.deadlines import timed
from atelier.protocols.http.models import check_name
from atelier.protocols.http.sse import frame, when_begun
from atelier.protocols.openai.idle_fields import log_user
from atelier.protocols.openai.response_answers import ResponseDraft, TellableEvent, error_event
from atelier.protocols.openai.response_bodies import WantedResponse, own_words, read_response
from atelier.protocols.openai.response_store import KeptResponse, ResponseStore
from atelier.protocols.openai.text_answers import Named
from atelier.protocols.openai.text_bodies import switch
from atelier.protocols.text_requests import pieces, running
from atelier.text.request import TextRequest
from atelier.text.service import TextService

PAGE, LONGEST_PAGE = 20, 100


async def create(store: ResponseStore, model: TextService, request: Request) -> Response:
    """`/v1/responses`."""
    with model.refusals("openai"):
        body = await read_object(request)
        check_name(model, body.get("model", model.name))
        wanted = read_response(body, store, model.template_takes)
        wanted = replace(wanted, request=timed(wanted.request, request.headers))
        streaming = switch(body, "stream")
        if wanted.truncate:
            wanted = replace(wanted, request=await fitting(model, wanted.request))
    log_user(body)
    draft = ResponseDraft(wanted, model.name, Named(model.names))
    if streaming:
        return await when_begun(_frames(store, model, wanted, draft), _error_frame)
    async for _ in _events(store, model, wanted, draft):
        pass
    return json_response(draft.response)


async def fitting(model: TextService, request: TextRequest) -> TextRequest:
    """The request without as many of its oldest turns as the context has no room for. Instructions
    stay, and so does the last turn of the user, with all that came of it."""
    messages = request.messages or ()
    first = next(
        (at for at, one in enumerate(messages) if one["role"] not in ("system", "developer")), 0
    )
    starts = [at for at, one in enumerate(messages) if one["role"] == "user" and at > first]

    def without(start: int) -> TextRequest:
        kept = messages[:first] + messages[start:]
        return request.model_copy(update={"messages": kept})

    async def fits(start: int) -> bool:
        try:
            tokens = len(await model.tokenize(without(start)))
        except InvalidRequest as error:
            if error.field != "prompt":  # the one that says it is too long
                raise
            return False
        return tokens + (request.max_tokens or 1) <= model.context

    if not starts or await fits(first):
        return request
    low, high = 0, len(starts) - 1
    while low < high:
        middle = (low + high) // 2
        if await fits(starts[middle]):
            high = middle
        else:
            low = middle + 1
    return without(starts[low])


async def _events(
    store: ResponseStore, model: TextService, wanted: WantedResponse, draft: ResponseDraft
) -> AsyncGenerator[TellableEvent]:
    with own_words():
        async with running(model, wanted.request) as events:
            for event in draft.begin():
                yield event
            async for piece in pieces(model, wanted.request, events):
                told = draft.end(piece) if isinstance(piece, Finished) else draft.add(piece)
                for event in told:
                    yield event
    response = draft.response
    if wanted.store and not store.put(KeptResponse(response, wanted.items)):
        response["store"] = False
        response.setdefault("warnings", []).append(
            "store: the conversation is larger than RESULT_BYTES and is not kept"
        )
    yield draft.last()


async def _frames(
    store: ResponseStore, model: TextService, wanted: WantedResponse, draft: ResponseDraft
) -> AsyncGenerator[bytes]:
    begun = False
    try:
        async with aclosing(_events(store, model, wanted, draft)) as events:
            async for event in events:
                begun = True
                yield frame(event, event["type"])
    except AtelierError as error:
        if not begun:
            raise
        failed = draft.fail(error)
        yield frame(failed, failed["type"])


def _error_frame(error: AtelierError) -> bytes:
    return frame(error_event(error), "error")


def router(store: ResponseStore) -> APIRouter:
    """What can be asked about a kept response."""
    routes = APIRouter()

    @routes.get("/v1/responses/{response_id}")
    @routes.get("/openai/v1/responses/{response_id}", include_in_schema=False)
    async def get_response(response_id: str, stream: bool = False) -> Response:
        if stream:
            raise InvalidRequest(
                "stream=true: events are not kept; leave it out and read the response", "stream"
            )
        return json_response(store.get(response_id).response)

    @routes.delete("/v1/responses/{response_id}")
    @routes.delete("/openai/v1/responses/{response_id}", include_in_schema=False)
    async def delete_response(response_id: str) -> Response:
        store.remove(response_id)
        return json_response({"id": response_id, "object": "response", "deleted": True})

    @routes.post("/v1/responses/{response_id}/cancel")
    @routes.post("/openai/v1/responses/{response_id}/cancel", include_in_schema=False)
    async def cancel_response(response_id: str) -> Response:
        store.get(response_id)
        raise InvalidRequest(
            f"the response {response_id} is done: only those of background=true can be cancelled;"
            " to end one that runs, close its connection"
        )

    @routes.get("/v1/responses/{response_id}/input_items")
    @routes.get("/openai/v1/responses/{response_id}/input_items", include_in_schema=False)
    async def list_input_items(
        response_id: str, limit: int = PAGE, order: str = "desc", after: str = ""
    ) -> Response:
        return json_response(page(store.get(response_id).items, limit, order, after))

    return routes


def page(items: list[dict[str, Any]], limit: int, order: str, after: str) -> dict[str, Any]:
    """A part of a list of items, as OpenAI's lists have it.

    Raises:
        InvalidRequest: names the parameter and what is allowed.
    """
    if not 1 <= limit <= LONGEST_PAGE:
        raise InvalidRequest(f"limit={limit}: allowed: 1 to {LONGEST_PAGE}", "limit")
    if order not in ("asc", "desc"):
        raise InvalidRequest(f"order={shown(order)}: allowed: asc, desc", "order")
    ordered = items if order == "asc" else items[::-1]
    ids = [item["id"] for item in ordered]
    if after and after not in ids:
        raise InvalidRequest(f"after={shown(after)} is no item of this response", "after")
    rest = ordered[ids.index(after) + 1 if after else 0 :]
    told = rest[:limit]
    return {
        "object": "list",
        "data": told,
        "first_id": told[0]["id"] if told else None,
        "last_id": told[-1]["id"] if told else None,
        "has_more": len(rest) > limit,
    }
