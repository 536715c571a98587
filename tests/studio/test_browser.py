"""The studio as people use it: a real browser, real servers, the built-in models, and pictures that
are judged by their pixels."""

from __future__ import annotations

import base64
import io
import re
from pathlib import Path
from typing import Any

import axe_core_python
import httpx
from PIL import Image
from playwright.sync_api import Locator, Page, expect

from atelier.builtin.shapes.checker import check, look
from atelier.studio.parameters import read_parameters
from tests.conftest import Server
from tests.studio.conftest import KEY, RunningStudio, Visit, wait_for

AXE = (Path(axe_core_python.__file__).parent / "axe.min.js").read_text()
AXE_RUN = """async options => {
  const found = await axe.run(document, { ...options, resultTypes: ["violations"] });
  return { violations: found.violations, passes: found.passes.length };
}"""
SCENE = "a large red circle above a small blue square"
PICTURE = "figure.picture img"

WATCH = """() => {
  window.sketches = new Set();
  window.told = new Set();
  new MutationObserver(() => {
    for (const image of document.querySelectorAll('.sketch img')) sketches.add(image.src);
    for (const line of document.querySelectorAll('.progress span')) told.add(line.textContent);
  }).observe(document.body, { subtree: true, childList: true, attributes: true });
}"""
"""Remember every unfinished picture and every line of progress that the page has shown."""


def number(tab: Locator, label: str, value: int) -> None:
    """Set a slider by the number beside it."""
    field = tab.get_by_label(f"number input for {label}")
    field.fill(str(value))
    field.blur()


def draw(page: Page, prompt: str, seed: int = 7, steps: int = 12) -> None:
    """Ask for a picture with this seed."""
    page.get_by_role("tab", name="Draw").click()
    tab = page.locator("#draw-tab")
    tab.get_by_label("Prompt", exact=True).fill(prompt)
    tab.get_by_label("Keep").check()
    tab.get_by_label("Seed", exact=True).fill(str(seed))
    number(tab, "Steps", steps)
    redraw(tab.get_by_role("button", name="Draw", exact=True), stage(page))


def redraw(button: Locator, place: Locator) -> None:
    """Press the button, and wait until what `place` showed before is gone: what comes next may be
    there already."""
    mark = "figures => figures.forEach(one => one.dataset.before = 'yes')"
    place.locator("figure").evaluate_all(mark)
    button.click()
    place.locator("figure[data-before]").first.wait_for(state="detached")


def drawn(place: Locator, index: int = 0) -> Image.Image:
    """A finished picture of the page."""
    return Image.open(io.BytesIO(data(place, index)))


def data(place: Locator, index: int = 0) -> bytes:
    shown = place.locator(PICTURE).nth(index)
    shown.wait_for()
    read = "async image => [...new Uint8Array(await (await fetch(image.src)).arrayBuffer())]"
    return bytes(shown.evaluate(read))


def running(server: Server) -> float:
    """Requests that the server's device works on."""
    page = httpx.get(f"{server.url}/metrics").text
    found = re.search(r"^atelier_requests_running (\S+)", page, re.M)
    assert found
    return float(found[1])


def history(page: Page, words: str) -> Locator:
    """What the history has with these words."""
    page.get_by_role("tab", name="History").click()
    return page.locator("#history figure", has_text=words)


def unfold(place: Page | Locator, title: str) -> None:
    """Open a part of the page, if it is closed."""
    button = place.get_by_role("button", name=title)
    if "open" not in (button.get_attribute("class") or "").split():
        button.click()


def asked(server: Server, prompt: str, seed: int | None) -> Image.Image:
    """The picture that the server draws for a program that asks for no more than this."""
    answer = httpx.post(
        f"{server.url}/v1/models/{server.model}:predict",
        json={"instances": [{"prompt": prompt, "seed": seed}]},
        headers={"Authorization": f"Bearer {KEY}"},
        timeout=60,
    )
    encoded = answer.json()["predictions"][0]["image"]["b64"]
    return Image.open(io.BytesIO(base64.b64decode(encoded)))


