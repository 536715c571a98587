"""The upscaler of the built-in pictures: nearer to the scene than resampling, for the checker the
same picture, trained alike twice, and served by itself and among other requests."""

from __future__ import annotations

import base64
import io
import json
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL
from PIL import Image
from torch.nn import functional as F

from atelier.builtin.shapes import train_upscaler
from atelier.builtin.shapes.checker import check
from atelier.builtin.shapes.enlarger import WEIGHTS, build_network, enlarge, enlarged, load_network
from atelier.builtin.shapes.evaluate import held_out_cases
from atelier.builtin.shapes.evaluate_upscaler import RESAMPLED, accepted, mean_psnr
from atelier.builtin.shapes.resolution import SizedCase, psnr, sized_cases
from atelier.builtin.shapes.scene import is_held_out
from atelier.builtin.shapes.train_upscaler import UpscalerOptions, make_crops
from atelier.images.upscaler_networks import read_network
from atelier.sources.checkpoint.upscaler import inspect_upscaler
from tests.conftest import Server, StartServer
from tests.gallery import Pixels, difference, pixels

SCENE = "a large red circle above a small blue square on a yellow background"
FAST = {"num_inference_steps": 12, "guidance_scale": 4.0, "max_sequence_length": 32}


@pytest.fixture(scope="module")
def network() -> torch.nn.Sequential:
    return load_network()


@pytest.fixture(scope="module")
def painted() -> list[SizedCase]:
    return sized_cases(24)


@pytest.fixture(scope="module")
def autoencoded() -> list[SizedCase]:
    return sized_cases(24, vae=AutoencoderKL.from_pretrained(train_upscaler.VAE))


def test_it_comes_nearer_to_the_scene_than_resampling(
    network: torch.nn.Sequential, painted: list[SizedCase], autoencoded: list[SizedCase]
) -> None:
    for cases, margin in ((painted, 8.0), (autoencoded, 4.0)):
        assert all(is_held_out(case.scene) for case in cases)
        made = mean_psnr(cases, lambda one: enlarged(network, one))
        assert made > max(mean_psnr(cases, one) for one in RESAMPLED.values()) + margin


def test_the_checker_accepts_what_it_accepted_before(
    network: torch.nn.Sequential, autoencoded: list[SizedCase]
) -> None:
    for case in autoencoded:
        if check(case.small, case.scene):
            assert check(enlarged(network, case.small), case.scene)


def test_a_picture_is_nearest_to_itself() -> None:
    one, other = sized_cases(2)
    assert psnr(one.large, one.large) == float("inf")
    assert psnr(one.large, other.large) < 20
    grey = Image.fromarray(np.full((4, 4, 3), 100, np.uint8))
    lighter = Image.fromarray(np.full((4, 4, 3), 101, np.uint8))
    assert psnr(grey, lighter) == pytest.approx(48.13, abs=0.01)


def test_an_untrained_one_repeats_every_pixel() -> None:
    rows = torch.rand(2, 3, 5, 7)
    with torch.no_grad():
        assert torch.equal(enlarge(build_network(), rows), F.interpolate(rows, scale_factor=2))


def test_crops_lie_at_outlines_and_are_of_one_place() -> None:
    small, large = make_crops(UpscalerOptions(scenes=8, steps=0, batch=1, seed=3))
    assert len(small) == 8 * train_upscaler.CROPS
    shrunk = F.avg_pool2d(large.float(), 2)
    assert (shrunk - small.float()).abs().max() <= 1.5
    assert all(len(one.flatten(1).unique(dim=1).T) > 1 for one in small)


def test_a_second_training_gives_the_same_file(tmp_path: Path) -> None:
    options = UpscalerOptions(scenes=17, steps=3, batch=2, seed=5)
    threads = torch.get_num_threads()
    for name in ("one", "two"):
        train_upscaler.main(options, tmp_path / name)
    torch.set_num_threads(threads)
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()
    fresh = enlarge(build_network(), torch.rand(1, 3, 8, 8))
    assert not torch.equal(enlarge(load_network(tmp_path / "one"), torch.rand(1, 3, 8, 8)), fresh)


def test_the_server_reads_the_same_network(network: torch.nn.Sequential) -> None:
    file = inspect_upscaler("x2", WEIGHTS.parent)
    assert (file.kind, file.scale) == ("compact", 2)
    rows = torch.rand(1, 3, 20, 24)
    with torch.no_grad():
        assert torch.allclose(read_network(file)(rows), enlarge(network, rows), atol=1e-6)


