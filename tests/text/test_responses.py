"""OpenAI's Responses API on the embedded engine, asked by OpenAI's own client."""

from __future__ import annotations

import json
from typing import Any, Literal

import httpx
import openai
import pydantic
import pytest

from atelier.caller import CALLER
from atelier.errors import NotFound
from atelier.protocols.http.results import ENTRY_BYTES, ResultStore
from atelier.protocols.openai.response_store import KeptResponse, ResponseStore
from tests.conftest import Server
from tests.text.running import Server as TinyServer

ROUND = "something round and red"
WISH = "Please draw a red circle above a blue square."
DRAWN = "a red circle above a blue square"
PARAMETERS = {
    "type": "object",
    "properties": {"prompt": {"type": "string"}},
    "required": ["prompt"],
    "additionalProperties": False,
}
TOOL = {
    "type": "function",
    "name": "generate_image",
    "description": "Draw a picture.",
    "parameters": PARAMETERS,
    "strict": True,
}
GREEDY: dict[str, Any] = {"model": "scenes", "temperature": 0}


class Thing(pydantic.BaseModel):
    shape: Literal["circle", "square"]
    color: Literal["red", "blue"]


@pytest.fixture(scope="module")
def client(scenes: Server) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{scenes.url}/v1", api_key="none", max_retries=0)


@pytest.fixture(scope="module")
def tiny(server: TinyServer) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)


def post(server: Server | TinyServer, **fields: Any) -> httpx.Response:
    return httpx.post(f"{server.url}/v1/responses", json={"input": "hello"} | fields, timeout=60)


def test_text_in_and_text_out(client: openai.OpenAI) -> None:
    answer = client.responses.create(**GREEDY, input=ROUND, metadata={"run": "7"})
    assert answer.output_text == "a red circle"
    assert (answer.status, answer.object, answer.model) == ("completed", "response", "scenes")
    assert (answer.metadata, answer.temperature) == ({"run": "7"}, 0)
    (item,) = answer.output
    assert (item.type, item.role, item.status) == ("message", "assistant", "completed")
    usage = answer.usage
    assert usage.total_tokens == usage.input_tokens + usage.output_tokens
    assert (usage.output_tokens, usage.output_tokens_details.reasoning_tokens) == (4, 0)


def test_instructions_stand_before_the_input(client: openai.OpenAI) -> None:
    said = client.responses.create(
        **GREEDY, instructions="Answer in JSON.", input="a large red circle"
    )
    assert json.loads(said.output_text) == {
        "objects": [{"shape": "circle", "color": "red", "size": "large"}]
    }
    assert said.instructions == "Answer in JSON."
    developer = {"role": "developer", "content": "Answer in JSON."}
    turn = {"role": "user", "content": [{"type": "input_text", "text": "a large red circle"}]}
    items = [developer, {"type": "message"} | turn]
    assert client.responses.create(**GREEDY, input=items).output_text == said.output_text


def test_the_events_of_a_stream_are_numbered_and_add_up(client: openai.OpenAI) -> None:
    events = list(client.responses.create(**GREEDY, input=ROUND, stream=True))
    assert [event.sequence_number for event in events] == list(range(len(events)))
    kinds = [event.type for event in events]
    assert kinds[:4] == [
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        "response.content_part.added",
    ]
    assert set(kinds[4:-4]) == {"response.output_text.delta"}
    assert kinds[-4:] == [
        "response.output_text.done",
        "response.content_part.done",
        "response.output_item.done",
        "response.completed",
    ]
    deltas = [event.delta for event in events[4:-4]]
    assert "".join(deltas) == events[-4].text == events[-1].response.output_text == "a red circle"
    assert events[0].response.status == "in_progress"
    assert events[0].response.output == []
    assert events[-1].response.usage.output_tokens == 4
    ids = {event.item_id for event in events[3:-3]}
    assert ids == {events[2].item.id} == {events[-1].response.output[0].id}


def test_the_clients_own_stream_and_parse_work(client: openai.OpenAI) -> None:
    with client.responses.stream(**GREEDY, input=ROUND) as stream:
        assert stream.get_final_response().output_text == "a red circle"
    asked = "A red circle. Answer as JSON with the keys shape and color."
    parsed = client.responses.parse(**GREEDY, input=asked, text_format=Thing)
    assert parsed.output_parsed == Thing(shape="circle", color="red")
    form = {"format": {"type": "json_object"}}
    free = client.responses.create(**GREEDY, input=asked, text=form)
    assert json.loads(free.output_text) == {"shape": "circle", "color": "red"}


