"""Work that outlives its request: status, events, result, cancellation, expiry."""

from __future__ import annotations

import base64
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from atelier.images.request import ImageRequest
from atelier.protocols.jobs.job import Job
from tests.conftest import Server, StartServer
from tests.gallery import difference, pixels
from tests.protocols.pictures import FAST, SIZE, opened

ASYNC = {"Prefer": "respond-async"}
LONG = {"prompt": "a", "size": "128x128", "seed": 1, "steps": 150}


def start(
    server: Server, body: dict[str, Any], route: str = "/v1/images/generations"
) -> httpx.Response:
    answer = httpx.post(server.url + route, json=body, headers=ASYNC, timeout=60)
    assert answer.status_code == 202, answer.text
    return answer


def state(server: Server, accepted: httpx.Response) -> dict[str, Any]:
    return httpx.get(server.url + accepted.headers["location"]).raise_for_status().json()


def ended(server: Server, accepted: httpx.Response, seconds: float = 60) -> dict[str, Any]:
    """The state after the job's end."""
    ends = time.monotonic() + seconds
    while (now := state(server, accepted))["status"] in ("queued", "running"):
        assert time.monotonic() < ends, now
        time.sleep(0.05)
    return now


def events(server: Server, accepted: httpx.Response) -> Iterator[tuple[str, dict[str, Any]]]:
    with httpx.stream(
        "GET", f"{server.url}{accepted.headers['location']}/events", timeout=60
    ) as answer:
        name = ""
        for line in answer.iter_lines():
            if line.startswith("event: "):
                name = line.removeprefix("event: ")
            elif line.startswith("data: "):
                yield name, json.loads(line.removeprefix("data: "))


def test_a_jobs_result_is_what_the_same_request_answers(server: Server) -> None:
    body = {"prompt": "a red circle", "size": SIZE, **FAST}
    accepted = start(server, body)
    assert accepted.headers["preference-applied"] == "respond-async"
    job = ended(server, accepted)
    assert (job["status"], job["step"], job["total_steps"]) == ("succeeded", 3, 3)
    direct = httpx.post(f"{server.url}/v1/images/generations", json=body, timeout=60).json()
    assert job["result"]["data"] == direct["data"]


def test_a_prediction_can_be_a_job(server: Server) -> None:
    route = f"/v1/models/{server.model}:predict"
    fields = {"width": 64, "height": 64, "num_inference_steps": 3}
    body = {
        "instances": [{"prompt": "a", "seed": 1}, {"prompt": "b", "seed": 2}],
        "parameters": fields,
    }
    job = ended(server, start(server, body, route))
    assert (job["step"], job["total_steps"]) == (6, 6)
    direct = httpx.post(server.url + route, json=body, timeout=60).json()
    for told, asked in zip(job["result"]["predictions"], direct["predictions"], strict=True):
        one, other = (pixels(base64.b64decode(each.pop("image")["b64"])) for each in (told, asked))
        assert difference(one, other) <= 1, (
            "the two rows may have shared a batch in one of them only"
        )
    assert job["result"] == direct


def test_a_jobs_picture_can_be_a_url(server: Server) -> None:
    job = ended(
        server, start(server, {"prompt": "a", "size": SIZE, "response_format": "url", **FAST})
    )
    assert opened(httpx.get(job["result"]["data"][0]["url"]).content).size == (64, 64)


def test_a_running_job_tells_its_progress_and_an_estimate(server: Server) -> None:
    accepted = start(server, LONG)
    seen = [data for name, data in events_until(server, accepted, steps=5)]
    steps = [data["step"] for data in seen if data["status"] == "running"]
    assert steps == sorted(steps) and steps[-1] >= 5
    now = state(server, accepted)
    assert (now["status"], now["total_steps"]) == ("running", 150)
    assert now["queue_position"] is None and 0 < now["estimate_seconds"] < 600
    assert "result" not in now
    httpx.delete(server.url + accepted.headers["location"])


