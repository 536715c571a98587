"""`atelier bench` against an engine whose figures are known, and against a real server."""

from __future__ import annotations

import json
import re
import statistics
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from atelier.bench.driver import measure, run
from atelier.bench.figures import RunFigures, figures
from atelier.bench.load import OfferedLoad, make_load
from atelier.bench.result import BenchResult, read
from atelier.bench.session import BenchWish, Session
from atelier.bench.slo import Slo
from atelier.bench.target import TargetError, connected
from atelier.cli.bench import app, compare_app
from atelier.errors import AtelierError, SettingsError
from tests.bench.conftest import Engines
from tests.bench.fake_engine import FIRST_S, PICTURE_S, PREVIEW_S, TOKEN_S
from tests.text.running import Server

SHORT: dict[str, Any] = {"requests": 8, "warmup": 1, "output_tokens": 12, "prompt_tokens": 30}


async def bench(url: str, model: str, **fields: Any) -> BenchResult:
    slo = Slo.parse(fields.pop("slo", ""))
    wish = BenchWish([url], [make_load(SHORT | fields)], model=model, slo=slo)
    return await Session(wish).run()


async def figures_of(url: str, model: str, **fields: Any) -> RunFigures:
    return (await bench(url, model, **fields)).levels[0].figures


@pytest.mark.alone
async def test_times_are_those_of_the_engine(engines: Engines) -> None:
    found = await figures_of(engines.url, "steady", requests=12)
    assert found.ttft and found.tpot and found.itl and found.e2e
    assert found.ttft.p50 == pytest.approx(FIRST_S, abs=0.008)
    assert found.tpot.p50 == pytest.approx(TOKEN_S, rel=0.15)
    assert found.itl.count == 12 * 11
    assert found.e2e.p50 == pytest.approx(FIRST_S + 11 * TOKEN_S, abs=0.012)
    assert found.requests == 12 and not found.errors


@pytest.mark.alone
@pytest.mark.parametrize("model", ["steady", "chunky", "counting"])
async def test_tokens_are_counted_however_many_a_chunk_holds(engines: Engines, model: str) -> None:
    found = await figures_of(engines.url, model, requests=4)
    assert found.tokens
    assert found.tokens.usage == 4 * 12
    assert found.tokens.chunks == 4 * (12 if model == "steady" else 3)
    assert (found.tokens.checked, found.tokens.differing) == (4, 0)
    # The first chunk of four comes at once; the eight tokens after it take eight times as long.
    assert found.tpot and found.tpot.p50 == pytest.approx(
        TOKEN_S if model == "steady" else 8 / 11 * TOKEN_S, rel=0.15
    )
    assert found.itl and found.itl.p50 == pytest.approx(TOKEN_S, rel=0.3)


async def test_a_wrong_usage_is_told(engines: Engines) -> None:
    found = await bench(engines.url, "lying", requests=4, output_tokens=40)
    tokens = found.levels[0].figures.tokens
    assert tokens and tokens.differing == 4
    assert any("cannot be right" in note for note in found.notes)


async def test_without_usage_there_is_no_count(engines: Engines) -> None:
    found = await bench(engines.url, "silent", requests=4)
    assert found.levels[0].figures.tpot is None
    assert any("no usage" in note for note in found.notes)


@pytest.mark.parametrize(("model", "kind"), [("breaking", "error event"), ("cutting", "cut")])
async def test_failures_are_counted_by_kind(engines: Engines, model: str, kind: str) -> None:
    assert (await figures_of(engines.url, model, warmup=0)).errors == {kind: 8}


async def test_a_server_that_refuses_all_is_an_error(engines: Engines) -> None:
    with pytest.raises(TargetError, match="http 429"):
        await bench(engines.url, "busy")


async def test_prompts_have_the_length_that_was_asked_for(engines: Engines) -> None:
    load = make_load(SHORT | {"prompt_tokens": "20,300", "requests": 6})
    async with connected(engines.url, "steady") as target:
        records = await measure(target, load)
    assert sorted(record.prompt_tokens or 0 for record in records) == [20] * 3 + [300] * 3


@pytest.mark.alone
async def test_an_open_loop_begins_at_its_own_times(engines: Engines) -> None:
    load = make_load(SHORT | {"rate": 50, "burst": 5, "requests": 20})
    async with connected(engines.url, "steady") as target:
        records = await measure(target, load)
    begun = [record.begun for record in records]
    bursts = [begun[place : place + 5] for place in range(0, 20, 5)]
    assert statistics.median(max(burst) - min(burst) for burst in bursts) < 0.02
    assert begun[-1] > 0.05


@pytest.mark.alone
async def test_a_trace_sets_times_and_lengths(engines: Engines, folder: Path) -> None:
    trace = folder / "trace.jsonl"
    lines = [(1000, 20, 3), (1200, 50, 9), (1800, 20, 3)]
    keys = ("timestamp", "input_length", "output_length")
    trace.write_text("\n".join(json.dumps(dict(zip(keys, line, strict=True))) for line in lines))
    async with connected(engines.url, "steady") as target:
        records = await measure(target, make_load(SHORT | {"trace": trace}))
    lengths = [(one.prompt_tokens, one.output_tokens) for one in records]
    assert lengths == [line[1:] for line in lines]
    planned = [one.begun - one.lag for one in records]
    later = [one - planned[0] for one in planned]
    assert later == pytest.approx([0, 0.2, 0.8], abs=0.005)
    # A stall of the machine delays one of them; a driver that waits wrongly, all but the first.
    assert 0 <= min(one.lag for one in records[1:]) < 0.02


