"""From messages and texts to token ids: what a template may do, and what is never tokenized."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from atelier.errors import InvalidRequest
from atelier.text import template
from atelier.text.request import make_request
from atelier.text.template import CHARACTERS_A_TOKEN, PromptEncoder

CONTEXT = 64
LOOP = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"
READS = "{{ 'think' if enable_thinking else 'plain' }}{{ messages[0].content }}"


@pytest.fixture(scope="module")
def tokenizer(checkpoint: Path) -> Any:
    return AutoTokenizer.from_pretrained(checkpoint)


def chat(**more: Any) -> Any:
    return make_request(messages=[{"role": "user", "content": "hi"}], **more)


def encoder(tokenizer: Any, source: str) -> PromptEncoder:
    tokenizer.chat_template = source
    return PromptEncoder(tokenizer, CONTEXT)


def test_a_template_that_loops_is_ended_and_the_next_one_is_rendered(
    tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(template, "TEMPLATE_SECONDS", 0.3)
    began = time.monotonic()
    with pytest.raises(InvalidRequest, match=r"takes longer than 0\.3 s"):
        encoder(tokenizer, LOOP).render(chat())
    assert time.monotonic() - began < 10
    assert encoder(tokenizer, READS).render(chat()) == "plainhi"


def test_arguments_of_the_template_are_those_that_it_reads(tokenizer: Any) -> None:
    reading = encoder(tokenizer, READS)
    assert reading.render(chat(template_arguments={"enable_thinking": True})) == "thinkhi"
    assert reading.render(chat(template_arguments={"nobody": True})) == "plainhi"


@pytest.mark.parametrize(
    "name", ["chat_template", "messages", "conversation", "tools", "tokenize", "return_dict"]
)
def test_no_argument_stands_in_for_ours(tokenizer: Any, name: str) -> None:
    with pytest.raises(InvalidRequest, match=rf"chat_template_kwargs\.'{name}'"):
        encoder(tokenizer, READS).render(chat(template_arguments={name: "x"}))


def test_a_text_that_cannot_fit_is_refused_by_its_beginning(
    tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []

    class Watched:
        chat_template = None

        def get_vocab(self) -> dict[str, int]:
            return tokenizer.get_vocab()

        def __call__(self, text: str, **more: Any) -> Any:
            seen.append(len(text))
            return tokenizer(text, **more)

    watched = PromptEncoder(Watched(), CONTEXT)
    with pytest.raises(InvalidRequest, match="3000000 characters has more tokens than the 64"):
        watched.encode(make_request(prompt="a b" * 1_000_000))
    assert sum(seen) <= CHARACTERS_A_TOKEN * CONTEXT
    assert len(watched.encode(make_request(prompt="abc"))) == 3
