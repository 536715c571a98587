"""Neighbours of the inputs in test_cases.py: the same faults of clients by other spellings, fields,
routes and kinds of files."""

from __future__ import annotations

import base64
import gzip
import io
import json
import re
import zlib
from collections.abc import Callable
from typing import Any
from urllib.parse import quote

import httpx
import numpy as np
import pytest
from PIL import Image

from atelier.bounds import read_json
from atelier.errors import InvalidRequest
from atelier.images import codec
from atelier.protocols.http.remote import picture_bytes, picture_text
from atelier.settings import load_settings
from tests.conftest import Server
from tests.protocols.pictures import encoded, opened, striped

FAST = {"num_inference_steps": 1, "width": 32, "height": 32}
DRAW = {"prompt": "a cup", "size": "32x32", "steps": 1}
MAX = 2**22
PICTURE = striped()
TEXT = base64.b64encode(PICTURE).decode()


def predict(server: Server, instance: dict[str, Any], **body: Any) -> httpx.Response:
    url = f"{server.url}/v1/models/{server.model}:predict"
    return httpx.post(url, json={"instances": [{"prompt": "a cup"} | instance]} | body, timeout=60)


def images(server: Server, route: str = "generations", **how: Any) -> httpx.Response:
    return httpx.post(f"{server.url}/v1/images/{route}", timeout=60, **how)


# Pictures as text

SPELLINGS: dict[str, str] = {
    "no padding": TEXT.rstrip("="),
    "padding to spare": TEXT + "==",
    "percent-encoded": quote(TEXT, safe=""),
    "a charset": "data:image/png;charset=utf-8;base64," + TEXT,
    "a name": "data:image/png;name=a.png;base64," + TEXT,
    "no type": "data:;base64," + TEXT,
    "not called base64": "data:image/png," + TEXT,
    "a data URL without padding": "data:image/png;base64," + TEXT.rstrip("="),
    "a data URL of percent-encoded bytes": "data:image/png," + quote(PICTURE),
    "a byte-order mark": "\ufeff" + TEXT,
    "line breaks of Windows": "\r\n".join(re.findall(".{1,76}", TEXT)),
}


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_base64_in_further_spellings(spelling: str) -> None:
    assert picture_bytes(SPELLINGS[spelling], "image", load_settings()) == PICTURE


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("HTTPS://pictures.example.com/a.png", "https://pictures.example.com"),
        ("  https://pictures.example.com/a.png", "https://pictures.example.com"),
        ("file:///etc/hostname", "file://"),
        ("s3://bucket/a.png", "s3://bucket"),
        (f"b'{TEXT}'", "b'iVBOR"),
        ("a cup!", "'a cup!'"),
    ],
)
def test_what_is_no_base64_is_shown_with_the_remedy(text: str, named: str) -> None:
    with pytest.raises(InvalidRequest, match=re.escape(named)) as refused:
        picture_bytes(text, "image", load_settings())
    assert "ALLOWED_IMAGE_HOSTS" in refused.value.message


@pytest.mark.parametrize(
    "around",
    [{"b64": "x"}, {"b64_json": "x"}, {"url": "x"}, {"image_url": "x"}, {"image_url": {"url": "x"}},
     {"type": "image_url", "image_url": {"url": "x", "detail": "auto"}, "file_id": None}],
    ids=str,
)  # fmt: skip
def test_a_picture_may_stand_in_an_object(around: dict[str, Any]) -> None:
    assert picture_text(around) == "x"


# Pictures as files


def saved(picture: Image.Image, format: str, **options: Any) -> bytes:
    out = io.BytesIO()
    picture.save(out, format, **options)
    return out.getvalue()


def halves(mode: str) -> Image.Image:
    """Bright above dark."""
    if mode == "I;16":
        grey = np.full((64, 32), 60_000, np.uint16)
        grey[32:] = 2_000
        return Image.fromarray(grey)
    picture = Image.new(mode, (32, 64), "white")
    picture.paste("black", (0, 32, 32, 64))
    return picture


