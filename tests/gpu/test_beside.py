"""What stands beside a pipeline, on a GPU: weighted prompts, image prompts, enlarged pictures and
the content filter give what they give on a processor, as far as its dtype can say it.

`TEST_DEVICE=cpu` runs the same on a processor, to try the tests themselves.
"""

from __future__ import annotations

import io
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
DEVICE = os.environ.get("TEST_DEVICE", "cuda")
if DEVICE == "cuda" and not torch.cuda.is_available():
    pytest.skip("no CUDA device here", allow_module_level=True)


from atelier.errors import ContentRefused  # noqa: E402
from atelier.images.classifiers import PictureClassifier  # noqa: E402
from atelier.images.content_filter import ContentFilter  # noqa: E402
from atelier.images.request import ImageRequest  # noqa: E402
from atelier.images.upscalers import Upscaler  # noqa: E402
from atelier.settings import Settings  # noqa: E402
from atelier.sources.checkpoint.classifier import classifiers  # noqa: E402
from atelier.sources.checkpoint.upscaler import TILE, inspect_upscaler  # noqa: E402
from tests.gpu.drawing import Pictures, pictures_of  # noqa: E402
from tests.images.test_controls import drawn  # noqa: E402
from tests.tiny_classifiers import picture_classifier, prompt_classifier  # noqa: E402
from tests.tiny_controls import CHECKPOINTS, ip_adapter  # noqa: E402
from tests.tiny_upscalers import compact, esrgan, whole  # noqa: E402

FIELDS: dict[str, Any] = {"prompt": "a cup", "num_inference_steps": 4, "width": 64, "height": 64}


@pytest.fixture(autouse=True)
def one_noise_for_all_dtypes(monkeypatch: pytest.MonkeyPatch) -> None:
    """A seed's noise as float32 draws it, rounded. torch 2.11 draws other noise in bfloat16, and
    pictures of two dtypes would be of two seeds."""
    draw = torch.randn

    def randn(*size: Any, dtype: Any = None, **more: Any) -> Any:
        return draw(*size, **more).to(dtype or torch.get_default_dtype())

    monkeypatch.setattr(torch, "randn", randn)


def apart(one: np.ndarray[Any, Any], other: np.ndarray[Any, Any]) -> float:
    """Grey levels by which two pictures differ on average."""
    assert one.shape == other.shape
    return float(np.abs(one.astype(int) - other.astype(int)).mean())


def assert_as_on_a_processor(
    checkpoint: Path, dtype: str, wanted: list[dict[str, Any]], **beside: Any
) -> Pictures:
    """Each picture is no further from float32's on a processor than twice what bfloat16 takes it
    away there, and a grey level: a GPU adds in another order, which is as good as other rounding,
    and no dtype rounds more coarsely (convolutions of float32 have TF32's eleven bits, bfloat16 has
    eight). And it is nearer to its own than to that of any other request."""
    exact = pictures_of(checkpoint, "cpu", "float32", wanted, **beside)
    coarse = pictures_of(checkpoint, "cpu", "bfloat16", wanted, **beside)
    made = pictures_of(checkpoint, DEVICE, dtype, wanted, **beside)
    for index, picture in enumerate(made):
        bound = 2 * apart(coarse[index], exact[index]) + 1
        near = apart(picture, exact[index])
        assert near <= bound, f"{index}: {near:.2f} levels, bound {bound:.2f}"
        others = [apart(picture, one) for place, one in enumerate(exact) if place != index]
        assert near < min(others), f"{index}: {near:.2f} levels, another is at {min(others):.2f}"
    return made


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("family", ["sd15", "sdxl", "sd3", "flux"])
def test_weighted_prompts(family: str, dtype: str, tmp_path: Path) -> None:
    weighted = FIELDS | {"prompt_syntax": "weighted", "seed": 3}
    texts = "(some letters, blue and red)5, a (cup)0.2", "a cup on a hill, " * 8 + "(green)4"
    wanted = [weighted | {"prompt": text} for text in texts]
    assert_as_on_a_processor(CHECKPOINTS[family](tmp_path), dtype, wanted)


@pytest.mark.skipif(DEVICE == "cpu", reason="nothing is moved on a processor")
@pytest.mark.parametrize("family", ["sdxl", "sd3", "flux"])
def test_weighted_prompts_of_encoders_that_are_moved(family: str, tmp_path: Path) -> None:
    """With weights in main memory the encoders come to the device for their calls alone."""
    text = {"prompt": "a (cup)2, (red)0.5", "prompt_syntax": "weighted", "seed": 3}
    checkpoint = CHECKPOINTS[family](tmp_path)
    wanted = [FIELDS | text]
    stays, moved = (
        pictures_of(checkpoint, DEVICE, "float32", wanted, enable_cpu_offload=offload)[0]
        for offload in ("false", "true")
    )
    assert np.abs(stays.astype(int) - moved.astype(int)).max() <= 1


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("family", ["sd15", "sdxl", "sd3", "flux"])
def test_image_prompts(family: str, dtype: str, tmp_path: Path) -> None:
    checkpoint = CHECKPOINTS[family](tmp_path)
    file = ip_adapter(checkpoint, tmp_path / "ip", "look.safetensors", 2)

    def entry(kind: str) -> dict[str, Any]:
        out = io.BytesIO()
        drawn(kind, 64).save(out, "PNG")
        return {"name": "look", "image": out.getvalue(), "weight": 0.8}

    prompted: list[dict[str, Any]] = [
        {},
        *({"image_prompt": [entry(k)]} for k in ("slope", "rows")),
    ]
    wanted = [FIELDS | one | {"seed": 3} for one in prompted]
    assert_as_on_a_processor(checkpoint, dtype, wanted, ip_adapters=str(file))


