"""The tools, listed and called with the official MCP client over every transport, against a server
of the built-in picture model. The pixel checker says whether a picture is what was asked for."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import re
from pathlib import Path

import httpx
import numpy as np
import pytest
from mcp import Client, MCPError
from PIL import Image

from atelier.builtin.shapes.checker import check, look
from atelier.builtin.shapes.scene import PALETTE
from tests.agents.conftest import KEY, Connect, McpServer, http_client, shown, stdio
from tests.conftest import Server
from tests.protocols.pictures import encoded, mask

RED = "a red circle on a blue background"
GREEN = "a green circle on a blue background"
SMALL = {"prompt": RED, "size": "64x64", "steps": 2}
TOOLS = {"generate_image", "edit_image", "get_image", "list_models", "describe_model"}


async def test_every_tool_is_listed_typed_and_called(connect: Connect) -> None:
    heard: list[tuple[float, float | None]] = []

    async def hear(progress: float, total: float | None, message: str | None) -> None:
        heard.append((progress, total))

    async with connect() as client:
        tools = {tool.name: tool for tool in (await client.list_tools()).tools}
        assert tools.keys() == TOOLS
        for name, tool in tools.items():
            assert tool.description and tool.output_schema and tool.annotations
            assert tool.annotations.read_only_hint is (name not in ("generate_image", "edit_image"))
            described = tool.input_schema["properties"].values()
            assert all(one["description"] for one in described)

        models = (await client.call_tool("list_models", {})).structured_content
        assert [one | {"owned_by": ""} for one in models["models"]] == [
            {"name": "shapes", "owned_by": "", "ready": True}
        ]
        model = (await client.call_tool("describe_model", {"model": "shapes"})).structured_content
        assert (model["default_size"], model["size_multiple"]) == ("128x128", 16)
        assert model["default_steps"] == 28 and model["adapters"] == []
        assert (model["controls"], model["image_prompts"]) == (["edges"], [])
        assert model["upscalers"] == {"x2": 2}

        drawn = await client.call_tool(
            "generate_image", {"prompt": RED, "seed": 7, "steps": 8}, progress_callback=hear
        )
        assert not drawn.is_error, drawn.content
        (picture,) = shown(drawn)
        assert check(picture.convert("RGB"), RED)
        (told,) = drawn.structured_content["pictures"]
        assert json.loads(drawn.content[0].text)["pictures"][0]["name"] == told["name"]
        assert (told["seed"], told["width"], told["shown"]) == (7, 128, "whole")
        steps = [progress for progress, total in heard if total]
        assert steps == sorted(set(steps)) and len(steps) > 2
        assert {total for _, total in heard if total} == {8}

        again = await client.call_tool("get_image", {"image": told["url"]})
        assert again.content[1].data == drawn.content[1].data
        resource = await client.read_resource(told["uri"])
        assert resource.contents[0].blob == drawn.content[1].data
        assert resource.contents[0].mime_type == "image/png"
        recent = json.loads((await client.read_resource("atelier://pictures")).contents[0].text)
        assert recent[0]["name"] == told["name"]

        edited = await client.call_tool(
            "edit_image",
            {"image": told["url"], "prompt": GREEN, "strength": 0.95, "seed": 3, "steps": 8},
        )
        assert not edited.is_error, edited.content
        assert check(shown(edited)[0].convert("RGB"), GREEN)


async def test_prompts_are_listed_and_filled_in(over_http: McpServer) -> None:
    async with http_client(over_http.url) as client:
        prompts = {prompt.name: prompt for prompt in (await client.list_prompts()).prompts}
        assert prompts.keys() == {"write_picture_prompt", "change_picture", "draw_series"}
        assert all(argument.description for one in prompts.values() for argument in one.arguments)
        answer = await client.get_prompt("write_picture_prompt", {"wish": "a fox in the snow"})
        assert "a fox in the snow" in answer.messages[0].content.text


async def test_a_picture_is_edited_however_it_is_given(
    over_http: McpServer, shapes: Server
) -> None:
    """By name, URI and URL, by the endpoint's own URL, and as base64: all are the same picture."""
    body = {"prompt": RED, "size": "64x64", "steps": 2, "seed": 5}
    key = {"Authorization": "Bearer of-the-endpoint"}
    async with http_client(over_http.url) as client, httpx.AsyncClient(headers=key) as http:
        drawn = await client.call_tool("generate_image", body)
        (told,) = drawn.structured_content["pictures"]
        answer = await http.post(
            f"{shapes.url}/v1/images/generations", json=body | {"response_format": "url"}
        )
        text = drawn.content[1].data
        references = [told["name"], told["uri"], told["url"], answer.json()["data"][0]["url"]]
        edits = []
        for reference in [*references, text, f"data:image/png;base64,{text}"]:
            arguments = body | {"image": reference, "prompt": GREEN, "strength": 0.9}
            edited = await client.call_tool("edit_image", arguments)
            assert not edited.is_error, edited.content
            edits.append(edited.content[1].data)
    assert len(set(edits)) == 1