BRIGHT = {1: "top", 2: "top", 3: "bottom", 4: "bottom", 5: "left", 6: "right", 7: "right",
          8: "left"}  # fmt: skip
AT = {"top": (16, 4), "bottom": (16, 60), "left": (4, 16), "right": (60, 16)}


@pytest.mark.parametrize("orientation", BRIGHT)
@pytest.mark.parametrize(("format", "mode"), [("JPEG", "RGB"), ("PNG", "RGB"), ("WEBP", "RGB"),
                                              ("PNG", "I;16"), ("PNG", "L")])  # fmt: skip
def test_every_orientation_holds_for_every_kind_of_file(
    orientation: int, format: str, mode: str
) -> None:
    exif = Image.Exif()
    exif[codec.ORIENTATION] = orientation
    picture = codec.decode(saved(halves(mode), format, exif=exif), MAX, "image")
    side = BRIGHT[orientation]
    assert picture.size == ((32, 64) if side in ("top", "bottom") else (64, 32))
    assert picture.getpixel(AT[side])[0] > 200


FRAMES = [Image.new("RGB", (32, 32), color) for color in ("red", "blue")]
SEVERAL = {"save_all": True, "append_images": FRAMES[1:]}
READ: dict[str, bytes] = {
    "CMYK": saved(FRAMES[0].convert("CMYK"), "JPEG"),
    "animated GIF": saved(FRAMES[0], "GIF", **SEVERAL),
    "animated WebP": saved(FRAMES[0], "WEBP", **SEVERAL),
    "animated PNG": saved(FRAMES[0], "PNG", **SEVERAL),
    "two pictures of a phone": saved(FRAMES[0], "MPO", **SEVERAL),
    "palette": saved(FRAMES[0].convert("P"), "PNG"),
    "palette and transparency": saved(FRAMES[0].convert("P"), "PNG", transparency=255),
}


@pytest.mark.parametrize("kind", READ)
def test_of_several_pictures_the_first_is_read_whatever_their_colours_are(kind: str) -> None:
    red, green, blue = codec.decode(READ[kind], MAX, "image").convert("RGB").getpixel((9, 9))
    assert red > 200
    assert max(green, blue) < 60


UNREAD: dict[str, bytes] = {
    "TIFF": saved(FRAMES[0], "TIFF"),
    "AVIF": b"\0\0\0\x1cftypavif\0\0\0\0",
    "HEIC": b"\0\0\0\x18ftypheic\0\0\0\0",
    "JPEG XL": b"\xff\x0a\xfa\x7f",
    "JPEG 2000": saved(FRAMES[0], "JPEG2000"),
    "SVG": b'<?xml version="1.0"?>\n<svg xmlns="http://www.w3.org/2000/svg"/>',
    "web page": b"<!DOCTYPE html><html>",
    "JSON": b'{"error": "not found"}',
    "PDF": b"%PDF-1.7",
    "empty": b"",
    "base64 text": TEXT.encode(),
    "cut short": READ["animated GIF"][:9],
}


@pytest.mark.parametrize("kind", UNREAD)
def test_what_is_not_read_is_called_by_its_name(kind: str) -> None:
    with pytest.raises(InvalidRequest, match=kind) as refused:
        codec.decode(UNREAD[kind], MAX, "mask")
    assert refused.value.message.startswith("mask: ")
    assert "PNG, JPEG, WebP, GIF or BMP" in refused.value.message


# Nulls, empties, spellings


def test_what_is_null_or_empty_in_an_instance_is_not_there(server: Server) -> None:
    empty: dict[str, Any] = dict.fromkeys(
        ("image", "mask_image", "lora", "scheduler", "format", "control", "strength"), ""
    )
    nulls = dict.fromkeys(("num_images_per_prompt", "previews", "output", "seed", "task"))
    shared = FAST | {"seed": 7}
    instance = empty | nulls | {"image_prompt": None, "negative_prompt": ""}
    answer = predict(server, instance, parameters=shared)
    assert answer.status_code == 200, answer.text
    [drawn] = answer.json()["predictions"]
    assert drawn["seed"] == 7
    plain = predict(server, {"negative_prompt": ""}, parameters=shared).json()["predictions"][0]
    assert drawn["image"]["b64"] == plain["image"]["b64"]


