"""Who runs next, and with whom, without a device: the scheduler told of step times by hand, and in
simulation with those of a real GPU."""

from __future__ import annotations

from typing import Any

import pytest

from atelier.images.pace import ENOUGH, SIZES, Pace
from atelier.images.scheduler import AGEING, CAP_S, Schedulable, Scheduler
from benchmarks.scheduling import (
    ARRIVALS,
    LOADS,
    MIXES,
    Visit,
    accuracy,
    figures,
    first_come,
    scheduled,
    sharing,
    visits,
)

REQUESTS = 400  # of a simulation
SMALL, LARGE = "512", "1024"


def work(
    steps: int = 20, kind: str = SMALL, arrived: float = 0.0, rows: int = 1, **more: Any
) -> Schedulable:
    return Schedulable(kind=kind, pixels=1, steps_left=steps, arrived=arrived, rows=rows, **more)


def paced(
    step_s: dict[int, float], most_rows: int = 16, kind: str = SMALL
) -> Scheduler[Schedulable]:
    """A scheduler that knows how long a step takes by rows."""
    scheduler: Scheduler[Schedulable] = Scheduler(most_rows)
    teach(scheduler, step_s, kind)
    return scheduler


def teach(scheduler: Scheduler[Schedulable], step_s: dict[int, float], kind: str) -> None:
    for rows, seconds in step_s.items():
        for _ in range(ENOUGH):
            scheduler.pace.saw((kind, "denoise"), rows, seconds, 1)


def parked(scheduler: Scheduler[Schedulable], *works: Schedulable, stage: str = "denoise") -> None:
    """Have them begun and standing at their denoiser."""
    for each in works:
        scheduler.add(each)
        scheduler.waiting.remove(each)
        scheduler.running.append(each)
        each.key, each.stage = (each.kind, stage, each.adapters), stage


NO_GAIN = {1: 0.1, 2: 0.2, 4: 0.4}
ALWAYS_GAIN = dict.fromkeys((1, 2, 4, 8, 16), 0.1)
GAIN_TO_FOUR = {1: 0.1, 2: 0.11, 4: 0.12, 8: 0.24}


def test_a_batch_ends_at_the_knee() -> None:
    scheduler = paced(GAIN_TO_FOUR)
    works = [work() for _ in range(16)]
    parked(scheduler, *works)
    assert 4 <= len(scheduler.next_batch(0)) < 8


def test_where_batching_gains_nothing_requests_run_one_by_one() -> None:
    scheduler = paced(NO_GAIN)
    first, second = work(20), work(19)
    parked(scheduler, first, second)
    assert scheduler.next_batch(0) == [second]


def test_row_counts_never_tried_are_tried() -> None:
    pace, lane = Pace(16), (SMALL, "denoise")
    tried = []
    for rows in (1, 2, 4, 8):
        tried.append(pace.knee(lane, 1))
        for _ in range(ENOUGH):
            pace.saw(lane, rows, 0.1)
    assert tried == [1, 3, 7, 15]
    assert pace.knee(lane, 1) == 16
    for _ in range(ENOUGH):
        pace.saw(lane, 16, 0.2)
    assert pace.knee(lane, 1) == 15


@pytest.mark.parametrize(
    ("pixels", "rows"), [(32 * 32, 31), (64 * 64, 7), (60 * 70, 7), (128 * 128, 1), (16 * 16, 32)]
)
def test_a_size_never_drawn_begins_at_the_knee_of_the_nearest(pixels: int, rows: int) -> None:
    pace = Pace(32)
    for own, seconds in GAIN_TO_FOUR.items():
        for _ in range(ENOUGH):
            pace.saw((SMALL, "denoise"), own, seconds, 64 * 64)
            pace.saw(("far", "denoise"), own, seconds, 1024 * 1024)
    assert pace.knee(("new", "denoise"), 1, pixels) == rows
    assert pace.knee(("new", "encode"), 1, pixels) == 1