@pytest.mark.alone
async def test_the_bound_of_time_holds(engines: Engines) -> None:
    load = OfferedLoad(requests=10_000, seconds=0.3, output_tokens=2, warmup=0)
    async with connected(engines.url, "steady") as target:
        records = await run(target, await talks(target, load, 1000), load)
    assert 3 < len(records) < 1000
    assert max(record.begun for record in records) < 0.4


async def talks(target: Any, load: OfferedLoad, count: int) -> Any:
    from atelier.bench.bodies import conversations

    return await conversations(load, target, count)


@pytest.mark.alone
async def test_goodput_counts_what_keeps_the_bounds(engines: Engines) -> None:
    found = await figures_of(engines.url, "steady", slo="ttft=1s,itl=100ms")
    assert found.good_share == 1
    found = await figures_of(engines.url, "steady", slo="e2e=10ms")
    assert found.good_share == 0


@pytest.mark.alone
async def test_pictures_have_previews_and_megapixels(engines: Engines) -> None:
    found = await figures_of(
        engines.url, "drawing", sizes="100x100,300x100", previews=1, requests=6
    )
    assert found.preview and found.preview.p50 == pytest.approx(PREVIEW_S, abs=0.01)
    assert found.e2e and found.e2e.p50 == pytest.approx(PREVIEW_S + PICTURE_S, abs=0.02)
    assert found.pictures_per_s and found.megapixels_per_s
    assert found.megapixels_per_s / found.pictures_per_s == pytest.approx(0.02)


async def test_saturation_is_where_twice_the_users_bring_no_more(engines: Engines) -> None:
    load = make_load(SHORT | {"users": 1, "requests": 6})
    found = await Session(BenchWish([engines.url], [load], model="stiff", saturate=True)).run()
    assert found.saturation and found.saturation.load == "1 user"
    assert "2 users brought" in found.saturation.reason
    assert len(found.levels) == 2


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"users": 0}, "users=0"),
        ({"sizes": "12"}, "sizes.0='12'"),
        ({"users": 2, "rate": 3}, "exclude each other"),
        ({"turns": 2, "scenario": "json"}, "scenario json has one"),
        ({"burst": 3}, "needs rate"),
    ],
)
def test_a_bad_load_is_named(fields: dict[str, Any], said: str) -> None:
    with pytest.raises(SettingsError, match=re.escape(said)):
        make_load(fields)


@pytest.mark.parametrize("text", ["ttft=5", "speed=1s"])
def test_a_bad_bound_is_named(text: str) -> None:
    with pytest.raises(
        SettingsError, match=re.escape(text.split("=")[1] if "ttft" in text else "speed")
    ):
        Slo.parse(text)


async def test_who_does_not_answer_is_named() -> None:
    with pytest.raises(TargetError, match=r"127\.0\.0\.1:9 does not answer"):
        async with connected("127.0.0.1:9"):
            pass


def test_a_real_server_end_to_end(scenes: Server, folder: Path) -> None:
    """Two levels of turns on a shared prefix, with key, JSON and HTML, then the same again."""
    result, page = folder / "a.json", folder / "a.html"
    words = [scenes.url, "--api-key", "key", "--users", "1,2", "--requests", "6", "--turns", "2"]
    words += ["--shared-prefix", "80", "--output-tokens", "8", "--prompt-tokens", "24"]
    done = CliRunner().invoke(app, [*words, "--json", str(result), "--html", str(page)])
    assert done.exit_code == 0, done.output
    assert "time to first token" in done.output and "0 differ" in done.output
    found = read(result)
    assert [level.load.users for level in found.levels] == [1, 2]
    assert found.servers[0].facts["properties"]["engine"] == "transformers"
    assert (found.levels[0].figures.cached_share or 0) > 0.5
    assert "key" not in found.command
    html = page.read_text()
    assert html.count("<svg") == 4 and "http-equiv" not in html
    assert not re.findall(r'(?:src|href)="https?:', html)
    again = folder / "b.json"
    words = [scenes.url, "--api-key", "key", "--repeat", str(result), "--json", str(again)]
    assert CliRunner().invoke(app, words).exit_code == 0
    done = CliRunner().invoke(compare_app, [str(result), str(again)])
    assert done.exit_code == 0 and "from runs made apart" in done.output


@pytest.mark.parametrize("scenario", ["tools", "json"])
async def test_answers_of_a_form_are_checked(scenes: Server, scenario: str) -> None:
    load = make_load({"scenario": scenario, "requests": 2, "warmup": 0, "output_tokens": 100})
    found = (await Session(BenchWish([scenes.url], [load], key="key")).run()).levels[0]
    assert found.figures.malformed == 0 and not found.figures.errors
    assert all(json.loads(record.text) for record in found.records)


async def test_a_wrong_key_and_a_wrong_model_are_named(scenes: Server) -> None:
    load = make_load(SHORT)
    with pytest.raises(TargetError, match="give --api-key"):
        await Session(BenchWish([scenes.url], [load])).run()
    with pytest.raises(TargetError, match="has no model 'other': it has scenes"):
        await Session(BenchWish([scenes.url], [load], model="other", key="key")).run()


def test_results_of_other_loads_are_not_compared(folder: Path, scenes: Server) -> None:
    other = folder / "other.json"
    words = [scenes.url, "--api-key", "key", "--requests", "1", "--output-tokens", "3"]
    assert CliRunner().invoke(app, [*words, "--json", str(other)]).exit_code == 0
    with pytest.raises(AtelierError, match="no load in common"):
        CliRunner().invoke(
            compare_app, [str(folder / "a.json"), str(other)], catch_exceptions=False
        )


def test_figures_of_nothing_are_no_figures() -> None:
    assert figures([]).e2e is None