def test_a_picture_in_an_object_is_edited_by_predict(server: Server) -> None:
    asked = FAST | {"strength": 1.0, "seed": 7}
    bare = predict(server, asked | {"image": TEXT}).json()
    inside = predict(server, asked | {"image": [{"b64": TEXT}, None]}).json()
    assert bare["predictions"][0]["image"] == inside["predictions"][0]["image"]


def test_empty_fields_of_the_images_routes_are_absent(server: Server) -> None:
    names = ("size", "quality", "style", "background", "response_format", "output_format", "n",
             "user", "model", "seed", "stream", "partial_images", "output_compression", "lora",
             "image", "mask", "scheduler", "timeout")  # fmt: skip
    answer = images(server, json={"prompt": "a cup", "steps": 1} | dict.fromkeys(names, ""))
    assert answer.status_code == 200, answer.text
    assert "warnings" not in answer.json()


@pytest.mark.parametrize(
    ("field", "value", "told"),
    [("size", value, "32x32") for value in ("32X32", "32*32", " 32 x 32 ", "32\xd732")]
    + [("output_format", value, "jpeg") for value in ("jpg", "JPEG", "image/jpeg")]
    + [("quality", "Standard", "standard")],
)  # fmt: skip
def test_words_and_sizes_in_further_spellings(
    server: Server, field: str, value: str, told: str
) -> None:
    answer = images(server, json=DRAW | {field: value})
    assert answer.status_code == 200, answer.text
    assert answer.json()[field] == told


EDIT = {"prompt": "a cup", "size": "32x32", "steps": "2"}


def part(name: str, content: bytes, further: str = "") -> bytes:
    head = f'--edge\r\ncontent-disposition: form-data; name="{name}"{further}\r\n\r\n'
    return head.encode() + content + b"\r\n"


def form(*further: bytes) -> dict[str, Any]:
    fields = [part(name, value.encode()) for name, value in EDIT.items()]
    body = b"".join([*fields, *further, b"--edge--\r\n"])
    return {"content": body, "headers": {"content-type": "multipart/form-data; boundary=edge"}}


FORMS: dict[str, dict[str, Any]] = {
    "no file name": form(part("image", PICTURE)),
    "an extended file name": form(part("image", PICTURE, "; filename*=UTF-8''%C3%A4.png")),
    "base64 as text": form(part("image[]", TEXT.encode())),
    "texts of JavaScript": form(part("image", PICTURE, '; filename="a"'), part("n", b"undefined"),
                                part("user", b"null"), part("mask", b"null")),
    "urlencoded": {"content": f"prompt=a+cup&steps=2&image={TEXT}".encode(),
                   "headers": {"content-type": "application/x-www-form-urlencoded"}},
}  # fmt: skip


@pytest.mark.parametrize("kind", FORMS)
def test_forms_in_further_spellings(server: Server, kind: str) -> None:
    answer = images(server, "edits", **FORMS[kind])
    assert answer.status_code == 200, answer.text


@pytest.mark.parametrize("name", ["image", "mask"])
def test_a_file_of_a_form_that_is_empty_is_named(server: Server, name: str) -> None:
    files = [("image", ("a.png", PICTURE)), (name, ("nothing.png", b""))]
    answer = images(server, "edits", data=EDIT, files=files)
    assert answer.status_code == 400
    assert f"{name}: the file 'nothing.png' is empty" in answer.json()["error"]["message"]


def test_a_strength_by_default_leaves_a_step(server: Server) -> None:
    """0.8 of one step is none, which the client did not ask for."""
    answer = images(server, "edits", data=EDIT | {"steps": "1"}, files=[("image", PICTURE)])
    assert answer.status_code == 200, answer.text
    told = EDIT | {"steps": "1", "strength": "0.8"}
    answer = images(server, "edits", data=told, files=[("image", PICTURE)])
    assert answer.status_code == 400
    assert "strength: 0.8 of 1 steps is less than one" in answer.json()["error"]["message"]


