"""AIPerf makes the requests (`make engine-aiperf`): its records become ours."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from atelier.bench.aiperf import read_records
from atelier.bench.figures import figures
from atelier.bench.load import make_load
from atelier.bench.session import BenchWish, Session
from atelier.errors import SettingsError
from tests.bench.conftest import Engines
from tests.bench.fake_engine import TOKEN_S
from tests.conftest import ROOT

PROGRAM = ROOT / ".engines" / "aiperf" / "bin" / "aiperf"


def line(start: int, phase: str, **rest: Any) -> str:
    """A line of AIPerf 0.13's profile_export.jsonl."""
    times = {"request_start_ns": start, "request_end_ns": start + 400_000_000}
    return json.dumps({"metadata": times | {"phase_kind": phase}} | rest)


def test_records_are_read_without_the_warm_up(tmp_path: Path) -> None:
    metrics = {
        "time_to_first_token": 20.0,
        "inter_chunk_latency": [10.0, 10.0, 0.0],
        "request_latency": 40.0,
        "usage_completion_tokens": 5,
        "usage_prompt_tokens": 17,
    }
    told = {name: {"value": value, "unit": ""} for name, value in metrics.items()}
    path = tmp_path / "export.jsonl"
    lines = [
        line(1_000_000_000, "warmup", metrics=told),
        line(3_000_000_000, "profiling", metrics={}, error={"code": 429, "message": "full"}),
        line(2_000_000_000, "profiling", metrics=told),
    ]
    path.write_text("\n".join(lines))
    good, bad = read_records(path)
    assert (good.begun, good.ttft, good.seconds) == (0.0, 0.02, 0.04)
    assert good.tpot == pytest.approx(0.02 / 4)
    assert (bad.begun, bad.error, bad.message) == (1.0, "http 429", "full")
    assert figures([good, bad]).errors == {"http 429": 1}


@pytest.mark.parametrize(
    ("fields", "said"), [({"turns": 2}, "--turns"), ({"rate": 1, "burst": 2}, "--burst")]
)
async def test_what_it_is_not_asked_to_do_is_named(
    engines: Engines, fields: dict[str, Any], said: str
) -> None:
    wish = BenchWish([engines.url], [make_load(fields)], model="steady", tool=PROGRAM)
    with pytest.raises(SettingsError, match=said):
        await Session(wish).run()


async def test_a_program_that_is_not_there_is_named(engines: Engines, tmp_path: Path) -> None:
    load = make_load({"requests": 1, "warmup": 0})
    wish = BenchWish([engines.url], [load], model="steady", tool=tmp_path / "none")
    with pytest.raises(SettingsError, match="make engine-aiperf"):
        await Session(wish).run()


@pytest.mark.alone
@pytest.mark.skipif(not PROGRAM.exists(), reason="make engine-aiperf has not run")
async def test_it_measures_what_the_engine_does(engines: Engines) -> None:
    load = make_load({"requests": 6, "warmup": 1, "output_tokens": 20, "prompt_tokens": 30})
    result = await Session(BenchWish([engines.url], [load], model="steady", tool=PROGRAM)).run()
    found = result.levels[0].figures
    assert result.levels[0].tool == "aiperf"
    assert found.requests == 6 and not found.errors
    assert found.tokens and found.tokens.usage == 6 * 20
    assert found.tpot and found.tpot.p50 == pytest.approx(TOKEN_S, rel=0.25)
