"""Filters before a served model: what is stopped, blurred and flagged over every protocol, and that
nobody else's picture changes for it."""

from __future__ import annotations

import base64
import re
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import openai
import pytest
import torch
from PIL import Image
from tritonclient.utils import InferenceServerException

from tests.conftest import Server, StartServer
from tests.gallery import difference, pixels, showing
from tests.protocols.pictures import FAST, SIZE
from tests.tiny_classifiers import picture_classifier, prompt_classifier
from tests.triton import grpc as triton_grpc

SEEDS = range(1, 9)
SMALL = {"prompt": "a cat", "num_inference_steps": 3, "width": 64, "height": 64}
LONG = "a cat on the hill " * 40 + "blood"


@dataclass(frozen=True)
class Expectation:
    """What the classifier says of unfiltered pictures: a threshold that some of them reach."""

    folder: Path
    threshold: float
    pictures: dict[int, np.ndarray[Any, Any]]
    stopped: frozenset[int]

    @property
    def settings(self) -> dict[str, str]:
        """Of a server that filters by it."""
        return {"safety_checker": str(self.folder), "safety_labels": f"nsfw={self.threshold:.4f}"}


@pytest.fixture(scope="module")
def expected(server: Server, tmp_path_factory: pytest.TempPathFactory) -> Expectation:
    from transformers import AutoImageProcessor, AutoModelForImageClassification

    folder = picture_classifier(tmp_path_factory.mktemp("pictures"))
    drawn = predict(server, *({"seed": seed} for seed in SEEDS)).json()["predictions"]
    pictures = {
        seed: pixels(base64.b64decode(one["image"]["b64"]))
        for seed, one in zip(SEEDS, drawn, strict=True)
    }
    processor = AutoImageProcessor.from_pretrained(folder)
    model = AutoModelForImageClassification.from_pretrained(folder).eval()
    with torch.no_grad():
        given = processor([Image.fromarray(one) for one in pictures.values()], return_tensors="pt")
        scores = model(**given).logits.softmax(-1)[:, 1].tolist()
    ranked = sorted(scores)
    apart = max(range(2, 6), key=lambda index: ranked[index + 1] - ranked[index])
    threshold = (ranked[apart] + ranked[apart + 1]) / 2
    stopped = frozenset(
        seed for seed, score in zip(SEEDS, scores, strict=True) if score >= threshold
    )
    assert 2 <= len(stopped) <= 5
    return Expectation(folder, threshold, pictures, stopped)


@pytest.fixture(scope="module")
def prompts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prompt_classifier(tmp_path_factory.mktemp("prompts"))


@pytest.fixture(scope="module")
def blocking(
    start_server: StartServer,
    tiny_checkpoint: Path,
    expected: Expectation,
    prompts: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Server]:
    listed = tmp_path_factory.mktemp("words") / "list.txt"
    listed.write_text("forbidden thing\n")
    with start_server(
        model_id=str(tiny_checkpoint),
        prompt_checker=str(prompts),
        prompt_labels="violence=0.9",
        prompt_blocklist=str(listed),
        **expected.settings,
    ) as running:
        yield running


@pytest.fixture(scope="module")
def blurring(
    start_server: StartServer, tiny_checkpoint: Path, expected: Expectation
) -> Iterator[Server]:
    own = expected.settings | {"safety_action": "blur"}
    with start_server(model_id=str(tiny_checkpoint), **own) as running:
        yield running


@pytest.fixture(scope="module")
def flagging(
    start_server: StartServer, tiny_checkpoint: Path, expected: Expectation
) -> Iterator[Server]:
    own = expected.settings | {"safety_action": "flag"}
    with start_server(model_id=str(tiny_checkpoint), **own) as running:
        yield running


def predict(server: Server, *instances: dict[str, Any]) -> httpx.Response:
    body = {"instances": [SMALL | one for one in instances]}
    return httpx.post(f"{server.url}/v1/models/{server.model}:predict", json=body, timeout=60)


def generate(server: Server, **fields: Any) -> httpx.Response:
    body = {"prompt": "a cat", "size": SIZE} | FAST | fields
    return httpx.post(f"{server.url}/v1/images/generations", json=body, timeout=60)


def client_of(server: Server) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)


def counted(server: Server, **labels: str) -> float:
    """The value of `atelier_filtered_total` with these labels."""
    lines = httpx.get(f"{server.url}/metrics").text.splitlines()
    found = [
        float(line.rpartition(" ")[2])
        for line in lines
        if line.startswith("atelier_filtered_total")
        and all(f'{name}="{value}"' in line for name, value in labels.items())
    ]
    return sum(found)


def drawn(server: Server) -> float:
    text = httpx.get(f"{server.url}/metrics").text
    return float(re.findall(r"^atelier_images_total (\S+)", text, re.M)[0])