def test_a_guess_looks_at_no_more_sizes_than_were_drawn_lately() -> None:
    pace = Pace(16)
    for side in range(1, 1000):
        for _ in range(ENOUGH):
            pace.saw((side, "denoise"), 4, 0.1, side * side)
    assert list(pace._sizes.values()) == [side * side for side in range(1000 - SIZES, 1000)]
    assert pace.knee(("new", "denoise"), 1, 999 * 999) == 7


def test_fewer_rows_that_draw_as_many_a_second_lower_the_knee() -> None:
    pace, lane = Pace(16), ("new", "denoise")
    for _ in range(ENOUGH):
        pace.saw((SMALL, "denoise"), 8, 0.1, 64 * 64)
    for rows, seconds in ((8, 0.4), (2, 0.1)):
        assert pace.knee(lane, 1, 64 * 64) >= 8
        for _ in range(ENOUGH):
            pace.saw(lane, rows, seconds, 64 * 64)
    assert pace.knee(lane, 1, 64 * 64) == 3


def test_an_unproven_call_runs_with_one_other_to_be_compared() -> None:
    scheduler = paced(NO_GAIN)
    leader, others = work(4, unproven=True), [work(20), work(21)]
    parked(scheduler, leader)
    for each in others:
        scheduler.add(each)
    assert scheduler.next_batch(0) == [others[0]]
    others[0].key, others[0].stage = leader.key, "denoise"
    assert scheduler.next_batch(0) == [leader, others[0]]
    leader.unproven = False
    assert scheduler.next_batch(0) == [leader]


def test_one_slow_call_does_not_move_the_knee() -> None:
    pace, lane = Pace(16), (SMALL, "denoise")
    for rows, seconds in GAIN_TO_FOUR.items():
        for _ in range(ENOUGH):
            pace.saw(lane, rows, seconds)
    before = pace.knee(lane, 1)
    pace.saw(lane, 4, 13.0)  # it compiled
    assert pace.knee(lane, 1) == before


def test_the_shortest_goes_first_and_is_begun_first() -> None:
    scheduler = paced(NO_GAIN)
    long, short = work(50), work(4)
    scheduler.add(long)
    scheduler.add(short)
    assert scheduler.next_batch(0) == [short]
    assert (scheduler.running, scheduler.waiting) == ([short], [long])


def test_a_short_request_passes_a_long_one_that_runs() -> None:
    scheduler = paced(NO_GAIN)
    long, short = work(50), work(4, arrived=3)
    parked(scheduler, long)
    scheduler.add(short)
    assert scheduler.next_batch(3) == [short]


def test_waiting_outweighs_work() -> None:
    """So that none starves, however many short ones come."""
    scheduler = paced(NO_GAIN)
    long = work(50)
    later = (50 - 4) * 0.1 / AGEING + 1
    scheduler.add(long)
    scheduler.add(work(4, arrived=later))
    assert scheduler.next_batch(later) == [long]


def test_those_who_share_steps_begin_before_the_leader_goes_on() -> None:
    scheduler = paced(GAIN_TO_FOUR)
    leader, joining = work(10), work(20)
    parked(scheduler, leader)
    scheduler.add(joining)
    assert scheduler.next_batch(0) == [joining]
    joining.key, joining.stage = "encoder", "encode"
    assert scheduler.next_batch(0) == [joining]
    joining.key, joining.stage = leader.key, "denoise"
    assert scheduler.next_batch(0) == [leader, joining]


def test_shapes_take_turns_by_what_is_left_and_are_not_mixed() -> None:
    scheduler = paced(GAIN_TO_FOUR)
    teach(scheduler, {1: 0.4, 2: 0.7}, LARGE)
    small, large = work(20), work(10, LARGE)
    parked(scheduler, large, small)
    assert scheduler.next_batch(0) == [small]
    large.steps_left = 1
    assert scheduler.next_batch(0) == [large]


def test_no_more_begins_than_its_bytes_allow() -> None:
    scheduler: Scheduler[Schedulable] = Scheduler(16, space=100)
    works = [work(20, bytes=60, arrived=index) for index in range(3)]
    for each in works:
        scheduler.add(each)
    assert scheduler.next_batch(0) == [works[0]]
    works[0].key = works[0].stage = "denoise"
    assert scheduler.next_batch(0) == [works[0]]  # the others have to wait
    scheduler.finished(works[0], 1)
    assert scheduler.next_batch(1) == [works[1]]


