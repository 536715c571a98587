"""What a client may ask of a language model: one type that every protocol translates into.

Bounds are checked here, field by field; whether the prompt fits the context is checked by the
engine, which knows it.
"""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from atelier.bounds import MAX_ENTRIES, MAX_MESSAGES, MAX_STOP_CHARACTERS, MAX_TOOLS
from atelier.caller import CALLER
from atelier.errors import InvalidRequest, shown
from atelier.text.schemas import check_schema

ToolChoice = Literal["auto", "none", "required"]

TOOL_NAME = re.compile(r"[\w.:/-]{1,128}")
"""OpenAI's form and what servers of tools add to it: dots, colons, slashes. The name stands in
prompts and grammars."""


class ResponseFormat(BaseModel):
    """The form an answer must have: free text, any JSON object, or JSON of a schema."""

    model_config = ConfigDict(frozen=True)

    type: Literal["text", "json_object", "json_schema"] = "text"
    json_schema: dict[str, Any] | None = None

    @model_validator(mode="before")
    @classmethod
    def _in_its_place(cls, value: Any) -> Any:
        """llama.cpp's clients, and others, have the schema beside the type, also of `json_object`:
        it is to be followed all the same."""
        schema = value.get("schema") if isinstance(value, dict) else None
        if not isinstance(schema, dict) or value.get("type") not in ("json_object", "json_schema"):
            return value
        return {"type": "json_schema", "json_schema": {"schema": schema}}

    @model_validator(mode="after")
    def _has_schema(self) -> ResponseFormat:
        schema = (self.json_schema or {}).get("schema")
        if self.type == "json_schema":
            if not isinstance(schema, dict):
                raise ValueError("json_schema needs an object `schema`")
            check_schema(schema)
        return self


