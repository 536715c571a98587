"""How families of models write tool calls: reading a call, telling its form from a chat template,
and the grammar of a call that must be made.

Values in the XML forms are text; the tool's schema says which are numbers, lists or objects.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from atelier.text.request import TextRequest, tool_names

Schemas = Mapping[str, dict[str, Any]]
"""The parameters' JSON schema of each tool, by its name."""


@dataclass(frozen=True)
class ToolCall:
    """A call of function `name`; `arguments` is JSON text of an object."""

    name: str
    arguments: str


@dataclass(frozen=True)
class ToolFormat:
    """How calls are written: between `opening` and `closing` (empty: until the end), read by
    `parse`. `inner` are the marks of a call whose wrapper was left out, if the form has any.
    It is pickled with the parser.
    """

    opening: str
    closing: str
    parse: Callable[[str, Schemas], ToolCall | None]
    inner: tuple[str, str] | None = None


def _json_call(body: str, schemas: Schemas) -> ToolCall | None:
    try:
        call = json.loads(body)
        arguments = call.get("arguments", call.get("parameters", {}))
        arguments = json.loads(arguments) if isinstance(arguments, str) else arguments
        return ToolCall(str(call["name"]), json.dumps(arguments, ensure_ascii=False))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None


def _glm_call(body: str, schemas: Schemas) -> ToolCall | None:
    name = re.match(r"\s*([\w.-]+)", body)
    if name is None:
        return None
    pairs = re.findall(r"<arg_key>(.*?)</arg_key>\s*<arg_value>(.*?)</arg_value>", body, re.DOTALL)
    return _typed(name[1], pairs, schemas, guess=True)


def _xml_call(body: str, schemas: Schemas) -> ToolCall | None:
    """`<function=NAME><parameter=KEY>value</parameter>...</function>`; a closing mark of a
    parameter may be missing before the next one."""
    name = re.search(r"<function=([^>\s]+)\s*>", body)
    if name is None:
        return None
    inside = body[name.end() :].partition("</function>")[0]
    pairs = re.findall(
        r"<parameter=([^>]+)>\n?(.*?)\n?(?:</parameter>|(?=<parameter=)|\Z)", inside, re.DOTALL
    )
    return _typed(name[1], pairs, schemas, guess=False)


def _typed(name: str, pairs: list[tuple[str, str]], schemas: Schemas, guess: bool) -> ToolCall:
    """`guess`: what the schema does not know is read as JSON if it is some."""
    known = schemas.get(name, {}).get("properties") or {}
    arguments = {}
    for key, text in pairs:
        schema = known.get(key.strip())
        if schema is None:
            arguments[key.strip()] = _as_json(text) if guess else text
        else:
            arguments[key.strip()] = _value(text, schema)
    return ToolCall(name, json.dumps(arguments, ensure_ascii=False))


KINDS: dict[str, tuple[type, ...]] = {
    "string": (str,),
    "integer": (int,),
    "number": (int, float),
    "boolean": (bool,),
    "object": (dict,),
    "array": (list,),
    "null": (type(None),),
}


def _value(text: str, schema: Any) -> Any:
    """The text as what its schema wants; text that fits none of it stays text."""
    wanted = _types(schema)
    if wanted == {"string"}:
        return text
    word = text.strip()
    value = _as_json({"True": "true", "False": "false", "None": "null"}.get(word, word))
    fits = tuple(kind for name in wanted for kind in KINDS.get(name, ()))
    if isinstance(value, bool) and "boolean" not in wanted:
        return text
    if isinstance(value, float) and value.is_integer() and wanted & {"integer"}:
        return int(value)
    return value if not wanted or isinstance(value, fits) else text


def _types(schema: Any) -> set[str]:
    """Names of the types that a schema allows; empty: any."""
    if not isinstance(schema, dict):
        return set()
    kind = schema.get("type")
    if kind is not None:
        return {kind} if isinstance(kind, str) else set(kind)
    if "enum" in schema or "const" in schema:
        values = schema.get("enum", [schema.get("const")])
        return {name for name, kinds in KINDS.items() for one in values if type(one) in kinds}
    either = [_types(one) for one in schema.get("anyOf") or schema.get("oneOf") or ()]
    return set().union(*either) if all(either) else set()


def _as_json(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text


STYLE = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}

Literal = Callable[[str], str]


def _json_rule(key: str, before: str, after: str) -> Callable[[str, Any, Literal], str]:
    def rule(name: str, schema: dict[str, Any], literal: Literal) -> str:
        fields = {"name": {"const": name}, key: schema}
        whole = {
            "x-guidance": STYLE,
            "type": "object",
            "properties": fields,
            "required": list(fields),
            "additionalProperties": False,
        }
        parts = [literal(before), f"%json {json.dumps(whole)}", literal(after)]
        return " ".join(part for part in parts if part)

    return rule


