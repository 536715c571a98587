"""LoRA adapters per request: found by name, loaded when first used, shared by equal requests, gone
without a trace."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline, StableDiffusionPipeline
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict
from safetensors.torch import save_file

from atelier.errors import CheckpointError, InvalidRequest, SettingsError
from atelier.events import Event, Failed, Finished, Image
from atelier.images import adapters as finding
from atelier.images.adapters import Adapters
from atelier.images.model import ImageModel
from atelier.images.request import ImageRequest
from atelier.settings import load_settings
from atelier.sources.adapters import LORA_FILE, AdapterSource, fetch_adapters
from tests.gallery import batch_always
from tests.tiny_pipelines import stable_diffusion_1

FIELDS: dict[str, Any] = {
    "prompt": "a cat",
    "num_inference_steps": 3,
    "width": 32,
    "height": 32,
    "guidance_scale": 4.0,
}
ATTENTION = ["to_q", "to_k", "to_v", "to_out.0"]
CLIP_ATTENTION = ["q_proj", "v_proj"]


def save_adapter(checkpoint: Path, folder: Path, file: str, seed: int, text: bool = False) -> None:
    """An adapter of random weights: of the denoiser, or of the text encoder."""
    torch.manual_seed(seed)
    pipeline: Any = DiffusionPipeline.from_pretrained(checkpoint)
    module, targets = (
        (pipeline.text_encoder, CLIP_ATTENTION) if text else (pipeline.unet, ATTENTION)
    )
    module.add_adapter(
        LoraConfig(r=4, lora_alpha=16, target_modules=targets, init_lora_weights=False)
    )
    layers = {
        "text_encoder_lora_layers" if text else "unet_lora_layers": get_peft_model_state_dict(
            module
        )
    }
    StableDiffusionPipeline.save_lora_weights(folder, weight_name=file, **layers)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return stable_diffusion_1(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def folder(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`ink` and `oil` change the denoiser, `words` the text encoder, `broken` has the names of an
    adapter and shapes of nothing."""
    root = tmp_path_factory.mktemp("loras")
    save_adapter(checkpoint, root, "ink.safetensors", 1)
    save_adapter(checkpoint, root / "oil", LORA_FILE, 2)
    save_adapter(checkpoint, root, "arid.safetensors", 4)  # before `broken` in the order of names
    save_adapter(checkpoint, root, "words.safetensors", 3, text=True)
    layer = "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"
    mismatched = {f"{layer}.lora_A.weight": (2, 7), f"{layer}.lora_B.weight": (5, 3)}
    save_tensors(root / "broken.safetensors", mismatched)
    return root


def save_tensors(path: Path, shapes: dict[str, tuple[int, ...]]) -> None:
    save_file({name: torch.zeros(shape) for name, shape in shapes.items()}, path)


FILES = {"ink": "ink.safetensors", "oil": f"oil/{LORA_FILE}", "words": "words.safetensors"}


def sources(*paths: Path) -> list[AdapterSource]:
    """What LORA_PATHS of these paths brings."""
    return fetch_adapters(load_settings(lora_paths=[str(path) for path in paths]))


def discover(*paths: Path) -> dict[str, Path]:
    return finding.discover(sources(*paths))


class Studio:
    """A loaded model, and plain diffusers beside it to compare with."""

    def __init__(self, checkpoint: Path, folder: Path, **settings: Any) -> None:
        self.checkpoint, self.folder = checkpoint, folder
        given = {"device": "cpu", "lora_paths": [str(folder)], "max_loras": 8} | settings
        self.settings = load_settings(model_id=str(checkpoint), **given)
        self.model = ImageModel(self.settings)
        self.model.load()
        batch_always(self.model)
        self.calls: list[int] = []
        self.model._observer.call = lambda stage, s, shape, rows, requests: (  # type: ignore[method-assign]
            self.calls.append(requests) if stage == "denoise" else None
        )

    def draw(self, *wanted: dict[str, Any]) -> list[list[Event]]:
        """All requests at once."""

        async def all_of_them() -> list[list[Event]]:
            requests = [ImageRequest.parse(FIELDS | fields, self.settings) for fields in wanted]
            streams = [await self.model.submit(request) for request in requests]
            return await asyncio.gather(*(self._watch(stream) for stream in streams))

        self.calls.clear()
        return asyncio.run(all_of_them())

    @staticmethod
    async def _watch(stream: Any) -> list[Event]:
        return [event async for event in stream]

    def alone(self, lora: dict[str, float], **fields: Any) -> np.ndarray[Any, Any]:
        """The picture of a fresh diffusers pipeline with these adapters."""
        arguments = FIELDS | fields
        seed = arguments.pop("seed")
        pipeline: Any = DiffusionPipeline.from_pretrained(self.checkpoint)
        pipeline.set_progress_bar_config(disable=True)
        for name in lora:
            file = self.folder / FILES[name]
            pipeline.load_lora_weights(file.parent, weight_name=file.name, adapter_name=name)
        if lora:
            pipeline.set_adapters(list(lora), list(lora.values()))
        output = pipeline(
            **arguments, output_type="np", generator=torch.Generator("cpu").manual_seed(seed)
        ).images[0]
        return np.asarray((output * 255).round())


