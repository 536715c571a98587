"""Requests that come too many, take too long, lose their client, or meet a server that is about to
end."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from tritonclient.utils import InferenceServerException

from tests.conftest import Server, StartServer
from tests.protocols.pictures import FAST, SIZE
from tests.triton import grpc as triton

IMAGES = "/v1/images/generations"
PREDICT = "/v1/models/tiny:predict"
QUICK = {"prompt": "a", "size": SIZE, **FAST}
LONG = {"prompt": "a", "size": "192x192", "seed": 1, "steps": 900}
"""Takes a minute or so; nothing here waits for its end."""


@pytest.fixture(scope="module")
def narrow(start_server: StartServer, tiny_checkpoint: Path) -> Iterator[Server]:
    """A server with one place in its queue."""
    settings = {"max_queue_size": "1", "max_steps": "1000", "request_timeout": "30"}
    with start_server(model_id=str(tiny_checkpoint), **settings) as running:
        yield running


def as_instance(body: dict[str, Any]) -> dict[str, Any]:
    """The same request for KServe's v1."""
    width, height = map(int, body["size"].split("x"))
    fields = {
        "width": width,
        "height": height,
        "num_inference_steps": body["steps"],
        "seed": body["seed"],
    }
    return {"instances": [fields | {"prompt": body["prompt"]}]}


def infer(
    server: Server, body: dict[str, Any], headers: dict[str, str] | None = None, **options: Any
) -> Any:
    tensor = triton.InferInput("prompt", [1], "BYTES")
    tensor.set_data_from_numpy(np.array([body["prompt"]], dtype=object))
    fields = as_instance(body)["instances"][0]
    fields.pop("prompt")
    with triton.InferenceServerClient(server.grpc) as client:
        return client.infer("tiny", [tensor], parameters=fields, headers=headers, **options)


@contextmanager
def busy(server: Server) -> Iterator[None]:
    """The one place is taken; free again afterwards."""
    job = httpx.post(server.url + IMAGES, json=LONG, headers={"Prefer": "respond-async"})
    assert job.status_code == 202, job.text
    try:
        yield
    finally:
        httpx.delete(server.url + job.headers["location"])


def test_a_full_queue_is_told_in_every_protocol_with_a_time_to_come_back(narrow: Server) -> None:
    with busy(narrow):
        answers = [
            httpx.post(narrow.url + IMAGES, json=QUICK),
            httpx.post(narrow.url + IMAGES, json=QUICK, headers={"Prefer": "respond-async"}),
            httpx.post(narrow.url + PREDICT, json=as_instance(QUICK)),
        ]
        for answer in answers:
            assert answer.status_code == 429
            assert int(answer.headers["retry-after"]) >= 1
        assert answers[0].json()["error"]["code"] == "queue_full"
        with pytest.raises(InferenceServerException) as raised:
            infer(narrow, QUICK)
        assert raised.value.status() == "StatusCode.RESOURCE_EXHAUSTED"


def test_a_full_queue_is_told_before_pictures_are_read(narrow: Server) -> None:
    """Decoding is work that a caller without a place does not get: a picture that is none shows
    it."""
    spoiled = {"prompt": "a", "image": "no picture"}
    routes = (
        (IMAGES.replace("generations", "edits"), spoiled),
        (PREDICT, {"instances": [spoiled]}),
    )
    for path, body in routes:
        assert httpx.post(narrow.url + path, json=body).status_code == 400
    with busy(narrow):
        for path, body in routes:
            assert httpx.post(narrow.url + path, json=body).status_code == 429
        with pytest.raises(InferenceServerException) as raised:
            infer(narrow, QUICK | {"size": "7x7"})
        assert raised.value.status() == "StatusCode.RESOURCE_EXHAUSTED"


def test_one_picture_too_many_takes_the_others_of_its_request_back(narrow: Server) -> None:
    instance = as_instance(LONG)["instances"][0]
    answer = httpx.post(narrow.url + PREDICT, json={"instances": [instance, instance]}, timeout=10)
    assert answer.status_code == 429
    assert_admits(narrow)


def assert_admits(server: Server) -> None:
    """The place is free within moments."""
    ends = time.monotonic() + 3
    while (answer := httpx.post(server.url + IMAGES, json=QUICK, timeout=20)).status_code == 429:
        assert time.monotonic() < ends, "the work of a client that has gone still holds its place"
        time.sleep(0.05)
    assert answer.status_code == 200


def leave_a_request(server: Server) -> None:
    with pytest.raises(httpx.ReadTimeout):
        httpx.post(server.url + IMAGES, json=LONG, timeout=0.5)


def leave_a_prediction(server: Server) -> None:
    with pytest.raises(httpx.ReadTimeout):
        httpx.post(server.url + PREDICT, json=as_instance(LONG), timeout=0.5)


def leave_a_stream(server: Server) -> None:
    body = LONG | {"stream": True, "partial_images": 1, "steps": 40}
    with httpx.stream(
        "POST", server.url + IMAGES, json=body | {"size": SIZE}, timeout=30
    ) as answer:
        assert next(answer.iter_lines()) == "event: image_generation.partial_image"
    with httpx.stream(
        "POST", server.url + IMAGES, json=LONG | {"stream": True}, timeout=30
    ) as answer:
        assert answer.status_code in (200, 429)


