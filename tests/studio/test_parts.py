"""The studio's parts without a browser: parameters in files, axes, contact sheets, readings, and
what the client makes of a real server's answers."""

from __future__ import annotations

import io
import subprocess
import sys
from contextlib import aclosing
from typing import Any

import gradio as gr
import pytest
from PIL import Image, PngImagePlugin

from atelier.errors import InvalidRequest
from atelier.studio import axes, chat_view, views
from atelier.studio.board import Board, Boards, Tile
from atelier.studio.card import ModelCard
from atelier.studio.client import Drawn, DrawState, EndpointClient, EndpointError, Sketch
from atelier.studio.contact_sheet import contact_sheet
from atelier.studio.conversation import ChatAnswer
from atelier.studio.guides import Guides
from atelier.studio.machine_view import machine
from atelier.studio.parameters import PictureParameters, read_parameters, signed
from atelier.studio.readings import MetricsSample, Readings
from tests.conftest import Server, free_port
from tests.protocols.pictures import encoded
from tests.studio.conftest import KEY

PARAMETERS = PictureParameters(
    model="shapes", prompt="ein Kreis, 丸", num_inference_steps=4, seed=2**63 - 1, lora={"ink": 0.5}
)
FAST = {"prompt": "a", "width": 64, "height": 64, "num_inference_steps": 6, "seed": 1}


def text_png(**entries: str) -> bytes:
    out, told = io.BytesIO(), PngImagePlugin.PngInfo()
    for name, text in entries.items():
        told.add_itxt(name, text)
    Image.new("RGB", (8, 8)).save(out, "PNG", pnginfo=told)
    return out.getvalue()


def test_a_file_keeps_its_pixels_and_gives_its_parameters_back() -> None:
    plain = encoded((10, 20, 30, 40))
    kept = signed(plain, PARAMETERS)
    assert read_parameters(kept) == PARAMETERS
    with Image.open(io.BytesIO(plain)) as before, Image.open(io.BytesIO(kept)) as after:
        assert (before.mode, before.tobytes()) == (after.mode, after.tobytes())


@pytest.mark.parametrize(
    ("data", "told"),
    [
        (b"", "no PNG"),
        (encoded((1, 2, 3), format="JPEG"), "no PNG"),
        (encoded((1, 2, 3))[:60], "no PNG"),
        (encoded((1, 2, 3)), "holds no parameters"),
        (text_png(atelier="{"), "parameters in this PNG: atelier"),
        (text_png(atelier='{"seed": "x"}'), "parameters in this PNG: seed"),
    ],
    ids=["empty", "JPEG", "cut", "none", "no JSON", "bad seed"],
)
def test_a_file_that_cannot_be_read_is_told(data: bytes, told: str) -> None:
    with pytest.raises(InvalidRequest, match=told):
        read_parameters(data)


def test_a_sheet_has_a_tile_for_every_pair_row_by_row() -> None:
    rows = axes.SheetAxis.parse("adapters", "none, ink=0.5+line")
    columns = axes.SheetAxis.parse("steps", "2, 4,")
    made = [tile.parameters for tile in axes.tiles(PARAMETERS, rows, columns)]
    assert [(one.lora, one.num_inference_steps) for one in made] == [
        ({}, 2), ({}, 4), ({"ink": 0.5, "line": 1}, 2), ({"ink": 0.5, "line": 1}, 4),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("kind", "text", "told"),
    [
        ("steps", "2, x", "steps: 'x' cannot be read; write values such as 8, 16, 28"),
        ("seed", "-1", "seed: '-1' cannot be read"),
        ("guidance", " , ", "guidance: give values"),
        ("adapters", "ink=much", "adapters: 'ink=much' cannot be read"),
    ],
)
def test_values_of_an_axis_that_cannot_be_read_are_told(kind: str, text: str, told: str) -> None:
    with pytest.raises(InvalidRequest, match=told):
        axes.SheetAxis.parse(kind, text)


def test_an_axis_twice_and_too_many_pictures_are_refused() -> None:
    seeds = axes.SheetAxis.parse("seed", ",".join(map(str, range(9))))
    with pytest.raises(InvalidRequest, match="both axes are seed"):
        axes.tiles(PARAMETERS, seeds, seeds)
    with pytest.raises(InvalidRequest, match="72 pictures; a sheet has at most 64"):
        axes.tiles(PARAMETERS, seeds, axes.SheetAxis.parse("steps", "1,2,3,4,5,6,7,8"))