@pytest.mark.parametrize("kept", [True, False], ids=["by id", "by items"])
def test_a_tool_is_called_and_its_result_is_told(client: openai.OpenAI, kept: bool) -> None:
    wanted = GREEDY | {"tools": [TOOL], "store": kept}
    first = client.responses.create(**wanted, input=WISH)
    (call,) = first.output
    assert (call.type, call.name, call.status) == ("function_call", "generate_image", "completed")
    assert json.loads(call.arguments) == {"prompt": DRAWN}
    result = {"type": "function_call_output", "call_id": call.call_id, "output": DRAWN}
    if kept:
        going_on: dict[str, Any] = {"previous_response_id": first.id, "input": [result]}
    else:
        going_on = {"input": [{"role": "user", "content": WISH}, call.model_dump(), result]}
    second = client.responses.create(**wanted, **going_on)
    assert second.output_text == f"Here is your picture: {DRAWN}."
    assert second.previous_response_id == (first.id if kept else None)


def test_a_call_is_streamed(client: openai.OpenAI) -> None:
    events = list(client.responses.create(**GREEDY, input=WISH, tools=[TOOL], stream=True))
    assert [event.type for event in events[2:]] == [
        "response.output_item.added",
        "response.function_call_arguments.delta",
        "response.function_call_arguments.done",
        "response.output_item.done",
        "response.completed",
    ]
    added, delta, done, closed, completed = events[2:]
    assert added.item.arguments == ""
    assert json.loads(done.arguments) == json.loads(delta.delta) == {"prompt": DRAWN}
    assert closed.item == completed.response.output[0]


@pytest.mark.parametrize(
    "choice",
    [
        "required",
        {"type": "function", "name": "generate_image"},
        {"type": "allowed_tools", "mode": "required", "tools": [TOOL]},
    ],
    ids=["required", "named", "allowed"],
)
def test_a_call_that_is_required_is_made(client: openai.OpenAI, choice: Any) -> None:
    other = TOOL | {"name": "other"}
    tools = [TOOL, other] if choice != "required" else [TOOL]
    wanted = {"tools": tools, "tool_choice": choice, "parallel_tool_calls": False}
    answer = client.responses.create(**GREEDY, input=ROUND, max_output_tokens=120, **wanted)
    (call,) = answer.output
    assert call.name == "generate_image"
    assert set(json.loads(call.arguments)) == {"prompt"}
    assert client.responses.create(
        **GREEDY, input=WISH, tools=[TOOL], tool_choice="none"
    ).output_text


def test_a_custom_tool_takes_free_text(client: openai.OpenAI) -> None:
    custom = {"type": "custom", "name": "generate_image"}
    wanted = {"tools": [custom], "tool_choice": custom, "max_output_tokens": 120}
    first = client.responses.create(**GREEDY, input=WISH, **wanted)
    (call,) = first.output
    assert call.type == "custom_tool_call"
    assert call.input and not call.input.startswith("{")
    events = list(client.responses.create(**GREEDY, input=WISH, **wanted, stream=True))
    told = [event for event in events if "custom_tool_call_input" in event.type]
    assert [event.type.rpartition(".")[2] for event in told] == ["delta", "done"]
    assert told[0].delta == told[1].input == call.input
    result = {"type": "custom_tool_call_output", "call_id": call.call_id, "output": "done"}
    second = client.responses.create(
        **GREEDY, input=[result], previous_response_id=first.id, max_output_tokens=20
    )
    assert second.output_text


def test_reasoning_that_is_passed_back_is_read(client: openai.OpenAI) -> None:
    thought = {"type": "reasoning", "id": "rs_1", "summary": [], "encrypted_content": "x"}
    thought |= {"content": [{"type": "reasoning_text", "text": "It is round."}]}
    said = {"role": "assistant", "content": [{"type": "output_text", "text": "a red circle"}]}
    items = [{"role": "user", "content": ROUND}, thought, said, {"role": "user", "content": ROUND}]
    answer = client.responses.create(**GREEDY, input=items)
    assert answer.status == "completed"
    listed = client.responses.input_items.list(answer.id, order="asc").data
    assert listed[1].content[0].text == "It is round."


def test_an_answer_that_was_cut_off_says_so(client: openai.OpenAI) -> None:
    wanted = GREEDY | {"input": ROUND, "max_output_tokens": 2}
    answer = client.responses.create(**wanted)
    assert (answer.status, answer.incomplete_details.reason) == ("incomplete", "max_output_tokens")
    assert answer.output[0].status == "incomplete"
    events = list(client.responses.create(**wanted, stream=True))
    assert events[-1].type == "response.incomplete"
    assert events[-1].response.output_text == answer.output_text


