"""What is changed in bodies on their way to a child engine."""

from __future__ import annotations

import json
from typing import Any

import pytest

from atelier.text.child.bodies import prepared, salt


def changed(body: Any, caller: str = "", salted: bool = False) -> Any:
    return json.loads(prepared(json.dumps(body).encode(), caller, salted))


@pytest.mark.parametrize(
    ("sent", "handed_on"),
    [
        ({"top_p": 0}, {"top_p": 1e-9}),
        ({"top_p": 0.0}, {"top_p": 1e-9}),
        ({"top_p": 0.5, "seed": 1}, {"top_p": 0.5, "seed": 1}),
        ({"suffix": ""}, {}),
        ({"suffix": "end"}, {"suffix": "end"}),
        ({"logprobs": False, "top_logprobs": 0}, {"logprobs": False}),
        ({"logprobs": True, "top_logprobs": 0}, {"logprobs": True, "top_logprobs": 0}),
        ({"top_p": False, "top_logprobs": 0}, {"top_p": False}),
    ],
)
def test_spellings_that_engines_refuse_are_told_in_theirs(sent: Any, handed_on: Any) -> None:
    assert changed({"prompt": "a"} | sent) == {"prompt": "a"} | handed_on


def test_any_seed_is_one_that_was_drawn() -> None:
    drawn = {changed({"seed": -1})["seed"] for _ in range(20)}
    assert len(drawn) > 1 and min(drawn) >= 0


@pytest.mark.parametrize(
    "body",
    [
        b'{"prompt":  "a", "top_p": 0.25}',
        b'{"messages": [{"role": "user", "content": "seed -1"}]}',
        b'{"seed": -1',
        b'[{"seed": -1}]',
        b'{"seed": -1, "temperature": NaN}',
        b'{"seed": -1, "tools": ' + b"[" * 400 + b"]" * 400 + b"}",
        b"\xff\xfe",
        b"",
    ],
)
@pytest.mark.parametrize("salted", [True, False])
def test_other_bodies_and_what_is_no_object_go_on_byte_for_byte(body: bytes, salted: bool) -> None:
    assert prepared(body, "", salted) == body


def test_a_body_too_deep_to_be_written_again_goes_on_as_it_is() -> None:
    deep = b'{"prompt": "a", "tools": ' + b"[" * 400 + b"]" * 400 + b"}"
    assert prepared(deep, "one", True) == deep


def test_prompts_of_two_keys_have_two_salts_and_a_sent_one_counts_within_its_key() -> None:
    one, other = (changed({"prompt": "a"}, who, True)["cache_salt"] for who in ("one", "other"))
    assert one == salt("one") != other == salt("other")
    own = changed({"prompt": "a", "cache_salt": "mine"}, "one", True)["cache_salt"]
    stolen = changed({"prompt": "a", "cache_salt": one}, "other", True)["cache_salt"]
    assert len({one, other, own, stolen}) == 4
    assert "one" not in one
    assert changed({"prompt": "a"}, "one", salted=False) == {"prompt": "a"}
