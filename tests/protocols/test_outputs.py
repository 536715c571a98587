"""Pictures in object storage: a real S3 server on loopback, and a proxy before it that loses,
changes and refuses what is written. Whatever happens, no URL is told of an object that is not
there, and no object stays that nobody was told of."""

from __future__ import annotations

import base64
import json
import re
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import numpy as np
import openai
import pytest

from tests.conftest import Server, StartServer
from tests.gallery import difference, pixels
from tests.protocols.pictures import FAST, SIZE, encoded, opened, striped
from tests.sources.stores import Fault, Proxy, client, proxy, s3_server
from tests.triton import grpc as triton_grpc

BUCKET = "kept"
SHARED = {"s3": f"s3://{BUCKET}/shared/of/me"}
SMALL = {"num_inference_steps": 3, "width": 64, "height": 64, "seed": 7}


@pytest.fixture(scope="module")
def s3() -> Iterator[Any]:
    """The S3 server: its port, a client, and a proxy before it."""
    with s3_server() as port, proxy(port) as between:
        own = client(port)
        own.create_bucket(Bucket=BUCKET)
        read = {"Effect": "Allow", "Principal": "*", "Action": "s3:GetObject"}
        read["Resource"] = f"arn:aws:s3:::{BUCKET}/default/*"
        policy = {"Version": "2012-10-17", "Statement": [read]}
        own.put_bucket_policy(Bucket=BUCKET, Policy=json.dumps(policy))
        yield SimpleNamespace(port=port, client=own, proxy=between)


@pytest.fixture
def faulty(s3: Any) -> Iterator[Proxy]:
    yield s3.proxy
    s3.proxy.plan = None


def settings_of(s3: Any, checkpoint: Path) -> dict[str, str]:
    return {
        "model_id": str(checkpoint),
        "aws_s3_endpoint": f"http://127.0.0.1:{s3.proxy.port}",
        "aws_access_key_id": "key",
        "aws_secret_access_key": "secret",
        "allowed_outputs": f"s3://{BUCKET}/shared/, s3://gone/x",
    }


@pytest.fixture(scope="module")
def allowing(start_server: StartServer, tiny_checkpoint: Path, s3: Any) -> Iterator[Server]:
    """Stores where requests say, within ALLOWED_OUTPUTS."""
    with start_server(**settings_of(s3, tiny_checkpoint)) as running:
        yield running


@pytest.fixture(scope="module")
def storing(start_server: StartServer, tiny_checkpoint: Path, s3: Any) -> Iterator[Server]:
    """Stores everything, and tells public URLs."""
    with start_server(
        **settings_of(s3, tiny_checkpoint),
        output_url=f"s3://{BUCKET}/default",
        output_public_url=f"http://127.0.0.1:{s3.port}/{{bucket}}/",
    ) as running:
        yield running


def objects(s3: Any) -> set[str]:
    """The address of every object in the bucket."""
    listed = s3.client.list_objects_v2(Bucket=BUCKET).get("Contents", ())
    return {f"s3://{BUCKET}/{one['Key']}" for one in listed}


def generate(server: Server, **fields: Any) -> httpx.Response:
    body = {"prompt": "a", "size": SIZE} | FAST | fields
    return httpx.post(f"{server.url}/v1/images/generations", json=body, timeout=60)


def predict(server: Server, *instances: dict[str, Any]) -> httpx.Response:
    body = {"instances": [{"prompt": "a"} | SMALL | one for one in instances]}
    return httpx.post(f"{server.url}/v1/models/{server.model}:predict", json=body, timeout=60)


def fetched(url: str) -> np.ndarray[Any, Any]:
    return pixels(httpx.get(url).raise_for_status().content)


@pytest.fixture(scope="module")
def inline(allowing: Server) -> np.ndarray[Any, Any]:
    """The picture as an answer that holds it has it."""
    return pixels(base64.b64decode(generate(allowing).json()["data"][0]["b64_json"]))