def stage(page: Page) -> Locator:
    return page.locator("#draw-stage")


def test_a_picture_is_seen_while_it_is_drawn_and_shows_what_was_asked(page: Page) -> None:
    page.evaluate(WATCH)
    draw(page, SCENE, steps=30)
    assert check(drawn(stage(page)), SCENE)
    assert len(page.evaluate("[...sketches]")) >= 2
    told = page.evaluate("[...told]")
    assert any(re.match(r"step \d+ of 30", line) for line in told), told
    assert any("s left" in line for line in told), told


def test_cancel_frees_the_device_and_so_does_a_page_that_is_closed(
    visit: Visit, shapes: Server
) -> None:
    page = visit()
    number(page.locator("#draw-tab"), "Pictures", 4)
    draw(page, SCENE, steps=150)
    wait_for(lambda: running(shapes) > 0, 20)
    page.locator("#draw-tab").get_by_role("button", name="Cancel").click()
    page.locator("#draw-progress", has_text="cancelled").wait_for()
    assert running(shapes) == 0
    draw(page, SCENE, steps=150)
    wait_for(lambda: running(shapes) > 0, 20)
    page.close()
    wait_for(lambda: running(shapes) == 0, 5)


def test_a_sheet_shows_its_axes_and_each_picture_is_kept(page: Page) -> None:
    tab = page.locator("#draw-tab")
    tab.get_by_label("Prompt", exact=True).fill(SCENE)
    tab.get_by_role("button", name="Contact sheet").click()
    tab.get_by_label("Values across").fill("7, 8")
    tab.get_by_label("Rows").click()
    page.get_by_role("option", name="steps", exact=True).click()
    tab.get_by_label("Values down").fill("3, 12")
    redraw(tab.get_by_role("button", name="Draw the sheet"), stage(page))
    sheet = drawn(stage(page))
    assert sheet.width > 256 and sheet.height > 256
    captions = stage(page).locator("figcaption").all_inner_texts()
    assert captions[0] == f"{SCENE}: steps by seed"
    assert [re.findall(r"seed (\d+).* (\d+) steps", caption)[0] for caption in captions[1:]] == [
        ("7", "3"), ("8", "3"), ("7", "12"), ("8", "12"),
    ]  # fmt: skip
    page.get_by_role("tab", name="History").click()
    page.locator("#history figure").nth(4).wait_for()


def test_a_picture_is_drawn_by_the_edges_of_another_and_enlarged(
    page: Page, tmp_path: Path
) -> None:
    draw(page, "a white star above a white heart on a black background", steps=20)
    first = data(stage(page))
    history(page, "a white star above a white heart").first.wait_for()
    page.get_by_role("tab", name="Draw").click()
    tab = page.locator("#draw-tab")
    unfold(tab, "Pictures to draw by")
    tab.get_by_role("button", name="Take the last one drawn").click()
    tab.get_by_role("img", name="Picture of Control 1").wait_for()
    assert tab.get_by_role("combobox", name="Control 1", exact=True).input_value() == "edges"
    choose(tab, "Control 1 reads the picture", "its edges (canny)")
    choose(tab, "Enlarge", "2 times")
    draw(page, "a yellow star above a red heart on a blue background", seed=8, steps=20)
    second = drawn(stage(page))
    assert second.size == (256, 256)
    assert places(second) == places(Image.open(io.BytesIO(first)))
    assert "2 times larger" in stage(page).locator("figcaption").inner_text()
    told = read_parameters(data(stage(page)))
    assert (told.upscale, told.upscaler) == (2, "x2")

    tab.get_by_role("button", name="Remove").click()
    choose(tab, "Enlarge", "as it is drawn")
    draw(page, "a yellow star above a red heart on a blue background", seed=8, steps=20)
    third = drawn(stage(page))
    assert third.size == (128, 128) and places(third) != places(second)
    (tmp_path / "own.txt").write_text("no picture")
    tab.get_by_label("Open a picture").set_input_files(tmp_path / "own.txt")
    tab.get_by_text("This file is no picture that a browser can show.").wait_for()
    (tmp_path / "own.png").write_bytes(first)
    tab.get_by_label("Open a picture").set_input_files(tmp_path / "own.png")
    tab.get_by_text("128 x 128 pixels").wait_for()
    tab.get_by_role("button", name="Remove").click()


