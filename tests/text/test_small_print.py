"""What answers of the embedded engine tell beside their text: bytes of tokens, warnings, and what
is said of a model that is not here."""

from __future__ import annotations

from typing import Any

import httpx
import openai
import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from atelier.text.token_bytes import token_bytes
from tests.text.running import Server

ASK: Any = [{"role": "user", "content": "hello"}]


@pytest.fixture
def client(server: Server) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)


def test_half_a_character_is_told_by_its_bytes(client: openai.OpenAI) -> None:
    ids = {token_bytes(TINY, token): token for token in range(256)}
    told: list[int] = []
    for byte in "€".encode():
        answer = client.chat.completions.create(
            model="tiny",
            messages=ASK,
            max_tokens=1,
            temperature=0,
            logprobs=True,
            top_logprobs=0,
            logit_bias={str(ids[bytes([byte])]): 100},
        )
        content = answer.choices[0].logprobs.content
        told += content[0].bytes
        assert "\ufffd" in content[0].token
    assert bytes(told).decode() == "€"


def byte_level() -> Tokenizer:
    """A token a byte, as the tiny model has them."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = models.BPE(vocab={letter: i for i, letter in enumerate(alphabet)}, merges=[])
    tokenizer = Tokenizer(words)
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


TINY = byte_level()


def test_every_byte_of_a_byte_level_vocabulary_is_known() -> None:
    assert sorted(token_bytes(TINY, token) for token in range(256)) == [
        bytes([byte]) for byte in range(256)
    ]


def test_bytes_that_sentencepiece_falls_back_to_are_known() -> None:
    pieces = {"<unk>": 0, "<0xE2>": 1, "<0x82>": 2, "<0xAC>": 3, "a": 4}
    tokenizer = Tokenizer(models.BPE(vocab=pieces, merges=[], byte_fallback=True))
    tokenizer.decoder = decoders.ByteFallback()
    assert b"".join(token_bytes(tokenizer, token) for token in (1, 2, 3, 4)) == "€a".encode()


def test_the_effort_reaches_a_template_that_reads_it(client: openai.OpenAI) -> None:
    def tokens(**fields: Any) -> int:
        answer = client.chat.completions.create(model="tiny", messages=ASK, max_tokens=1, **fields)
        assert "reasoning" not in str((answer.model_extra or {}).get("warnings"))
        return int(answer.usage.prompt_tokens)

    plain, added = tokens(), len("system\nReasoning: low\n") + 2  # and two marks
    assert tokens(reasoning_effort="low") == plain + added
    assert tokens(reasoning_effort="medium") == tokens(reasoning_effort="low") + 3
    given = {"chat_template_kwargs": {"reasoning_effort": "high"}}
    assert tokens(reasoning_effort="low", extra_body=given) == tokens(reasoning_effort="high")
    response = client.responses.create(
        model="tiny", input="hello", reasoning={"effort": "low"}, max_output_tokens=1
    )
    assert response.usage.input_tokens == tokens(reasoning_effort="low")
    assert "reasoning" not in str((response.model_extra or {}).get("warnings"))
    with pytest.raises(openai.BadRequestError, match="reasoning_effort='Much!' must be a word"):
        tokens(reasoning_effort="Much!")


@pytest.mark.parametrize("body", [{"instances": [{"prompt": "x"}]}, {"instances": 3}])
def test_a_model_that_is_not_here_is_a_404_without_a_traceback(
    server: Server, body: dict[str, Any]
) -> None:
    before = len(server.log.read_text())
    answer = httpx.post(f"{server.url}/v1/models/other:predict", json=body)
    assert answer.status_code == 404
    assert "other" in answer.text
    assert "Traceback" not in server.log.read_text()[before:]
