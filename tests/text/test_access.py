"""API keys in front of a language model: OpenAI's header everywhere, Anthropic's on the routes of
its shape, metadata in gRPC."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anthropic
import httpx
import openai
import pytest

from tests.text.running import Server, serving

ASK = [{"role": "user", "content": "hello"}]


@pytest.fixture(scope="module")
def guarded(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    log = tmp_path_factory.mktemp("guarded") / "server.log"
    with serving(
        checkpoint,
        log,
        API_KEYS="first-key, second-key",
        MAX_BODY_BYTES="20000",
        WARMUP_PROMPTS="16",
        ready_s=150,
    ) as running:
        yield running


@pytest.mark.parametrize(
    "given", [{"api_key": "second-key"}, {"auth_token": "first-key", "api_key": None}]
)
def test_anthropics_client_is_let_in_by_either_of_its_headers(
    guarded: Server, given: dict[str, str]
) -> None:
    client = anthropic.Anthropic(base_url=guarded.url, max_retries=0, **given)
    assert client.messages.create(model="tiny", max_tokens=2, messages=ASK).usage.output_tokens <= 2
    assert client.messages.count_tokens(model="tiny", messages=ASK).input_tokens > 0


@pytest.mark.parametrize(
    "given", [{"api_key": "wrong"}, {"api_key": "first-key, second-key"}, {"auth_token": "wrong"}]
)
def test_anthropics_client_reads_a_wrong_key_in_its_own_shape(
    guarded: Server, given: dict[str, str]
) -> None:
    client = anthropic.Anthropic(base_url=guarded.url, max_retries=0, **given)
    for call in (client.messages.create, client.messages.stream):
        with pytest.raises(anthropic.AuthenticationError) as refused:  # noqa: SIM117 - a stream fails when it is entered
            with call(model="tiny", max_tokens=2, messages=ASK):  # type: ignore[attr-defined]
                pass
        assert refused.value.body == {
            "type": "error",
            "error": {"type": "authentication_error", "message": "the API key is not accepted"},
        }


def test_without_a_key_the_header_that_is_missing_is_named(guarded: Server) -> None:
    for path, name in (
        ("/v1/messages", "x-api-key: KEY"),
        ("/v1/chat/completions", "Authorization: Bearer KEY"),
    ):
        answer = httpx.post(guarded.url + path, json={})
        assert (answer.status_code, name in answer.json()["error"]["message"]) == (401, True)


@pytest.mark.parametrize(
    "path",
    ["/v1/chat/completions", "/v1/models/tiny:predict", "/v2/models/tiny/infer", "/tokenize"],
)
def test_anthropics_header_opens_no_other_route(guarded: Server, path: str) -> None:
    answer = httpx.post(guarded.url + path, json={}, headers={"x-api-key": "first-key"})
    assert answer.status_code == 401


def test_a_kept_response_is_there_for_its_own_key_alone(guarded: Server) -> None:
    mine, other = (
        openai.OpenAI(base_url=f"{guarded.url}/v1", api_key=key, max_retries=0)
        for key in ("first-key", "second-key")
    )
    wanted: dict[str, Any] = {"model": "tiny", "input": "hello", "max_output_tokens": 2}
    whole = mine.responses.create(**wanted)
    streamed = list(mine.responses.create(**wanted, stream=True))[-1].response
    for kept in (whole, streamed):
        assert mine.responses.retrieve(kept.id).id == kept.id
        for call in (
            other.responses.retrieve,
            other.responses.delete,
            other.responses.cancel,
            other.responses.input_items.list,
        ):
            with pytest.raises(openai.NotFoundError):
                call(kept.id)
        with pytest.raises(openai.NotFoundError, match=kept.id):
            other.responses.create(**wanted, previous_response_id=kept.id)
        item = {"type": "item_reference", "id": kept.output[0].id}
        with pytest.raises(openai.NotFoundError):
            other.responses.create(**wanted | {"input": [item]})
        assert mine.responses.create(**wanted, previous_response_id=kept.id).id != kept.id
    answer = httpx.get(f"{guarded.url}/v1/responses/{whole.id}")
    assert answer.status_code == 401


def test_openais_client_is_let_in_by_its_key_only(guarded: Server) -> None:
    good, bad = (
        openai.OpenAI(base_url=f"{guarded.url}/v1", api_key=key, max_retries=0)
        for key in ("first-key", "no")
    )
    assert good.chat.completions.create(model="tiny", messages=ASK, max_tokens=2).choices
    with pytest.raises(openai.AuthenticationError) as refused:
        bad.chat.completions.create(model="tiny", messages=ASK)
    assert refused.value.code == "invalid_api_key"


def test_other_errors_of_messages_have_anthropics_shape_too(guarded: Server) -> None:
    client = anthropic.Anthropic(base_url=guarded.url, api_key="first-key", max_retries=0)
    with pytest.raises(anthropic.APIStatusError) as refused:
        client.messages.create(
            model="tiny", max_tokens=2, messages=[{"role": "user", "content": "x" * 30_000}]
        )
    assert refused.value.status_code == 413
    assert refused.value.body["error"]["type"] == "request_too_large"
    with pytest.raises(anthropic.BadRequestError, match="X-Request-Timeout"):
        client.messages.create(
            model="tiny", max_tokens=2, messages=ASK, extra_headers={"X-Request-Timeout": "soon"}
        )
