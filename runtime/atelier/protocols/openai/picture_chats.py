"""`/v1/chat/completions` of a picture model: the last message says what to draw, pictures in it are
edited, and the answer has the pictures as OpenRouter's chats have them, in `images`.

An edit by chat is the edit that `/v1/images/edits` makes of the same prompt, pictures and seed.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import AsyncGenerator
from dataclasses import dataclass
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import Response
from pydantic import Field

from atelier.bounds import MAX_INPUT_PICTURES, MAX_MESSAGES, MAX_PICTURE_VALUES
from atelier.errors import AtelierError, InvalidRequest, shown
from atelier.images.codec import MEDIA_TYPES
from atelier.images.request import ImageRequest
from atelier.images.service import PictureService
from atelier.protocols.http.bodies import json_object, json_response, without_nothing
from atelier.protocols.http.deadlines import timed
from atelier.protocols.http.error_bodies import error_object
from atelier.protocols.http.openapi import answers, json_body
from atelier.protocols.http.pools import reading, writing
from atelier.protocols.http.remote import picture_bytes, picture_text
from atelier.protocols.http.sse import DONE, frame, when_begun
from atelier.protocols.openai.idle_fields import Refused, refuse, without_effect
from atelier.protocols.openai.image_bodies import ImagesBody, check, translate
from atelier.protocols.openai.text_bodies import switch
from atelier.protocols.picture_requests import DrawnRequest, draw_all
from atelier.protocols.picture_writer import EncodedPicture, PictureWriter
from atelier.settings import Settings

PROTOCOL = "openai"

REFUSED: Refused = {
    "tools": (([],), "a picture model calls none; leave it out"),
    "audio": ((), "answers are pictures; leave it out"),
    "response_format": (({"type": "text"},), "answers are pictures; leave it out"),
    "prompt": ((), "the last message is the prompt; leave it out"),
    "image": ((), "pictures are parts of messages; leave it out"),
}

IDLE = (
    "frequency_penalty", "logit_bias", "logprobs", "max_completion_tokens", "max_tokens",
    "metadata", "min_p", "modalities", "parallel_tool_calls", "presence_penalty",
    "reasoning_effort", "repetition_penalty", "service_tier", "stop", "store", "stream_options",
    "temperature", "tool_choice", "top_k", "top_logprobs", "top_p", "verbosity",
)  # fmt: skip
"""Fields for text that clients send with every chat."""

SILENT = {"modalities", "stream_options", "store", "metadata"}
"""Those of them that no one expects an effect of here."""

TEXT_PARTS = ("text", "input_text", "output_text")
PICTURE_PARTS = ("image_url", "input_image", "image")
"""Types of parts, as the routes of several makers call them."""

USAGE = {"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0}
"""Nothing is counted in tokens here."""

MESSAGES = {
    "type": "array",
    "minItems": 1,
    "maxItems": MAX_MESSAGES,
    "items": {"type": "object"},
    "description": "The last user message is drawn; its pictures, in order, are edited.",
}


class PictureChatBody(ImagesBody):
    """What the images routes take, but for the messages."""

    prompt: str = Field(max_length=20_000)


@dataclass(frozen=True)
class PictureChats:
    """The handler, over one model."""

    model: PictureService
    writer: PictureWriter
    settings: Settings

    async def chat(self, request: Request) -> Response:
        """Draw what the last message says, from its pictures if it has some."""
        with self.model.refusals(PROTOCOL):
            self.model.check_room()
            body = without_nothing(json_object(await request.body(), MAX_PICTURE_VALUES))
            stream = switch(body, "stream")
            body.pop("stream", None)
            drawing, warnings = await reading(self._request, body)
            drawing = timed(drawing, request.headers)
        if stream:
            return await when_begun(self._chunks(drawing, warnings), _error_frame)
        [drawn] = await draw_all(self.model, self.writer, [drawing], PROTOCOL)
        return json_response(await writing(self._answer, drawn, warnings))

    def _request(self, body: dict[str, Any]) -> tuple[ImageRequest, list[str]]:
        refuse(body, REFUSED)
        fields = {name: value for name, value in body.items() if name not in (*IDLE, *REFUSED)}
        prompt, pictures = last_wish(fields.pop("messages", None))
        decoded = [picture_bytes(one, "messages", self.settings) for one in pictures]
        checked = check(PictureChatBody, fields | {"prompt": prompt})
        call = translate(checked, decoded, None, self.model, self.settings)
        sent = [name for name in IDLE if body.get(name) is not None and name not in SILENT]
        return call.request, [*call.warnings, *map(without_effect, sent)]

    def _answer(self, drawn: DrawnRequest, warnings: list[str]) -> dict[str, Any]:
        choices = [
            {
                "index": index,
                "message": {"role": "assistant", "content": "", "images": [_part(picture)]},
                "finish_reason": "stop",
            }
            for index, picture in enumerate(drawn.pictures)
        ]
        told = [*warnings, *drawn.warnings]
        return self._head("chat.completion") | (
            {"choices": choices, "usage": USAGE} | ({"warnings": told} if told else {})
        )

    def _head(self, kind: str) -> dict[str, Any]:
        identity = {"id": f"chatcmpl-{uuid.uuid4().hex}", "object": kind}
        return identity | {"created": int(time.time()), "model": self.model.name}

    async def _chunks(self, drawing: ImageRequest, warnings: list[str]) -> AsyncGenerator[bytes]:
        """The pictures in one piece each, since a piece of one is none."""
        [drawn] = await draw_all(self.model, self.writer, [drawing], PROTOCOL)
        whole = await writing(self._answer, drawn, warnings)
        head = self._head("chat.completion.chunk")
        for choice in whole["choices"]:
            index = choice["index"]
            yield frame(head | {"choices": [{"index": index, "delta": choice["message"]}]})
            end = {"index": index, "delta": {}, "finish_reason": "stop"}
            told = {name: whole[name] for name in ("warnings",) if name in whole}
            yield frame(head | {"choices": [end]} | told)
        yield DONE


def last_wish(messages: Any) -> tuple[str, list[str]]:
    """The text of the last user message, and its pictures in order as they were sent; without any,
    those of the answer before it, so that a conversation goes on from what it drew.

    Raises:
        InvalidRequest: there is none, or a part that is neither text nor a picture.
    """
    if not isinstance(messages, list) or not 0 < len(messages) <= MAX_MESSAGES:
        raise InvalidRequest(
            f"messages: it must be a list of 1 to {MAX_MESSAGES} messages", "messages"
        )
    for place, message in enumerate(messages):
        if not isinstance(message, dict):
            raise InvalidRequest(f"messages.{place}: it must be an object", "messages")
    users = [place for place, one in enumerate(messages) if one.get("role") == "user"]
    if not users:
        raise InvalidRequest("messages: there is none of the user", "messages")
    texts, pictures = _parts(messages[users[-1]], f"messages.{users[-1]}")
    prompt = "\n".join(filter(None, texts))
    if not prompt:
        raise InvalidRequest(
            f"messages.{users[-1]}.content: it has no text that says what to draw", "messages"
        )
    for place in range(users[-1] - 1, -1, -1):
        if not pictures and messages[place].get("role") == "assistant":
            pictures = _parts(messages[place], f"messages.{place}", answered=True)[1]
    if len(pictures) > MAX_INPUT_PICTURES:
        raise InvalidRequest(
            f"messages: {len(pictures)} pictures; at most {MAX_INPUT_PICTURES}", "messages"
        )
    return prompt, pictures


def _parts(
    message: dict[str, Any], where: str, answered: bool = False
) -> tuple[list[str], list[str]]:
    """Texts and pictures of a message; what else an answer holds, such as thoughts, is passed
    over."""
    content = message.get("content")
    parts = [] if content is None else content
    if isinstance(parts, str):
        parts = [{"type": "text", "text": parts}]
    further = message.get("images") or []
    if not isinstance(parts, list) or not isinstance(further, list):
        raise InvalidRequest(f"{where}.content: it must be text or a list of parts", "messages")
    texts: list[str] = []
    pictures: list[str] = []
    for part in [*parts, *further]:
        kind, value = _read(part)
        if value is None and kind in (*TEXT_PARTS, *PICTURE_PARTS):
            continue
        if isinstance(value, str):
            (texts if kind in TEXT_PARTS else pictures).append(value)
        elif not answered:
            raise InvalidRequest(
                f"{where}.content: {shown(part)} is neither a text nor an image_url part",
                "messages",
            )
    return texts, pictures


def _read(part: Any) -> tuple[str, Any]:
    """Type and content of a part in OpenAI's, the Responses API's or Anthropic's form; the content
    is False where it is neither text nor a picture."""
    if isinstance(part, str):
        return "text", part
    kind = part.get("type") if isinstance(part, dict) else None
    if not isinstance(kind, str):
        return "", False
    if kind in TEXT_PARTS:
        return kind, part.get("text")
    source = part.get("source")
    if kind == "image" and isinstance(source, dict):
        return kind, source.get("url") or source.get("data")
    return kind, picture_text(part.get("image_url")) if kind in PICTURE_PARTS else False


def _part(picture: EncodedPicture) -> dict[str, Any]:
    """A picture as a part of a message, with the seed that draws it again."""
    url = (
        picture.stored.url
        if picture.stored
        else f"data:{MEDIA_TYPES[picture.format]};base64,{picture.b64}"
    )
    return {"type": "image_url", "image_url": {"url": url}} | picture.further


def _error_frame(error: AtelierError) -> bytes:
    return frame({"error": error_object(error)})


def router(chats: PictureChats) -> APIRouter:
    """The route under both prefixes."""
    routes = APIRouter(tags=["Chat"])
    schema = PictureChatBody.model_json_schema()
    properties = schema["properties"] | {"messages": MESSAGES}
    properties.pop("prompt")
    body = json_body(schema | {"properties": properties, "required": ["messages"]})
    options = answers("application/json", "text/event-stream")
    for prefix in ("/v1", "/openai/v1"):
        routes.add_api_route(
            f"{prefix}/chat/completions",
            chats.chat,
            methods=["POST"],
            include_in_schema=prefix == "/v1",
            openapi_extra=body,
            **options,
        )
    return routes