def _xml_rule(
    before: str, opening: str, between: str, closing: str, after: str
) -> Callable[[str, Any, Literal], str]:
    """Parameters in the order of the schema; those that are not required may be left out."""

    def rule(name: str, schema: dict[str, Any], literal: Literal) -> str:
        parts = [literal(before.replace("NAME", name))]
        required = set(schema.get("required") or ())
        for key, one in (schema.get("properties") or {}).items():
            text = f"{literal(opening + key + between)} {_value_rule(one)} {literal(closing)}"
            parts.append(f"({text})" if key in required else f"({text})?")
        return " ".join([*parts, literal(after)])

    return rule


def _value_rule(schema: Any) -> str:
    choices = schema.get("enum") if isinstance(schema, dict) else None
    if choices and all(isinstance(one, str) for one in choices):
        return "(" + " | ".join(json.dumps(one) for one in choices) + ")"
    wanted = _types(schema)
    if "string" in wanted or not wanted:
        return "/[^<]*/"
    return f"%json {json.dumps({'x-guidance': STYLE} | schema)}"


FORMATS = {
    "hermes": ToolFormat("<tool_call>", "</tool_call>", _json_call),
    "glm47": ToolFormat("<tool_call>", "</tool_call>", _glm_call),
    "qwen3_coder": ToolFormat(
        "<tool_call>", "</tool_call>", _xml_call, ("<function=", "</function>")
    ),
    "llama3_json": ToolFormat('{"name":', "", _json_call),
}

RULES: dict[str, Callable[[str, dict[str, Any], Literal], str]] = {
    "hermes": _json_rule("arguments", "<tool_call>\n", "\n</tool_call>"),
    "glm47": _xml_rule(
        "<tool_call>NAME\n",
        "<arg_key>",
        "</arg_key>\n<arg_value>",
        "</arg_value>\n",
        "</tool_call>",
    ),
    "qwen3_coder": _xml_rule(
        "<tool_call>\n<function=NAME>\n",
        "<parameter=",
        ">\n",
        "\n</parameter>\n",
        "</function>\n</tool_call>",
    ),
    "llama3_json": _json_rule("parameters", "", ""),
}
"""The grammar of a call in each form, from the tool's name, its schema, and what makes text a
terminal."""

TOLD = "hermes"
"""The form in which a model is asked for calls whose template knows none."""


def format_of(template: str, chosen: str = "auto") -> str:
    """The name of the tool format a chat template teaches; empty if it has none."""
    if chosen != "auto":
        return chosen if chosen in FORMATS else ""
    if "<arg_key>" in template:
        return "glm47"
    if "<function=" in template:
        return "qwen3_coder"
    if "<tool_call>" in template:
        return "hermes"
    return "llama3_json" if '"parameters"' in template and "tools" in template else ""


def form_for(template: str, chosen: str = "auto") -> str:
    """The form that answers are read in: the template's, else the one that we tell the model of."""
    return format_of(template, chosen) or ("" if knows_tools(template) else TOLD)


def knows_tools(template: str) -> bool:
    """Whether the chat template does something with tools."""
    return "tools" in template


def schemas_of(request: TextRequest) -> dict[str, dict[str, Any]]:
    """The parameters of each tool that the request offers."""
    return {
        tool["function"]["name"]: tool["function"].get("parameters") or {"type": "object"}
        for tool in request.tools
    }


def forced_call_grammar(request: TextRequest, format_name: str, special: set[str]) -> str | None:
    """A Lark grammar for an answer that must be a tool call; None if the request forces none or the
    form is not known. `special` are texts that are tokens of their own, which a quoted string would
    not match."""
    if request.tool_choice in ("auto", "none") or not request.tools or format_name not in FORMATS:
        return None
    wanted = (
        tool_names(request.tools) if request.tool_choice == "required" else [request.tool_choice]
    )
    marks = [mark for mark in special if re.fullmatch(r"</?[\w-]+>", mark)]

    def literal(text: str) -> str:
        pieces = re.split(f"({'|'.join(map(re.escape, marks))})", text) if marks else [text]
        return " ".join(piece if piece in marks else json.dumps(piece) for piece in pieces if piece)

    rule, schemas = RULES[format_name], schemas_of(request)
    rules = [rule(name, schemas[name], literal) for name in wanted]
    named = "\n".join(f"call{index}: {rule}" for index, rule in enumerate(rules))
    choices = " | ".join(f"call{index}" for index in range(len(rules)))
    return f"start: {choices}\n{named}"