def leave_a_grpc_call(server: Server) -> None:
    with pytest.raises(InferenceServerException):
        infer(server, LONG, client_timeout=0.5)


@pytest.mark.parametrize(
    "leave", [leave_a_request, leave_a_prediction, leave_a_stream, leave_a_grpc_call]
)
def test_the_work_of_a_client_that_leaves_is_dropped(
    narrow: Server, leave: Callable[[Server], None]
) -> None:
    leave(narrow)
    assert_admits(narrow)


def test_a_deadline_is_kept_however_it_is_set(narrow: Server) -> None:
    header = {"X-Request-Timeout": "0.2"}
    answers = [
        httpx.post(narrow.url + IMAGES, json=LONG | {"timeout": 0.2}, timeout=20),
        httpx.post(narrow.url + IMAGES, json=LONG, headers=header, timeout=20),
        httpx.post(narrow.url + IMAGES, json=LONG | {"timeout": 20}, headers=header, timeout=20),
        httpx.post(narrow.url + PREDICT, json=as_instance(LONG), headers=header, timeout=20),
    ]
    assert [answer.status_code for answer in answers] == [504] * 4
    assert answers[0].json()["error"]["code"] == "deadline_exceeded"
    assert "of 900 steps were done" in answers[0].json()["error"]["message"]
    with pytest.raises(InferenceServerException) as raised:
        infer(narrow, LONG, headers={"x-request-timeout": "0.2"})
    assert raised.value.status() == "StatusCode.DEADLINE_EXCEEDED"


def test_request_timeout_caps_what_a_request_asks_for(
    start_server: StartServer, tiny_checkpoint: Path
) -> None:
    with start_server(
        model_id=str(tiny_checkpoint), request_timeout="0.3", max_steps="1000", warmup="off"
    ) as server:
        answer = httpx.post(server.url + IMAGES, json=LONG | {"timeout": 100}, timeout=20)
        assert answer.status_code == 504


@pytest.mark.parametrize("value", ["soon", "0", "-1", "nan", "inf", ""])
def test_a_timeout_header_that_is_no_time_is_a_400(narrow: Server, value: str) -> None:
    for path, body in ((IMAGES, QUICK), (PREDICT, as_instance(QUICK))):
        answer = httpx.post(narrow.url + path, json=body, headers={"X-Request-Timeout": value})
        assert answer.status_code == 400
        assert "X-Request-Timeout" in answer.text


def test_sigterm_lets_work_finish_and_refuses_new_work(
    start_server: StartServer, tiny_checkpoint: Path
) -> None:
    with (
        start_server(model_id=str(tiny_checkpoint), drain_seconds="60", warmup="off") as server,
        ThreadPoolExecutor() as pool,
    ):
        work = pool.submit(
            httpx.post,
            server.url + IMAGES,
            json=LONG | {"size": "128x128", "steps": 60},
            timeout=60,
        )
        wait_for(lambda: depth(server) == 1)
        server.process.terminate()
        refused = ask_until_refused(server)
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "draining")
        assert work.result().status_code == 200
        assert server.process.wait(30) == 0


def test_what_does_not_finish_within_drain_seconds_fails_clearly(
    start_server: StartServer, tiny_checkpoint: Path
) -> None:
    settings = {"drain_seconds": "0.5", "max_steps": "1000", "warmup": "off"}
    with (
        start_server(model_id=str(tiny_checkpoint), **settings) as server,
        ThreadPoolExecutor() as pool,
    ):
        work = pool.submit(httpx.post, server.url + IMAGES, json=LONG, timeout=60)
        wait_for(lambda: depth(server) == 1)
        server.process.terminate()
        answer = work.result()
        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "draining")
        assert server.process.wait(30) == 0


def depth(server: Server) -> float:
    [line] = [
        x
        for x in httpx.get(f"{server.url}/metrics").text.splitlines()
        if x.startswith("atelier_queue_depth ")
    ]
    return float(line.split()[1])


def wait_for(condition: Callable[[], bool], seconds: float = 20) -> None:
    ends = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < ends
        time.sleep(0.02)


def ask_until_refused(server: Server) -> httpx.Response:
    """The signal arrives when it does; quick requests are answered until then."""
    for _ in range(100):
        answer = httpx.post(server.url + IMAGES, json=QUICK, timeout=30)
        if answer.status_code != 200:
            return answer
    raise AssertionError("the server went on as if nothing had happened")


@pytest.mark.alone
def test_probes_and_metrics_answer_fast_while_requests_run(server: Server) -> None:
    done = threading.Event()

    def load() -> None:
        while not done.is_set():
            httpx.post(server.url + IMAGES, json=QUICK | {"size": "128x128"}, timeout=60)

    with ThreadPoolExecutor() as pool:
        loads = [pool.submit(load) for _ in range(4)]
        with httpx.Client() as client:
            seconds = []
            for _ in range(40):
                for path in ("/v1/models", "/metrics"):
                    began = time.monotonic()
                    client.get(server.url + path).raise_for_status()
                    seconds.append(time.monotonic() - began)
        done.set()
        for each in loads:
            each.result()
    assert sorted(seconds)[len(seconds) // 2] < 0.05
