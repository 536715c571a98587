"""What goes wrong in one request, or in the batch loop, leaves a server that answers the next
request."""

from __future__ import annotations

import json
import os
import signal
import time
from concurrent.futures import ThreadPoolExecutor

import httpx

from tests.text.running import Server


def ask(server: Server, **fields: object) -> httpx.Response:
    body = {"model": "tiny", "prompt": "hello", "max_tokens": 8, "ignore_eos": True} | fields
    return httpx.post(f"{server.url}/v1/completions", json=body, timeout=30)


def assert_serves(server: Server) -> None:
    assert ask(server).json()["usage"]["completion_tokens"] == 8


def test_an_oversized_prompt_is_refused_with_both_numbers(server: Server) -> None:
    answer = ask(server, prompt="x" * 5000)
    assert answer.status_code == 400
    assert "5000" in answer.json()["error"]["message"]
    assert "512" in answer.json()["error"]["message"]
    assert_serves(server)


def test_two_hundred_cancels_in_a_row_leave_nothing_running(server: Server) -> None:
    body = {
        "model": "tiny",
        "prompt": "endless",
        "max_tokens": 480,
        "ignore_eos": True,
        "stream": True,
    }
    with httpx.Client(base_url=server.url) as client:
        for _ in range(200):
            with client.stream("POST", "/v1/completions", json=body) as stream:
                next(stream.iter_bytes())
    gauges = "atelier_text_running_sequences", "atelier_text_waiting_sequences"
    end = time.monotonic() + 10
    while time.monotonic() < end and any(map(server.metric, gauges)):
        time.sleep(0.05)
    assert [server.metric(name) for name in gauges] == [0, 0]
    assert_serves(server)


def test_a_logits_processor_that_raises_fails_its_own_request_only(server: Server) -> None:
    with ThreadPoolExecutor(4) as pool:
        good = [pool.submit(ask, server, max_tokens=64) for _ in range(3)]
        bad = pool.submit(ask, server, logit_bias={"1": 66.0}).result()
    assert bad.status_code == 500
    assert "poisoned processor" in bad.json()["error"]["message"]
    assert [each.result().status_code for each in good] == [200, 200, 200]
    assert_serves(server)


def test_logits_that_are_not_numbers_fail_their_own_request_only(server: Server) -> None:
    with ThreadPoolExecutor(2) as pool:
        good = pool.submit(ask, server, max_tokens=64)
        bad = pool.submit(ask, server, logit_bias={"1": 77.0}).result()
    assert bad.status_code == 500
    assert "not finite" in bad.json()["error"]["message"]
    assert good.result().status_code == 200
    assert_serves(server)


def test_a_killed_batch_loop_fails_what_ran_and_serves_the_next(server: Server) -> None:
    body = {
        "model": "tiny",
        "prompt": "endless",
        "max_tokens": 480,
        "ignore_eos": True,
        "stream": True,
    }
    with httpx.stream("POST", f"{server.url}/v1/completions", json=body, timeout=30) as stream:
        lines = stream.iter_lines()
        assert '"text"' in next(lines)
        os.kill(server.worker(), signal.SIGUSR1)
        assert any("the loop is killed" in line for line in lines)
    assert_serves(server)


def test_a_response_that_cannot_go_on_fails_as_an_event(server: Server) -> None:
    body = {"model": "tiny", "input": "endless", "ignore_eos": True, "stream": True}
    with httpx.stream("POST", f"{server.url}/v1/responses", json=body, timeout=30) as stream:
        lines = stream.iter_lines()
        assert any("output_text.delta" in line for line in lines)
        os.kill(server.worker(), signal.SIGUSR1)
        events = [json.loads(line[6:]) for line in lines if line.startswith("data: ")]
    assert events[-1]["type"] == "response.failed"
    failed = events[-1]["response"]
    assert failed["status"] == "failed"
    assert "the loop is killed" in failed["error"]["message"]
    assert failed["output"][0]["content"][0]["text"]
    assert httpx.get(f"{server.url}/v1/responses/{failed['id']}").status_code == 404
    assert_serves(server)


def test_a_client_that_leaves_a_response_ends_its_work(server: Server) -> None:
    body = {"model": "tiny", "input": "endless", "ignore_eos": True, "stream": True}
    for _ in range(5):
        with httpx.stream("POST", f"{server.url}/v1/responses", json=body, timeout=30) as stream:
            next(stream.iter_bytes())
    end = time.monotonic() + 10
    while time.monotonic() < end and server.metric("atelier_text_running_sequences"):
        time.sleep(0.05)
    assert server.metric("atelier_text_running_sequences") == 0
    assert_serves(server)


def test_a_request_that_takes_too_long_is_a_504(server: Server) -> None:
    answer = ask(server, max_tokens=480, timeout=0.02)
    assert answer.status_code == 504
    assert_serves(server)


def test_many_at_once_are_all_answered_and_none_waits_for_a_whole_other(server: Server) -> None:
    with ThreadPoolExecutor(24) as pool:
        answers = list(pool.map(lambda seed: ask(server, seed=seed, max_tokens=16), range(24)))
    assert [answer.status_code for answer in answers] == [200] * 24