def test_log_probabilities_come_with_the_text(client: openai.OpenAI) -> None:
    wanted = GREEDY | {"input": ROUND, "include": ["message.output_text.logprobs"]}
    answer = client.responses.create(**wanted, top_logprobs=2)
    listed = answer.output[0].content[0].logprobs
    assert "".join(each.token for each in listed).startswith("a red circle")
    assert all(len(each.top_logprobs) == 2 for each in listed)
    events = client.responses.create(**wanted, stream=True)
    streamed = [each for event in events if hasattr(event, "delta") for each in event.logprobs]
    assert [each.token for each in streamed] == [each.token for each in listed]


def test_a_kept_response_can_be_read_listed_and_forgotten(client: openai.OpenAI) -> None:
    first = client.responses.create(**GREEDY, input=ROUND)
    kept = client.responses.create(**GREEDY, input=ROUND, previous_response_id=first.id)
    assert client.responses.retrieve(kept.id) == kept
    assert [item.role for item in client.responses.input_items.list(kept.id)] == [
        "user",
        "assistant",
        "user",
    ]
    page = client.responses.input_items.list(kept.id, order="asc", limit=2)
    assert (len(page.data), page.has_more) == (2, True)
    assert page.data[0].content[0].text == ROUND
    assert len(page.get_next_page().data) == 1
    with pytest.raises(openai.BadRequestError, match="is done"):
        client.responses.cancel(kept.id)
    client.responses.delete(first.id)
    again = client.responses.create(**GREEDY, input=ROUND, previous_response_id=kept.id)
    assert again.output_text == "a red circle"
    with pytest.raises(openai.NotFoundError, match=first.id):
        client.responses.retrieve(first.id)
    with pytest.raises(openai.NotFoundError, match="resp_0"):
        client.responses.create(**GREEDY, input=ROUND, previous_response_id="resp_0")


def test_a_response_that_is_not_to_be_kept_is_not(client: openai.OpenAI) -> None:
    answer = client.responses.create(**GREEDY, input=ROUND, store=False)
    assert answer.store is False
    with pytest.raises(openai.NotFoundError):
        client.responses.retrieve(answer.id)


def test_an_item_can_be_referred_to_by_its_id(client: openai.OpenAI) -> None:
    first = client.responses.create(**GREEDY, input=WISH, tools=[TOOL])
    call = first.output[0]
    reference = {"type": "item_reference", "id": call.id}
    result = {"type": "function_call_output", "call_id": call.call_id, "output": DRAWN}
    items = [{"role": "user", "content": WISH}, reference, result]
    second = client.responses.create(**GREEDY, input=items, tools=[TOOL])
    assert second.output_text == f"Here is your picture: {DRAWN}."
    with pytest.raises(openai.NotFoundError, match="msg_1"):
        client.responses.create(**GREEDY, input=[{"type": "item_reference", "id": "msg_1"}])


def test_the_oldest_turns_give_way_where_truncation_is_auto(tiny: openai.OpenAI) -> None:
    """The tiny model's context holds 512 tokens, one a letter."""
    turns = [
        {"role": role, "content": f"{index} " + "x" * 60}
        for index in range(8)
        for role in ("user", "assistant")
    ]
    items = [*turns, {"role": "user", "content": "the last"}]
    wanted = {"model": "tiny", "input": items, "max_output_tokens": 16, "instructions": "Be short."}
    with pytest.raises(openai.BadRequestError, match="context") as refused:
        tiny.responses.create(**wanted)
    assert refused.value.param == "input"
    answer = tiny.responses.create(**wanted, truncation="auto")
    assert 300 < answer.usage.input_tokens <= 512 - 16
    short = {"model": "tiny", "input": "the last", "instructions": "Be short.", "store": False}
    shortest = tiny.responses.create(**short, max_output_tokens=1)
    with pytest.raises(openai.BadRequestError, match="max_output_tokens"):
        tiny.responses.create(**short, max_output_tokens=510, truncation="auto")
    assert shortest.usage.input_tokens < 100