@pytest.mark.parametrize("kind", ["png", "jpeg", "webp"])
def test_a_picture_goes_where_its_request_says(allowing: Server, s3: Any, kind: str) -> None:
    [told] = generate(allowing, output=SHARED, output_format=kind).json()["data"]
    assert "b64_json" not in told and told["seed"] == 7
    assert re.fullmatch(rf"{SHARED['s3']}/[A-Za-z0-9_-]{{32}}\.{kind}", told["s3"])
    assert 3500 < told["expires_at"] - time.time() <= 3600
    got = httpx.get(told["url"])
    assert (got.status_code, got.headers["content-type"]) == (200, f"image/{kind}")
    assert opened(got.content).format == kind.upper()
    assert told["s3"] in objects(s3)


def test_every_protocol_stores_the_same_picture(
    allowing: Server, inline: np.ndarray[Any, Any]
) -> None:
    urls = [predict(allowing, {"output": SHARED}).json()["predictions"][0]["image"]["url"]]
    parameters = SMALL | {"output": json.dumps(SHARED)}
    inputs = [{"name": "prompt", "datatype": "BYTES", "shape": [1], "data": ["a"]}]
    answer = httpx.post(
        f"{allowing.url}/v2/models/{allowing.model}/infer",
        json={"inputs": inputs, "parameters": parameters},
    ).json()
    outputs = {one["name"]: one["data"] for one in answer["outputs"]}
    assert outputs["image"] == [""]
    urls += outputs["url"]
    tensor = triton_grpc.InferInput("prompt", [1], "BYTES")
    tensor.set_data_from_numpy(np.array([b"a"], dtype=object))
    with triton_grpc.InferenceServerClient(allowing.grpc) as grpc:
        result = grpc.infer(allowing.model, [tensor], parameters=parameters)
        urls.append(result.as_numpy("url")[0].decode())
    body = {"prompt": "a", "size": SIZE, "output": SHARED} | FAST
    headers = {"Prefer": "respond-async"}
    job = httpx.post(f"{allowing.url}/v1/images/generations", json=body, headers=headers).json()
    while (state := httpx.get(allowing.url + job["url"]).json())["status"] in ("queued", "running"):
        time.sleep(0.02)
    urls.append(state["result"]["data"][0]["url"])
    assert len(set(urls)) == 4
    for url in urls:
        assert difference(fetched(url), inline) <= 1


def test_a_form_says_it_as_text(allowing: Server, s3: Any) -> None:
    answer = httpx.post(
        f"{allowing.url}/v1/images/edits",
        data={"prompt": "a", "size": SIZE, "seed": "7", "output": json.dumps(SHARED)},
        files={"image": ("in.png", striped())},
        timeout=60,
    )
    assert answer.json()["data"][0]["s3"] in objects(s3)


def test_a_stream_ends_with_the_url(allowing: Server, inline: np.ndarray[Any, Any]) -> None:
    own = openai.OpenAI(base_url=f"{allowing.url}/v1", api_key="none", max_retries=0)
    extra = FAST | {"output": SHARED}
    *previews, last = own.images.generate(
        prompt="a", size=SIZE, stream=True, partial_images=1, extra_body=extra
    )
    assert [opened(one.b64_json).format for one in previews] == ["PNG"]
    told = last.model_dump()
    assert told["type"] == "image_generation.completed" and not told.get("b64_json")
    assert difference(fetched(told["url"]), inline) <= 1


