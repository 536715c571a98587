"""Streaming pictures: OpenAI's events, through OpenAI's client."""

from __future__ import annotations

import openai
import pytest

from tests.conftest import Server
from tests.protocols.pictures import FAST, SIZE, opened, striped


@pytest.fixture(scope="module")
def client(server: Server) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)


@pytest.mark.parametrize("previews", [0, 1, 3])
def test_a_stream_has_the_previews_asked_for_and_then_the_picture(
    client: openai.OpenAI, previews: int
) -> None:
    options = {"prompt": "a red circle", "size": SIZE}
    extra = FAST | {"steps": 8}
    events = list(
        client.images.generate(stream=True, partial_images=previews, extra_body=extra, **options)
    )
    partial, last = events[:-1], events[-1]
    assert [event.type for event in partial] == ["image_generation.partial_image"] * previews
    assert [event.partial_image_index for event in partial] == list(range(previews))
    for event in partial:
        assert opened(event.b64_json).format == "PNG"
    assert last.type == "image_generation.completed"
    assert (last.size, last.output_format, last.quality) == (SIZE, "png", "auto")
    assert last.b64_json == client.images.generate(extra_body=extra, **options).data[0].b64_json


def test_an_edits_events_are_named_after_edits(client: openai.OpenAI) -> None:
    picture = ("in.png", striped())
    events = list(
        client.images.edit(
            image=picture,
            prompt="a",
            size=SIZE,
            stream=True,
            partial_images=1,
            extra_body=FAST | {"steps": 8},
        )
    )
    assert [event.type for event in events] == ["image_edit.partial_image", "image_edit.completed"]


def test_every_picture_of_a_stream_has_its_own_last_event(client: openai.OpenAI) -> None:
    events = list(client.images.generate(prompt="a", size=SIZE, n=2, stream=True, extra_body=FAST))
    assert [event.type for event in events] == ["image_generation.completed"] * 2
    assert [event.seed for event in events] == [7, 8]


def test_a_bad_request_is_refused_before_the_stream_begins(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError):
        client.images.generate(prompt="a", size="65x64", stream=True)


def test_a_failure_in_the_middle_reaches_the_client(client: openai.OpenAI) -> None:
    stream = client.images.generate(
        prompt="a", size=SIZE, stream=True, extra_body={"steps": 150, "timeout": 0.05}
    )
    with pytest.raises(openai.APIError, match="time was up"):
        list(stream)
