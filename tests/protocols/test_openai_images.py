"""The OpenAI images API, asked with OpenAI's own client."""

from __future__ import annotations

import json

import httpx
import openai
import pytest
from PIL import ImageChops

from tests.conftest import Server
from tests.protocols.pictures import FAST, SIZE, data_url, encoded, mask, opened, striped, white_box

GREY = encoded((128, 128, 128))
STRIPES = striped()


@pytest.fixture(scope="module", params=["/v1", "/openai/v1"])
def client(server: Server, request: pytest.FixtureRequest) -> openai.OpenAI:
    return openai.OpenAI(base_url=server.url + request.param, api_key="none", max_retries=0)


def post(server: Server, route: str, body: dict[str, object]) -> httpx.Response:
    return httpx.post(f"{server.url}/v1/images/{route}", json=body, timeout=60)


def test_a_generation_has_the_size_that_was_asked_for(client: openai.OpenAI) -> None:
    answer = client.images.generate(prompt="a red circle", size="96x64", extra_body=FAST)
    assert opened(answer.data[0].b64_json).size == (96, 64)
    assert answer.size == "96x64"


def test_a_second_pass_makes_the_picture_larger(client: openai.OpenAI) -> None:
    wanted = FAST | {"highres": {"scale": 1.5, "strength": 0.5}}
    answer = client.images.generate(prompt="a red circle", size="64x64", extra_body=wanted)
    assert opened(answer.data[0].b64_json).size == (96, 96)
    with pytest.raises(openai.BadRequestError, match="highres: it does not go with image"):
        client.images.edit(
            image=("a.png", GREY), prompt="a red circle", extra_body={"highres": '{"scale": 2}'}
        )


def test_size_auto_is_the_size_the_model_chooses(client: openai.OpenAI) -> None:
    plain = client.images.generate(prompt="a red circle", extra_body=FAST)
    auto = client.images.generate(prompt="a red circle", size="auto", extra_body=FAST)
    assert plain.data[0].b64_json == auto.data[0].b64_json


def test_the_same_seed_draws_the_same_picture_and_another_seed_another(
    client: openai.OpenAI,
) -> None:
    first, again, other = (
        client.images.generate(prompt="a red circle", size=SIZE, extra_body=FAST | {"seed": seed})
        .data[0]
        .b64_json
        for seed in (7, 7, 8)
    )
    assert first == again != other


def test_n_pictures_have_the_seeds_that_draw_them_alone(client: openai.OpenAI) -> None:
    both = client.images.generate(prompt="a red circle", size=SIZE, n=2, extra_body=FAST).data
    assert [picture.seed for picture in both] == [7, 8]
    alone = client.images.generate(
        prompt="a red circle", size=SIZE, extra_body=FAST | {"seed": 8}
    ).data[0]
    difference = ImageChops.difference(opened(both[1].b64_json), opened(alone.b64_json))
    assert max(high for _, high in difference.getextrema()) <= 1


@pytest.mark.parametrize(("format", "kind"), [("png", "PNG"), ("jpeg", "JPEG"), ("webp", "WEBP")])
def test_the_output_format_is_the_one_asked_for(server: Server, format: str, kind: str) -> None:
    body = {"prompt": "a red circle", "size": SIZE, "output_format": format, **FAST}
    answer = post(server, "generations", body).json()
    assert opened(answer["data"][0]["b64_json"]).format == kind
    assert answer["output_format"] == format


def test_less_quality_makes_a_smaller_jpeg(server: Server) -> None:
    body = {"prompt": "a red circle", "size": "128x128", "output_format": "jpeg", **FAST}
    sizes = [
        len(
            post(server, "generations", body | {"output_compression": quality}).json()["data"][0][
                "b64_json"
            ]
        )
        for quality in (10, 100)
    ]
    assert sizes[0] < sizes[1] / 2


def test_a_url_leads_to_the_picture(client: openai.OpenAI) -> None:
    body = {"prompt": "a red circle", "size": SIZE, "extra_body": FAST}
    link = client.images.generate(response_format="url", **body).data[0]
    text = client.images.generate(response_format="b64_json", **body).data[0]
    answer = httpx.get(link.url)
    assert answer.headers["content-type"] == "image/png"
    assert opened(answer.content).tobytes() == opened(text.b64_json).tobytes()
    assert link.b64_json is None and text.url is None


