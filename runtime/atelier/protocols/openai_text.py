"""OpenAI's text routes, under /v1 and /openai/v1: handled here for the embedded engine, forwarded to a child engine."""

from __future__ import annotations

import base64
import struct
from collections.abc import Awaitable, Callable
from typing import Any

from fastapi import APIRouter, Request, Response
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from atelier.errors import InvalidRequest, NotFound
from atelier.events import Usage
from atelier.protocols.anthropic import count_tokens, messages
from atelier.protocols.forward import forward
from atelier.protocols.generation import check_model, complete, complete_all, json_response, read_body, stream_response
from atelier.protocols.openai_answer import (
    Named,
    chat_answer,
    chat_chunks,
    completion_answer,
    completion_chunks,
    usage_object,
)
from atelier.protocols.openai_body import chat_request, completion_requests, embedding_inputs
from atelier.text.model import TextModel
from atelier.text.request import make_request

Handler = Callable[[TextModel, Request], Awaitable[Response]]


def router(model: TextModel) -> APIRouter:
    """All routes of a language model; mount it before KServe's own."""
    routes = APIRouter()
    handlers: dict[str, Handler] = {
        "/v1/chat/completions": chat,
        "/v1/completions": completions,
        "/v1/embeddings": embeddings,
        "/v1/responses": responses,
        "/v1/messages": messages,
        "/v1/messages/count_tokens": count_tokens,
        "/tokenize": tokenize,
        "/detokenize": detokenize,
    }
    if model.forwards:  # what the child engine has, and nothing else
        handlers = {path: handlers.get(path, responses) for path in model.forwards}
    for path, handler in handlers.items():
        endpoint = _endpoint(model, path, handler)
        routes.add_api_route(path, endpoint, methods=["POST"])
        routes.add_api_route(f"/openai{path}", endpoint, methods=["POST"], include_in_schema=False)
    if model.forwards:

        @routes.get("/metrics")
        async def metrics() -> Response:
            ours = generate_latest().decode()
            theirs = await model.child.metrics() if model.child is not None else ""
            return Response(ours + theirs, media_type=CONTENT_TYPE_LATEST)

    return routes


def _endpoint(model: TextModel, path: str, handler: Handler) -> Callable[[Request], Awaitable[Response]]:
    async def endpoint(request: Request) -> Response:
        model.check_ready()
        if model.child is not None:
            return await forward(model, model.child, request, path)
        return await handler(model, request)

    return endpoint


async def chat(model: TextModel, request: Request) -> Response:
    """`/v1/chat/completions`."""
    body = await read_body(request)
    check_model(model, body)
    wanted = chat_request(body)
    named = _named(model)
    if body.get("stream"):
        return await stream_response(chat_chunks(model, wanted, _usage_wanted(body), named))
    return json_response(chat_answer(model, await complete(model, wanted), named))


async def completions(model: TextModel, request: Request) -> Response:
    """`/v1/completions`; a stream has one prompt."""
    body = await read_body(request)
    check_model(model, body)
    wanted = completion_requests(body)
    named = _named(model)
    if body.get("stream"):
        if len(wanted) > 1:
            raise InvalidRequest(f"prompt: {len(wanted)} prompts cannot be streamed in one request", "prompt")
        return await stream_response(completion_chunks(model, wanted[0], _usage_wanted(body), named))
    return json_response(completion_answer(model, await complete_all(model, wanted), named))


async def embeddings(model: TextModel, request: Request) -> Response:
    """`/v1/embeddings`, as lists of numbers or base64 of 32-bit floats."""
    body = await read_body(request)
    check_model(model, body)
    vectors = [await model.embed(text) for text in embedding_inputs(body)]
    packed = body.get("encoding_format") == "base64"
    data = [
        {"object": "embedding", "index": index, "embedding": _packed(vector) if packed else vector}
        for index, (vector, _) in enumerate(vectors)
    ]
    usage = usage_object([Usage(sum(count for _, count in vectors), 0, 0)])
    return json_response({"object": "list", "data": data, "model": model.name, "usage": usage})


async def responses(model: TextModel, request: Request) -> Response:
    """`/v1/responses` exists only where a child engine has it."""
    raise NotFound("the embedded engine has no /v1/responses: use /v1/chat/completions, or set ENGINE=vllm")


async def tokenize(model: TextModel, request: Request) -> Response:
    """`/tokenize`: ids of a prompt or of messages, as vLLM answers it."""
    body = await read_body(request)
    check_model(model, body)
    wanted = make_request(prompt=body.get("prompt"), messages=body.get("messages"), tools=body.get("tools"))
    ids = await model.tokenize(wanted)
    answer: dict[str, Any] = {"count": len(ids), "max_model_len": model.context, "tokens": ids}
    if body.get("return_token_strs"):
        answer["token_strs"] = model.encoder.pieces(ids)
    return json_response(answer)


async def detokenize(model: TextModel, request: Request) -> Response:
    """`/detokenize`: the text of token ids."""
    body = await read_body(request)
    check_model(model, body)
    ids = body.get("tokens")
    if not isinstance(ids, list) or not all(type(one) is int and 0 <= one < model.vocabulary_size for one in ids):
        raise InvalidRequest(f"tokens must be a list of ids from 0 to {model.vocabulary_size - 1}", "tokens")
    return json_response({"prompt": model.encoder.decode(ids)})


def _named(model: TextModel) -> Named:
    encoder = model.encoder
    return lambda token: encoder.pieces([token])[0]


def _usage_wanted(body: dict[str, Any]) -> bool:
    return bool((body.get("stream_options") or {}).get("include_usage"))


def _packed(vector: list[float]) -> str:
    return base64.b64encode(struct.pack(f"<{len(vector)}f", *vector)).decode()
