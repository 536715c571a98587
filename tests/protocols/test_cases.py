"""Inputs that real clients send, gathered from public trackers: pictures as people have them,
nulls, empties and spellings, and HTTP as browsers and libraries speak it."""

from __future__ import annotations

import base64
import gzip
import io
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image

from atelier.errors import InvalidRequest
from atelier.images import codec
from atelier.images.request import ImageRequest
from atelier.settings import load_settings
from tests.conftest import Server
from tests.photos import BROKEN_TAGS, photo
from tests.protocols.pictures import encoded

FAST = {"num_inference_steps": 1, "width": 32, "height": 32}
MAX = 2**22


def predict(server: Server, **instance: Any) -> httpx.Response:
    url = f"{server.url}/v1/models/{server.model}:predict"
    body = {"instances": [{"prompt": "a cup"} | FAST | instance]}
    return httpx.post(url, json=body, timeout=60)


# Pictures as people have them


def grey16() -> bytes:
    out = io.BytesIO()
    ramp = np.linspace(0, 65535, 64, dtype=np.uint16)[None].repeat(64, 0)
    Image.fromarray(ramp).save(out, "PNG")
    return out.getvalue()


def test_a_16_bit_grey_picture_is_scaled_and_not_cut_off() -> None:
    values = np.asarray(codec.decode(grey16(), MAX, "image"))[0, :, 0]
    assert values.tolist() == [round(v / 257) for v in np.linspace(0, 65535, 64, dtype=np.uint16)]


@pytest.mark.parametrize(("tag", "kind", "value"), BROKEN_TAGS)
def test_a_photo_with_an_odd_exif_tag_stands_upright(tag: int, kind: int, value: bytes) -> None:
    picture = codec.decode(photo(kind, tag, value), MAX, "image")
    assert picture.size == (64, 32)
    assert picture.getpixel((60, 16))[0] > 200  # what lay above is at the right
    assert picture.getpixel((4, 16))[2] > 200


@pytest.mark.parametrize(
    "spell",
    [
        lambda text: "\n".join(text[i : i + 76] for i in range(0, len(text), 76)),
        lambda text: text + "\n",
        lambda text: " " + text,
        lambda text: "DATA:image/png;base64," + text,
        lambda text: text.replace("+", "-").replace("/", "_"),
    ],
    ids=["lines of 76", "a last line break", "a blank", "DATA:", "URL-safe"],
)
def test_base64_is_read_in_all_its_spellings(server: Server, spell: Any) -> None:
    picture = encoded((200, 30, 30), (64, 64))
    assert len(picture) > 76
    text = base64.b64encode(picture).decode()
    answer = predict(server, image=spell(text), strength=1.0)
    assert answer.status_code == 200, answer.text


# Nulls, empties, spellings


@pytest.mark.parametrize(
    "odd", [{"parameters": None, "outputs": None, "id": None}, {"id": 1}], ids=["nulls", "id 1"]
)
def test_a_v2_body_may_have_nulls_and_a_number_for_its_id(
    server: Server, odd: dict[str, Any]
) -> None:
    tensor = {
        "name": "prompt",
        "shape": [1],
        "datatype": "BYTES",
        "data": ["a cup"],
        "parameters": None,
    }
    sizes = [
        {"name": name, "shape": [1], "datatype": "INT64", "data": [value]}
        for name, value in FAST.items()
    ]
    answer = httpx.post(
        f"{server.url}/v2/models/{server.model}/infer",
        json={"inputs": [tensor, *sizes]} | odd,
        timeout=60,
    )
    assert answer.status_code == 200, answer.text
    if odd.get("id"):
        assert answer.json()["id"] == "1"


@pytest.mark.parametrize("name", ["image[]", "image[0]", "images", "image"])
def test_a_forms_picture_has_many_names_and_its_empty_fields_are_absent(
    server: Server, name: str
) -> None:
    files = [(name, ("a.png", encoded((10, 200, 10)), "image/png")), ("mask", ("", b""))]
    fields = {"prompt": "a cup", "n": "", "user": "", "model": "", "size": "64x64", "steps": "2"}
    answer = httpx.post(f"{server.url}/v1/images/edits", data=fields, files=files, timeout=60)
    assert answer.status_code == 200, answer.text


