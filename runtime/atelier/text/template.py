"""Prompts to token ids: plain text, ready ids, and chat messages through the checkpoint's own chat
template."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Any

import orjson

from atelier.bounds import TEMPLATE_SECONDS, read_json
from atelier.errors import InvalidRequest, shown
from atelier.text.calls import knows_tools
from atelier.text.request import TextRequest
from atelier.text.time_limit import TimeIsUp, time_limit
from atelier.text.token_names import TokenNames
from atelier.text.told_tools import alternating, folded

ITEMS = re.compile(r"\b(arguments|args)\s*(\|\s*items|\.items\(\))")
"""In templates that write a call's arguments one by one."""


PARTS = re.compile(r"for\s+\w+\s+in\s+\w+(\.content|\[.content.\])")
"""In templates that take a message's content for a list of parts, whatever it is,"""

TAKES_TEXT = re.compile(r"is (not )?string")
"""unless they ask what it is."""

ROLES = {"developer": "system", "function": "tool"}
"""What OpenAI calls roles today or called them before, as templates know them."""

UNREAD_PARTS = ("thinking", "reasoning", "redacted_thinking")
"""Parts with what a model thought before it answered, which is no text of the answer."""

PASSED_ON = ("reasoning_effort",)
"""Fields of requests that templates of some models read."""

CHARACTERS_A_TOKEN = 16
"""More than texts of any language have on average: the beginning of a text of so many characters
a token of the context is tokenized first."""


class PromptEncoder:
    """Encodes requests with one tokenizer, for a context of so many tokens. Thread-safe; takes
    milliseconds for long prompts, so call it in a thread."""

    def __init__(self, tokenizer: Any, context: int) -> None:
        self._tokenizer = tokenizer
        self._context = context
        self._longest = max(map(len, tokenizer.get_vocab()), default=1)

    @property
    def template(self) -> str:
        """The chat template's source, of all if there are several; empty if there is none."""
        given = self._tokenizer.chat_template or ""
        return given if isinstance(given, str) else "\n".join(given.values())

    def _template_for(self, tools: bool) -> str:
        """Of several templates that the checkpoint has by name, the one for a conversation with
        tools, or without."""
        given = self._tokenizer.chat_template
        if isinstance(given, str):
            return given
        wanted = given.get("tool_use") if tools else None
        return str(wanted or given.get("default") or next(iter(given.values())))

    def encode(self, request: TextRequest) -> list[int]:
        """Token ids of the request's prompt.

        Raises:
            InvalidRequest: there is no chat template, it refuses the messages, a part is not
                text, or the text is longer than the context however it is tokenized.
        """
        if request.prompt_ids is not None:
            return list(request.prompt_ids)
        if request.prompt is not None:
            return self._tokens(request.prompt, add_special_tokens=True)
        return self._tokens(self.render(request), add_special_tokens=False)

    def _tokens(self, text: str, add_special_tokens: bool) -> list[int]:
        """Tokenizing megabytes takes many seconds, so what cannot fit is refused by a part of
        it."""
        sample = CHARACTERS_A_TOKEN * self._context
        if len(text) > sample:
            least = len(text) // self._longest
            if least <= self._context:
                beginning = self._tokenizer(text[:sample], add_special_tokens=False).input_ids
                least = len(beginning)
            if least > self._context:
                raise InvalidRequest(
                    f"the prompt of {len(text)} characters has more tokens than the"
                    f" {self._context} of this model's context: shorten it or raise"
                    " MAX_MODEL_LEN",
                    "prompt",
                )
        return list(self._tokenizer(text, add_special_tokens=add_special_tokens).input_ids)

    def render(self, request: TextRequest) -> str:
        """The messages as one text, ready for the model's answer."""
        if not self.template:
            raise InvalidRequest(
                "this model has no chat template: use /v1/completions with a prompt", "messages"
            )
        messages = [_plain(message, index) for index, message in enumerate(request.messages or ())]
        tools = None if request.tool_choice == "none" else list(request.tools) or None
        template = self._template_for(tools is not None)
        if not knows_tools(template):
            messages = folded(messages, tools or [])
        elif ITEMS.search(template):
            _name_broken_arguments(messages)
        if PARTS.search(template) and not TAKES_TEXT.search(template):
            messages = [_in_parts(message) for message in messages]
        arguments = self._read(request.template_arguments)
        write = partial(
            self._tokenizer.apply_chat_template,
            chat_template=template,
            tools=tools,
            tokenize=False,
            add_generation_prompt=True,
            **arguments,
        )
        try:
            with time_limit(TEMPLATE_SECONDS):
                return _written(write, messages)
        except TimeIsUp:
            raise InvalidRequest(
                f"the chat template takes longer than {TEMPLATE_SECONDS:g} s for these messages",
                "messages",
            ) from None
        except (
            Exception
        ) as error:  # templates raise whatever their author chose, and jinja its own classes
            raise InvalidRequest(
                f"the chat template refuses these messages: {error}", "messages"
            ) from error

    def _read(self, arguments: dict[str, Any]) -> dict[str, Any]:
        """The arguments that the template reads; others have no effect. None may stand in for what
        we tell it, least of all for the template."""
        if not arguments:
            return {}
        ours = inspect.signature(self._tokenizer.apply_chat_template).parameters
        for name in arguments:
            if name in ours or name in ("messages", "documents"):
                raise InvalidRequest(
                    f"chat_template_kwargs.{shown(name)} is not for the caller to set: leave it"
                    " out",
                    "chat_template_kwargs",
                )
        words = set(re.findall(r"\w+", self.template))
        return {name: value for name, value in arguments.items() if name in words}

    @property
    def takes(self) -> list[str]:
        """Of the protocols' fields those that the template reads."""
        return [name for name in PASSED_ON if name in self.template]

    def decode(self, ids: list[int]) -> str:
        """Text of the ids, special tokens included."""
        return str(self._tokenizer.decode(ids))

    def names(self, vocabulary_size: int) -> TokenNames:
        """What ids are called, of a model with so many."""
        return TokenNames(self._tokenizer.backend_tokenizer, vocabulary_size)