def test_the_default_is_the_settings_and_text_is_given_to_whoever_asks(
    storing: Server, s3: Any, inline: np.ndarray[Any, Any]
) -> None:
    [told] = generate(storing).json()["data"]
    assert "expires_at" not in told
    assert told["s3"].startswith(f"s3://{BUCKET}/default/")
    assert told["url"] == told["s3"].replace("s3://", f"http://127.0.0.1:{s3.port}/")
    assert difference(fetched(told["url"]), inline) <= 1
    before = objects(s3)
    for fields in ({"response_format": "b64_json"}, {"output": "inline"}):
        [held] = generate(storing, **fields).json()["data"]
        assert difference(pixels(base64.b64decode(held["b64_json"])), inline) <= 1
    assert predict(storing, {"output": "inline"}).json()["predictions"][0]["image"]["b64"]
    assert objects(s3) == before
    [elsewhere] = generate(storing, output=SHARED).json()["data"]
    assert elsewhere["s3"].startswith(SHARED["s3"])
    within = f"s3://{BUCKET}/default/of/me"  # OUTPUT_URL is allowed by itself
    assert within in generate(storing, output={"s3": within}).json()["data"][0]["s3"]


FORBIDDEN = [
    f"s3://{BUCKET}",
    f"s3://{BUCKET}/sharedsecrets",
    f"s3://{BUCKET}/other",
    "s3://elsewhere/shared",
    f"s3://{BUCKET}/shared/../other",
    f"s3://{BUCKET}/shared//x",
    f"s3://{BUCKET}/shared/./x",
    f"s3://{BUCKET}/shared/a\\..\\b",
    f"s3://{BUCKET}/shared/a\nb",
    f"s3://{BUCKET}/shared/" + "ä" * 460,
    "https://example.org/shared",
    "s3:///shared",
]


def test_nothing_is_written_where_no_setting_allows_it(
    allowing: Server, server: Server, s3: Any
) -> None:
    before = objects(s3)
    for address in FORBIDDEN:
        answer = generate(allowing, output={"s3": address})
        error = answer.json()["error"]
        assert (answer.status_code, error["param"].split(".")[0]) == (400, "output"), address
        assert predict(allowing, {"output": {"s3": address}}).status_code == 400
    for output in ({}, {"gs": "x"}, "s3://kept/shared", 1, SHARED | {"acl": "public"}):
        assert generate(allowing, output=output).status_code == 400
    both = generate(allowing, output=SHARED, response_format="b64_json")
    assert both.status_code == 400 and "leave one of them out" in both.text
    nowhere = generate(server, output=SHARED)
    assert nowhere.status_code == 400 and "ALLOWED_OUTPUTS is empty" in nowhere.text
    assert objects(s3) == before


def writes(fault: Fault, times: int = 100) -> Any:
    """A plan that does this to so many writes."""
    left = [times]

    def plan(method: str, path: str, headers: Any) -> Fault | None:
        if method != "PUT" or not left[0]:
            return None
        left[0] -= 1
        return fault

    return plan


@pytest.mark.parametrize("fault", [Fault(status=503), Fault(cut=0)], ids=["busy", "broken"])
def test_a_passing_fault_is_outlasted(
    allowing: Server, s3: Any, faulty: Proxy, fault: Fault
) -> None:
    faulty.plan = writes(fault, times=1)
    [told] = generate(allowing, output=SHARED).json()["data"]
    assert told["s3"] in objects(s3)


@pytest.mark.parametrize(
    "fault",
    [
        Fault(status=403, code="AccessDenied"),
        Fault(status=503),
        Fault(lose=True),
        Fault(flip=True),
    ],
    ids=["refused", "busy", "lost", "changed"],
)
def test_what_is_not_there_is_not_announced(
    allowing: Server, s3: Any, faulty: Proxy, fault: Fault
) -> None:
    before = objects(s3)
    faulty.plan = writes(fault)
    answers = [generate(allowing, output=SHARED)]
    if fault.status != 503:  # which takes all tries
        answers.append(predict(allowing, {"output": SHARED}))
    for answer in answers:
        assert answer.status_code == 503
        assert "url" not in answer.text
        assert "the picture was drawn but could not be stored below s3://kept/shared" in answer.text
        assert "127.0.0.1" not in answer.text and "secret" not in answer.text
    assert answers[0].json()["error"]["code"] == "store_failed"
    faulty.plan = None
    assert objects(s3) == before
    assert "a picture is not stored: the" in allowing.log.read_text()
    assert generate(allowing, output=SHARED).status_code == 200