@pytest.mark.parametrize("model", ["", None])
def test_an_empty_model_is_the_one_there_is(server: Server, model: str | None) -> None:
    body = {"prompt": "a cup", "size": "32x32", "steps": 1, "model": model}
    answer = httpx.post(f"{server.url}/v1/images/generations", json=body, timeout=60)
    assert answer.status_code == 200, answer.text


def test_a_variable_that_is_empty_is_unset(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("MAX_MODEL_LEN", "DTYPE", "AWS_DEFAULT_REGION", "MAX_STEPS", "HF_TOKEN"):
        monkeypatch.setenv(name, "")
    settings = load_settings()
    assert settings.max_model_len is None
    assert (settings.dtype, settings.aws_default_region) == ("auto", "us-east-1")
    assert settings.hf_token is None


def test_white_space_around_a_secret_is_no_part_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hunter2\n")
    monkeypatch.setenv("AWS_S3_ENDPOINT", " https://s3.example.com\n")
    settings = load_settings()
    assert settings.aws_secret_access_key is not None
    assert settings.aws_secret_access_key.get_secret_value() == "hunter2"
    assert settings.aws_s3_endpoint == "https://s3.example.com"


def test_seed_minus_one_draws_one_and_returns_it(server: Server) -> None:
    seeds = {predict(server, seed=-1).json()["predictions"][0]["seed"] for _ in range(2)}
    assert len(seeds) == 2
    assert min(seeds) >= 0
    body = {"prompt": "a cup", "size": "32x32", "steps": 1, "seed": -1}
    answer = httpx.post(f"{server.url}/v1/images/generations", json=body, timeout=60)
    assert answer.json()["data"][0]["seed"] >= 0
    with pytest.raises(InvalidRequest, match="seed"):
        ImageRequest.parse({"prompt": "a cup", "seed": -2}, load_settings())


def test_openais_own_fields_are_taken_and_said_to_have_no_effect(server: Server) -> None:
    body = {"prompt": "a cup", "size": "32x32", "steps": 1, "moderation": "low", "style": "vivid"}
    answer = httpx.post(f"{server.url}/v1/images/generations", json=body, timeout=60)
    assert answer.status_code == 200, answer.text
    assert [each.split(":")[0] for each in answer.json()["warnings"]] == ["moderation", "style"]


# Bounds that stand before the work


@pytest.mark.parametrize(
    ("extra", "named"),
    [
        ({"width": 65536, "height": None}, "width"),
        ({"sigmas": [0.5] * 100_000}, "sigmas"),
        ({"timesteps": [1] * 151}, "timesteps"),
        ({"sigmas": "lots"}, "sigmas"),
        ({"prompt_2": "a " * 1_000_000}, "prompt_2"),
        ({"prompt_2": ["a"] * 2000}, "prompt_2"),
        ({"negative_prompt_3": {"a": 1}}, "negative_prompt_3"),
        ({"prompt": "a" * 20_001}, "prompt"),
    ],
)
def test_what_is_too_much_is_refused_at_once_and_by_name(
    server: Server, extra: dict[str, Any], named: str
) -> None:
    answer = predict(server, **extra)
    assert answer.status_code == 400
    assert named in answer.json()["error"]
    assert answer.elapsed.total_seconds() < 2


def test_a_thin_picture_does_not_grow_beyond_the_bound(server: Server) -> None:
    thin = base64.b64encode(encoded((9, 9, 9), (1, 1_048_576))).decode()
    answer = predict(server, image=thin, width=None, height=None, strength=1.0)
    assert answer.status_code == 400
    assert "pixels" in answer.json()["error"]


# HTTP as clients speak it


@pytest.fixture(scope="module")
def guarded(start_server: Any, tiny_checkpoint: Path) -> Iterator[Server]:
    with start_server(
        model_id=str(tiny_checkpoint),
        api_keys="key",
        allowed_origins="https://app.example.com",
        max_body_bytes="100000",
    ) as running:
        yield running


def test_a_browsers_preflight_needs_no_key(guarded: Server) -> None:
    origin = {"Origin": "https://app.example.com"}
    asked = origin | {
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": "authorization,content-type",
    }
    url = f"{guarded.url}/v1/images/generations"
    preflight = httpx.options(url, headers=asked, timeout=30)
    assert preflight.status_code == 200
    assert preflight.headers["access-control-allow-origin"] == "https://app.example.com"
    body = {"prompt": "a cup", "size": "32x32", "steps": 1}
    keyed = origin | {"Authorization": "Bearer key"}
    drawn = httpx.post(url, json=body, headers=keyed, timeout=60)
    assert drawn.status_code == 200
    assert drawn.headers["access-control-allow-origin"] == "https://app.example.com"
    assert httpx.post(url, json=body, headers=origin, timeout=30).status_code == 401
    stranger = httpx.options(url, headers=asked | {"Origin": "https://evil.example"}, timeout=30)
    assert "access-control-allow-origin" not in stranger.headers


def test_without_the_setting_no_origin_is_allowed(server: Server) -> None:
    headers = {"Origin": "https://app.example.com", "Access-Control-Request-Method": "POST"}
    answer = httpx.options(f"{server.url}/v1/images/generations", headers=headers, timeout=30)
    assert "access-control-allow-origin" not in answer.headers


def test_a_slash_at_the_end_of_a_path_changes_nothing(server: Server) -> None:
    body = {"prompt": "a cup", "size": "32x32", "steps": 1}
    answer = httpx.post(f"{server.url}/v1/images/generations/", json=body, timeout=60)
    assert answer.status_code == 200, answer.text


BODY = b'{"instances": [{"prompt": "a cup", "num_inference_steps": 1, "width": 32, "height": 32}]}'


@pytest.mark.parametrize(
    ("encoding", "pack"), [("gzip", gzip.compress), ("deflate", zlib.compress)]
)
def test_a_packed_body_is_unpacked(guarded: Server, encoding: str, pack: Any) -> None:
    answer = post(guarded, pack(BODY), encoding)
    assert answer.status_code == 200, answer.text


def test_a_packed_body_is_bounded_by_what_it_unpacks_to(guarded: Server) -> None:
    bomb = gzip.compress(b" " * 50_000_000)
    assert len(bomb) < 100_000
    assert post(guarded, bomb, "gzip").status_code == 413


def test_a_body_packed_otherwise_is_a_415_and_a_broken_one_a_400(guarded: Server) -> None:
    assert post(guarded, BODY, "br").status_code == 415
    assert post(guarded, b"no gzip", "gzip").status_code == 400
    assert post(guarded, gzip.compress(BODY)[:-9], "gzip").status_code == 400


def post(server: Server, body: bytes, encoding: str) -> httpx.Response:
    headers = {
        "Authorization": "Bearer key",
        "Content-Encoding": encoding,
        "Content-Type": "application/json",
    }
    url = f"{server.url}/v1/models/{server.model}:predict"
    return httpx.post(url, content=body, headers=headers, timeout=60)


# HEAD beside GET


@pytest.mark.parametrize(
    "path",
    ["/", "/health", "/v1/models", "/v1/models/tiny", "/v2", "/v2/models/tiny", "/v2/health/live",
     "/v2/models/tiny/ready", "/v2/models/tiny/config", "/metrics", "/openapi.json",
     "/v1/jobs/none", "/v1/nothing"],
)  # fmt: skip
def test_head_answers_as_get_does_without_a_body(server: Server, path: str) -> None:
    asked, told = httpx.get(server.url + path), httpx.head(server.url + path)
    assert told.status_code == asked.status_code
    assert told.headers["content-type"] == asked.headers["content-type"]
    assert told.content == b""


def test_head_of_a_picture_has_its_length(server: Server) -> None:
    body = {"prompt": "a cup", "size": "32x32", "steps": 1, "response_format": "url"}
    answer = httpx.post(f"{server.url}/v1/images/generations", json=body, timeout=60).json()
    url = answer["data"][0]["url"]
    told = httpx.head(url)
    assert int(told.headers["content-length"]) == len(httpx.get(url).content)


def test_head_of_a_running_jobs_events_does_not_wait_for_them(server: Server) -> None:
    body = {"instances": [{"prompt": "a cup", "width": 256, "height": 256}]}
    url = f"{server.url}/v1/models/{server.model}:predict"
    job = httpx.post(url, json=body, headers={"Prefer": "respond-async"}).headers["location"]
    told = httpx.head(f"{server.url}{job}/events", timeout=10)
    assert told.headers["content-type"].startswith("text/event-stream")
    assert httpx.get(server.url + job).json()["status"] in ("queued", "running")
    httpx.delete(server.url + job)


def test_head_is_no_way_around_get(server: Server) -> None:
    told = httpx.head(f"{server.url}/v1/images/generations")
    assert told.status_code == httpx.get(f"{server.url}/v1/images/generations").status_code == 405
