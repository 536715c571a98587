"""What CONTROLNETS and IP_ADAPTERS name is looked at by headers, before any weights are loaded."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from atelier.cli.doctor import examine
from atelier.errors import AtelierError, CheckpointError, PlanError, SettingsError
from atelier.hardware.choice import OptimizationManager
from atelier.hardware.machine import Device
from atelier.settings import load_settings
from atelier.sources import inspect
from atelier.sources.conditioning import Conditioning, find_conditioning
from tests.tiny_controls import CHECKPOINTS, control, ip_adapter, t2i_adapter


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`sd15` and `sdxl` with a control each, a T2I-Adapter, and an IP-Adapter for the first."""
    root = tmp_path_factory.mktemp("conditioning")
    for seed, family in enumerate(("sd15", "sdxl", "flux")):
        (root / family).mkdir()
        CHECKPOINTS[family](root / family).rename(root / family / "model")
        control(root / family / "model", root / family / "edges", seed)
    t2i_adapter(root / "sd15" / "lines")
    ip_adapter(root / "sd15" / "model", root / "sd15" / "prompts", "look.safetensors", 1)
    return root


def found(root: Path, family: str = "sd15", **settings: str) -> Conditioning:
    chosen = load_settings(model_id=str(root / family / "model"), device="cpu", **settings)
    return find_conditioning(chosen, inspect(root / family / "model"))


def test_names_are_given_or_those_of_the_folders(root: Path) -> None:
    entries = f"{root}/sd15/edges, soft={root}/sd15/lines"
    conditioning = found(root, controlnets=entries, ip_adapters=f"{root}/sd15/prompts")
    assert [(one.name, one.kind) for one in conditioning.controls] == [
        ("edges", "ControlNet"),
        ("soft", "T2I-Adapter"),
    ]
    [prompt] = conditioning.image_prompts
    assert (prompt.name, prompt.path.name, prompt.projected) == (
        "prompts",
        "look.safetensors",
        True,
    )
    with pytest.raises(SettingsError, match="CONTROLNETS has two of the name edges"):
        found(root, controlnets=f"{root}/sd15/edges,edges={root}/sd15/lines")


MISFITS = [
    ("sd15", "sdxl/edges", "was made for another model: its cross_attention_dim is 64"),
    ("sd15", "flux/edges", "is a FluxControlNetModel; StableDiffusionPipeline takes ControlNetM"),
    ("sdxl", "sd15/lines", "is a full_adapter, not for StableDiffusionXLPipeline"),
    ("sd15", "sd15/model", "is not a ControlNet's folder: there is no config.json"),
    ("sd15", "gone", "CONTROLNETS=.*gone is not a path on this machine"),
    ("sd15", "sd15/model/unet", "is a UNet2DConditionModel; StableDiffusionPipeline takes"),
]


@pytest.mark.parametrize(("family", "entry", "told"), MISFITS, ids=[row[1] for row in MISFITS])
def test_what_was_made_for_another_model_is_refused(
    root: Path, family: str, entry: str, told: str
) -> None:
    with pytest.raises(AtelierError, match=told):
        found(root, family, controlnets=f"{root}/{entry}")


def test_a_union_and_a_control_cut_short_are_refused(root: Path, tmp_path: Path) -> None:
    union = tmp_path / "union"
    shutil.copytree(root / "flux" / "edges", union)
    config = json.loads((union / "config.json").read_text()) | {"num_mode": 7}
    (union / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match="wants more than a picture"):
        found(root, "flux", controlnets=str(union))
    weights = union / "diffusion_pytorch_model.safetensors"
    (union / "config.json").write_text(json.dumps(config | {"num_mode": None}))
    weights.write_bytes(weights.read_bytes()[:-8])
    with pytest.raises(CheckpointError, match=r"CONTROLNETS: .* is cut short"):
        found(root, "flux", controlnets=str(union))


