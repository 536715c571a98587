"""OpenAI request bodies to TextRequests: names, defaults and refusals; no shape of an answer."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from atelier.bounds import MAX_ROWS
from atelier.errors import InvalidRequest, shown
from atelier.protocols.openai.idle_fields import refuse
from atelier.protocols.openai.structured_output import structured_output
from atelier.text.request import TextRequest, make_request

SAME = (
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "repetition_penalty",
    "presence_penalty",
    "frequency_penalty",
    "logit_bias",
    "seed",
    "n",
    "stop",
    "stop_token_ids",
    "ignore_eos",
    "skip_special_tokens",
    "response_format",
    "timeout",
    "cache_salt",
)
"""Fields that mean the same in both endpoints and in TextRequest; those beyond OpenAI's are vLLM's
names."""

EFFORT = re.compile(r"[a-z]{1,16}")

REFUSED = {"suffix": "", "best_of": 1, "use_beam_search": False, "bad_words": []}
"""Fields that would change the answer but are not offered, with the value that changes nothing."""


def chat_request(body: dict[str, Any]) -> TextRequest:
    """A `/v1/chat/completions` body.

    Raises:
        InvalidRequest: names the field, its value and what is allowed.
    """
    if not isinstance(body.get("messages"), list):
        raise InvalidRequest("messages must be a list of objects with role and content", "messages")
    refuse(body)
    top = body.get("top_logprobs")
    listed = switch(body, "logprobs")
    if (
        top not in (None, 0, "0") and not listed
    ):  # 0, which libraries send by default, asks for nothing
        raise InvalidRequest(f"top_logprobs={top} needs logprobs=true", "top_logprobs")
    newer = body.get("max_completion_tokens") is not None
    limit = "max_completion_tokens" if newer else "max_tokens"
    try:
        return make_request(
            messages=body["messages"],
            max_tokens=body.get(limit),
            logprobs=(0 if top is None else top) if listed else None,
            prompt_logprobs=prompt_logprobs(body),
            **tools_of(body),
            parallel_tool_calls=body.get("parallel_tool_calls"),
            template_arguments=template_arguments(body, body.get("reasoning_effort")),
            **shared_fields(body),
        )
    except InvalidRequest as error:
        if error.field != "max_tokens":
            raise
        raise InvalidRequest(error.message.replace("max_tokens", limit, 1), limit) from None


@dataclass(frozen=True)
class WantedCompletions:
    """One request a prompt; with `echo` answers begin with it. `prompt_logprobs`: as many likeliest
    tokens are told in the place of each of the prompt's, None: nothing is."""

    requests: list[TextRequest]
    echo: bool
    prompt_logprobs: int | None


def read_completions(body: dict[str, Any]) -> WantedCompletions:
    """A `/v1/completions` body. `max_tokens` is 16 unless given, as in OpenAI's API.

    Raises:
        InvalidRequest: names the field, its value and what is allowed.
    """
    prompt = body.get("prompt")
    many: list[Any]
    if isinstance(prompt, str) or _is_ids(prompt):
        many = [prompt]
    elif (
        isinstance(prompt, list)
        and prompt
        and all(isinstance(one, str) or _is_ids(one) for one in prompt)
    ):
        many = prompt
    else:
        raise InvalidRequest(
            "prompt must be text, a list of texts, token ids or a list of token ids", "prompt"
        )
    _check_rows(many, "prompt")
    limit = body.get("max_tokens")
    echo, asked, listed = switch(body, "echo"), prompt_logprobs(body), body.get("logprobs")
    scored = max(asked or 0, listed) if echo and isinstance(listed, int) else asked
    shared = shared_fields(body) | {
        "logprobs": listed,
        "prompt_logprobs": scored,
        "max_tokens": 16 if limit is None else limit,
    }
    requests = [
        make_request(**{"prompt" if isinstance(one, str) else "prompt_ids": one}, **shared)
        for one in many
    ]
    return WantedCompletions(requests, echo, asked)


def prompt_logprobs(body: dict[str, Any]) -> int | None:
    """How many likeliest tokens are wanted in the place of each of the prompt's, as vLLM calls it.

    Raises:
        InvalidRequest: it is no number, or the answer is wanted in pieces, which have no place for
            them.
    """
    wanted = body.get("prompt_logprobs")
    if wanted is None:
        return None
    if type(wanted) is not int:
        raise InvalidRequest(
            f"prompt_logprobs={shown(wanted)} must be a whole number", "prompt_logprobs"
        )
    if body.get("stream"):
        raise InvalidRequest(
            "prompt_logprobs are told in a whole answer only: leave out stream", "prompt_logprobs"
        )
    return wanted


@dataclass(frozen=True)
class Streaming:
    """The answer is wanted in pieces; `usage`: with the token counts at its end."""

    usage: bool