def choose(tab: Locator, label: str, value: str) -> None:
    """Take an entry of a list."""
    tab.get_by_role("combobox", name=label, exact=True).click()
    tab.page.get_by_role("option", name=value, exact=True).click()


def places(picture: Image.Image) -> list[tuple[str | None, int, int]]:
    """What the checker sees, and where, in sixteenths."""
    seen = look(picture.convert("RGB"))[0]
    return sorted((one.shape, round(one.x / 8), round(one.y / 8)) for one in seen)


def test_a_painted_mask_changes_what_it_covers_and_leaves_the_rest(page: Page) -> None:
    draw(page, SCENE, steps=20)
    before = drawn(stage(page)).convert("RGB")
    stage(page).get_by_role("button", name="Edit").click()
    tab = page.locator("#edit-tab")
    tab.locator(".stage.loaded").wait_for()
    tab.get_by_role("slider", name="Brush").fill("40")
    mask = tab.locator("[data-part=mask]")
    box = mask.bounding_box()
    assert box
    for across, act in ((0.02, page.mouse.down), (0.98, page.mouse.up)):
        mask.hover(position={"x": box["width"] * across, "y": box["height"] * 0.85})
        act()
    wanted = "a large red circle above a small green star"
    tab.get_by_label("Prompt", exact=True).fill(wanted)
    tab.get_by_label("Keep").check()
    tab.get_by_label("Seed", exact=True).fill("3")
    number(tab, "Strength", 1)
    tab.get_by_role("button", name="Edit", exact=True).first.click()
    after = drawn(page.locator("#edit-stage")).convert("RGB")
    assert check(after, wanted)
    top = (0, 0, 128, 64)
    changed = [abs(a - b) for a, b in zip(
        before.crop(top).tobytes(), after.crop(top).tobytes(), strict=True)]  # fmt: skip
    assert sum(changed) / len(changed) < 6
    slider = page.get_by_label("Before and after")
    slider.fill("20")
    clip = "document.querySelector('#edit-stage .before')).clipPath"
    assert page.evaluate(f"getComputedStyle({clip}") == "inset(0px 80% 0px 0px)"


def test_a_mask_is_painted_with_keys_and_a_picture_grows_on_one_side(page: Page) -> None:
    draw(page, SCENE)
    stage(page).get_by_role("button", name="Edit").click()
    tab = page.locator("#edit-tab")
    tab.locator(".stage.loaded").wait_for()
    tab.locator("[data-part=mask]").focus()
    page.keyboard.press("ArrowLeft")
    page.keyboard.press(" ")
    assert page.evaluate("studio.canvas.payload().mask") is not None
    tab.get_by_role("button", name="Undo").click()
    assert page.evaluate("studio.canvas.payload().mask") is None
    tab.get_by_role("button", name="Right", exact=True).click()
    tab.get_by_text("192 x 128 pixels").wait_for()
    number(tab, "Steps", 6)
    tab.get_by_label("Prompt", exact=True).fill(SCENE)
    edited = page.locator("#edit-stage")
    redraw(tab.get_by_role("button", name="Edit", exact=True).first, edited)
    assert drawn(edited).size == (192, 128)