@pytest.fixture(scope="module")
def shapes(start_server: StartServer) -> Iterator[Server]:
    with start_server(
        model_name="shapes",
        upscalers="builtin/shapes/x2",
        controlnets="edges=builtin/shapes/edges",
        log_format="json",
    ) as running:
        yield running


def drawn(server: Server, **fields: Any) -> Pixels:
    answer = httpx.post(
        f"{server.url}/v1/models/shapes:predict",
        json={"instances": [{"prompt": SCENE, "seed": 7, **FAST, **fields}]},
        timeout=60,
    )
    assert answer.status_code == 200, answer.text
    return pixels(base64.b64decode(answer.json()["predictions"][0]["image"]["b64"]))


def png(picture: Pixels) -> bytes:
    file = io.BytesIO()
    Image.fromarray(picture).save(file, "PNG")
    return file.getvalue()


def sent(server: Server, picture: Pixels) -> Pixels:
    answer = httpx.post(
        f"{server.url}/v1/images/upscale",
        data={"upscale": "2"},
        files={"image": png(picture)},
        timeout=60,
    )
    assert answer.status_code == 200, answer.text
    return pixels(base64.b64decode(answer.json()["data"][0]["b64_json"]))


def test_pictures_are_enlarged_alone_and_among_others(
    shapes: Server, network: torch.nn.Sequential
) -> None:
    plain, large = drawn(shapes), drawn(shapes, upscale=2)
    assert (plain.shape, large.shape) == ((128, 128, 3), (256, 256, 3))
    assert difference(large, np.asarray(enlarged(network, Image.fromarray(plain)))) <= 2
    enlarged_file = sent(shapes, plain)
    assert difference(enlarged_file, large) <= 2
    asked = [
        lambda: drawn(shapes),
        lambda: drawn(shapes, upscale=2),
        lambda: sent(shapes, plain),
        lambda: drawn(shapes, upscale=2, upscaler="x2"),
        lambda: sent(shapes, plain),
    ]
    with ThreadPoolExecutor(len(asked)) as at_once:
        mixed = list(at_once.map(lambda ask: ask(), asked))
    alone = [plain, large, enlarged_file, large, enlarged_file]
    assert all(difference(*pair) <= 1 for pair in zip(mixed, alone, strict=True))


def test_the_checker_accepts_what_is_served(shapes: Server) -> None:
    cases = held_out_cases(3)
    plain, large = (
        [
            Image.fromarray(drawn(shapes, prompt=case.prompt, seed=case.seed, **how))
            for case in cases
        ]
        for how in ({}, {"upscale": 2})
    )
    seen = dict(zip(map(id, plain), large, strict=True))
    told = accepted(cases, plain, lambda one: seen[id(one)])
    assert told["both"] == told["before"] > 0


def test_metrics_and_logs_tell_of_upscaling_and_control(shapes: Server) -> None:
    edges = base64.b64encode(png(drawn(shapes))).decode()
    control = [{"name": "edges", "image": edges, "preprocess": "canny"}]
    drawn(shapes, control=control, upscale=2)
    page = httpx.get(f"{shapes.url}/metrics").text
    for stage in ("control", "upscale"):
        found = re.search(rf'atelier_step_seconds_count{{[^}}]*stage="{stage}"[^}}]*}} (\S+)', page)
        assert found and float(found[1]) >= 1, stage
        assert 'worker="0"' in found[0]
        assert f'atelier_batch_rows_count{{stage="{stage}"}}' in page
    lines = [json.loads(one) for one in shapes.log.read_text().splitlines() if one.startswith("{")]
    ended = [one for one in lines if one.get("logger") == "atelier.requests"][-1]
    assert {"queue_seconds", "control_seconds", "denoise_seconds", "upscale_seconds"} <= set(ended)
    assert 0 < ended["upscale_seconds"] < ended["seconds"]
    told = httpx.get(f"{shapes.url}/v2/models/shapes").json()["properties"]
    assert (told["controls"], told["upscalers"]) == (["edges"], {"x2": 2})
    reserved = told["memory_plan"]["reserved_bytes"]
    assert reserved["UPSCALERS"] > 0 and reserved["CONTROLNETS"] > 0
    summary = "\n".join(str(one) for one in lines)
    assert "UPSCALERS" in summary