def test_a_flag_is_in_every_answer_and_in_the_metrics(
    flagging: Server, expected: Expectation
) -> None:
    before = counted(flagging, what="picture", label="nsfw", action="flag")
    for seed in SEEDS:
        [one] = generate(flagging, seed=seed).json()["data"]
        assert one.get("flags", []) == (["nsfw"] if seed in expected.stopped else []), seed
        assert difference(pixels(base64.b64decode(one["b64_json"])), expected.pictures[seed]) <= 1
    now = counted(flagging, what="picture", label="nsfw", action="flag")
    assert now - before == len(expected.stopped)
    seed, other = min(expected.stopped), min(set(SEEDS) - expected.stopped)
    first, second = predict(flagging, {"seed": seed}, {"seed": other}).json()["predictions"]
    assert first["image"]["flags"] == ["nsfw"] and "flags" not in second["image"]
    inputs = [
        {"name": "prompt", "datatype": "BYTES", "shape": [2], "data": ["a cat", "a cat"]},
        {"name": "seed", "datatype": "INT64", "shape": [2], "data": [other, seed]},
    ]
    own = {name: value for name, value in SMALL.items() if name != "prompt"}
    answer = httpx.post(
        f"{flagging.url}/v2/models/{flagging.model}/infer",
        json={"inputs": inputs, "parameters": own},
    ).json()
    assert answer["parameters"]["flags"] == ";nsfw"
    *previews, last = client_of(flagging).images.generate(
        prompt="a cat",
        size=SIZE,
        stream=True,
        partial_images=1,
        extra_body={"steps": 3, "seed": seed},
    )
    assert len(previews) == 1 and last.model_dump()["flags"] == ["nsfw"]


def test_a_blocked_picture_is_an_error_that_clients_know(
    blocking: Server, expected: Expectation
) -> None:
    before = counted(blocking, what="picture", label="nsfw", action="block")
    for seed in SEEDS:
        answer = generate(blocking, seed=seed)
        if seed in expected.stopped:
            error = answer.json()["error"]
            assert (answer.status_code, error["code"]) == (400, "content_policy_violation")
            assert error["type"] == "invalid_request_error"
            assert "it was classified as nsfw; change the prompt or the seed" in error["message"]
            assert "b64" not in answer.text
        else:
            picture = pixels(base64.b64decode(answer.json()["data"][0]["b64_json"]))
            assert difference(picture, expected.pictures[seed]) <= 1
    now = counted(blocking, what="picture", label="nsfw", action="block")
    assert now - before == len(expected.stopped)


def test_every_protocol_tells_of_a_blocked_picture(blocking: Server, expected: Expectation) -> None:
    seed = min(expected.stopped)
    assert predict(blocking, {"seed": seed}).status_code == 400
    assert "classified as nsfw" in predict(blocking, {"seed": seed}).json()["error"]
    with pytest.raises(openai.BadRequestError) as refused:
        client_of(blocking).images.generate(
            prompt="a cat", size=SIZE, extra_body={"steps": 3, "seed": seed}
        )
    assert refused.value.code == "content_policy_violation"
    stream = client_of(blocking).images.generate(
        prompt="a cat", size=SIZE, stream=True, extra_body={"steps": 3, "seed": seed}
    )
    with pytest.raises(openai.APIError, match="classified as nsfw"):
        list(stream)
    tensor = triton_grpc.InferInput("prompt", [1], "BYTES")
    tensor.set_data_from_numpy(np.array([b"a cat"], dtype=object))
    own = {name: value for name, value in SMALL.items() if name != "prompt"} | {"seed": seed}
    with (
        triton_grpc.InferenceServerClient(blocking.grpc) as grpc,
        pytest.raises(InferenceServerException, match=r"INVALID_ARGUMENT.* classified as nsfw"),
    ):
        grpc.infer(blocking.model, [tensor], parameters=own)
    body = {"prompt": "a cat", "size": SIZE} | FAST | {"seed": seed}
    job = httpx.post(
        f"{blocking.url}/v1/images/generations", json=body, headers={"Prefer": "respond-async"}
    ).json()
    while (state := httpx.get(blocking.url + job["url"]).json())["status"] in ("queued", "running"):
        time.sleep(0.02)
    assert state["status"] == "failed"
    assert state["error"]["code"] == "content_policy_violation"


def test_one_blocked_picture_of_several_keeps_all_back(
    blocking: Server, expected: Expectation
) -> None:
    """Picture i has seed + i: whoever asks for several gets none that was refused."""
    first = next(
        seed for seed in SEEDS if seed not in expected.stopped and seed + 1 in expected.stopped
    )
    assert generate(blocking, seed=first).status_code == 200
    assert generate(blocking, seed=first, n=2).status_code == 400


def test_a_blurred_picture_shows_nothing_and_the_others_are_as_they_were(
    blurring: Server, expected: Expectation
) -> None:
    for seed in SEEDS:
        [one] = generate(blurring, seed=seed).json()["data"]
        picture = pixels(base64.b64decode(one["b64_json"]))
        if seed not in expected.stopped:
            assert difference(picture, expected.pictures[seed]) <= 1 and "flags" not in one
            continue
        assert one["flags"] == ["nsfw"]
        detail, left = (
            np.abs(np.diff(which.astype(int), axis=1)).mean()
            for which in (expected.pictures[seed], picture)
        )
        assert left < detail / 4
    assert counted(blurring, action="blur") == len(expected.stopped)