def test_a_sheet_lays_the_pictures_out_as_its_axes_say() -> None:
    rows, columns = axes.SheetAxis.parse("steps", "2, 4"), axes.SheetAxis.parse("seed", "1, 2, 3")
    colours = [(250, 0, 0), (0, 250, 0), (0, 0, 250), (250, 250, 0), (0, 250, 250)]
    tiles = [Tile(PARAMETERS, png=encoded(colour, (128, 128))) for colour in colours]
    tiles.append(Tile(PARAMETERS, problem="refused"))
    with Image.open(io.BytesIO(contact_sheet("a title", rows, columns, tiles))) as sheet:
        places = [_place(sheet, colour) for colour in colours]
        assert len(set(sheet.crop((0, 0, sheet.width, 20)).tobytes())) > 6, "the title is there"
    (red, green, blue, yellow, cyan) = places
    assert red[0] < green[0] < blue[0] and red[1] == green[1] == blue[1]
    assert yellow[0] == red[0] and yellow[1] > red[1] and cyan[0] == green[0]


def _place(sheet: Image.Image, colour: tuple[int, ...]) -> tuple[int, int]:
    """Where a colour begins."""
    mask = Image.new("1", sheet.size)
    mask.putdata([pixel == colour for pixel in sheet.get_flattened_data()])
    box = mask.getbbox()
    assert box
    return box[:2]


def test_sizes_on_offer_are_drawn_by_the_model() -> None:
    properties = {
        "native_size": [1024, 1024], "size_multiple": 16, "limits": {"max_pixels": 1024 * 1100},
    }  # fmt: skip
    sizes = ModelCard("http://x", "m", "pictures", properties=properties).sizes()
    assert sizes[0] == "1024x1024" and {"1184x880", "768x1360", "512x512"} <= set(sizes)
    for width, height in (map(int, size.split("x")) for size in sizes):
        assert width % 16 == height % 16 == 0 and width * height <= 1024 * 1100


def model_card(**properties: Any) -> ModelCard:
    return ModelCard("http://x", "m", "pictures", properties=properties)


def test_pictures_to_draw_by_are_offered_where_the_model_names_them() -> None:
    with gr.Blocks():
        guides = Guides()
    bare = guides.offered(model_card())
    assert not any(update["visible"] for update in bare.values() if "visible" in update)
    both = guides.offered(model_card(controls=["depth", "edges", "pose"], image_prompts=["look"]))
    shown = {
        component: update["visible"] for component, update in both.items() if "visible" in update
    }
    assert list(shown.values()) == [True, True, True, True, False]
    names = [update["value"] for update in both.values() if "choices" in update]
    assert names == ["depth", "edges", "look", None]
    assert set(both) == set(guides.components)


def test_a_request_has_the_slots_with_pictures_alone() -> None:
    with gr.Blocks():
        guides = Guides()
    model = model_card(controls=["edges"], image_prompts=["look"])
    values = {one: getattr(one, "value", None) for one in guides.fields}
    assert guides.read(values, model) == {}
    values |= {one: update["value"] for one, update in guides.offered(model).items()
               if "choices" in update}  # fmt: skip
    values[guides.picked] = {"Control 1": "data:a", "Control 2": "data:b", "Image prompt 1": "c"}
    assert guides.read(values, model) == {
        "control": [{"name": "edges", "image": "data:a", "weight": 1.0, "end": 1.0}],
        "image_prompt": [{"name": "look", "image": "c", "weight": 1.0}],
    }


def test_enlargements_on_offer_are_what_the_upscalers_make() -> None:
    model = model_card(upscalers={"sharp": 4, "soft": 2})
    assert model.enlargements() == [
        ("2 times, by sharp", "2 sharp"),
        ("2 times, by soft", "2 soft"),
        ("4 times, by sharp", "4 sharp"),
    ]
    assert model_card(upscalers={"x2": 2}).enlargements() == [("2 times", "2 x2")]
    assert model_card().enlargements() == []


def test_what_comes_from_outside_is_escaped() -> None:
    evil = '"><img src=x onerror=alert(1)>'
    shown = views.figure(b"", evil, evil, evil) + views.problem(evil) + views.folded(evil, evil)
    shown += views.endpoints([ModelCard("http://x", evil, problem=evil)])
    shown += views.figure(b"", "", "", "", before=evil)
    shown += chat_view.asked(evil) + chat_view.answer(ChatAnswer(evil, evil), ended=True)
    card = ModelCard("http://x", evil, "language", properties={"engine": evil})
    shown += machine(card, Readings(EndpointClient("http://x")), "")
    assert "<img src=x" not in shown and "&lt;img src=x" in shown


def test_an_answer_grows_from_its_deltas() -> None:
    answer = ChatAnswer()
    for delta in (
        {"reasoning_content": "hm"},
        {"tool_calls": [{"index": 0, "id": "1", "function": {"name": "generate_image"}}]},
        {"tool_calls": [{"index": 0, "function": {"arguments": '{"prompt": '}}]},
        {"tool_calls": [{"index": 0, "function": {"arguments": '"a cat"}'}}]},
        {"content": "done"},
    ):
        answer.take(delta)
    assert (answer.text, answer.reasoning, answer.calls[0].prompt()) == ("done", "hm", "a cat")
    assert answer.message()["tool_calls"][0]["function"]["arguments"] == '{"prompt": "a cat"}'
    answer.take({"tool_calls": [{"index": 0, "function": {"arguments": "}"}}]})
    assert answer.calls[0].prompt() == "", "what is no JSON draws nothing"