def test_a_chat_draws_a_picture_and_draws_its_words_when_told_to(
    page: Page, shapes: Server
) -> None:
    page.get_by_role("tab", name="Chat").click()
    chat = page.locator("#chat-tab")
    message = chat.get_by_role("textbox", name="Message")
    message.fill("Please draw a red circle above a blue square.")
    chat.get_by_role("button", name="Send").click()
    seen = drawn(chat)
    told = read_parameters(data(chat))
    assert told.prompt == "a red circle above a blue square"
    assert seen.tobytes() == asked(shapes, told.prompt, told.seed).tobytes()
    chat.get_by_text("Here is your picture: a red circle above a blue square.").wait_for()
    chat.get_by_label("The model may draw").uncheck()
    chat.get_by_role("button", name="New chat").click()
    chat.locator(".said").first.wait_for(state="detached")
    message.fill("something round and red over something blue")
    chat.get_by_role("button", name="Send").click()
    chat.get_by_text("a red circle above a blue circle").wait_for()
    chat.get_by_role("button", name="Draw it").click()
    assert read_parameters(data(chat)).prompt == "a red circle above a blue circle"
    page.get_by_role("tab", name="History").click()
    prompts = page.locator("#history figcaption b")
    page.locator("#history figcaption", has_text="above a blue circle").wait_for()
    assert prompts.all_inner_texts().count(told.prompt) == 1, "a picture is kept once"


def test_the_history_outlives_a_reload_and_is_one_browsers_own(page: Page, other: Page) -> None:
    mine, theirs = "a green star", "a purple star"
    draw(page, mine)
    first = data(stage(page))
    draw(other, theirs)
    for one, own, strange in ((page, mine, theirs), (other, theirs, mine)):
        history(one, own).wait_for()
        one.reload()
        history(one, own).wait_for()
        assert history(one, strange).count() == 0
    assert data(page.locator("#history")) == first


def test_a_saved_file_brings_back_what_drew_it(page: Page, other: Page, tmp_path: Path) -> None:
    draw(page, SCENE, seed=21, steps=5)
    with page.expect_download() as saving:
        stage(page).get_by_role("button", name="Download").click()
    assert saving.value.suggested_filename == "a-large-red-circle-above-a-small-blue-square-21.png"
    saving.value.save_as(tmp_path / "saved.png")
    told = read_parameters((tmp_path / "saved.png").read_bytes())
    assert (told.prompt, told.seed, told.num_inference_steps) == (SCENE, 21, 5)

    other.get_by_role("tab", name="History").click()
    other.get_by_label("Read a saved PNG").set_input_files(tmp_path / "saved.png")
    history(other, "seed 21, ").get_by_role("button", name="Again with these").click()
    tab = other.locator("#draw-tab")
    tab.get_by_label("Prompt", exact=True).wait_for()
    wait_for(lambda: tab.get_by_label("Seed", exact=True).input_value() == "21", 10)
    assert tab.get_by_label("Prompt", exact=True).input_value() == SCENE
    redraw(tab.get_by_role("button", name="Draw", exact=True), stage(other))
    assert data(stage(other)) == (tmp_path / "saved.png").read_bytes()


def test_an_endpoint_goes_away_and_comes_back(page: Page, studio: RunningStudio) -> None:
    draw(page, SCENE, steps=60)
    wait_for(lambda: running(studio.pictures) > 0, 20)
    studio.relay.go_away()
    try:
        stage(page).get_by_role("alert").wait_for()
        assert "cannot be reached" in stage(page).get_by_role("alert").inner_text()
        unfold(page, "Endpoints")
        page.locator(".endpoints .away").wait_for()
        page.get_by_role("button", name="Endpoints: 1 away, 1 ready").wait_for()
    finally:
        studio.relay.come_back()
    page.locator(".endpoints .ready").nth(1).wait_for()
    draw(page, SCENE, seed=7)
    assert check(drawn(stage(page)), SCENE)