@pytest.fixture(scope="module")
def studio(checkpoint: Path, folder: Path) -> Iterator[Studio]:
    made = Studio(checkpoint, folder)
    yield made
    made.model.close()


def pixels(events: list[Event]) -> np.ndarray[Any, Any]:
    assert isinstance(events[-1], Finished), events[-1]
    (picture,) = [event for event in events if isinstance(event, Image)]
    return (
        np.frombuffer(picture.pixels, np.uint8)
        .reshape(picture.height, picture.width, 3)
        .astype(float)
    )


def failure(events: list[Event]) -> Exception:
    last = events[-1]
    assert isinstance(last, Failed)
    return last.error


def test_each_set_of_adapters_draws_what_plain_diffusers_draws(studio: Studio) -> None:
    sets: list[dict[str, float]] = [
        {},
        {"ink": 1.0},
        {"words": 1.0},
        {"oil": 0.5},
        {"ink": 0.7, "oil": -0.4},
        {"ink": 0.3, "words": 1.0},
        {"ink": 1.0},
        {},
    ]
    plain = studio.alone({}, seed=5)
    for lora in sets:
        expected = studio.alone(lora, seed=5)
        [events] = studio.draw({"seed": 5, "lora": lora})
        assert np.abs(pixels(events) - expected).max() <= 1, lora
        assert (np.abs(expected - plain).max() > 3) == bool(lora), f"{lora} must change the picture"


def test_requests_of_several_sets_at_once_keep_their_own(studio: Studio) -> None:
    wanted: list[dict[str, Any]] = [
        {"seed": 1, "lora": {"ink": 1.0}},
        {"seed": 2, "lora": {}},
        {"seed": 3, "lora": {"oil": 1.0}},
        {"seed": 4, "lora": {"ink": 1.0}},
        {"seed": 5, "lora": {"ink": 0.5}},
    ]
    for fields, events in zip(wanted, studio.draw(*wanted), strict=True):
        assert (
            np.abs(pixels(events) - studio.alone(fields["lora"], seed=fields["seed"])).max() <= 1
        ), fields


def test_equal_sets_share_calls_and_different_ones_do_not(studio: Studio) -> None:
    studio.draw({"seed": 1, "lora": {"ink": 1.0}}, {"seed": 2, "lora": {"ink": 1.0}})
    assert max(studio.calls) == 2
    studio.draw(
        {"seed": 1, "lora": {"ink": 1.0}},
        {"seed": 2, "lora": {"ink": 0.9}},
        {"seed": 3, "lora": {}},
    )
    assert set(studio.calls) == {1}


@pytest.mark.parametrize(
    "name", ["chalk", "../ink", "/etc/passwd", "oil/pytorch_lora_weights", "", "ink.safetensors"]
)
def test_a_name_that_is_not_here_is_refused_with_those_that_are(studio: Studio, name: str) -> None:
    with pytest.raises(InvalidRequest, match="available: arid, broken, ink, oil, words") as told:
        studio.draw({"lora": {name: 1.0}})
    assert told.value.field == "lora"


def test_a_broken_file_fails_its_request_alone(studio: Studio) -> None:
    wanted: list[dict[str, Any]] = [
        {"seed": 1, "lora": {"ink": 1.0}},
        {"seed": 2, "lora": {"broken": 1.0, "oil": 1.0}},
        {"seed": 3, "lora": {"broken": 1.0}},
        {"seed": 4, "lora": {}},
    ]
    events = studio.draw(*wanted)
    for index in (1, 2):
        error = failure(events[index])
        assert isinstance(error, InvalidRequest)
        assert "lora: broken cannot be loaded into this model: broken.safetensors" in str(error)
    assert np.abs(pixels(events[0]) - studio.alone({"ink": 1.0}, seed=1)).max() <= 1
    assert np.abs(pixels(events[3]) - studio.alone({}, seed=4)).max() <= 1


