"""The forms in which a checkpoint comes: one file, a weight variant, with adapters, with another
scheduler."""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterator
from pathlib import Path

import diffusers
import pytest
import torch
from diffusers import (
    AutoPipelineForImage2Image,
    AutoPipelineForInpainting,
    DiffusionPipeline,
    FluxKontextPipeline,
    LCMScheduler,
    StableDiffusionPipeline,
)
from diffusers.models.attention_dispatch import _AttentionBackendRegistry
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict
from PIL import Image

from atelier.errors import SettingsError
from atelier.images.model import ImageModel
from atelier.settings import Settings
from tests.gallery import Pixels, difference, draw_bare, showing
from tests.original_layout import save_original
from tests.protocols.pictures import striped, white_box
from tests.tiny_flux import flux_kontext
from tests.tiny_pipelines import stable_diffusion_1, stable_diffusion_xl

FIELDS = {"prompt": "a red cat", "seed": 5, "num_inference_steps": 4, "width": 32, "height": 32}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return stable_diffusion_1(tmp_path_factory.mktemp("checkpoints"))


@pytest.fixture(scope="module")
def bare(folder: Path) -> Iterator[DiffusionPipeline]:
    pipeline = DiffusionPipeline.from_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    yield pipeline


@pytest.fixture(scope="module")
def plain(bare: DiffusionPipeline) -> Pixels:
    """What the checkpoint draws as it is."""
    return draw_bare(bare, **FIELDS)


def test_a_single_file_draws_what_its_folder_draws(
    folder: Path, plain: Pixels, tmp_path: Path
) -> None:
    file = save_original(folder, tmp_path / "model.safetensors")
    with showing(file, single_file_config=str(folder)) as exhibit:
        assert exhibit.model.name == "model"
        assert difference(exhibit.draw(FIELDS)[0], plain) <= 1


def test_the_only_variant_of_a_checkpoint_is_found(
    bare: DiffusionPipeline, plain: Pixels, tmp_path: Path
) -> None:
    half = StableDiffusionPipeline(**{**bare.components}, requires_safety_checker=False)
    half.save_pretrained(tmp_path / "half", variant="fp16")
    with showing(tmp_path / "half") as exhibit:
        assert difference(exhibit.draw(FIELDS)[0], plain) <= 1


def test_a_scheduler_by_name_serves_every_request(folder: Path, bare: DiffusionPipeline) -> None:
    few = StableDiffusionPipeline.from_pipe(bare)
    few.scheduler = LCMScheduler.from_config(bare.scheduler.config)
    few.set_progress_bar_config(disable=True)
    with showing(folder, scheduler="LCMScheduler") as exhibit:
        assert difference(exhibit.draw(FIELDS)[0], draw_bare(few, **FIELDS)) <= 1


def test_every_scheduler_on_offer_draws_what_it_draws_alone(
    folder: Path, bare: DiffusionPipeline
) -> None:
    with showing(folder, max_images_per_request=64, max_batch_size=64) as exhibit:
        refusal = exhibit.post(FIELDS | {"scheduler": "NoScheduler"})
        assert refusal.status_code == 400
        names = refusal.json()["error"].split("allowed: ")[1].split(", ")
        assert len(names) > 10
        drawn = exhibit.draw(*({"scheduler": name} for name in names), **FIELDS)
    for name, picture in zip(names, drawn, strict=True):
        pipeline = StableDiffusionPipeline.from_pipe(bare)
        pipeline.scheduler = getattr(diffusers, name).from_config(bare.scheduler.config)
        pipeline.set_progress_bar_config(disable=True)
        assert difference(picture, draw_bare(pipeline, **FIELDS)) <= 1, name


def test_a_scheduler_of_another_kind_stops_the_start(folder: Path) -> None:
    model = ImageModel(
        Settings(model_id=str(folder), scheduler="FlowMatchEulerDiscreteScheduler", device="cpu")
    )
    with pytest.raises(SettingsError, match=r"SCHEDULER.*allowed: .*DDIMScheduler"):
        model.load()


def test_another_attention_kernel_draws_the_same_picture(tmp_path: Path) -> None:
    folder = flux_kontext(tmp_path / "flux")
    default = _AttentionBackendRegistry.get_active_backend()[0]
    try:
        with showing(folder) as exhibit:
            plain = exhibit.draw(FIELDS)[0]
        with showing(folder, attention_backend="torch-math") as exhibit:
            kernels = {
                block.attn.processor._attention_backend.value
                for block in exhibit.model._family.base.transformer.transformer_blocks
            }
            assert kernels == {"_native_math"}
            assert difference(exhibit.draw(FIELDS)[0], plain) <= 1
    finally:
        _AttentionBackendRegistry.set_active_backend(
            default
        )  # diffusers keeps one for the whole process