def test_previews_stay_where_a_picture_may(blocking: Server, blurring: Server) -> None:
    for server in (blocking, blurring):
        seed = 100
        while generate(server, seed=seed).status_code != 200:
            seed += 1
        [last] = client_of(server).images.generate(
            prompt="a cat",
            size=SIZE,
            stream=True,
            partial_images=2,
            extra_body={"steps": 3, "seed": seed},
        )
        told = last.model_dump()
        assert told["type"] == "image_generation.completed"
        assert ["previews: none is sent" in one for one in told["warnings"]] == [True]


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        (
            {"prompt": "a Forbidden, thing!"},
            "this server draws nothing with 'forbidden thing'",
        ),
        (
            {"prompt": "forbidden (th:1.2)ing", "prompt_syntax": "weighted"},
            "this server draws nothing with 'forbidden thing'",
        ),
        (
            {"prompt": "(blood:1.2) on the hill", "prompt_syntax": "weighted"},
            "the prompt is refused: it was classified as violence",
        ),
        ({"prompt": "blood on the hill"}, "the prompt is refused: it was classified as violence"),
        ({"prompt": LONG}, "the prompt is refused: it was classified as violence"),
    ],
    ids=[
        "listed",
        "listed, weighted",
        "classified, weighted",
        "classified",
        "at the end of a long one",
    ],
)
def test_a_refused_prompt_costs_no_picture(
    blocking: Server, fields: dict[str, Any], words: str
) -> None:
    before = drawn(blocking), counted(blocking, what="prompt", action="block")
    answers = [generate(blocking, **fields), predict(blocking, fields)]
    assert [one.status_code for one in answers] == [400, 400]
    error = answers[0].json()["error"]
    assert error["code"] == "content_policy_violation" and words in error["message"]
    assert words in answers[1].json()["error"]
    after = drawn(blocking), counted(blocking, what="prompt", action="block")
    assert after == (before[0], before[1] + 2)


def test_what_is_to_be_left_out_may_be_named(blocking: Server, expected: Expectation) -> None:
    seed = min(set(SEEDS) - expected.stopped)
    answer = predict(blocking, {"seed": seed, "negative_prompt": "blood, forbidden thing"})
    # drawn otherwise, it may be stopped for what it looks like
    assert answer.status_code == 200 or "the picture was drawn" in answer.text


def test_calls_of_strangers_are_one_batch_and_equal_lone_ones(
    tiny_checkpoint: Path, expected: Expectation, prompts: Path
) -> None:
    """Some stopped, some not, at once: each as if it were alone."""
    settings = expected.settings | {
        "safety_action": "flag",
        "prompt_checker": str(prompts),
        "prompt_labels": ["violence=0.9"],
        "safety_labels": [expected.settings["safety_labels"]],
    }
    with showing(tiny_checkpoint, **settings) as exhibit:
        for _ in range(3):  # the verifier wants to have seen two
            answers = exhibit.post(*(SMALL | {"seed": seed} for seed in SEEDS)).json()
        assert {"safety_checker", "unet"} <= exhibit.verdicts.stacked
        assert exhibit.tally.shared["check"] > 1
        assert not {"safety_checker", "prompt_checker"} & exhibit.verdicts.alone
        for seed, one in zip(SEEDS, answers["predictions"], strict=True):
            picture = pixels(base64.b64decode(one["image"]["b64"]))
            assert difference(picture, expected.pictures[seed]) <= 1
            flags = one["image"].get("flags", [])
            assert flags == (["nsfw"] if seed in expected.stopped else [])

        def ask(wish: tuple[int, str]) -> httpx.Response:
            return exhibit.post(SMALL | {"seed": wish[0], "prompt": wish[1]})

        wishes = [(seed, text) for seed in (1, 2, 3) for text in ("a cat", "blood", "a dog on a")]
        with ThreadPoolExecutor(len(wishes)) as pool:
            together = list(pool.map(ask, wishes))
        for (seed, text), answer in zip(wishes, together, strict=True):
            assert answer.status_code == (400 if text == "blood" else 200)
            if text == "a cat":
                [one] = answer.json()["predictions"]
                shown = pixels(base64.b64decode(one["image"]["b64"]))
                assert difference(shown, expected.pictures[seed]) <= 1


def test_without_settings_nothing_is_looked_at(server: Server) -> None:
    [one] = generate(server, prompt="blood").json()["data"]
    assert "flags" not in one
    assert counted(server) == 0


def test_the_metadata_says_what_the_filters_take(blocking: Server) -> None:
    told = httpx.get(f"{blocking.url}/v2/models/{blocking.model}").json()
    reserved = told["properties"]["memory_plan"]["reserved_bytes"]
    assert set(reserved) == {"SAFETY_CHECKER", "PROMPT_CHECKER"}
