"""The worker of an embedded language model dies: answers that have begun end with an error, the
others come."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.conftest import ROOT, Server

BUILT_IN = ROOT / "runtime" / "atelier" / "builtin" / "scenes"


@pytest.fixture(scope="module")
def started(start_server: Any) -> Iterator[Server]:
    with start_server(model_id=str(BUILT_IN), model_name="scenes") as running:
        yield running


@pytest.fixture
def server(started: Server) -> Server:
    """Ready again, whatever the test before did to its worker."""
    started.wait_ready()
    return started


def worker(server: Server) -> dict[str, Any]:
    answer = httpx.get(f"{server.url}/v2/models/{server.model}", timeout=10)
    found: dict[str, Any] = answer.json()["properties"]["workers"][0]
    return found


def body(**fields: Any) -> dict[str, Any]:
    long = {"max_tokens": 1500, "ignore_eos": True}
    return {"model": "scenes", "prompt": "a red circle"} | long | fields


def test_an_answer_that_has_begun_ends_with_an_error(server: Server) -> None:
    url, lines = f"{server.url}/v1/completions", []
    with httpx.stream("POST", url, json=body(stream=True), timeout=60) as answer:
        for line in answer.iter_lines():
            if not line.startswith("data: "):
                continue
            lines.append(line)
            if len(lines) == 3:
                os.kill(worker(server)["pid"], signal.SIGKILL)
    said = [line.removeprefix("data: ") for line in lines if line != "data: [DONE]"]
    last = json.loads(said[-1])
    assert last["error"]["code"] == "not_ready"
    assert "restarted" in last["error"]["message"]


def test_a_request_that_waits_is_answered_by_the_next_worker(server: Server) -> None:
    os.kill(worker(server)["pid"], signal.SIGSTOP)  # it takes the request and does not begin
    with ThreadPoolExecutor(1) as pool:
        asked = pool.submit(
            httpx.post, f"{server.url}/v1/completions", json=body(max_tokens=4), timeout=60
        )
        ends = time.monotonic() + 10
        while not worker(server)["requests"]:
            assert time.monotonic() < ends
            time.sleep(0.05)
        os.kill(worker(server)["pid"], signal.SIGKILL)
        answer = asked.result()
    assert answer.status_code == 200, answer.text
    assert answer.json()["usage"]["completion_tokens"] == 4


def test_while_the_worker_is_away_the_answer_is_503_and_readiness_says_so(server: Server) -> None:
    os.kill(worker(server)["pid"], signal.SIGKILL)
    seen = set()
    ends = time.monotonic() + 30
    while time.monotonic() < ends:
        code = httpx.get(f"{server.url}/v2/models/scenes/ready", timeout=5).status_code
        seen.add(code)
        if code == 200 and 503 in seen:
            break
        time.sleep(0.02)
    assert seen == {200, 503}
    done = httpx.post(f"{server.url}/v1/completions", json=body(max_tokens=2), timeout=60)
    assert done.status_code == 200


def test_tokenizing_and_embedding_go_to_the_worker(server: Server) -> None:
    ids = httpx.post(f"{server.url}/tokenize", json={"prompt": "a red circle"}, timeout=30).json()
    text = httpx.post(f"{server.url}/detokenize", json={"tokens": ids["tokens"]}, timeout=30)
    assert text.json() == {"prompt": "a red circle"}
    wanted = {"model": "scenes", "input": "a red circle"}
    vector = httpx.post(f"{server.url}/v1/embeddings", json=wanted, timeout=30).json()
    assert sum(x * x for x in vector["data"][0]["embedding"]) == pytest.approx(1, abs=1e-3)
    assert Path(server.log).read_text().count("worker 0") > 0
