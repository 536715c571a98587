"""KServe's v1 predict against a running server, with plain bodies from curl: what it draws and what
it refuses."""

from __future__ import annotations

import base64
import io
import json
import struct
import subprocess
import threading
import time
import zlib
from pathlib import Path
from typing import Any

import httpx
import pytest
from PIL import Image

from tests.conftest import Server, StartServer
from tests.gallery import difference, showing
from tests.protocols.pictures import encoded, opened, striped, white_box
from tests.tiny_pipelines import stable_diffusion_3

FIELDS = {"prompt": "a cat", "seed": 7, "num_inference_steps": 3, "width": 64, "height": 48}
ANSWER_SECONDS = 0.05


def post(server: Server, body: Any, **headers: str) -> httpx.Response:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    given = {
        "Content-Type": "application/json",
        **{name.replace("_", "-"): value for name, value in headers.items()},
    }
    return httpx.post(
        f"{server.url}/v1/models/{server.model}:predict",
        content=content,
        headers=given,
        timeout=120,
    )


def draw(server: Server, **fields: Any) -> dict[str, Any]:
    answer = post(server, {"instances": [FIELDS | fields]})
    assert answer.status_code == 200, answer.text
    [prediction] = answer.json()["predictions"]
    return prediction


def text(data: bytes) -> str:
    return base64.b64encode(data).decode()


def test_curl_gets_a_picture_and_its_seed(server: Server, tmp_path: Path) -> None:
    body = tmp_path / "body.json"
    body.write_text(
        json.dumps(
            {
                "instances": [
                    {"prompt": "a cat", "num_inference_steps": 2, "width": 32, "height": 32}
                ]
            }
        )
    )
    url = f"{server.url}/v1/models/{server.model}:predict"
    command = [
        "curl",
        "-sS",
        "--fail",
        url,
        "-H",
        "Content-Type: application/json; charset=utf-8",
        "-d",
        f"@{body}",
    ]
    [prediction] = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)[
        "predictions"
    ]
    assert prediction["model_name"] == server.model
    assert prediction["prompt"] == "a cat"
    assert isinstance(prediction["seed"], int)
    assert prediction["image"]["format"] == "PNG"
    assert opened(prediction["image"]["b64"]).size == (32, 32)


def test_every_instance_gets_its_prediction_in_order(server: Server) -> None:
    instances = [{"prompt": "one", "seed": 1, "width": 32}, {"prompt": "two", "seed": 2}, "three"]
    parameters = {"num_inference_steps": 2, "width": 48, "height": 32}
    predictions = post(server, {"instances": instances, "parameters": parameters}).json()[
        "predictions"
    ]
    assert [each["prompt"] for each in predictions] == ["one", "two", "three"]
    assert [each["seed"] for each in predictions[:2]] == [1, 2]
    assert [opened(each["image"]["b64"]).size for each in predictions] == [
        (32, 32),
        (48, 32),
        (48, 32),
    ]


def test_the_same_seed_draws_the_same_picture_and_another_another(server: Server) -> None:
    first, again, other = draw(server), draw(server), draw(server, seed=8)
    assert first["image"] == again["image"]
    assert first["image"] != other["image"]


def test_a_seed_that_was_drawn_for_the_client_draws_the_picture_again(server: Server) -> None:
    drawn = draw(server, seed=None)
    assert draw(server, seed=drawn["seed"])["image"] == drawn["image"]


def test_several_pictures_of_one_prompt_each_have_their_seed(server: Server) -> None:
    drawn = draw(server, num_images_per_prompt=3)
    assert [each["seed"] for each in drawn["images"]] == [7, 8, 9]
    assert drawn["images"][0]["b64"] == drawn["image"]["b64"]
    alone = opened(draw(server, seed=8)["image"]["b64"])
    apart = max(
        abs(a - b)
        for a, b in zip(opened(drawn["images"][1]["b64"]).tobytes(), alone.tobytes(), strict=True)
    )
    assert apart <= 1


@pytest.mark.parametrize(
    "fields",
    [
        {"negative_prompt": "a dog"},
        {"guidance_scale": 1.5},
        {"num_inference_steps": 5},
        {"scheduler": "EulerAncestralDiscreteScheduler"},
        {"clip_skip": 1},
        {"guidance_rescale": 0.7},  # the pipeline's own
    ],
    ids=lambda fields: next(iter(fields)),
)
def test_every_field_changes_the_picture(server: Server, fields: dict[str, Any]) -> None:
    assert draw(server, **fields)["image"] != draw(server)["image"]


def test_a_length_of_text_and_layer_guidance_change_a_stable_diffusion_3_picture(
    tmp_path: Path,
) -> None:
    fields = FIELDS | {"prompt": "a cat " * 20}
    guided = {
        "skip_guidance_layers": [0],
        "skip_layer_guidance_scale": 9.0,
        "skip_layer_guidance_stop": 1.0,
    }
    with showing(stable_diffusion_3(tmp_path)) as exhibit:
        plain, short, layers = exhibit.draw(
            fields, fields | {"max_sequence_length": 16}, fields | guided
        )
    assert difference(plain, short) > 1
    assert difference(plain, layers) > 1