def test_fields_without_effect_are_told(scenes: Server) -> None:
    fields: dict[str, Any] = {
        "reasoning": {"effort": "low", "summary": "auto"},
        "text": {"verbosity": "low"},
        "include": ["reasoning.encrypted_content"],
        "tools": [{"type": "web_search"}],
        "prompt_cache_key": "someone",
        "service_tier": "auto",
    }
    answer = post(scenes, **fields).json()
    assert [one.partition(": taken")[0] for one in answer["warnings"]] == [
        "prompt_cache_key",
        "tools.0.type='web_search'",
        "text.verbosity",
        "reasoning.effort",
        "reasoning.summary",
        "include='reasoning.encrypted_content'",
    ]
    assert "warnings" not in post(scenes).json()


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"input": None}, "input"),
    ({"input": []}, "input"),
    ({"input": [5]}, "input.0"),
    ({"input": [{"type": "computer_call"}]}, "input.0.type"),
    ({"input": [{"role": "robot", "content": "x"}]}, "input.0.role"),
    ({"input": [{"role": "user", "content": 5}]}, "input.0.content"),
    ({"input": [{"role": "user", "content": [{"type": "input_image"}]}]}, "input.0.content"),
    ({"input": [{"role": "user", "content": [{"type": ["text"]}]}]}, "input.0.content"),
    ({"input": [{"type": ["message"], "role": "user", "content": "x"}]}, "input.0.type"),
    ({"input": [{"type": "function_call", "call_id": "c", "name": "f"}]}, "input.0.arguments"),
    ({"input": [{"type": "function_call_output", "output": "x"}]}, "input.0.call_id"),
    ({"instructions": ["x"]}, "instructions"),
    ({"max_output_tokens": -1}, "max_output_tokens"),
    ({"max_output_tokens": 10**9}, "max_output_tokens"),
    ({"metadata": {"a": 5}}, "metadata"),
    ({"tools": [{"type": "function"}]}, "tools.0.name"),
    ({"tools": [{}]}, "tools.0.type"),
    ({"tool_choice": {"type": "web_search"}}, "tool_choice"),
    ({"text": {"format": {"type": "json_schema", "name": "x"}}}, "text.format"),
    ({"text": 5}, "text"),
    ({"reasoning": "high"}, "reasoning"),
    ({"include": "x"}, "include"),
    ({"top_logprobs": 21}, "top_logprobs"),
    ({"truncation": "always"}, "truncation"),
    ({"store": "yes"}, "store"),
    ({"stream": "yes"}, "stream"),
    ({"n": 2}, "n"),
    ({"background": True}, "background"),
    ({"conversation": "conv_1"}, "conversation"),
    ({"prompt": {"id": "p"}}, "prompt"),
    ({"temperature": -1}, "temperature"),
]


@pytest.mark.parametrize(("fields", "name"), WRONG, ids=str)
def test_a_wrong_field_is_named(scenes: Server, fields: dict[str, Any], name: str) -> None:
    answer = post(scenes, **fields)
    assert answer.status_code == 400, answer.text
    assert answer.json()["error"]["param"] == name
    assert answer.json()["error"]["type"] == "invalid_request_error"


@pytest.mark.parametrize(
    ("query", "name"),
    [({"limit": 0}, "limit"), ({"order": "x"}, "order"), ({"after": "x"}, "after")],
)
def test_a_wrong_parameter_of_a_list_is_named(
    scenes: Server, client: openai.OpenAI, query: dict[str, Any], name: str
) -> None:
    kept = client.responses.create(**GREEDY, input=ROUND)
    answer = httpx.get(f"{scenes.url}/v1/responses/{kept.id}/input_items", params=query)
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, name)


def kept(number: int, size: int = 10) -> KeptResponse:
    return KeptResponse({"id": f"resp_{number}", "output": [], "x": "x" * size}, [])


def test_the_store_is_bounded_in_bytes_and_seconds() -> None:
    store = ResponseStore(ResultStore(60, 3 * ENTRY_BYTES))
    assert store.put(kept(1))
    assert store.put(kept(2))
    assert store.put(kept(3))
    with pytest.raises(NotFound, match="resp_1"):
        store.get("resp_1")
    assert store.get("resp_2").response["id"] == "resp_2"
    assert not store.put(kept(4, 4 * ENTRY_BYTES))
    passing = ResponseStore(ResultStore(0.0, 2**20))
    passing.put(kept(1))
    with pytest.raises(NotFound, match="0 s"):
        passing.get("resp_1")


def test_to_one_key_the_responses_of_another_are_not_there() -> None:
    store = ResponseStore(ResultStore(60, 2**20))
    mine = CALLER.set("mine")
    store.put(kept(1))
    CALLER.reset(mine)
    for method in (store.get, store.remove):
        with pytest.raises(NotFound):
            method("resp_1")
        with pytest.raises(NotFound):
            method("mine/resp_1")
    CALLER.set("mine")
    assert store.get("resp_1").response["id"] == "resp_1"
    CALLER.set("")