def test_an_adapter_before_a_broken_one_does_not_stay_active(studio: Studio) -> None:
    studio.draw({"seed": 1, "lora": {}})
    [events] = studio.draw({"seed": 2, "lora": {"arid": 1.0, "broken": 1.0}})
    assert isinstance(failure(events), InvalidRequest)
    [after] = studio.draw({"seed": 3, "lora": {}})
    assert np.abs(pixels(after) - studio.alone({}, seed=3)).max() <= 1


CROSS = "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k"
UNUSABLE: dict[str, tuple[dict[str, tuple[int, ...]] | bytes, str]] = {
    "damaged": (b"\x08\0\0\0\0\0\0\0not json", "its header is not a JSON object"),
    "empty": (b"", "is empty"),
    "loha": ({"lora_unet_mid_block_x.hada_w1_a": (2, 2)}, "LoHa, kohya layout: 1 of its 1 layers"),
    "lokr": ({"lora_unet_mid_block_x.lokr_w1": (2, 2)}, "LoKr, kohya layout: 1 of its 1 layers"),
    "uneven": ({"lora_unet_conv_in.hada_w1_a": (3, 2), "lora_unet_conv_in.hada_w1_b": (2, 4)},
               "conv_in: a change of 12 numbers does not fit a weight of"),
    "oft": ({"lora_unet_mid_block_x.oft_blocks": (2, 2, 2)}, "of the kind OFT, which is not read"),
    "inversion": ({"clip_l": (1, 768), "clip_g": (1, 1280)}, "set it in EMBEDDINGS"),
    "old_inversion": ({"emb_params": (2, 768)}, "textual inversion"),
    "weights": ({"odd.weight": (4, 4)}, "no LoRA weights"),
    "checkpoint": ({"model.diffusion_model.input_blocks.0.0.weight": (4, 4)}, "set it in MODEL_ID"),
    "control": ({"controlnet_cond_embedding.conv_in.weight": (4, 4)}, "set it in CONTROLNETS"),
    "face": ({"image_proj.proj.weight": (4, 4)}, "set it in IP_ADAPTERS"),
    "vae": ({"decoder.up_blocks.0.resnets.0.conv1.weight": (4, 4)}, "it is a VAE: put it into"),
    "clip": ({"text_model.encoder.layers.0.mlp.fc1.weight": (4, 4)}, "it is a text encoder"),
    "unet": ({"down_blocks.0.resnets.0.conv1.weight": (4, 4)}, "weights of a whole denoiser"),
    "peft": ({"base_model.model.to_q.lora_A.weight": (2, 32)}, "adapter_config.json of PEFT"),
    "sdxl": ({f"{CROSS}.lora_A.weight": (2, 2048), f"{CROSS}.lora_B.weight": (32, 2)}, "2048"),
    "kohya_sdxl": (
        {"lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn2_to_k.lora_down.weight":
         (2, 2048)},
        "made for Stable Diffusion XL: its cross attention takes 2048",
    ),
    "flux": (
        {"transformer.single_transformer_blocks.0.attn.to_q.lora_A.weight": (2, 64)},
        "made for FLUX, which has a transformer; StableDiffusionPipeline has none",
    ),
}  # fmt: skip