def test_a_key_is_asked_for_and_entered(other: Page) -> None:
    unfold(other, "Endpoints")
    key = other.get_by_label("API key").first
    expect(key).to_have_value(KEY)  # shown a moment after the field, over whatever is typed first
    key.fill("")
    other.wait_for_function("!JSON.parse(sessionStorage.getItem('atelier-keys'))[0]")
    draw(other, SCENE)
    alert = stage(other).get_by_role("alert")
    alert.wait_for()
    assert alert.inner_text() == "an API key is needed: send the header Authorization: Bearer KEY"
    key.fill(KEY)
    draw(other, SCENE)
    assert drawn(stage(other)).size == (128, 128)


def test_the_studio_inside_a_server_draws_with_it(visit: Visit, shapes: Server) -> None:
    assert f"{shapes.url.rpartition(':')[2]}/studio" in shapes.log.read_text()
    led = httpx.get(f"{shapes.url}/")
    assert (led.status_code, led.headers["location"]) == (307, "/studio/")
    page = visit(shapes.url)
    draw(page, SCENE)
    assert check(drawn(stage(page)), SCENE)


def test_the_machine_is_seen_at_work(page: Page) -> None:
    draw(page, SCENE, steps=150)
    page.get_by_role("tab", name="Machine").click()
    machines = page.locator("#machines")
    machines.locator(".workers progress").first.wait_for()
    machines.locator(".number", has_text="Step time").get_by_text(re.compile(r"\d+ ms")).wait_for()
    told = machines.inner_text()
    assert "right on every CPU" in told, "the memory plan gives its reasons"
    assert "Qwen3ForCausalLM" in told
    page.get_by_role("tab", name="Draw").click()
    page.locator("#draw-tab").get_by_role("button", name="Cancel").click()


def test_axe_finds_nothing_serious_and_nothing_is_wider_than_a_phone(page: Page) -> None:
    page.add_style_tag(content="* { transition: none !important; }")  # colours, as they end up
    page.evaluate(AXE)
    draw(page, SCENE, steps=3)
    data(stage(page))
    unfold(page, "Endpoints")
    unfold(page.locator("#draw-tab"), "Contact sheet")
    unfold(page.locator("#draw-tab"), "More")
    unfold(page.locator("#draw-tab"), "Pictures to draw by")
    page.locator("#draw-tab").get_by_role("button", name="Take the last one drawn").click()
    page.get_by_role("img", name="Picture of Control 1").wait_for()
    found = faults(page, "Draw")
    for name in ("Edit", "Chat", "History", "Machine"):
        page.get_by_role("tab", name=name).click()
        if name == "Chat":
            page.get_by_label("The model may draw").uncheck()
            page.get_by_role("textbox", name="Message").fill("something round and red")
            page.get_by_role("button", name="Send").click()
            page.locator("#chat-tab .said", has_text="red circle").last.wait_for()
        elif name == "Machine":
            page.locator("#machines .plan").first.wait_for()
        else:
            page.locator(f"#{name.lower()}-tab [data-history] img").first.wait_for()
        found += faults(page, name)
    assert found == []


def faults(page: Page, name: str) -> list[str]:
    """What is wrong with a tab: light and wide by all rules, dark by what colours change; and what
    is wider than a phone."""
    found = serious(page, f"{name}, light", {})
    page.get_by_role("button", name="Light or dark").click()
    found += serious(page, f"{name}, dark", {"runOnly": ["color-contrast"]})
    page.set_viewport_size({"width": 390, "height": 844})
    wide = page.evaluate("document.documentElement.scrollWidth - innerWidth")
    page.get_by_role("button", name="Light or dark").click()
    page.set_viewport_size({"width": 1280, "height": 900})
    return found + ([f"{name}: {wide} pixels too wide"] if wide > 0 else [])


def serious(page: Page, name: str, options: dict[str, Any]) -> list[str]:
    """Serious violations that axe finds."""
    result = page.evaluate(AXE_RUN, options)
    assert result["passes"] > (0 if options else 20), "axe looked at the page"
    return [
        f"{name}: {one['id']}: {[node['html'][:160] for node in one['nodes']]}"
        for one in result["violations"]
        if one["impact"] in ("serious", "critical")
    ]