@pytest.mark.parametrize(
    ("format", "kind"), [("PNG", "PNG"), ("jpeg", "JPEG"), ("jpg", "JPEG"), ("webp", "WEBP")]
)
def test_the_format_is_the_one_asked_for(server: Server, format: str, kind: str) -> None:
    image = draw(server, format=format)["image"]
    assert image["format"] == kind
    assert opened(image["b64"]).format == kind


def test_image_to_image_starts_from_the_picture(server: Server) -> None:
    """With little strength the picture stays close to what a picture of one colour becomes; a new
    size follows it."""
    sent = text(encoded((200, 30, 30), (48, 32)))
    fields = {"prompt": "a cat", "seed": 7, "num_inference_steps": 8}
    little, much = (
        post(server, {"instances": [fields | {"image": sent, "strength": strength}]}).json()[
            "predictions"
        ][0]
        for strength in (0.2, 1.0)
    )
    assert opened(little["image"]["b64"]).size == (48, 32)
    assert little["image"] != much["image"]
    other = text(striped((48, 32)))
    assert (
        draw(server, image=sent, strength=0.5)["image"]
        != draw(server, image=other, strength=0.5)["image"]
    )


@pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP"])
def test_pictures_of_every_format_are_taken_bare_and_as_data_urls(
    server: Server, format: str
) -> None:
    sent = text(encoded((10, 200, 30), (64, 48), format))
    as_url = f"data:image/{format.lower()};base64,{sent}"
    assert (
        draw(server, image=sent, strength=0.5)["image"]
        == draw(server, image=as_url, strength=0.5)["image"]
    )


def test_inpainting_repaints_what_is_white_in_the_mask(server: Server) -> None:
    image, mask = text(striped((64, 48))), text(white_box((32, 0, 64, 48), (64, 48)))
    other = {"mask_image": mask, "image": image, "strength": 1.0}
    first, second = (opened(draw(server, seed=seed, **other)["image"]["b64"]) for seed in (1, 2))

    def apart(box: tuple[int, int, int, int]) -> float:
        pairs = zip(first.crop(box).tobytes(), second.crop(box).tobytes(), strict=True)
        return sum(abs(a - b) for a, b in pairs) / (3 * (box[2] - box[0]) * (box[3] - box[1]))

    kept, painted = (0, 0, 16, 48), (48, 0, 64, 48)
    assert apart(kept) < apart(painted) / 4  # a decoder's attention lets a little through


def bomb(side: int = 60_000) -> bytes:
    """A PNG of a few bytes that claims to be thousands of megapixels."""
    head = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    chunks = ((b"IHDR", head), (b"IDAT", zlib.compress(b"")), (b"IEND", b""))
    body = b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in chunks
    )
    return b"\x89PNG\r\n\x1a\n" + body


BAD_FIELDS: list[tuple[dict[str, Any], str]] = [
    ({"prompt": 7}, "instances[0].prompt"),
    ({"prompt": None}, "instances[0].prompt"),
    ({"seed": "seven"}, "instances[0].seed"),
    ({"seed": -2}, "instances[0].seed"),
    ({"seed": 2**64}, "instances[0].seed"),
    ({"num_inference_steps": 0}, "instances[0].num_inference_steps"),
    ({"num_inference_steps": 1000}, "MAX_STEPS=150"),
    ({"num_inference_steps": 2.5}, "instances[0].num_inference_steps"),
    ({"guidance_scale": "high"}, "instances[0].guidance_scale"),
    ({"width": 63}, "width: 63 is not divisible by"),
    ({"height": 0}, "instances[0].height"),
    ({"width": 65536, "height": 65536}, "MAX_PIXELS"),
    ({"num_images_per_prompt": 100}, "MAX_IMAGES_PER_REQUEST"),
    ({"scheduler": "FlowMatchEulerDiscreteScheduler"}, "allowed: DDIMScheduler"),
    ({"clip_skip": 3}, "clip_skip: 3 of the text encoder's 3 layers"),
    ({"format": "TIFF"}, "instances[0].format"),
    ({"strength": 0.5}, "strength"),
    ({"strength": 0.1, "image": text(encoded((1, 2, 3)))}, "strength"),
    ({"strength": 1e-300, "image": text(encoded((1, 2, 3)))}, "strength"),
    ({"strength": 2.0, "image": text(encoded((1, 2, 3)))}, "instances[0].strength"),
    ({"mask_image": text(white_box((0, 0, 8, 8)))}, "instances[0].image"),
    ({"mask_image": [], "image": text(encoded((1, 2, 3)))}, "instances[0].mask_image"),
    ({"image": "no base64!"}, "instances[0].image"),
    ({"image": []}, "instances[0].image"),
    ({"image": 5}, "instances[0].image"),
    ({"image": text(b"hello")}, "not a PNG, JPEG, WebP, GIF or BMP picture"),
    ({"image": text(encoded((1, 2, 3))[:60])}, "cannot be decoded"),
    ({"image": text(bomb(8000))}, "MAX_PIXELS"),
    ({"image": text(bomb())}, "decompression bomb"),
    ({"image": "http://169.254.169.254/latest"}, "instances[0].image"),
    ({"lora": {"../secrets": 1.0}}, "lora"),
    ({"timeout": -1}, "instances[0].timeout"),
]


