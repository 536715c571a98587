"""Which of a child engine's tool parsers reads the calls that a checkpoint's chat template teaches.

Only marks that one family uses are taken for a sign; without one none is chosen.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

SIGNS = (
    ("<arg_key>", "glm47"),
    ("<function=", "qwen3_coder"),
    ("<tool_call>", "hermes"),
    ("[TOOL_CALLS]", "mistral"),
    ("<|python_tag|>", "llama3_json"),
)
"""Marks of a template, the most particular first, and the form of calls that they belong to."""


def parser_for(model: Path, parsers: Mapping[str, str]) -> str:
    """The engine's name of the parser, or empty; `parsers` has its names by form."""
    template = template_of(model)
    form = next((form for mark, form in SIGNS if mark in template), "")
    return parsers.get(form, "")


def template_of(model: Path) -> str:
    """The chat templates of a checkpoint's folder, or empty. One that cannot be read is the
    engine's to complain about."""
    try:
        written = model / "chat_template.jinja"
        if written.is_file():
            return written.read_text(encoding="utf-8")
        for name in ("chat_template.json", "tokenizer_config.json"):
            if (model / name).is_file():
                found = json.loads((model / name).read_text(encoding="utf-8"))
                if text := _texts(found.get("chat_template")):
                    return text
    except (OSError, ValueError, AttributeError):
        pass
    return ""


def _texts(templates: Any) -> str:
    """One template, or all of those that have names."""
    if isinstance(templates, list):
        return "\n".join(str(one.get("template", "")) for one in templates)
    return templates if isinstance(templates, str) else ""
