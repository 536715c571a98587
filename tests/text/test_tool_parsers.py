"""TOOL_CALL_PARSER=auto of child engines: chosen by the chat template."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from atelier.settings import Settings
from atelier.text.child.command_line import command_line

TEMPLATES = {
    "{% if tools %}<tool_call>{% endif %}": ("hermes", "qwen25"),
    "{% if tools %}<tool_call>\n<function=x>{% endif %}": ("qwen3_coder", "qwen3_coder"),
    "{% if tools %}<tool_call>f<arg_key>{% endif %}": ("glm47", "glm47"),
    "{% if tools %}[TOOL_CALLS]{% endif %}": ("mistral", "mistral"),
    "{% if tools %}<|python_tag|>{% endif %}": ("llama3_json", "llama3"),
}


@pytest.fixture
def environment(tmp_path: Path) -> Path:
    folder = tmp_path / "engine"
    (folder / "bin").mkdir(parents=True)
    (folder / "bin" / "python").touch()
    return folder


def parser(environment: Path, model: Path, **settings: object) -> str | None:
    given = Settings(engine_path=str(environment), **{"engine": "vllm", **settings})  # type: ignore[arg-type]
    words = command_line(given, model, Path("/s"), 9)
    if "--tool-call-parser" not in words:
        assert "--enable-auto-tool-choice" not in words
        return None
    return words[words.index("--tool-call-parser") + 1]


@pytest.mark.parametrize("template", TEMPLATES)
@pytest.mark.parametrize("where", ["file", "config", "named"])
def test_a_template_chooses_the_engines_parser(
    environment: Path, tmp_path: Path, template: str, where: str
) -> None:
    if where == "file":
        (tmp_path / "chat_template.jinja").write_text(template)
    else:
        named = [{"name": "default", "template": "x"}, {"name": "tools", "template": template}]
        held = {"chat_template": template if where == "config" else named}
        (tmp_path / "tokenizer_config.json").write_text(json.dumps(held))
    vllm, sglang = TEMPLATES[template]
    assert parser(environment, tmp_path) == vllm
    assert parser(environment, tmp_path, engine="sglang") == sglang


def test_what_is_set_wins_and_none_switches_it_off(environment: Path, tmp_path: Path) -> None:
    (tmp_path / "chat_template.jinja").write_text("<tool_call>")
    assert parser(environment, tmp_path, tool_call_parser="kimi_k2") == "kimi_k2"
    assert parser(environment, tmp_path, tool_call_parser="none") is None
    given = "--tool-call-parser=other"
    words = command_line(
        Settings(engine="vllm", engine_path=str(environment), engine_args=given),
        tmp_path,
        Path("/s"),
        9,
    )
    assert "--tool-call-parser" not in words and words[-1] == given


@pytest.mark.parametrize("held", ["", "{", "[]", '{"chat_template": 5}', '{"chat_template": "x"}'])
def test_without_a_sign_none_is_chosen(environment: Path, tmp_path: Path, held: str) -> None:
    (tmp_path / "tokenizer_config.json").write_text(held)
    assert parser(environment, tmp_path) is None
