"""A/B: right sign and size of what is there, and nothing seen where nothing is."""

from __future__ import annotations

import random
from typing import Any

import pytest

from atelier.bench.comparison import Comparison, compare
from atelier.bench.interval import mean_interval, percentile, signed_rank
from atelier.bench.load import make_load
from atelier.bench.session import BenchWish, Session
from tests.bench.conftest import Engines
from tests.bench.fake_engine import ADDED_S, TOKEN_S


async def ab(a: str, b: str, **fields: Any) -> Comparison:
    load = make_load(
        {"requests": 24, "warmup": 1, "output_tokens": 10, "prompt_tokens": 20} | fields
    )
    return (await Session(BenchWish([a, b], [load], model="steady")).run()).comparisons[0]


@pytest.mark.alone
async def test_five_milliseconds_a_token_are_seen(engines: Engines) -> None:
    found = {one.metric: one for one in (await ab(engines.url, engines.slow)).effects}
    tpot = found["tpot"]
    assert tpot.verdict == "a is better"
    assert tpot.difference == pytest.approx(ADDED_S, rel=0.25)
    assert tpot.ratio == pytest.approx((TOKEN_S + ADDED_S) / TOKEN_S, rel=0.25)
    assert found["tokens_per_s"].verdict == "a is better" and found["tokens_per_s"].ratio < 1


@pytest.mark.alone
async def test_the_other_way_round_has_the_other_sign(engines: Engines) -> None:
    found = {
        one.metric: one
        for one in (await ab(engines.slow, engines.url, users=2, requests=36)).effects
    }
    assert found["tpot"].verdict == "b is better"
    assert found["tpot"].difference == pytest.approx(-ADDED_S, rel=0.25)
    assert found["tpot"].rounds == 9


@pytest.mark.alone
async def test_an_engine_against_itself_is_no_different(engines: Engines) -> None:
    """Two runs of which each may err once in twenty: both at once would not be chance."""
    seen = [(await ab(engines.url, engines.url, seed=seed)).different for seed in range(2)]
    assert sum(seen) <= 1


def noisy(chance: random.Random, centre: float) -> float:
    """A latency as on a busy machine: now and then several times as long."""
    return centre * chance.lognormvariate(0, 0.1) * (4 if chance.random() < 0.05 else 1)


def simulated(chance: random.Random, factor: float, rounds: int) -> Comparison:
    metrics = {
        name: [(noisy(chance, 1), noisy(chance, factor)) for _ in range(rounds)]
        for name in ("ttft", "tpot", "e2e", "tokens_per_s")
    }
    return compare(metrics, "simulated", interleaved=True)


def test_one_comparison_in_twenty_at_most_sees_what_is_not_there() -> None:
    """By simulation, of 200 comparisons of four metrics each."""
    chance = random.Random(1)
    assert sum(simulated(chance, 1.0, 20).different for _ in range(200)) <= 10


def test_a_real_difference_is_found() -> None:
    chance = random.Random(2)
    found = [simulated(chance, 1.3, 40) for _ in range(20)]
    assert sum(one.different for one in found) >= 19


def test_too_few_rounds_are_told() -> None:
    found = compare({"e2e": [(1.0, 2.0)] * 7}, "few", interleaved=True)
    assert found.effects[0].verdict == "too few rounds" and not found.different


def test_intervals_hold_their_level() -> None:
    """90 % of intervals of skewed values hold the mean, give or take three standard errors."""
    chance, held = random.Random(3), 0
    for _ in range(200):
        values = [chance.expovariate(1) for _ in range(25)]
        held += not mean_interval(values, 0.9).excludes(1)
    assert 0.9 - 3 * 0.0212 <= held / 200 <= 0.9 + 3 * 0.0212


def test_percentiles_are_numpys() -> None:
    import numpy

    values = sorted(random.Random(4).random() for _ in range(17))
    for percent in (0, 50, 90, 95, 99, 100):
        assert percentile(values, percent) == pytest.approx(numpy.percentile(values, percent))


def test_the_signed_rank_test_counts_all_outcomes() -> None:
    assert signed_rank([1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0]) == pytest.approx(2 / 256)
    assert signed_rank([-1.0, 2.0, -3.0, 4.0, -5.0]) == pytest.approx(26 / 32)
    exact = signed_rank([place * (-1) ** (place % 3) + 0.0 for place in range(1, 51)])
    beyond = signed_rank([place * (-1) ** (place % 3) + 0.0 for place in range(1, 52)])
    assert exact == pytest.approx(beyond, abs=0.05)