def test_an_attention_kernel_that_cannot_be_used_stops_the_start(
    folder: Path, tmp_path: Path
) -> None:
    """One that the architecture has no place for, one whose package is missing, and one of another
    device."""
    model = ImageModel(
        Settings(model_id=str(folder), device="cpu", attention_backend="torch-flash")
    )
    with pytest.raises(
        SettingsError,
        match=r"ATTENTION_BACKEND=torch-flash: UNet2DConditionModel .* set it to auto",
    ):
        model.load()
    flux = flux_kontext(tmp_path / "flux")
    default = _AttentionBackendRegistry.get_active_backend()[0]
    try:
        for backend in ("flash-attn-3", "torch-cudnn"):
            model = ImageModel(
                Settings(model_id=str(flux), device="cpu", attention_backend=backend)
            )
            with pytest.raises(
                SettingsError, match=f"ATTENTION_BACKEND={backend} cannot be used here"
            ):
                model.load()
    finally:
        _AttentionBackendRegistry.set_active_backend(default)


def test_an_adapter_changes_the_picture_of_those_who_name_it(
    folder: Path, plain: Pixels, tmp_path: Path
) -> None:
    adapted = _with_adapter(folder, tmp_path / "loud")
    with showing(folder, lora_paths=[str(tmp_path)]) as exhibit:
        loud, without = exhibit.draw(FIELDS | {"lora": {"loud": 1.0}}, FIELDS)
        assert difference(without, plain) <= 1
        assert difference(loud, adapted) <= 1
        assert difference(loud, without) > 10
        assert exhibit.post(FIELDS | {"lora": {"../loud": 1.0}}).status_code == 400


def _with_adapter(folder: Path, adapter: Path) -> Pixels:
    """Make a LoRA folder with random weights; what diffusers draws with it."""
    trained = DiffusionPipeline.from_pretrained(folder).unet
    trained.add_adapter(
        LoraConfig(r=4, target_modules=["to_q", "to_k", "to_v"], init_lora_weights=False)
    )
    for name, weight in trained.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(weight, std=0.5)
    StableDiffusionPipeline.save_lora_weights(
        adapter, unet_lora_layers=get_peft_model_state_dict(trained)
    )
    pipeline = DiffusionPipeline.from_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    pipeline.load_lora_weights(adapter)
    return draw_bare(pipeline, **FIELDS)


@pytest.mark.parametrize("build", [stable_diffusion_1, stable_diffusion_xl])
def test_image_to_image_and_inpainting_draw_what_diffusers_draws(
    build: Callable[[Path], Path], tmp_path: Path
) -> None:
    checkpoint = build(tmp_path)
    image, mask = striped((32, 32)), white_box((8, 8, 24, 24), (32, 32))
    (tmp_path / "image.png").write_bytes(image)
    (tmp_path / "mask.png").write_bytes(mask)
    given = FIELDS | {"strength": 0.7, "num_inference_steps": 5}
    sent = given | {"image": _text(image)}
    pictures = {
        "image": Image.open(tmp_path / "image.png"),
        "mask_image": Image.open(tmp_path / "mask.png"),
    }

    def expected(auto: type, **more: object) -> Pixels:
        pipeline = auto.from_pipe(DiffusionPipeline.from_pretrained(checkpoint))
        pipeline.set_progress_bar_config(disable=True)
        return draw_bare(pipeline, **given, **more)

    with showing(checkpoint) as exhibit:
        other = sent | {"seed": 6, "strength": 1.0}
        [drawn, _] = exhibit.draw(sent, other)
        assert difference(drawn, expected(AutoPipelineForImage2Image, image=pictures["image"])) <= 1
        [filled, _] = exhibit.draw(
            sent | {"mask_image": _text(mask)}, other | {"mask_image": _text(mask)}
        )
        assert difference(filled, expected(AutoPipelineForInpainting, **pictures)) <= 1


def _text(data: bytes) -> str:
    return base64.b64encode(data).decode()


def test_kontext_takes_pictures_of_any_size_and_draws_the_size_asked_for(tmp_path: Path) -> None:
    checkpoint = flux_kontext(tmp_path)
    fields = FIELDS | {"guidance_scale": 3.0, "width": 64, "height": 48, "_auto_resize": False}
    (tmp_path / "image.png").write_bytes(striped((48, 32)))
    bare = FluxKontextPipeline.from_pretrained(checkpoint)
    bare.set_progress_bar_config(disable=True)
    expected = draw_bare(bare, **fields, image=Image.open(tmp_path / "image.png"), max_area=64 * 48)
    assert expected.shape == (48, 64, 3)
    with showing(checkpoint) as exhibit:
        assert (
            difference(exhibit.draw(fields | {"image": _text(striped((48, 32)))})[0], expected) <= 1
        )