async def test_a_mask_keeps_what_it_covers(over_http: McpServer) -> None:
    yellow = PALETTE["yellow"]
    whole = encoded(yellow, (128, 128))
    left = base64.b64encode(mask((0, 0, 64, 128), (128, 128))).decode()
    arguments = {
        "image": base64.b64encode(whole).decode(),
        "mask": left,
        "prompt": "a large red square on a black background",
        "seed": 1,
        "steps": 8,
    }
    async with http_client(over_http.url) as client:
        result = await client.call_tool("edit_image", arguments)
        assert not result.is_error, result.content
        drawn = np.asarray(shown(result)[0].convert("RGB")).astype(int)
    changed = np.abs(drawn - yellow).max(axis=2)
    assert changed[:, 80:].mean() < 30 < 90 < changed[:, :48].mean()


async def test_a_picture_is_drawn_by_another_and_enlarged(over_http: McpServer) -> None:
    first = {"prompt": "a white star on a black background", "seed": 7, "steps": 12}
    async with http_client(over_http.url) as client:
        drawn = await client.call_tool("generate_image", first)
        (told,) = drawn.structured_content["pictures"]
        control = {"name": "edges", "image": told["url"], "preprocess": "canny", "end": 0.9}
        arguments = {"prompt": GREEN.replace("circle", "star"), "seed": 8, "steps": 12}
        result = await client.call_tool(
            "generate_image", arguments | {"control": [control], "upscale": 2, "upscaler": "x2"}
        )
        assert not result.is_error, result.content
    (wanted,), (picture,) = shown(drawn), shown(result)
    assert picture.size == (256, 256) and check(picture.convert("RGB"), arguments["prompt"])
    ((before,), _), ((after,), _) = look(wanted.convert("RGB")), look(picture.convert("RGB"))
    assert abs(before.x - after.x) <= 4 and abs(before.y - after.y) <= 4


async def test_fifty_calls_at_once_are_all_answered(over_http: McpServer) -> None:
    async with http_client(over_http.url) as client:
        calls = [
            client.call_tool("generate_image", SMALL | {"steps": 1, "seed": seed % 25})
            for seed in range(50)
        ]
        results = await asyncio.gather(*calls)
    assert not [result.content for result in results if result.is_error]
    told = [result.structured_content["pictures"][0] for result in results]
    assert [one["seed"] for one in told] == [seed % 25 for seed in range(50)]
    assert len({one["name"] for one in told}) == 50


PICTURE = base64.b64encode(encoded((1, 2, 3), (64, 64))).decode()
BAD = [
    ("generate_image", {"prompt": "a", "size": "65x64"}, "not divisible by 16"),
    ("generate_image", {"prompt": "a", "steps": 9999}, "MAX_STEPS"),
    ("generate_image", {"prompt": "a", "model": "other"}, "'other'"),
    ("generate_image", {"prompt": "a", "size": "large"}, "size"),
    ("generate_image", {"prompt": "a", "adapters": {"none": 1.0}}, "none"),
    ("generate_image", {"prompt": "a", "upscale": 4}, "nothing here enlarges 4 times"),
    ("generate_image", {"prompt": "a", "upscale": 3}, "upscale"),
    ("generate_image", {"prompt": "a", "control": [{"name": "edges", "image": "?!"}]},
     "control.0.image"),
    ("generate_image", {"prompt": "a", "control": [{"name": "no", "image": PICTURE}]},
     "'no' is not here; available: edges"),
    ("generate_image", {"prompt": "a", "image_prompt": [{"name": "no", "image": PICTURE}]},
     "'no' is not here"),
    ("describe_model", {"model": "other"}, "shapes"),
    ("get_image", {"image": "../../etc/passwd"}, "no picture of this server"),
    ("get_image", {"image": "A" * 32 + ".png"}, "is not here"),
    ("edit_image", {"image": "file:///etc/passwd", "prompt": "a"}, "files are not read"),
    ("edit_image", {"image": "http://169.254.169.254/a.png", "prompt": "a"}, "ALLOWED_IMAGE_HOSTS"),
    ("edit_image", {"image": "atelier://pictures/none", "prompt": "a"}, "no picture"),
    ("edit_image", {"image": "?!", "prompt": "a"}, "not base64"),
    ("edit_image", {"image": "AAAA", "prompt": "a"}, "not a PNG"),
]  # fmt: skip


async def test_bad_arguments_are_told_in_words(over_http: McpServer) -> None:
    async with http_client(over_http.url) as client:
        for tool, arguments, words in BAD:
            result = await client.call_tool(tool, arguments)
            assert result.is_error and words in result.content[0].text, (arguments, result.content)
            assert "Traceback" not in result.content[0].text


