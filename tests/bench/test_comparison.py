"""A/B: right sign and size of what is there, and nothing seen where nothing is."""

from __future__ import annotations

import itertools
import math
import random
import statistics
from typing import Any

import pytest

from atelier.bench.comparison import Comparison, compare
from atelier.bench.interval import EXACT, critical_rank_sum, percentile, typical
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
    """90 % of intervals of heavy-tailed values hold their middle, give or take three standard
    errors."""
    chance, held = random.Random(3), 0
    for _ in range(200):
        values = [2 + math.log(chance.expovariate(1) / chance.expovariate(1)) for _ in range(25)]
        held += not typical(values, 0.9).excludes(2)
    assert 0.9 - 3 * 0.0212 <= held / 200 <= 0.9 + 3 * 0.0212


@pytest.mark.parametrize("stalls", [[0.03], [0.3, 0.02], [0.03, 0.03, 0.03]])
@pytest.mark.parametrize("stalled", ["a", "b"])
def test_stalls_of_a_few_rounds_hide_no_difference(stalled: str, stalls: list[float]) -> None:
    chance = random.Random(5)
    pairs = [(chance.gauss(0.003, 1e-4), chance.gauss(0.008, 1e-4)) for _ in range(24)]
    for place, slow in enumerate(stalls):
        pairs[place] = (slow, 0.008) if stalled == "a" else (0.003, slow)
    [effect] = compare({"tpot": pairs}, "stalled", interleaved=True).effects
    assert effect.verdict == "a is better"
    assert effect.ratio == pytest.approx(8 / 3, rel=0.15)
    assert effect.difference == pytest.approx(0.005, rel=0.15)
    assert 2 < effect.ratio_low < effect.ratio < effect.ratio_high < 3.5


def test_percentiles_are_numpys() -> None:
    import numpy

    values = sorted(random.Random(4).random() for _ in range(17))
    for percent in (0, 50, 90, 95, 99, 100):
        assert percentile(values, percent) == pytest.approx(numpy.percentile(values, percent))


@pytest.mark.parametrize(("size", "level", "sum_of_ranks"), [
    (8, 0.95, 3), (8, 0.99, 0), (7, 0.99, -1), (24, 0.99, 61), (25, 0.95, 89), (50, 0.95, 434),
    (100, 0.95, 1955),
])  # fmt: skip
def test_critical_rank_sums_are_those_of_tables(size: int, level: float, sum_of_ranks: int) -> None:
    assert critical_rank_sum(size, level) == sum_of_ranks


def test_beyond_what_is_counted_rank_sums_go_on_alike() -> None:
    counted, assumed = critical_rank_sum(EXACT, 0.95), critical_rank_sum(EXACT + 1, 0.95)
    assert 0 < assumed - counted < EXACT


@pytest.mark.parametrize("size", [1, 8, 25, 260])
def test_the_interval_is_made_of_means_of_pairs(size: int) -> None:
    chance = random.Random(size)
    values = [round(chance.gauss(0, 1), 1) for _ in range(size)]  # with ties
    means = sorted((a + b) / 2 for a, b in itertools.combinations_with_replacement(values, 2))
    found, outside = typical(values, 0.95), critical_rank_sum(size, 0.95)
    assert found.middle == pytest.approx(statistics.median(means), abs=1e-12)
    if size < 6:
        assert (found.low, found.high) == (-math.inf, math.inf)
    else:
        assert found.low == pytest.approx(means[outside], abs=1e-12)
        assert found.high == pytest.approx(means[-1 - outside], abs=1e-12)


@pytest.mark.parametrize("slower", [0.0031, 0.0029])
def test_rounds_that_were_equal_are_no_difference(slower: float) -> None:
    pairs = [(0.003, 0.003)] * 20 + [(0.003, slower)] * 4
    assert not compare({"tpot": pairs}, "equal", interleaved=True).different