@pytest.fixture
async def endpoint(shapes: Server) -> EndpointClient:
    shapes.wait_ready()
    return EndpointClient(shapes.url)


async def test_the_card_tells_what_the_model_takes(
    endpoint: EndpointClient, shapes: Server
) -> None:
    card = await endpoint.card()
    assert (card.name, card.kind, card.problem) == (shapes.model, "pictures", "")
    assert card.takes("guidance_scale") and not card.takes("tea")
    assert "FlowMatchEulerDiscreteScheduler" in card.schedulers
    assert (card.default_steps, card.default_guidance) == (28, 7)
    assert card.limit("max_images_per_request", 0) == 8
    assert card.native == (128, 128) and card.sizes()[0] == "128x128"


async def test_an_endpoint_that_is_away_has_a_card_that_says_so() -> None:
    card = await EndpointClient(f"http://127.0.0.1:{free_port()}").card()
    assert card.kind == "unknown" and "cannot be reached" in card.problem


def test_a_server_with_the_studio_answers_without_having_imported_gradio() -> None:
    program = """
import asyncio, sys
import httpx
from starlette.responses import PlainTextResponse
from atelier.serving.studio import StudioDoor, check_studio
from atelier.settings import Settings

async def visit():
    check_studio(tls=False)
    door = StudioDoor(PlainTextResponse("the API"), 1, Settings())
    async with httpx.AsyncClient(transport=httpx.ASGITransport(door), base_url="http://a") as http:
        answer = await http.get("/v1/models")
        print(answer.text, "gradio" in sys.modules)
    await door.close()

asyncio.run(visit())
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout == "the API False\n", done.stderr


@pytest.mark.parametrize("url", ["localhost:8080", "ftp://host", "http://"])
def test_an_address_that_is_none_is_refused(url: str) -> None:
    with pytest.raises(EndpointError, match="is not an address such as"):
        EndpointClient(url)


async def test_a_picture_comes_with_its_states_and_leaves_nothing_behind(
    endpoint: EndpointClient, shapes: Server
) -> None:
    seen = [one async for one in endpoint.draw(shapes.model, FAST | {"previews": 2}, KEY)]
    states = [one for one in seen if isinstance(one, DrawState)]
    assert states[-1].status == "succeeded" and states[-1].step == 6
    assert any(isinstance(one, Sketch) for one in seen)
    assert isinstance(seen[-1], Drawn) and seen[-1].seed == 1
    with Image.open(io.BytesIO(seen[-1].png)) as picture:
        assert picture.size == (64, 64)


async def test_a_refusal_is_told_in_the_servers_words(
    endpoint: EndpointClient, shapes: Server
) -> None:
    with pytest.raises(EndpointError) as refused:
        async for _ in endpoint.draw(shapes.model, FAST | {"num_inference_steps": 9999}, KEY):
            pass
    assert "num_inference_steps: 9999 is above MAX_STEPS=150" in refused.value.message


async def test_a_session_cancels_its_own_boards_alone(
    endpoint: EndpointClient, shapes: Server
) -> None:
    long = PictureParameters(model=shapes.model, prompt="a", num_inference_steps=150, seed=1)
    mine, theirs = Board([Tile(long)], endpoint, KEY), Board([Tile(long)], endpoint, KEY)
    boards = Boards()
    async with (
        aclosing(boards.run("mine", mine)) as own,
        aclosing(boards.run("theirs", theirs)) as other,
    ):
        await anext(own)
        await anext(other)
        await boards.cancel("mine")
        async for _ in own:
            pass
        assert mine.tiles[0].problem == "cancelled" and mine.cancelled
        assert not theirs.tiles[0].ended
    assert theirs.tiles[0].problem == "cancelled", "a board that is left takes its job back"


async def test_readings_tell_steps_batches_and_memory(
    endpoint: EndpointClient, shapes: Server
) -> None:
    readings = Readings(endpoint)
    await readings.take()
    async for _ in endpoint.draw(shapes.model, FAST, KEY):
        pass
    page = await endpoint.metrics()
    readings.samples.append(MetricsSample.parse(page, readings.samples[0].at + 2))
    assert readings.step_times()[-1] > 0
    assert sum(calls for _, calls in readings.batch_sizes()) >= 6
    assert (readings.now("memory_used") or 0) > 0 and readings.now("running") == 0
    panel = machine(await endpoint.card(), readings, "")
    assert " ms</b>" in panel and "Memory plan" in panel and "Denoiser calls" in panel
