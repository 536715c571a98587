"""OpenAI's and Anthropic's text routes, under /v1 and /openai/v1, for the embedded engine;
`forward` has those of a child."""

from __future__ import annotations

import asyncio
import base64
import struct
from collections.abc import Awaitable, Callable
from dataclasses import replace
from functools import partial
from typing import Any

from fastapi import APIRouter, Request, Response

from atelier.errors import DeadlineExceeded, InvalidRequest, NotFound
from atelier.events import Usage
from atelier.protocols.anthropic.messages import count_tokens, messages
from atelier.protocols.http.bodies import json_response, read_object
from atelier.protocols.http.deadlines import seconds_allowed, timed
from atelier.protocols.http.models import check_name
from atelier.protocols.http.pools import writing
from atelier.protocols.http.results import ResultStore
from atelier.protocols.http.sse import when_begun
from atelier.protocols.openai.completion_answers import (
    completion_answer,
    completion_chunks,
    prompt_text,
)
from atelier.protocols.openai.idle_fields import log_user, warnings
from atelier.protocols.openai.response_routes import create as create_response
from atelier.protocols.openai.response_routes import router as kept_responses
from atelier.protocols.openai.response_store import ResponseStore
from atelier.protocols.openai.text_answers import (
    Named,
    chat_answer,
    chat_chunks,
    error_frame,
    usage_object,
)
from atelier.protocols.openai.text_bodies import (
    chat_request,
    check_dimensions,
    embedding_inputs,
    read_completions,
    streaming_of,
)
from atelier.protocols.text_requests import complete, complete_all
from atelier.text.request import make_request
from atelier.text.service import TextService

Handler = Callable[[TextService, Request], Awaitable[Response]]


def router(model: TextService, results: ResultStore) -> APIRouter:
    """All routes of a language model; mount it before KServe's own. `results` keeps responses."""
    store = ResponseStore(results)
    routes = APIRouter()
    handlers: dict[str, Handler] = {
        "/v1/chat/completions": chat,
        "/v1/completions": completions,
        "/v1/embeddings": embeddings,
        "/v1/responses": partial(create_response, store),
        "/v1/messages": messages,
        "/v1/messages/count_tokens": count_tokens,
        "/tokenize": tokenize,
        "/detokenize": detokenize,
    }
    for path, handler in handlers.items():
        endpoint = _endpoint(model, path, handler)
        routes.add_api_route(path, endpoint, methods=["POST"], include_in_schema=not model.forwards)
        routes.add_api_route(f"/openai{path}", endpoint, methods=["POST"], include_in_schema=False)
    if not model.forwards:
        routes.include_router(kept_responses(store))
    return routes


def _endpoint(
    model: TextService, path: str, handler: Handler
) -> Callable[[Request], Awaitable[Response]]:
    async def endpoint(request: Request) -> Response:
        if model.forwards:
            raise NotFound(
                f"the engine of this server has no {path}; it answers {', '.join(model.forwards)}"
            )
        model.check_ready()
        return await handler(model, request)

    return endpoint


async def chat(model: TextService, request: Request) -> Response:
    """`/v1/chat/completions`."""
    with model.refusals("openai"):
        body = await read_object(request)
        check_name(model, body.get("model", model.name))
        wanted = timed(chat_request(body), request.headers)
        streaming = streaming_of(body)
    log_user(body)
    named = Named(model.names)
    idle = warnings(body, read=model.template_takes)
    told = {"warnings": idle} if idle else {}
    if streaming:
        events = chat_chunks(model, wanted, streaming.usage, named, told)
        return await when_begun(events, error_frame)
    answer = await complete(model, wanted)
    said = await writing(chat_answer, model, answer, named, wanted.prompt_logprobs)
    return json_response(said | told)


async def completions(model: TextService, request: Request) -> Response:
    """`/v1/completions`; a stream has one prompt."""
    with model.refusals("openai"):
        body = await read_object(request)
        check_name(model, body.get("model", model.name))
        wanted = read_completions(body)
        requests = [timed(each, request.headers) for each in wanted.requests]
        wanted = replace(wanted, requests=requests)
        streaming = streaming_of(body)
        if streaming and len(requests) > 1:
            raise InvalidRequest(
                f"prompt: {len(requests)} prompts cannot be streamed in one request", "prompt"
            )
    log_user(body)
    named = Named(model.names)
    if streaming:
        return await when_begun(
            completion_chunks(model, wanted, streaming.usage, named), error_frame
        )
    echoes = [await prompt_text(model, each) if wanted.echo else "" for each in requests]
    answers = await complete_all(model, requests)
    said = await writing(completion_answer, model, wanted, answers, named, echoes)
    return json_response(said)


async def embeddings(model: TextService, request: Request) -> Response:
    """`/v1/embeddings`, as lists of numbers or base64 of 32-bit floats."""
    body = await read_object(request)
    check_name(model, body.get("model", model.name))
    log_user(body)
    seconds = seconds_allowed(request.headers)
    try:
        async with asyncio.timeout(seconds):
            vectors = await _vectors(model, body)
    except TimeoutError:
        raise DeadlineExceeded(
            f"the embeddings took longer than the {seconds:g} s that they may take"
        ) from None
    packed = body.get("encoding_format") == "base64"
    data = [
        {"object": "embedding", "index": index, "embedding": _packed(vector) if packed else vector}
        for index, (vector, _) in enumerate(vectors)
    ]
    usage = usage_object([Usage(sum(count for _, count in vectors), 0, 0)])
    return json_response({"object": "list", "data": data, "model": model.name, "usage": usage})


async def _vectors(model: TextService, body: dict[str, Any]) -> list[tuple[list[float], int]]:
    """The embedding of each input, and its tokens."""
    vectors: list[tuple[list[float], int]] = []
    for text in embedding_inputs(body):
        vectors.append(await model.embed(text))
        check_dimensions(body, len(vectors[0][0]))
    return vectors


async def tokenize(model: TextService, request: Request) -> Response:
    """`/tokenize`: ids of a prompt or of messages, as vLLM answers it."""
    body = await read_object(request)
    check_name(model, body.get("model", model.name))
    wanted = make_request(
        prompt=body.get("prompt"), messages=body.get("messages"), tools=body.get("tools")
    )
    ids = await model.tokenize(wanted)
    answer: dict[str, Any] = {"count": len(ids), "max_model_len": model.context, "tokens": ids}
    if body.get("return_token_strs"):
        answer["token_strs"] = model.names.pieces(ids)
    return json_response(answer)


async def detokenize(model: TextService, request: Request) -> Response:
    """`/detokenize`: the text of token ids."""
    body = await read_object(request)
    check_name(model, body.get("model", model.name))
    ids = body.get("tokens")
    if not isinstance(ids, list) or not all(
        type(one) is int and 0 <= one < model.vocabulary_size for one in ids
    ):
        raise InvalidRequest(
            f"tokens must be a list of ids from 0 to {model.vocabulary_size - 1}", "tokens"
        )
    return json_response({"prompt": await model.detokenize(ids)})


def _packed(vector: list[float]) -> str:
    return base64.b64encode(struct.pack(f"<{len(vector)}f", *vector)).decode()