@pytest.mark.parametrize(("quality", "steps"), [("low", 25), ("high", 75)])
def test_quality_is_a_share_of_the_models_default_steps(
    server: Server, quality: str, steps: int
) -> None:
    body = {"prompt": "a red circle", "size": "16x16", "seed": 7}
    by_quality = post(server, "generations", body | {"quality": quality}).json()
    by_steps = post(server, "generations", body | {"num_inference_steps": steps}).json()
    assert by_quality["data"] == by_steps["data"]
    assert by_quality["quality"] == quality


def test_the_fields_extras_and_their_other_names_mean_the_same(server: Server) -> None:
    short = {
        "prompt": "a",
        "seed": 7,
        "size": SIZE,
        "steps": 3,
        "guidance": 5.0,
        "negative_prompt": "b",
    }
    full = {
        "width": 64,
        "height": 64,
        "num_inference_steps": 3,
        "guidance_scale": 5.0,
        "negative_prompt": "b",
    }
    first = post(server, "generations", short).json()["data"]
    assert first == post(server, "generations", {"prompt": "a", "seed": 7} | full).json()["data"]
    assert first != post(server, "generations", short | {"negative_prompt": "c"}).json()["data"]


def test_null_is_the_same_as_leaving_a_field_out(server: Server) -> None:
    body = {"prompt": "a red circle", "size": SIZE, **FAST}
    nulls = dict.fromkeys(
        ("n", "quality", "background", "response_format", "stream", "lora", "timeout", "style")
    )
    assert (
        post(server, "generations", body | nulls).json()["data"]
        == post(server, "generations", body).json()["data"]
    )


def test_an_edit_starts_from_the_picture(client: openai.OpenAI) -> None:
    edits = [
        client.images.edit(
            prompt="a red circle", image=("in.png", picture), size=SIZE, extra_body=FAST
        )
        .data[0]
        .b64_json
        for picture in (GREY, STRIPES)
    ]
    assert edits[0] != edits[1]
    assert opened(edits[0]).size == (64, 64)


def test_an_edit_takes_the_same_pictures_as_a_form_and_as_json(
    client: openai.OpenAI, server: Server
) -> None:
    box = mask((0, 0, 32, 64))
    form = client.images.edit(
        prompt="a red circle",
        image=[("in.png", GREY)],
        mask=("mask.png", box),
        size=SIZE,
        extra_body=FAST,
    ).data[0]
    body = {"prompt": "a red circle", "size": SIZE, **FAST}
    for image in (
        data_url(GREY),
        [data_url(GREY).partition(",")[2]],
        {"image_url": data_url(GREY)},
    ):
        answer = post(server, "edits", body | {"image": image, "mask": data_url(box)})
        assert answer.json()["data"][0]["b64_json"] == form.b64_json


def test_a_transparent_mask_means_what_a_white_one_means_to_predict(server: Server) -> None:
    body = {"prompt": "a red circle", "strength": 1.0, "image": data_url(STRIPES), "seed": 7}
    edit = post(
        server, "edits", body | {"size": SIZE, "steps": 3, "mask": data_url(mask((0, 0, 32, 64)))}
    ).json()
    white = {"width": 64, "height": 64, "num_inference_steps": 3}
    predicted = [
        httpx.post(
            f"{server.url}/v1/models/{server.model}:predict",
            json={"instances": [body | white | {"mask_image": data_url(white_box(box))}]},
            timeout=60,
        ).json()["predictions"][0]["image"]["b64"]
        for box in ((0, 0, 32, 64), (32, 0, 64, 64))
    ]
    assert predicted[0] == edit["data"][0]["b64_json"] != predicted[1]


def test_a_variation_depends_on_its_picture_and_its_seed(client: openai.OpenAI) -> None:
    def vary(picture: bytes, seed: int) -> str | None:
        return client.images.create_variation(
            image=("in.png", picture), size=SIZE, extra_body=FAST | {"seed": seed}
        ).data[0].b64_json  # fmt: skip

    assert vary(GREY, 1) == vary(GREY, 1) != vary(GREY, 2)
    assert vary(GREY, 1) != vary(STRIPES, 1)


def test_another_models_name_is_not_found(client: openai.OpenAI, server: Server) -> None:
    with pytest.raises(openai.NotFoundError) as raised:
        client.images.generate(prompt="a red circle", model="dall-e-3")
    assert raised.value.code == "model_not_found"
    assert client.images.generate(
        prompt="a red circle", model=server.model, size=SIZE, extra_body=FAST
    ).data