class TextRequest(BaseModel):
    """One generation. Exactly one of `prompt`, `prompt_ids` and `messages` is set.

    With `max_tokens` 0 the prompt is read and nothing is generated. With `cut_to_context`,
    `max_tokens` beyond the context means as many as fit; otherwise it is refused. Without
    `parallel_tool_calls` an answer has one tool call at most.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    prompt: str | None = None
    prompt_ids: tuple[int, ...] | None = None
    messages: tuple[dict[str, Any], ...] | None = Field(None, max_length=MAX_MESSAGES)
    tools: tuple[dict[str, Any], ...] = Field((), max_length=MAX_TOOLS)
    tool_choice: ToolChoice | str = "auto"
    parallel_tool_calls: bool = True
    template_arguments: dict[str, Any] = Field(default_factory=dict, max_length=MAX_ENTRIES)

    max_tokens: int | None = Field(None, ge=0)
    cut_to_context: bool = False
    temperature: float | None = Field(None, ge=0, le=100)
    top_p: float | None = Field(None, ge=0, le=1)
    top_k: int | None = Field(None, ge=-1, lt=2**31)
    min_p: float | None = Field(None, ge=0, le=1)
    repetition_penalty: float | None = Field(None, ge=0.01, le=10)
    presence_penalty: float = Field(0, ge=-2, le=2)
    frequency_penalty: float = Field(0, ge=-2, le=2)
    logit_bias: dict[int, float] = Field(default_factory=dict, max_length=1024)
    seed: int | None = Field(None, ge=-1, lt=2**63)
    n: int = Field(1, ge=1, le=64)
    stop: tuple[Annotated[str, Field(max_length=MAX_STOP_CHARACTERS)], ...] = ()
    stop_token_ids: tuple[int, ...] = Field((), max_length=MAX_ENTRIES)
    ignore_eos: bool = False
    skip_special_tokens: bool = True
    logprobs: int | None = Field(None, ge=0, le=20)
    prompt_logprobs: int | None = Field(None, ge=0, le=20)
    response_format: ResponseFormat = ResponseFormat()
    timeout: float | None = Field(None, gt=0)
    cache_salt: str = Field(
        "",
        max_length=1000,
        validate_default=True,
        description="Keys and values are reused among equal salts only.",
    )

    @field_validator("cache_salt")
    @classmethod
    def _of_the_caller(cls, value: str) -> str:
        """`cached_tokens` must tell nobody what others have asked."""
        return CALLER.get() + value

    @field_validator("seed")
    @classmethod
    def _drawn(cls, value: int | None) -> int | None:
        """-1 asks for any seed, as none does."""
        return None if value == -1 else value

    @field_validator("top_p")
    @classmethod
    def _only_the_likeliest(cls, value: float | None) -> float | None:
        """0 asks for the likeliest token alone; engines want it above 0."""
        return 1e-9 if value == 0 else value

    @field_validator("stop", mode="before")
    @classmethod
    def _one_or_many(cls, value: Any) -> Any:
        """One text or several; an empty one, which clients send for none, stops nothing."""
        many = [value] if isinstance(value, str) else value
        return tuple(one for one in many if one) if isinstance(many, list | tuple) else many

    @field_validator("stop")
    @classmethod
    def _short_list(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if len(value) > 16:
            raise ValueError("at most 16 stop strings")
        return value

    @field_validator("tools")
    @classmethod
    def _functions(cls, value: tuple[dict[str, Any], ...]) -> tuple[dict[str, Any], ...]:
        for tool in value:
            function = tool.get("function")
            if (
                not isinstance(function, dict)
                or not isinstance(function.get("name"), str)
                or not function["name"]
            ):
                raise ValueError(
                    'each tool must be {"type": "function", "function": {"name": ..., "parameters":'
                    " {...}}}"
                )
            if not TOOL_NAME.fullmatch(function["name"]):
                raise ValueError(
                    f"{shown(function['name'])} is no name of a function: at most 128 letters,"
                    " digits, dots, colons, slashes, hyphens and underscores"
                )
            if not isinstance(function.get("parameters") or {}, dict):
                raise ValueError(
                    f"the parameters of {function['name']} must be a JSON schema, an object"
                )
            check_schema(function.get("parameters") or {}, f"the schema of {function['name']}")
        return value

    @field_validator("logit_bias")
    @classmethod
    def _bias_range(cls, value: dict[int, float]) -> dict[int, float]:
        if any(not -100 <= bias <= 100 for bias in value.values()):
            raise ValueError("each bias lies between -100 and 100")
        return value

    @model_validator(mode="after")
    def _one_source(self) -> TextRequest:
        given = [
            name for name in ("prompt", "prompt_ids", "messages") if getattr(self, name) is not None
        ]
        if len(given) != 1:
            raise ValueError(f"give one of prompt and messages, not {len(given)} of them")
        if self.messages is not None and not self.messages:
            raise ValueError("messages must not be empty")
        named = self.tool_choice not in ("auto", "none", "required")
        if named and self.tool_choice not in tool_names(self.tools):
            raise ValueError(
                f"tool_choice names {shown(self.tool_choice)}, which is not among the tools"
            )
        if self.tool_choice == "required" and not self.tools:
            raise ValueError("tool_choice is required but there are no tools")
        return self


def tool_names(tools: tuple[dict[str, Any], ...]) -> list[str]:
    """Names of the functions offered."""
    return [str(tool.get("function", {}).get("name", "")) for tool in tools]


def make_request(**fields: Any) -> TextRequest:
    """Build a request from a protocol's fields; fields that are None count as not given, and so
    does empty text that is no prompt.

    Raises:
        InvalidRequest: names the first bad field, its value and what is allowed.
    """
    try:
        return TextRequest(
            **{
                name: value
                for name, value in fields.items()
                if value is not None and (value != "" or name == "prompt")
            }
        )
    except ValidationError as error:
        fault = error.errors(include_url=False)[0]
        field = ".".join(str(part) for part in fault["loc"]) or None
        reason = fault["msg"].removeprefix("Value error, ")
        said = reason
        if field is not None:
            said = f"{field}={shown(fault['input'])} is not valid: {reason}"
        raise InvalidRequest(said, field) from None