def v2(server: Server, *tensors: dict[str, Any], place: str = "") -> httpx.Response:
    sizes = [tensor(name, value, "INT32") for name, value in FAST.items()]
    body = {"inputs": [tensor("prompt", "a cup"), *sizes, *tensors], "id": 1.5}
    return httpx.post(f"{server.url}/v2/models/{server.model}{place}/infer", json=body, timeout=60)


def tensor(name: str, value: Any, datatype: str = "BYTES", **further: Any) -> dict[str, Any]:
    return {"name": name, "shape": [1], "datatype": datatype, "data": [value]} | further


def test_v2_takes_empties_texts_and_the_one_version(server: Server) -> None:
    empty = [tensor(name, "") for name in ("image", "mask_image", "scheduler", "seed")]
    odd = tensor("lora", "{}", "bytes", parameters={"binary_data_size": None})
    answer = v2(server, *empty, odd, place="/versions/1")
    assert answer.status_code == 200, answer.text
    assert answer.json()["id"] == "1.5"
    told = v2(server, tensor("seed", 7, "TYPE_INT64"))
    assert told.status_code == 400
    assert "'TYPE_INT64' is none; there are BYTES, BOOL" in told.json()["error"]


@pytest.mark.parametrize("rest", ["", "/ready", "/config"])
def test_the_one_version_may_be_named(server: Server, rest: str) -> None:
    model = f"{server.url}/v2/models/{server.model}"
    named = httpx.get(f"{model}/versions/1{rest}")
    assert named.status_code == 200
    assert named.json().keys() == httpx.get(model + rest).json().keys()
    assert httpx.get(f"{model}/versions/2{rest}").status_code >= 400


# HTTP as clients speak it

BODY = json.dumps({"instances": [{"prompt": "a cüp"} | FAST]}, ensure_ascii=False)


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32"])
def test_json_is_read_in_what_tools_of_windows_write(encoding: str) -> None:
    assert read_json(BODY.encode(encoding)) == json.loads(BODY)


def test_json_in_another_encoding_is_told_by_its_byte(server: Server) -> None:
    url = f"{server.url}/v1/models/{server.model}:predict"
    answer = httpx.post(url, content=BODY.encode("latin-1"), timeout=60)
    assert answer.status_code == 400
    assert "0xfc, which is not UTF-8" in answer.json()["error"]
    assert httpx.post(url, content=BODY.encode("utf-8-sig"), timeout=60).status_code == 200


def bare_deflate(body: bytes) -> bytes:
    packer = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    return packer.compress(body) + packer.flush()


def in_two(body: bytes) -> bytes:
    return gzip.compress(body[:40]) + gzip.compress(body[40:])


PACKED: list[tuple[str, Callable[[bytes], bytes], int]] = [
    ("gzip", in_two, 200),
    ("GZIP, identity", lambda body: gzip.compress(body) + bytes(64), 200),
    ("deflate", bare_deflate, 200),
    ("identity", bytes, 200),
    ("gzip", lambda body: gzip.compress(body) + b"more", 400),
    ("gzip", lambda body: gzip.compress(b"") * 1100 + gzip.compress(body), 400),
    ("gzip", bare_deflate, 400),
    ("gzip, gzip", lambda body: gzip.compress(gzip.compress(body)), 415),
]


@pytest.mark.parametrize(("encoding", "pack", "status"), PACKED)
def test_bodies_packed_in_further_ways(
    server: Server, encoding: str, pack: Callable[[bytes], bytes], status: int
) -> None:
    url = f"{server.url}/v1/models/{server.model}:predict"
    headers = {"Content-Encoding": encoding}
    answer = httpx.post(url, content=pack(BODY.encode()), headers=headers, timeout=60)
    assert answer.status_code == status, answer.text
    assert answer.headers.get("accept-encoding") == ("gzip, deflate" if status == 415 else None)