BAD_BODIES = [
    ({}, "prompt"),
    ({"prompt": 1}, "prompt"),
    ({"prompt": "a", "n": 0}, "n"),
    ({"prompt": "a", "n": 9}, "num_images_per_prompt"),
    ({"prompt": "a", "size": "large"}, "size"),
    ({"prompt": "a", "size": "64x64", "width": 64}, "size"),
    ({"prompt": "a", "size": "65x64"}, "width"),
    ({"prompt": "a", "size": "99999x99999"}, "width"),
    ({"prompt": "a", "steps": 3, "num_inference_steps": 3}, "steps"),
    ({"prompt": "a", "steps": 100_000}, "num_inference_steps"),
    ({"prompt": "a", "quality": "best"}, "quality"),
    ({"prompt": "a", "response_format": "file"}, "response_format"),
    ({"prompt": "a", "output_format": "gif"}, "output_format"),
    ({"prompt": "a", "output_compression": 50}, "output_compression"),
    ({"prompt": "a", "background": "transparent"}, "background"),
    ({"prompt": "a", "stream": True, "response_format": "url"}, "response_format"),
    ({"prompt": "a", "stream": True, "partial_images": 4}, "partial_images"),
    ({"prompt": "a", "lora": "x"}, "lora"),
    ({"prompt": "a", "brush": "wide"}, "brush"),
    ({"prompt": "a", "image": "aGVsbG8="}, "image"),
    ({"prompt": "a", "previews": 3}, "previews"),
]


@pytest.mark.parametrize(("body", "field"), BAD_BODIES)
def test_a_bad_field_is_named(server: Server, body: dict[str, object], field: str) -> None:
    answer = post(server, "generations", body)
    assert answer.status_code == 400
    error = answer.json()["error"]
    assert (error["type"], error["param"]) == ("invalid_request_error", field)
    assert field in error["message"]


BAD_EDITS = [
    ({}, "image: is missing"),
    ({"image": "not base64!"}, "not base64"),
    ({"image": "aGVsbG8="}, "not a PNG"),
    ({"image": 5}, "upload, base64 text"),
    ({"image": {"file_id": "file-1"}}, "image_url"),
    ({"image": [data_url(GREY)] * 2}, "takes one picture"),
    ({"image": [data_url(GREY)] * 17}, "at most 16"),
    ({"image": data_url(GREY), "mask": data_url(GREY)}, "no alpha channel"),
    (
        {"image": data_url(GREY), "mask": data_url(mask((0, 0, 8, 8), (32, 32)))},
        "as large as the picture",
    ),
    ({"image": "http://127.0.0.1:1/x.png"}, "ALLOWED_IMAGE_HOSTS"),
]


@pytest.mark.parametrize(("body", "words"), BAD_EDITS)
def test_a_bad_picture_is_explained(server: Server, body: dict[str, object], words: str) -> None:
    answer = post(server, "edits", {"prompt": "a", **body})
    assert answer.status_code == 400
    assert words in answer.json()["error"]["message"]


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff", b'{"prompt": "a"'])
def test_a_body_that_is_no_json_object_is_a_400(server: Server, content: bytes) -> None:
    for kind in (
        "application/json",
        "text/plain",
        "multipart/form-data",
        "multipart/form-data; boundary=x",
    ):
        answer = httpx.post(
            f"{server.url}/v1/images/edits", content=content, headers={"content-type": kind}
        )
        assert answer.status_code == 400, (kind, answer.text)


def test_a_route_that_does_not_exist_is_told_in_the_protocols_words(server: Server) -> None:
    assert httpx.post(f"{server.url}/v1/images/paint").json()["error"]["code"] == "not_found"
    assert httpx.get(f"{server.url}/v1/images/generations").status_code == 405
    assert "no such route" in httpx.get(f"{server.url}/v9").json()["error"]


def test_the_user_is_written_into_the_log(server: Server) -> None:
    answer = post(
        server,
        "generations",
        {"prompt": "a red circle", "size": SIZE, "user": "somebody-17", **FAST},
    )
    [line] = [line for line in server.log.read_text().splitlines() if "somebody-17" in line]
    assert answer.headers["x-request-id"] in line


def test_json_that_curl_calls_a_form_is_read_as_json(server: Server) -> None:
    body = json.dumps({"prompt": "a red circle", "size": SIZE, **FAST})
    form = {"Content-Type": "application/x-www-form-urlencoded"}
    url = f"{server.url}/v1/images/generations"
    answer = httpx.post(url, content=body, headers=form, timeout=60)
    assert answer.status_code == 200, answer.text
    plain = {"prompt": "a red circle", "size": SIZE} | {k: str(v) for k, v in FAST.items()}
    again = httpx.post(url, data=plain, timeout=60)
    assert again.json()["data"][0]["b64_json"] == answer.json()["data"][0]["b64_json"]