def streaming_of(body: dict[str, Any]) -> Streaming | None:
    """`stream` and `stream_options` of a body; None: the answer is wanted whole.

    Raises:
        InvalidRequest: one of them is of the wrong type, or there are options but no stream.
    """
    wanted = switch(body, "stream")
    options = body.get("stream_options")
    if options is None:
        return Streaming(False) if wanted else None
    if not isinstance(options, dict):
        raise InvalidRequest(f"stream_options={shown(options)} must be an object", "stream_options")
    if not wanted:
        if any(options.values()):
            raise InvalidRequest("stream_options needs stream=true", "stream_options")
        return None
    return Streaming(switch(options, "include_usage", "stream_options."))


def switch(body: dict[str, Any], name: str, where: str = "") -> bool:
    """A field that is true or false; false if it is not given.

    Raises:
        InvalidRequest: it is something else.
    """
    value = body.get(name)
    if value is None or isinstance(value, bool):
        return bool(value)
    word = value.lower() if isinstance(value, str) else ""
    if word not in ("true", "false"):
        raise InvalidRequest(f"{where}{name}={shown(value)} must be true or false", where + name)
    return word == "true"


def template_arguments(body: dict[str, Any], effort: Any, where: str = "reasoning_effort") -> Any:
    """`chat_template_kwargs` with the effort under the name that templates know it by; what stands
    there already wins. Templates that do not know it are not told.

    Raises:
        InvalidRequest: the effort is no word.
    """
    given = body.get("chat_template_kwargs")
    if effort is None or not isinstance(given, dict | None):
        return given
    if not isinstance(effort, str) or not EFFORT.fullmatch(effort):
        raise InvalidRequest(f"{where}={shown(effort)} must be a word such as low or high", where)
    return {"reasoning_effort": effort} | (given or {})


def tools_of(body: dict[str, Any]) -> dict[str, Any]:
    """`tools` and `tool_choice` of a request; of `allowed_tools`, those that are allowed.

    Raises:
        InvalidRequest: the choice is none.
    """
    tools, choice = body.get("tools"), body.get("tool_choice")
    allowed = choice.get("allowed_tools") if isinstance(choice, dict) else None
    if not isinstance(allowed, dict):
        return {"tools": tools, "tool_choice": tool_choice(choice)}
    named = allowed.get("tools")
    if not isinstance(named, list):
        raise InvalidRequest("tool_choice.allowed_tools needs a list of tools", "tool_choice")
    names = {_function_name(tool) for tool in named}
    kept = [tool for tool in tools if _function_name(tool) in names] if tools else tools
    return {"tools": kept, "tool_choice": allowed.get("mode")}


def _function_name(tool: Any) -> Any:
    function = tool.get("function") if isinstance(tool, dict) else None
    name = function.get("name") if isinstance(function, dict) else None
    return name if isinstance(name, str) else None


def tool_choice(value: Any) -> str | None:
    """`auto`, `none`, `required`, or the name in `{"type": "function", "function": {"name":
    ...}}`. Clients of other APIs write `{"type": "auto"}` and have the name beside the type."""
    if isinstance(value, dict):
        name = _function_name(value) or value.get("name")
        if value.get("type") in ("auto", "none", "required"):
            name = value["type"]
        if not isinstance(name, str):
            raise InvalidRequest(
                f"tool_choice={shown(value)} must be auto, none, required or name a function:"
                ' {"type": "function", "function": {"name": ...}}',
                "tool_choice",
            )
        return name
    return value


def embedding_inputs(body: dict[str, Any]) -> list[str | list[int]]:
    """The texts, or token ids, of a `/v1/embeddings` body."""
    given = body.get("input")
    if body.get("encoding_format") not in (None, "float", "base64"):
        raise InvalidRequest(
            f"encoding_format={shown(body['encoding_format'])}: allowed: float, base64",
            "encoding_format",
        )
    if isinstance(given, str) or _is_ids(given):
        return [given]  # type: ignore[list-item]
    if (
        isinstance(given, list)
        and given
        and all(isinstance(one, str) or _is_ids(one) for one in given)
    ):
        _check_rows(given, "input")
        return given
    raise InvalidRequest(
        "input must be text, a list of texts, token ids or a list of token ids", "input"
    )


def check_dimensions(body: dict[str, Any], have: int) -> None:
    """See that an embeddings body asks for vectors as long as the model's, if for any length.

    Raises:
        InvalidRequest: it asks for others.
    """
    if body.get("dimensions") not in (None, have, str(have)):
        raise InvalidRequest(
            f"dimensions={shown(body['dimensions'])}: vectors of this model have {have}: send that"
            " or leave it out",
            "dimensions",
        )


def shared_fields(body: dict[str, Any]) -> dict[str, Any]:
    """The fields of `SAME` that a body has.

    Raises:
        InvalidRequest: it has one of `REFUSED`.
    """
    for name, harmless in REFUSED.items():
        if body.get(name, harmless) not in (harmless, None):
            raise InvalidRequest(
                f"{name}={shown(body[name])} is not offered here: leave it out", name
            )
    fields = {name: body[name] for name in SAME if body.get(name) is not None}
    return fields | structured_output(body)


def _check_rows(rows: list[Any], field: str) -> None:
    if len(rows) > MAX_ROWS:
        raise InvalidRequest(f"{field} has {len(rows)} texts; at most {MAX_ROWS} are taken", field)


def _is_ids(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(type(one) is int for one in value)