async def test_a_large_picture_is_shown_reduced_and_kept_whole(
    shapes: Server, tmp_path: Path
) -> None:
    parameters = stdio(shapes.url, tmp_path)
    parameters.env["MCP_INLINE_BYTES"] = "4096"
    arguments = {"prompt": RED, "seed": 1, "steps": 1, "size": "256x256", "count": 2}
    async with Client(parameters) as client:
        result = await client.call_tool("generate_image", arguments)
        assert not result.is_error, result.content
        told = result.structured_content["pictures"]
        assert [one["shown"] for one in told] == ["reduced", "reduced"]
        inline = [base64.b64decode(one.data) for one in result.content if one.type == "image"]
        assert sum(map(len, inline)) <= 4096
        assert {Image.open(io.BytesIO(one)).format for one in inline} == {"JPEG"}
        kept = Image.open(tmp_path / told[0]["name"])
        assert kept.size == (256, 256)
        assert told[0]["url"] == (tmp_path / told[0]["name"]).as_uri()


async def test_recent_pictures_are_those_of_ones_own_key(over_http: McpServer) -> None:
    async with http_client(over_http.url, key="another") as client:
        before = json.loads((await client.read_resource("atelier://pictures")).contents[0].text)
        assert before == []


async def test_without_a_key_nothing_is_called(over_http: McpServer) -> None:
    call = {"jsonrpc": "2.0", "id": 1, "method": "tools/list"}
    async with httpx.AsyncClient() as http:
        for headers in ({}, {"Authorization": "Bearer wrong"}):
            answer = await http.post(f"{over_http.url}/mcp", json=call, headers=headers)
            assert answer.status_code == 401 and answer.headers["www-authenticate"] == "Bearer"
        foreign = {"Authorization": f"Bearer {KEY}", "Host": "rebound.example"}
        answer = await http.post(f"{over_http.url}/mcp", json=call, headers=foreign)
        assert answer.status_code == 421, "a page that rebinds a name to loopback is not answered"
    with pytest.raises((MCPError, ExceptionGroup)):
        async with http_client(over_http.url, key="wrong") as client:
            await client.list_tools()


@pytest.fixture(scope="module")
def picture(over_http: McpServer) -> tuple[str, bytes]:
    """A kept picture: its URL and its bytes."""

    async def draw() -> tuple[str, bytes]:
        async with http_client(over_http.url) as client:
            result = await client.call_tool("generate_image", SMALL)
        (told,) = result.structured_content["pictures"]
        return told["url"], base64.b64decode(result.content[1].data)

    return asyncio.run(draw())


def test_a_picture_lies_behind_its_url_for_a_while(picture: tuple[str, bytes]) -> None:
    url, data = picture
    whole = httpx.get(url)
    assert (whole.content, whole.headers["content-type"]) == (data, "image/png")
    assert re.fullmatch(r"private, immutable, max-age=\d+", whole.headers["cache-control"])
    assert whole.headers["x-content-type-options"] == "nosniff"
    head = httpx.head(url)
    assert head.headers["content-length"] == str(len(data)) and not head.content
    tag = {"If-None-Match": whole.headers["etag"]}
    assert httpx.get(url, headers=tag).status_code == 304


@pytest.mark.parametrize(
    ("wanted", "part"),
    [
        ("bytes=0-9", slice(10)),
        ("bytes=-5", slice(-5, None)),
        ("bytes=100-", slice(100, None)),
        ("bytes=100-99999999", slice(100, None)),
    ],
)
def test_a_range_of_a_picture_is_answered(
    picture: tuple[str, bytes], wanted: str, part: slice
) -> None:
    url, data = picture
    answer = httpx.get(url, headers={"Range": wanted})
    assert (answer.status_code, answer.content) == (206, data[part])
    first = range(len(data))[part][0]
    last = first + len(data[part]) - 1
    assert answer.headers["content-range"] == f"bytes {first}-{last}/{len(data)}"
    other = {"Range": wanted, "If-Range": '"another"'}
    assert httpx.get(url, headers=other).content == data


def test_a_range_beyond_the_end_is_refused_and_an_odd_one_ignored(
    picture: tuple[str, bytes],
) -> None:
    url, data = picture
    beyond = httpx.get(url, headers={"Range": f"bytes={len(data)}-"})
    assert (beyond.status_code, beyond.headers["content-range"]) == (416, f"bytes */{len(data)}")
    for odd in ("bytes=0-1,3-4", "lines=1-2", "bytes=-", "bytes=x", "bytes=" + "9" * 5000 + "-"):
        answer = httpx.get(url, headers={"Range": odd})
        assert (answer.status_code, answer.content) == (200, data), odd[:20]


def test_nothing_else_lies_behind_images(over_http: McpServer) -> None:
    secret = over_http.folder.parent / "secret.png"
    secret.write_bytes(b"secret")
    (over_http.folder / "plain.png").write_bytes(b"not under a name of ours")
    link = over_http.folder / ("L" * 32 + ".png")
    link.symlink_to(secret)
    for path in ("", "plain.png", "..%2Fsecret.png", "%2e%2e/secret.png", link.name, "A" * 32):
        answer = httpx.get(f"{over_http.url}/images/{path}")
        assert answer.status_code in (401, 404, 503), path
        assert b"secret" not in answer.content.replace(b"secret.png", b"")
    link.unlink()