def noise(height: int, width: int) -> np.ndarray[Any, Any]:
    return np.random.default_rng(1).integers(0, 255, (height, width, 3), dtype=np.uint8)


@pytest.mark.parametrize("make", [esrgan, compact])
def test_tiles_are_the_picture_of_one_piece(make: Any, tmp_path: Path) -> None:
    """Against the network in one piece on a processor. TF32's ten bits are half a grey level of
    a layer's values; through a score of layers that add up like noise, two levels."""
    file = make(tmp_path / "network.safetensors")
    picture = noise(TILE + 40, 2 * TILE + 30)
    upscaler = Upscaler(inspect_upscaler("one", file), DEVICE)
    with torch.no_grad():
        made = upscaler.enlarged(torch.from_numpy(picture) / 255)
    assert made.device.type == DEVICE
    levels = (made * 255).round().to(torch.uint8).cpu().numpy()
    exact = whole(file, picture)
    assert levels.shape == exact.shape
    assert np.abs(levels.astype(int) - exact.astype(int)).max() <= 2


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_drawn_pictures_are_enlarged(dtype: str, tmp_path: Path) -> None:
    """Networks compute in float32 whatever the model does, so what is drawn in halves is enlarged
    as exactly: within two levels of what a processor makes of the same picture."""
    checkpoint = CHECKPOINTS["sd15"](tmp_path)
    file = esrgan(tmp_path / "sharp.safetensors")
    one = FIELDS | {"seed": 3, "width": 208, "height": 40}
    drawn_alone, enlarged = pictures_of(
        checkpoint, DEVICE, dtype, [one, one | {"upscale": 4}], upscalers=str(file)
    )
    exact = whole(file, drawn_alone)
    # the network is given the picture before it is cut to 256 levels
    assert apart(enlarged, exact) <= 2
    wanted = [one | {"upscale": 4, "seed": seed} for seed in (3, 4)]
    assert_as_on_a_processor(checkpoint, dtype, wanted, upscalers=str(file))


def settings_of(folder: Path, least: float, action: str) -> dict[str, Any]:
    return {
        "safety_checker": str(folder),
        "safety_labels": f"nsfw={least}",
        "safety_action": action,
    }


def test_the_content_filter_judges_as_on_a_processor(tmp_path: Path) -> None:
    """Scores in float32: TF32 and another order of sums move a logit of a two-layer ViT by less
    than 0.02, and its share by less than half of that."""
    folder = picture_classifier(tmp_path / "checker")
    given = Settings(**settings_of(folder, 0.5, "flag"))
    pixels = torch.rand(6, 48, 64, 3, generator=torch.Generator().manual_seed(1))
    found = []
    for device in ("cpu", DEVICE):
        classifier = PictureClassifier(classifiers(given)["SAFETY_CHECKER"], device)
        with torch.no_grad():
            found.append(classifier.scores(classifier.prepare(pixels.to(device))).cpu())
    assert float((found[0] - found[1]).abs().max()) < 0.01
    assert float(found[0][:, 1].std()) > 0.01  # the pictures do differ by them


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_what_is_filtered_is_blurred_on_the_device(dtype: str, tmp_path: Path) -> None:
    checkpoint = CHECKPOINTS["sd15"](tmp_path)
    folder = picture_classifier(tmp_path / "checker")
    wanted = [FIELDS | {"seed": seed} for seed in (1, 2)]
    for least in (0.001, 1.0):  # everything has the label, and nothing has
        filtered = settings_of(folder, least, "blur")
        made = assert_as_on_a_processor(checkpoint, dtype, wanted, **filtered)
        plain = pictures_of(checkpoint, DEVICE, dtype, wanted)
        for one, other in zip(made, plain, strict=True):
            assert (apart(one, other) > 1) == (least < 1)


def test_a_prompt_is_judged_on_the_device(tmp_path: Path) -> None:
    folder = prompt_classifier(tmp_path / "prompts")
    given = Settings(prompt_checker=str(folder), prompt_labels="violence=0.5")
    guarding = ContentFilter(given, DEVICE, lambda *told: None)
    with torch.no_grad():
        for text, bad in (("a cat on the hill", False), ("a cat on blood", True)):
            guard = guarding.guard(ImageRequest(prompt=text))
            assert guard is not None
            if bad:
                with pytest.raises(ContentRefused, match="violence"):
                    guard.check_prompt()
            else:
                guard.check_prompt()