@pytest.mark.parametrize("path", ["//v1/models", "/v1//models/", "/openai//v1/models//"])
def test_a_slash_too_many_changes_nothing(server: Server, path: str) -> None:
    assert httpx.get(server.url + path).json()["models"] == [server.model]


FORWARDED: list[tuple[dict[str, str], str]] = [
    ({"X-Forwarded-Proto": "https"}, "https://a.example.com"),
    ({"X-Forwarded-Proto": "HTTPS, http"}, "https://a.example.com"),
    ({"X-Forwarded-Proto": "https", "X-Forwarded-Host": "b.example.com:8443, inner"},
     "https://b.example.com:8443"),
    ({"Forwarded": 'for="[2001:db8::1]";Proto="https";host=b.example.com, for=10.0.0.1'},
     "https://b.example.com"),
    ({"X-Forwarded-Prefix": "/serving/tiny/"}, "http://a.example.com/serving/tiny"),
    ({"X-Forwarded-Proto": "javascript", "X-Forwarded-Host": "x/?", "X-Forwarded-Prefix": "//x"},
     "http://a.example.com"),
]  # fmt: skip


@pytest.mark.parametrize(("headers", "base"), FORWARDED, ids=str)
def test_picture_urls_are_those_of_the_first_proxy(
    server: Server, headers: dict[str, str], base: str
) -> None:
    asked = DRAW | {"response_format": "url"}
    answer = images(server, json=asked, headers={"Host": "a.example.com"} | headers)
    url = answer.json()["data"][0]["url"]
    assert url.startswith(f"{base}/v1/images/files/")
    path = url.removeprefix(base)
    assert opened(httpx.get(server.url + path).content).size == (32, 32)


def test_a_transparent_mask_is_read_from_every_kind_of_file(server: Server) -> None:
    hole = Image.new("LA", (64, 64), (0, 255))
    hole.paste((0, 0), (0, 0, 32, 64))
    palette = Image.new("P", (64, 64), 1)
    palette.paste(0, (0, 0, 32, 64))
    masks = [
        saved(hole, "PNG"),
        saved(hole.convert("RGBA"), "WEBP", lossless=True),
        saved(palette, "PNG", transparency=0),
    ]
    drawn = set()
    for mask in masks:
        files = [("image", ("a.png", encoded((9, 9, 9)))), ("mask", ("m", mask))]
        answer = images(server, "edits", data=EDIT | {"seed": "7"}, files=files)
        assert answer.status_code == 200, answer.text
        drawn.add(answer.json()["data"][0]["b64_json"])
    assert len(drawn) == 1


# Chats with a picture model

URL = "data:image/png;base64," + TEXT
SOURCE = {"type": "base64", "media_type": "image/png", "data": TEXT}
MESSAGES: dict[str, list[Any]] = {
    "OpenAI's": [{"type": "text", "text": "a cup"}, {"type": "image_url", "image_url": URL}],
    "of responses": [
        {"type": "input_text", "text": "a cup"},
        {"type": "input_image", "image_url": URL},
    ],
    "Anthropic's": ["a cup", {"type": "image", "source": SOURCE}],
    "with nulls": [
        {"type": "text", "text": None},
        {"type": "text", "text": "a cup"},
        {"type": "image_url", "image_url": None},
        {"type": "image_url", "image_url": {"url": URL, "detail": None}},
    ],
}


def test_the_parts_of_a_picture_chat_in_further_forms(server: Server) -> None:
    answered = {"role": "assistant", "content": [{"type": "thinking", "thinking": "?"}]}
    drawn = set()
    for content in MESSAGES.values():
        body = {
            "messages": [{"role": "user", "content": "a cup"}, answered,
                         {"role": "user", "content": content}],
            "size": "32x32", "steps": 2, "seed": 7, "stream": "", "tools": None, "stop": "",
        }  # fmt: skip
        answer = httpx.post(f"{server.url}/v1/chat/completions", json=body, timeout=60)
        assert answer.status_code == 200, answer.text
        message = answer.json()["choices"][0]["message"]
        drawn.add(message["images"][0]["image_url"]["url"])
    assert len(drawn) == 1
