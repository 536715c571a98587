"""ENGINE=vllm-omni: pictures of a child engine through the same door, with a stand-in for it."""

from __future__ import annotations

import base64
import io
import json
import os
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import openai
import psutil
import pytest
from PIL import Image

from tests.text.running import Server, serving

SOURCE = Path(__file__).with_name("omni.py")


@pytest.fixture(scope="module")
def omni(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("omni")
    program = folder / "bin" / "vllm"
    program.parent.mkdir()
    program.write_text(f"#!{sys.executable}\n{SOURCE.read_text()}")
    program.chmod(0o755)
    settings = {
        "ENGINE": "vllm-omni",
        "ENGINE_PATH": str(folder),
        "ENGINE_ARGS": "--vae-use-tiling",
        "TASK": "image",
        "TENSOR_PARALLEL_SIZE": "2",
    }
    with serving(tiny_checkpoint, folder / "log", **settings) as running:
        yield running


@pytest.fixture
def client(omni: Server) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{omni.url}/v1", api_key="none", max_retries=0)


def picture(answer: openai.types.ImagesResponse) -> Image.Image:
    assert answer.data and answer.data[0].b64_json
    return Image.open(io.BytesIO(base64.b64decode(answer.data[0].b64_json)))


def test_it_is_started_as_its_command_line_wants_it(omni: Server) -> None:
    given = json.loads((omni.log.parent / "bin" / "arguments").read_text())
    assert given[0] == "serve" and given[2] == "--omni"
    assert given[given.index("--served-model-name") + 1] == "tiny"
    assert given[given.index("--tensor-parallel-size") + 1] == "2"
    assert given[-1] == "--vae-use-tiling"


def test_pictures_are_drawn_and_edited(client: openai.OpenAI) -> None:
    drawn = picture(client.images.generate(model="tiny", prompt="red", size="64x32"))  # type: ignore[call-overload]
    assert (drawn.size, drawn.getpixel((5, 5))) == ((64, 32), (255, 0, 0))
    sent = io.BytesIO()
    drawn.save(sent, "PNG")
    edited = picture(
        client.images.edit(model="tiny", prompt="blue", image=("a.png", sent.getvalue()))
    )
    assert (edited.size, edited.getpixel((5, 5))) == ((64, 32), (0, 0, 255))


def test_a_route_that_it_lacks_is_told(omni: Server, client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError):
        client.images.create_variation(image=b"x")
    described = httpx.get(f"{omni.url}/openapi.json").json()["paths"]
    assert "/v1/images/edits" in described and "/v1/images/variations" not in described
    assert "vllm:num_requests_running" in httpx.get(f"{omni.url}/metrics").text


def test_it_comes_back_after_its_death(omni: Server, client: openai.OpenAI) -> None:
    (child,) = [
        process
        for process in psutil.process_iter(["cmdline"])
        if str(omni.log.parent / "bin" / "vllm") in (process.info["cmdline"] or [])
    ]
    os.kill(child.pid, signal.SIGKILL)
    ends = time.monotonic() + 30
    while time.monotonic() < ends:
        try:
            picture(client.images.generate(model="tiny", prompt="red", size="32x32"))  # type: ignore[call-overload]
            return
        except openai.APIStatusError as refused:
            assert refused.status_code == 503
            time.sleep(0.2)
    raise AssertionError("the engine did not come back")