@pytest.mark.parametrize(("fields", "words"), BAD_FIELDS, ids=lambda value: str(value)[:40])
def test_a_bad_field_is_a_400_that_names_it(
    server: Server, fields: dict[str, Any], words: str
) -> None:
    answer = post(server, {"instances": [FIELDS | fields]})
    assert answer.status_code == 400, answer.text
    assert words in answer.json()["error"]


def test_an_unknown_argument_is_a_400_that_lists_what_the_pipeline_takes(server: Server) -> None:
    answer = post(server, {"instances": [FIELDS | {"colour": "red"}]})
    assert answer.status_code == 400
    told = answer.json()["error"]
    assert "colour" in told
    assert "StableDiffusionPipeline" in told
    assert "guidance_rescale" in told
    assert "latents" not in told


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"\xff\xfe",
        b"null",
        b"[]",
        b'{"instances": []}',
        b'{"instances": {}}',
        b'{"instances": [7]}',
        b'{"instances": [[]]}',
        b'{"inputs": [{"prompt": "a"}]}',
        b'{"instances": [{}]}',
        b'{"instances": ["a"], "parameters": 5}',
        b'{"instances": ["a"], "parameters": {"width": "wide"}}',
    ],
)
def test_a_body_that_is_no_request_is_a_400(server: Server, body: bytes) -> None:
    answer = post(server, body)
    assert answer.status_code == 400, answer.text
    assert answer.json()["error"]


def test_more_pictures_than_allowed_are_refused_over_all_instances(server: Server) -> None:
    answer = post(server, {"instances": [FIELDS | {"num_images_per_prompt": 3}] * 3})
    assert answer.status_code == 400
    assert "9 pictures" in answer.json()["error"]


def test_another_models_name_is_not_found(server: Server) -> None:
    assert (
        httpx.post(
            f"{server.url}/v1/models/other:predict", json={"instances": [FIELDS]}
        ).status_code
        == 404
    )
    assert httpx.get(f"{server.url}/v2/models/other/ready").status_code == 404


@pytest.mark.parametrize(
    "content_type",
    ["application/json; charset=utf-8", "application/json;charset=UTF-8", "text/json"],
)
def test_a_charset_in_the_content_type_is_understood(server: Server, content_type: str) -> None:
    body = {"instances": [FIELDS | {"prompt": "eine Katze über dem Fluß"}]}
    answer = post(server, body, Content_Type=content_type)
    assert answer.status_code == 200, answer.text
    assert answer.json()["predictions"][0]["prompt"] == "eine Katze über dem Fluß"


@pytest.mark.alone
def test_probes_and_the_model_list_answer_while_a_picture_is_made(server: Server) -> None:
    """The figure itself is a benchmark's; here it only must not wait for steps."""
    busy = threading.Thread(
        target=draw, args=(server,), kwargs={"num_inference_steps": 60, "width": 128, "height": 128}
    )
    busy.start()
    times = []
    with httpx.Client(base_url=server.url) as client:
        while busy.is_alive():
            began = time.monotonic()
            assert client.get("/v1/models").status_code == 200
            times.append(time.monotonic() - began)
            time.sleep(0.005)
    busy.join()
    assert len(times) > 20
    assert sorted(times)[len(times) // 2] < ANSWER_SECONDS


def test_a_server_answers_probes_with_progress_until_it_is_ready(
    start_server: StartServer, tiny_checkpoint: Path
) -> None:
    with start_server(model_id=str(tiny_checkpoint), ready=False) as server:
        seen = []
        while not seen or seen[-1].status_code != 200:
            try:
                seen.append(httpx.get(f"{server.url}/v2/models/{server.model}/ready", timeout=5))
            except httpx.TransportError:
                assert server.process.poll() is None, server.log.read_text()
            if seen and seen[-1].status_code == 503:
                early = post(server, {"instances": [FIELDS]})
            time.sleep(0.02)
        loading = [answer for answer in seen if answer.status_code == 503]
        assert loading, "it was ready before it could be asked"
        assert all("not ready: " in answer.json()["error"] for answer in loading)
        assert early.status_code in (200, 503)
        assert draw(server)["seed"] == 7


def test_a_picture_is_upright_after_its_orientation(server: Server) -> None:
    """A camera's JPEG, lying on its side, is turned as its EXIF data say: the size that is drawn is
    the upright one."""
    out = io.BytesIO()
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (64, 32), (9, 99, 9)).save(out, "JPEG", exif=exif)
    fields = {
        "prompt": "a",
        "seed": 1,
        "num_inference_steps": 2,
        "strength": 0.5,
        "image": text(out.getvalue()),
    }
    [prediction] = post(server, {"instances": [fields]}).json()["predictions"]
    assert opened(prediction["image"]["b64"]).size == (32, 64)