def test_one_begins_however_large_it_is() -> None:
    scheduler: Scheduler[Schedulable] = Scheduler(16, space=100)
    scheduler.add(work(bytes=500))
    assert len(scheduler.next_batch(0)) == 1


def test_adapters_are_kept_until_another_is_ahead_by_a_switch() -> None:
    scheduler = paced(NO_GAIN)
    scheduler.switched("ink", 1.0)
    inked, plain = work(20, adapters="ink"), work(15)
    parked(scheduler, plain, inked)
    assert scheduler.next_batch(0) == [inked]
    plain.steps_left = 5
    assert scheduler.next_batch(0) == [plain]


def test_other_adapters_do_not_share_a_call() -> None:
    scheduler = paced(GAIN_TO_FOUR)
    inked, plain = work(20, adapters="ink"), work(20)
    parked(scheduler, inked, plain)
    assert len(scheduler.next_batch(0)) == 1


def test_out_of_memory_halves_the_batch_for_a_while() -> None:
    scheduler = paced(ALWAYS_GAIN)
    works = [work() for _ in range(8)]
    parked(scheduler, *works)
    scheduler.fail(scheduler.next_batch(0), 0, memory=True)
    assert len(scheduler.next_batch(1)) == 4
    assert len(scheduler.next_batch(CAP_S + 1)) == 8


def test_a_failing_batch_is_run_alone_and_costs_no_neighbour() -> None:
    scheduler = paced(ALWAYS_GAIN)
    failing, others = [work(), work()], [work(30), work(30)]
    parked(scheduler, *failing)
    scheduler.fail(scheduler.next_batch(0), 0, memory=False)
    parked(scheduler, *others)
    assert [len(scheduler.next_batch(0)) for _ in "a"] == [1]
    for each in failing:
        each.alone = False  # the engine has run it
    assert len(scheduler.next_batch(0)) == 4


def test_an_exclusive_request_shares_with_nobody() -> None:
    scheduler = paced(ALWAYS_GAIN)
    parked(scheduler, work(5, exclusive=True), work(20), work(20))
    assert len(scheduler.next_batch(0)) == 1


def test_what_a_request_is_told_when_nobody_else_comes_is_what_happens() -> None:
    scheduler = paced(NO_GAIN)
    told = [scheduler.add(work(steps)) for steps in (10, 30, 20)]
    assert [one.position for one in told] == [0, 1, 1]
    assert [one.start_s for one in told] == pytest.approx([0, 1, 1])
    assert [one.end_s for one in told] == pytest.approx([1, 4, 3])
    assert scheduler.free_place_s() == pytest.approx(1)


@pytest.mark.parametrize("mix", MIXES)
@pytest.mark.parametrize("load", LOADS)
def test_in_simulation_estimates_are_right_within_thirty_per_cent(mix: str, load: float) -> None:
    done = [one for seed in (1, 2, 3) for one in _played(mix, load, "poisson", seed)]
    for told in accuracy(done).values():
        assert told == pytest.approx(1, abs=0.3)


@pytest.mark.parametrize("arrivals", ARRIVALS)
@pytest.mark.parametrize("mix", MIXES)
def test_in_simulation_nobody_is_served_worse_on_average(mix: str, arrivals: str) -> None:
    for load in LOADS:
        own = figures(_played(mix, load, arrivals, 1))
        for other in (sharing, first_come):
            done = visits(MIXES[mix], load, arrivals, REQUESTS, 1)
            other(done)
            theirs = figures(done)
            assert own["mean"] < theirs["mean"]
            assert own["mean slowdown"] < theirs["mean slowdown"]
        assert own["worst slowdown"] < theirs["worst slowdown"]  # than first come, first served


def _played(mix: str, load: float, arrivals: str, seed: int) -> list[Visit]:
    done = visits(MIXES[mix], load, arrivals, REQUESTS, seed)
    scheduled(done)
    return done