def events_until(
    server: Server, accepted: httpx.Response, steps: int
) -> Iterator[tuple[str, dict[str, Any]]]:
    for name, data in events(server, accepted):
        yield name, data
        if data.get("step", 0) >= steps:
            return


def test_events_end_with_the_jobs_end_and_show_previews(server: Server) -> None:
    body = {
        "instances": [
            {"prompt": "a", "width": 128, "height": 128, "num_inference_steps": 12, "previews": 2}
        ]
    }
    seen = list(events(server, start(server, body, f"/v1/models/{server.model}:predict")))
    assert seen[-1][0] == "succeeded"
    previews = [data for name, data in seen if name == "preview"]
    assert previews and all(opened(data["b64_json"]).format == "PNG" for data in previews)


def test_a_deleted_job_stops_its_work_and_says_so(server: Server) -> None:
    accepted = start(server, LONG)
    assert next(data for name, data in events_until(server, accepted, steps=1) if data.get("step"))
    answer = httpx.delete(server.url + accepted.headers["location"])
    assert answer.json()["status"] == "cancelled"
    assert state(server, accepted)["status"] == "cancelled"
    assert list(events(server, accepted))[-1][0] == "cancelled"
    httpx.delete(server.url + accepted.headers["location"])
    assert httpx.get(server.url + accepted.headers["location"]).status_code == 404


def test_a_job_past_its_deadline_fails_with_the_reason(server: Server) -> None:
    job = ended(server, start(server, LONG | {"timeout": 0.2}))
    assert (job["status"], job["error"]["code"]) == ("failed", "deadline_exceeded")


def test_what_is_refused_does_not_become_a_job(server: Server) -> None:
    answer = httpx.post(
        f"{server.url}/v1/images/generations", json={"prompt": "a", "size": "65x64"}, headers=ASYNC
    )
    assert answer.status_code == 400
    streamed = {"prompt": "a", "stream": True}
    assert (
        httpx.post(f"{server.url}/v1/images/generations", json=streamed, headers=ASYNC).status_code
        == 400
    )


@pytest.mark.parametrize("method", ["GET", "DELETE"])
def test_an_unknown_job_is_not_found(server: Server, method: str) -> None:
    answer = httpx.request(method, f"{server.url}/v1/jobs/none")
    assert (answer.status_code, answer.json()["error"]["code"]) == (404, "not_found")


def test_results_expire_and_older_ones_give_way(
    start_server: StartServer, tiny_checkpoint: Path
) -> None:
    picture = {"prompt": "a", "size": "128x128", "seed": 1, "steps": 1, "response_format": "url"}
    with start_server(
        model_id=str(tiny_checkpoint),
        result_seconds="3",
        result_bytes=str(2**16),
        warmup="off",
    ) as server:
        links = []
        for _ in range(3):  # noise of this size is about 45 kB, so that one fits, but not two
            answer = httpx.post(
                f"{server.url}/v1/images/generations", json=picture, timeout=60
            ).json()
            links.append(answer["data"][0]["url"])
        assert [httpx.get(link).status_code for link in links] == [404, 404, 200]
        time.sleep(3.1)
        assert httpx.get(links[-1]).status_code == 404

        finished = start(server, {"prompt": "a", "size": SIZE, **FAST})
        assert ended(server, finished)["status"] == "succeeded"
        time.sleep(3.1)
        assert httpx.get(server.url + finished.headers["location"]).status_code == 404

        too_large = picture | {"size": "256x256"}
        answer = httpx.post(f"{server.url}/v1/images/generations", json=too_large, timeout=60)
        assert answer.status_code == 500 and "RESULT_BYTES" in answer.json()["error"]["message"]


async def test_a_follower_that_is_slow_still_hears_of_the_end() -> None:
    job = Job([ImageRequest(prompt="a")])
    states = job.states()
    assert (await anext(states))["status"] == "queued"
    job.touch()
    assert (await anext(states))["status"] == "queued"
    job.end("cancelled", "")  # while the follower is busy with what it heard before
    assert [state["status"] async for state in states] == ["cancelled"]
