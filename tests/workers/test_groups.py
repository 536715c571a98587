"""Two processes behind one server draw each picture together; one of them dies, and who asked for
the picture notices nothing but time."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.conftest import Server
from tests.gallery import Pixels, difference, showing
from tests.tiny_pipelines import flux_1
from tests.workers.test_workers import alive, metrics, picture, predict, wait_for, workers

SIZE = {"width": 64, "height": 64}
LONG = SIZE | {"num_inference_steps": 150, "seed": 8}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return flux_1(tmp_path_factory.mktemp("checkpoints"))


@pytest.fixture(scope="module")
def lone(checkpoint: Path) -> dict[int, Pixels]:
    """What one process draws, by seed: 8 is the long one."""
    with showing(checkpoint) as shown:
        short = {seed: {"prompt": "a red circle", "seed": seed, **SIZE} for seed in (1, 2, 3)}
        drawn = {
            seed: shown.draw(one | {"num_inference_steps": 20})[0] for seed, one in short.items()
        }
        return drawn | {8: shown.draw({"prompt": "a red circle"} | LONG)[0]}


@pytest.fixture(scope="module")
def pair(start_server: Any, checkpoint: Path) -> Iterator[Server]:
    settings = {"dtype": "float32", "sequence_parallel_size": "2"}
    with start_server(model_id=str(checkpoint), **settings) as running:
        yield running


def test_pictures_of_strangers_are_those_of_one_process(
    pair: Server, lone: dict[int, Pixels]
) -> None:
    with ThreadPoolExecutor(2) as pool:
        asked = [pool.submit(predict, pair, seed=seed, **SIZE) for seed in (1, 2)]
        drawn = [picture(each.result()) for each in asked]
    for seed, one in zip((1, 2), drawn, strict=True):
        assert difference(one, lone[seed]) <= 1


def test_the_metadata_lists_the_devices_of_a_group(pair: Server) -> None:
    listed = workers(pair)
    assert [(one["worker"], one["devices"]) for one in listed] == [(0, ["cpu", "cpu"])]
    assert alive(listed[0]["followers"][0])
    about = httpx.get(f"{pair.url}/v2/models/tiny", timeout=10).json()["properties"]
    [account] = about["memory_plan"]["followers"]
    assert 0 < account["weights_bytes"] < about["memory_plan"]["weights_bytes"]
    named = [line for line in metrics(pair) if line.startswith("atelier_step_seconds_count")]
    assert all('worker="0"' in line for line in named)


@pytest.fixture(scope="module")
def halves(start_server: Any, checkpoint: Path) -> Iterator[Server]:
    settings = {"dtype": "float32", "sequence_parallel_size": "2", "shard_weights": "true"}
    with start_server(model_id=str(checkpoint), **settings) as running:
        yield running


def test_a_member_with_half_of_the_weights_that_dies_costs_no_picture(
    halves: Server, lone: dict[int, Pixels]
) -> None:
    about = httpx.get(f"{halves.url}/v2/models/tiny", timeout=10).json()["properties"]
    assert about["memory_plan"]["sharded"] == ["transformer"]
    assert about["memory_plan"]["reasons"]["sharding"] == "asked by SHARD_WEIGHTS=true"
    dies_unnoticed(halves, lone, "follower")


def test_a_cancelled_request_leaves_the_group_sound(pair: Server, lone: dict[int, Pixels]) -> None:
    body = {"instances": [{"prompt": "a boat"} | LONG]}
    headers = {"Prefer": "respond-async"}
    url = f"{pair.url}/v1/models/tiny:predict"
    job = httpx.post(url, json=body, headers=headers, timeout=30).json()
    wait_for(lambda: step_of(pair) > 3)
    assert httpx.delete(f"{pair.url}/v1/jobs/{job['id']}", timeout=10).status_code < 300
    assert difference(picture(predict(pair, seed=3, **SIZE)), lone[3]) <= 1


def step_of(server: Server) -> int:
    return max((one["step"] for worker in workers(server) for one in worker["drawing"]), default=0)


@pytest.mark.parametrize("victim", ["follower", "worker"])
def test_a_member_that_dies_costs_no_picture(
    pair: Server, lone: dict[int, Pixels], victim: str
) -> None:
    dies_unnoticed(pair, lone, victim)


def dies_unnoticed(pair: Server, lone: dict[int, Pixels], victim: str) -> None:
    answers: list[httpx.Response] = []
    asking = threading.Thread(target=lambda: answers.append(predict(pair, **LONG)))
    asking.start()
    wait_for(lambda: step_of(pair) > 3)
    [before] = workers(pair)
    members = [before["pid"], *before["followers"]]
    os.kill(before["followers"][0] if victim == "follower" else before["pid"], signal.SIGKILL)
    asking.join()
    assert difference(picture(answers[0]), lone[8]) <= 1
    assert not any(alive(pid) for pid in members)
    [now] = workers(pair)
    assert not {now["pid"], *now["followers"]} & set(members)
