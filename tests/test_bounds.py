"""The reader of JSON counts what it will not parse; a time limit ends code that is not ours."""

from __future__ import annotations

import json
import random
import time
from typing import Any

import pytest

from atelier import bounds
from atelier.bounds import read_json
from atelier.errors import InvalidRequest
from atelier.text.time_limit import TimeIsUp, time_limit

PIECES = ["a,b", "\\", '"', ',"\\",', 'x\\\\"', "", "é,", 1, None, 2.5, True]


def values(chance: random.Random, depth: int = 0) -> Any:
    if depth > 4 or chance.random() < 0.3:
        return chance.choice(PIECES)
    count = chance.randint(0, 4)
    if chance.random() < 0.5:
        return [values(chance, depth + 1) for _ in range(count)]
    return {
        f"{chance.random()}{chance.choice(PIECES[:7])}": values(chance, depth + 1)
        for _ in range(count)
    }


def commas(value: Any) -> int:
    inner = list(value.values()) if isinstance(value, dict) else value
    if not isinstance(inner, list):
        return 0
    return max(0, len(inner) - 1) + sum(map(commas, inner))


@pytest.mark.parametrize("chunk", [1, 2, 3, 7, 64, 65536])
def test_values_are_counted_wherever_the_bytes_are_cut(
    monkeypatch: pytest.MonkeyPatch, chunk: int
) -> None:
    monkeypatch.setattr(bounds, "CHUNK", chunk)
    chance = random.Random(chunk)
    for _ in range(300):
        value = values(chance)
        assert bounds._commas(json.dumps(value).encode(), 10**9) == commas(value)


def test_what_is_within_is_read_and_what_is_beyond_is_not() -> None:
    assert read_json(b'{"a": ["x,y", 1]}', most=3) == {"a": ["x,y", 1]}
    assert read_json('"' + "," * 1000 + '"', most=3) == "," * 1000
    with pytest.raises(InvalidRequest, match="more than 3 values"):
        read_json(b"[1,2,3,4]", most=3)
    deep = "[" * bounds.MAX_DEPTH + "]" * bounds.MAX_DEPTH
    assert read_json(deep)
    with pytest.raises(InvalidRequest, match=f"more than {bounds.MAX_DEPTH} deep"):
        read_json(f"[[{deep}]]")


def test_code_that_loops_is_ended_and_leaves_nothing_behind() -> None:
    began = time.monotonic()
    with pytest.raises(TimeIsUp), time_limit(0.05):
        while True:
            pass
    assert time.monotonic() - began < 5
    for _ in range(200):  # whatever was on its way would hit one of these
        with time_limit(5):
            sum(range(1000))