def test_what_cannot_be_used_is_said_at_the_start_file_by_file(
    checkpoint: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for name, (content, _) in UNUSABLE.items():
        path = tmp_path / f"{name}.safetensors"
        if isinstance(content, bytes):
            path.write_bytes(content)
        else:
            save_tensors(path, content)
    save_adapter(checkpoint, tmp_path, "ink.safetensors", 1)
    pipeline = DiffusionPipeline.from_pretrained(checkpoint)
    with caplog.at_level("WARNING"):
        adapters = Adapters(pipeline, sources(tmp_path), {}, keep=8)
    assert adapters.names == ["ink"]
    for name, (_, reason) in UNUSABLE.items():
        [said] = [one for one in caplog.messages if f" {name}.safetensors: " in one]
        assert reason in said
        with pytest.raises(InvalidRequest, match=f"lora: {name} cannot be used: {name}.safetens"):
            adapters.select({name: 1.0})
    with pytest.raises(SettingsError, match=r"DEFAULT_LORA=sdxl is not valid: .*sdxl\.safetensors"):
        Adapters(pipeline, sources(tmp_path), {"sdxl": 1.0}, keep=8)


def test_the_default_adapters_serve_requests_that_name_none(checkpoint: Path, folder: Path) -> None:
    studio = Studio(checkpoint, folder, default_lora=["ink=0.5"])
    try:
        [without, emptied] = studio.draw({"seed": 7}, {"seed": 7, "lora": {}})
        assert np.abs(pixels(without) - studio.alone({"ink": 0.5}, seed=7)).max() <= 1
        assert np.abs(pixels(emptied) - studio.alone({}, seed=7)).max() <= 1
    finally:
        studio.model.close()


def test_the_least_recently_used_adapter_goes_and_comes_back(
    checkpoint: Path, folder: Path
) -> None:
    pipeline: Any = DiffusionPipeline.from_pretrained(checkpoint)
    adapters = Adapters(pipeline, sources(folder), {}, keep=2)

    def loaded() -> set[str]:
        keys = {key for keys in pipeline.get_list_adapters().values() for key in keys}
        return {name for name in adapters.names if adapters._keys[name] in keys}

    assert loaded() == set()
    for name in ("ink", "oil", "ink", "words"):
        adapters.use(adapters.select({name: 1.0}))
    assert loaded() == {"ink", "words"}
    adapters.use(adapters.select({"oil": 1.0, "words": 1.0}))
    assert loaded() == {"oil", "words"}
    assert pipeline.get_active_adapters() == [adapters._keys["oil"], adapters._keys["words"]]


def test_more_adapters_than_are_kept_are_refused(checkpoint: Path, folder: Path) -> None:
    adapters = Adapters(DiffusionPipeline.from_pretrained(checkpoint), sources(folder), {}, keep=1)
    with pytest.raises(InvalidRequest, match="2 adapters are above MAX_LORAS=1"):
        adapters.select({"ink": 1.0, "oil": 1.0})


def test_adapters_are_found_as_file_folder_and_folder_of_folders(folder: Path) -> None:
    assert set(discover(folder / "ink.safetensors")) == {"ink"}
    assert discover(folder / "oil") == {"oil": folder / "oil" / LORA_FILE}
    assert set(discover(folder)) == {"arid", "broken", "ink", "oil", "words"}


def test_adapters_of_peft_are_named_after_their_folders(checkpoint: Path, tmp_path: Path) -> None:
    for name in ("ring", "cup"):
        save_adapter(checkpoint, tmp_path / name, "adapter_model.safetensors", 1)
    assert sorted(discover(tmp_path)) == ["cup", "ring"]
    assert list(discover(tmp_path / "ring")) == ["ring"]


def test_hidden_files_are_not_adapters(checkpoint: Path, tmp_path: Path) -> None:
    save_adapter(checkpoint, tmp_path, "ink.safetensors", 1)
    (tmp_path / "._ink.safetensors").write_bytes(b"Mac OS X")
    save_adapter(checkpoint, tmp_path / ".trash", LORA_FILE, 1)
    assert list(discover(tmp_path)) == ["ink"]


@pytest.mark.parametrize("name", ["detail_tweaker_v1.0", "keys", "forward", "weight", "default"])
def test_any_file_name_is_a_name(checkpoint: Path, tmp_path: Path, name: str) -> None:
    save_adapter(checkpoint, tmp_path, f"{name}.safetensors", 1)
    studio = Studio(checkpoint, tmp_path, default_lora=[name])
    try:
        [by_default, by_name, none] = studio.draw(
            {"seed": 7}, {"seed": 7, "lora": {name: 1.0}}, {"seed": 7, "lora": {}}
        )
    finally:
        studio.model.close()
    assert (pixels(by_default) == pixels(by_name)).all()
    assert np.abs(pixels(by_name) - pixels(none)).max() > 3


def test_a_path_without_adapters_and_two_of_one_name_stop_the_start(
    folder: Path, tmp_path: Path
) -> None:
    with pytest.raises(
        CheckpointError,
        match=f"LORA_PATHS={tmp_path} is neither a .safetensors file nor .* it holds nothing",
    ):
        discover(tmp_path)
    (tmp_path / "ink.safetensors").write_bytes(b"")
    with pytest.raises(CheckpointError, match="two adapters are named ink"):
        discover(folder, tmp_path)


def test_pickled_adapters_are_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "pytorch_lora_weights.bin").write_bytes(b"code")
    with pytest.raises(
        CheckpointError,
        match=r"has only pickled weights \(pytorch_lora_weights\.bin\), which can run code",
    ):
        discover(tmp_path)


def test_a_default_that_is_not_here_stops_the_start(checkpoint: Path, folder: Path) -> None:
    with pytest.raises(
        SettingsError, match=r"^DEFAULT_LORA=chalk is not valid: .* available: arid"
    ):
        Adapters(
            DiffusionPipeline.from_pretrained(checkpoint), sources(folder), {"chalk": 1.0}, keep=1
        )