def test_a_streams_failure_is_its_last_event(allowing: Server, faulty: Proxy) -> None:
    faulty.plan = writes(Fault(status=403, code="AccessDenied"))
    own = openai.OpenAI(base_url=f"{allowing.url}/v1", api_key="none", max_retries=0)
    extra = FAST | {"output": SHARED}
    stream = own.images.generate(prompt="a", size=SIZE, stream=True, extra_body=extra)
    with pytest.raises(openai.APIError, match="could not be stored"):
        list(stream)


def test_a_bucket_that_is_gone_is_told(allowing: Server) -> None:
    answer = generate(allowing, output={"s3": "s3://gone/x/y"})
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "store_failed")
    assert "no bucket 'gone'" in allowing.log.read_text()


def test_pictures_of_a_request_that_fails_do_not_stay(
    allowing: Server, s3: Any, faulty: Proxy
) -> None:
    """Of three, the last cannot be stored: the others are removed."""
    before, count = objects(s3), 0

    def plan(method: str, path: str, headers: Any) -> Fault | None:
        nonlocal count
        count += method == "PUT"
        return Fault(status=403, code="AccessDenied") if method == "PUT" and count == 3 else None

    faulty.plan = plan
    assert generate(allowing, output=SHARED, n=3).status_code == 503
    assert count == 3
    assert objects(s3) == before
    count = 0
    stored = {"output": SHARED}
    assert predict(allowing, stored, stored, stored | {"seed": 8}).status_code == 503
    assert objects(s3) == before


def test_a_picture_of_a_client_that_went_away_does_not_stay(
    allowing: Server, s3: Any, faulty: Proxy
) -> None:
    before, seen = objects(s3), []

    def plan(method: str, path: str, headers: Any) -> Fault | None:
        seen.append(method)
        return Fault(delay=2.0) if method == "PUT" else None

    faulty.plan = plan
    with pytest.raises(httpx.ReadTimeout):
        body = {"prompt": "a", "size": SIZE, "output": SHARED} | FAST
        httpx.post(f"{allowing.url}/v1/images/generations", json=body, timeout=1.5)
    ends = time.monotonic() + 20
    while "POST" not in seen and time.monotonic() < ends:  # DeleteObjects
        time.sleep(0.05)
    while objects(s3) != before and time.monotonic() < ends:
        time.sleep(0.05)
    assert "PUT" in seen
    assert objects(s3) == before


def test_stored_and_held_pictures_do_not_disturb_each_other(allowing: Server, s3: Any) -> None:
    wishes: list[dict[str, Any]] = [
        {"seed": seed} | ({"output": SHARED} if stored else {})
        for seed in (1, 2, 3)
        for stored in (True, False)
    ]

    def drawn(wish: dict[str, Any]) -> np.ndarray[Any, Any]:
        [told] = generate(allowing, **wish).json()["data"]
        if "output" in wish:
            return fetched(told["url"])
        return pixels(base64.b64decode(told["b64_json"]))

    with ThreadPoolExecutor(len(wishes)) as pool:
        together = list(pool.map(drawn, wishes))
    for wish, picture in zip(wishes, together, strict=True):
        assert difference(picture, drawn({"seed": wish["seed"]})) <= 1
    both = predict(allowing, {"output": SHARED}, {}).json()["predictions"]
    assert "url" in both[0]["image"] and "b64" in both[1]["image"]


def test_an_edit_is_stored_too(storing: Server, s3: Any) -> None:
    body = {"prompt": "a", "size": SIZE, "image": base64.b64encode(encoded((9, 9, 9))).decode()}
    [told] = httpx.post(f"{storing.url}/v1/images/edits", json=body | FAST).json()["data"]
    assert told["s3"] in objects(s3)