def test_an_image_prompt_needs_its_own_family_and_an_encoder(root: Path, tmp_path: Path) -> None:
    prompts = root / "sd15" / "prompts"
    with pytest.raises(CheckpointError, match="it reads 32 numbers a token, and that of"):
        found(root, "sdxl", ip_adapters=str(prompts))
    with pytest.raises(CheckpointError, match="was made for Stable Diffusion 1 to XL, and the"):
        found(root, "flux", ip_adapters=str(prompts))
    shutil.copy(prompts / "look.safetensors", tmp_path)
    with pytest.raises(CheckpointError, match="has no image encoder: put the folder image_encoder"):
        found(root, ip_adapters=str(tmp_path))
    shutil.copytree(prompts / "image_encoder", tmp_path / "image_encoder")
    config = json.loads((tmp_path / "image_encoder/config.json").read_text())
    (tmp_path / "image_encoder/config.json").write_text(json.dumps(config | {"projection_dim": 8}))
    with pytest.raises(CheckpointError, match="wants another image encoder: it reads 16 numbers"):
        found(root, ip_adapters=str(tmp_path))
    with pytest.raises(CheckpointError, match="is not an IP-Adapter"):
        found(root, ip_adapters=f"{root}/sd15/edges")


def test_an_image_prompt_of_stable_diffusion_3_is_told_by_its_layers(tmp_path: Path) -> None:
    (tmp_path / "sd3").mkdir()
    model = CHECKPOINTS["sd3"](tmp_path / "sd3").rename(tmp_path / "sd3" / "model")
    adapter = ip_adapter(model, tmp_path / "ip", "look.safetensors", 1)
    [prompt] = found(tmp_path, "sd3", ip_adapters=str(adapter)).image_prompts
    assert (prompt.timed, prompt.encoder_class) == (True, "SiglipVisionModel")
    config = model / "transformer" / "config.json"
    written = json.loads(config.read_text())
    config.write_text(json.dumps(written | {"num_attention_heads": 3}))
    width = written["num_attention_heads"] * written["attention_head_dim"]
    with pytest.raises(CheckpointError, match=f"it reads {width} numbers a token"):
        found(tmp_path, "sd3", ip_adapters=str(adapter))
    config.write_text(json.dumps(written))
    encoder = tmp_path / "ip" / "image_encoder" / "config.json"
    clip = json.loads(encoder.read_text()) | {"architectures": ["CLIPVisionModelWithProjection"]}
    encoder.write_text(json.dumps(clip))
    with pytest.raises(CheckpointError, match="it must be SiglipVisionModel"):
        found(tmp_path, "sd3", ip_adapters=str(adapter))
    (tmp_path / "sd15").mkdir()
    CHECKPOINTS["sd15"](tmp_path / "sd15").rename(tmp_path / "sd15" / "model")
    with pytest.raises(
        CheckpointError, match="was made for Stable Diffusion 3, and the model is a"
    ):
        found(tmp_path, "sd15", ip_adapters=str(adapter))


def device(free: int) -> Device:
    return Device("cuda", 0, "a GPU", (9, 0), free, free, True, True, host_free_bytes=free)


def test_the_plan_counts_them_and_refuses_what_does_not_fit(root: Path) -> None:
    model = root / "sd15" / "model"
    checkpoint = inspect(model)
    settings = load_settings(model_id=str(model), dtype="float32")
    without = OptimizationManager(device(2**34), settings).plan(checkpoint)
    conditioning = found(root, controlnets=f"{root}/sd15/edges", ip_adapters=f"{root}/sd15/prompts")
    made = OptimizationManager(device(2**34), settings, conditioning=conditioning).plan(checkpoint)
    weights = sum(one.component.bytes for one in conditioning.controls)
    assert made.reserved_bytes["CONTROLNETS"] > weights > 0
    assert made.reserved_bytes["IP_ADAPTERS"] > 0
    assert made.budget_bytes == without.budget_bytes - sum(made.reserved_bytes.values())
    tight = int((without.budget_bytes - without.headroom_bytes) / 0.92) + 1
    with pytest.raises(PlanError, match="of it by CONTROLNETS"):
        small = OptimizationManager(device(tight // 2), settings, conditioning=conditioning)
        small.plan(checkpoint)


def test_the_doctor_says_what_keeps_the_server_from_starting(root: Path, tmp_path: Path) -> None:
    def problems(controlnets: str) -> list[str]:
        settings = load_settings(
            model_id=str(root / "sd15" / "model"),
            device="cpu",
            cache_dir=str(tmp_path),
            controlnets=controlnets,
        )
        return examine(settings).problems

    assert problems(f"{root}/sd15/edges,s3://not/here") == []
    [told] = problems(f"{root}/sdxl/edges")
    assert "CONTROLNETS: edges" in told and "was made for another model" in told
