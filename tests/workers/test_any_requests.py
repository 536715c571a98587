"""Random mixed requests through two workers, with clients that leave, deadlines and killed workers
among the events: whoever stays gets the picture that the request has alone."""

from __future__ import annotations

import base64
import os
import random
import signal
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.conftest import Server
from tests.gallery import Pixels, difference, pixels
from tests.workers.test_workers import wait_for, workers

ROUNDS = (11, 12, 13)
REQUESTS = 14


@pytest.fixture(scope="module")
def server(start_server: Any, tiny_checkpoint: Path) -> Iterator[Server]:
    with start_server(model_id=str(tiny_checkpoint), data_parallel_size="2") as running:
        yield running


def instance(dice: random.Random) -> dict[str, Any]:
    return {
        "prompt": dice.choice(["a cup", "a small red boat", "two cats under a tree"]),
        "num_inference_steps": dice.choice([1, 3, 8, 40]),
        "guidance_scale": dice.choice([1.0, 4.0, 7.5]),
        "width": dice.choice([32, 64]),
        "height": dice.choice([32, 64]),
        "seed": dice.randrange(2**31),
        "num_images_per_prompt": dice.choice([1, 1, 2]),
    }


def pictures(answer: httpx.Response) -> list[Pixels]:
    assert answer.status_code == 200, answer.text
    [prediction] = answer.json()["predictions"]
    found = prediction.get("images") or [prediction["image"]]
    return [pixels(base64.b64decode(each["b64"])) for each in found]


def ask(server: Server, wanted: dict[str, Any], patience: float = 120) -> httpx.Response | None:
    url = f"{server.url}/v1/models/{server.model}:predict"
    with suppress(httpx.ReadTimeout):  # a client that leaves
        return httpx.post(url, json={"instances": [wanted]}, timeout=patience)
    return None


@pytest.mark.parametrize("seed", ROUNDS)
def test_whoever_stays_gets_the_lone_picture(server: Server, seed: int) -> None:
    dice = random.Random(seed)
    wanted = [instance(dice) for _ in range(REQUESTS)]
    events = [dice.choice(["stay", "stay", "stay", "leave", "hurry"]) for _ in wanted]
    with ThreadPoolExecutor(REQUESTS) as pool:
        asked = []
        for one, event in zip(wanted, events, strict=True):
            hurried = one | ({"timeout": 0.01} if event == "hurry" else {})
            patience = 0.05 if event == "leave" else 120
            asked.append(pool.submit(ask, server, hurried, patience))
            time.sleep(dice.random() / 50)
        victim = next((each for each in workers(server) if each["requests"]), workers(server)[0])
        os.kill(victim["pid"], signal.SIGKILL)
        answers = [each.result() for each in asked]
    wait_for(lambda: all(each["state"] == "ready" for each in workers(server)))
    for one, event, answer in zip(wanted, events, answers, strict=True):
        if event == "hurry":
            assert answer is not None and answer.status_code in (200, 504)
        elif event == "stay":
            assert answer is not None
            lone = ask(server, one)
            assert lone is not None
            for drawn, alone in zip(pictures(answer), pictures(lone), strict=True):
                assert difference(drawn, alone) <= 1
    wait_for(lambda: all(not each["requests"] for each in workers(server)))