def _written(write: Callable[..., Any], messages: list[dict[str, Any]]) -> str:
    """The messages as the template writes them, or, where it refuses a system text or neighbours of
    one role, as turns that every template takes."""
    try:
        return str(write(messages))
    except TimeIsUp:
        raise
    except Exception:
        turns = alternating(messages)
        if turns == messages:
            raise
        return str(write(turns))


def _plain(message: dict[str, Any], index: int) -> dict[str, Any]:
    """A message as templates expect it: text content, `system` for `developer`, tool arguments as
    an object."""
    if not isinstance(message.get("role"), str):
        raise InvalidRequest(f"messages.{index}.role is missing", f"messages.{index}.role")
    role = ROLES.get(message["role"], message["role"])
    if message.get("content") is None and role == "user":
        raise InvalidRequest(f"messages.{index}.content is missing", f"messages.{index}.content")
    # templates ask whether a key is there, not whether anything is in it
    plain = {name: value for name, value in message.items() if value not in (None, [], {})}
    said = message.get("content")
    said = message.get("refusal") if said is None and role == "assistant" else said
    plain |= {"role": role, "content": _text(said, index)}
    calls = message.get("tool_calls")
    if not calls and isinstance(older := plain.pop("function_call", None), dict):
        calls = [{"type": "function", "function": older}]
    if calls:
        if not isinstance(calls, list):
            field = f"messages.{index}.tool_calls"
            raise InvalidRequest(f"{field}={shown(calls)} is not a list of function calls", field)
        plain["tool_calls"] = [_with_object(call, index) for call in calls]
    return plain


def _in_parts(message: dict[str, Any]) -> dict[str, Any]:
    return message | {"content": [{"type": "text", "text": message["content"]}]}


def _text(content: Any, index: int) -> str:
    if content is None:
        return ""
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise InvalidRequest(
            f"messages.{index}.content={shown(content)} must be text or a list of parts",
            f"messages.{index}.content",
        )
    texts = []
    for part in content:
        kind = part.get("type") if isinstance(part, dict) else type(part).__name__
        if kind in UNREAD_PARTS:
            continue
        text = part
        if isinstance(part, dict):
            text = part.get("refusal" if kind == "refusal" else "text")
        text = "" if text is None and kind == "text" else text
        if not isinstance(text, str):
            raise InvalidRequest(
                f"messages.{index}.content has a part of type {shown(kind)}; this model reads text"
                " only",
                f"messages.{index}.content",
            )
        texts.append(text)
    return "".join(texts)


def _with_object(call: Any, index: int) -> dict[str, Any]:
    """The call with its arguments as an object; arguments that are none, since the model was cut
    off, stay the text that they are."""
    field = f"messages.{index}.tool_calls"
    if isinstance(call, dict) and isinstance(custom := call.get("custom"), dict):
        arguments = {"input": custom.get("input")}
        call = {**call, "type": "function", "function": custom | {"arguments": arguments}}
    if not isinstance(call, dict) or not isinstance(call.get("function"), dict):
        raise InvalidRequest(f"{field} is not a list of function calls", field)
    function = dict(call["function"])
    function["arguments"] = _arguments(function.get("arguments"))
    return {**call, "function": function}


def _arguments(given: Any) -> Any:
    """An object, or the text that is none; nothing, in its spellings, is an empty object."""
    if isinstance(given, str):
        with suppress(InvalidRequest):
            read = read_json(given or "{}")
            given = given if read is not None and not isinstance(read, dict) else read
    elif given is not None and not isinstance(given, dict):
        return orjson.dumps(given).decode()
    return {} if given is None else given


def _name_broken_arguments(messages: list[dict[str, Any]]) -> None:
    """For templates that take arguments apart: text that is no object becomes the one argument."""
    for message in messages:
        for call in message.get("tool_calls") or ():
            arguments = call["function"].get("arguments")
            if isinstance(arguments, str):
                call["function"]["arguments"] = {"arguments": arguments}
