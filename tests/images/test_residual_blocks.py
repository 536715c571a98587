"""Fused residual blocks against those of diffusers: every U-Net and VAE that has them, the layers
that others put into them, and what is left alone. The kernels themselves need a GPU:
tests/gpu/test_residual_blocks.py."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL, ControlNetModel, UNet2DConditionModel, UNet2DModel
from diffusers.models.resnet import ResnetBlock2D
from peft import LoHaConfig, LoKrConfig, LoraConfig
from torch import nn

from atelier.images import compilation
from atelier.images.interception import Gate
from atelier.images.residual_blocks import fuse

CROSS = 32
ROUNDING = 2e-5  # in float32


def unet(**changes: Any) -> UNet2DConditionModel:
    torch.manual_seed(0)
    shape: dict[str, Any] = {
        "sample_size": 16,
        "block_out_channels": (32, 64),
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
        "cross_attention_dim": CROSS,
        "attention_head_dim": 8,
        "norm_num_groups": 8,
    }
    return _shaken(UNet2DConditionModel(**(shape | changes)))


def vae(**changes: Any) -> AutoencoderKL:
    torch.manual_seed(0)
    shape: dict[str, Any] = {
        "block_out_channels": (32, 64),
        "down_block_types": ("DownEncoderBlock2D",) * 2,
        "up_block_types": ("UpDecoderBlock2D",) * 2,
        "norm_num_groups": 8,
    }
    return _shaken(AutoencoderKL(**(shape | changes)))


def _shaken(module: Any) -> Any:
    """Norms and biases begin as ones and zeros, which would hide one that is left out."""
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.ndim == 1:
                parameter.add_(torch.randn_like(parameter) * 0.3)
    return module.eval()


def drawn(model: Any, *shapes: tuple[int, ...]) -> list[torch.Tensor]:
    """The same noise for every device and type."""
    torch.manual_seed(1)
    return [torch.randn(shape).to(model.device, model.dtype) for shape in shapes]


@torch.no_grad()
def of_unet(model: Any) -> torch.Tensor:
    latents, text = drawn(model, (2, 4, 16, 24), (2, 7, CROSS))
    return model(latents, torch.tensor([5, 700], device=model.device), text).sample


@torch.no_grad()
def of_vae(model: Any) -> torch.Tensor:
    latents, picture = drawn(model, (2, 4, 8, 12), (2, 3, 24, 16))
    decoded, encoded = model.decode(latents).sample, model.encode(picture).latent_dist.mean
    return torch.cat([decoded.flatten(), encoded.flatten()])


@torch.no_grad()
def of_control(model: Any) -> torch.Tensor:
    latents, text, hint = drawn(model, (2, 4, 16, 24), (2, 7, CROSS), (2, 3, 128, 192))
    times = torch.tensor([5, 700], device=model.device)
    out = model(latents, times, text, controlnet_cond=hint)
    return torch.cat([one.flatten() for one in out.down_block_res_samples])


def control() -> ControlNetModel:
    net = ControlNetModel.from_unet(unet())
    for layer in net.controlnet_down_blocks:  # published as zeros, which hide everything
        nn.init.normal_(layer.weight, std=0.1)
    return _shaken(net)


CASES: dict[str, tuple[Callable[[], Any], Callable[[Any], torch.Tensor]]] = {
    "U-Net, tokens made by convolutions": (unet, of_unet),
    "U-Net, tokens made by linear layers": (lambda: unet(use_linear_projection=True), of_unet),
    "U-Net, up and down by residual blocks": (
        lambda: unet(
            down_block_types=("ResnetDownsampleBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "ResnetUpsampleBlock2D"),
        ),
        of_unet,
    ),
    "VAE": (vae, of_vae),
    "control net": (control, of_control),
}


@pytest.mark.parametrize("case", CASES)
def test_a_fused_model_computes_the_same(case: str) -> None:
    make, run = CASES[case]
    model = make()
    wanted = run(model)
    plain = [
        one
        for one in model.modules()
        if isinstance(one, ResnetBlock2D) and one.upsample is None and one.downsample is None
    ]
    assert fuse(model) == len(plain) > 3
    torch.testing.assert_close(run(model), wanted, atol=ROUNDING, rtol=ROUNDING)


def test_blocks_that_compute_something_else_stay_as_they_are() -> None:
    model = unet(resnet_time_scale_shift="scale_shift")
    wanted = of_unet(model)
    assert fuse(model) == 0
    assert torch.equal(of_unet(model), wanted)
    assert not changed(model)


ADAPTED = ["conv1", "conv2", "conv_shortcut", "time_emb_proj", "proj_in", "proj_out", "to_q"]


KINDS: dict[str, Any] = {
    "LoRA": LoraConfig(r=4, target_modules=ADAPTED, init_lora_weights=False),
    "DoRA": LoraConfig(r=4, target_modules=ADAPTED, init_lora_weights=False, use_dora=True),
    "LoHa": LoHaConfig(r=4, alpha=8, target_modules=ADAPTED, init_weights=False),
    "LoKr": LoKrConfig(r=4, alpha=8, target_modules=ADAPTED, init_weights=False),
}


def adapted(model: Any, kind: str) -> Any:
    torch.manual_seed(2)
    model.add_adapter(KINDS[kind])
    return model


@pytest.mark.parametrize("linear", [False, True], ids=["convolutions", "linear layers"])
@pytest.mark.parametrize("order", ["adapter first", "fused first"])
@pytest.mark.parametrize("kind", KINDS)
def test_adapters_of_every_layer_work_in_fused_blocks(kind: str, order: str, linear: bool) -> None:
    wanted = of_unet(adapted(unet(use_linear_projection=linear), kind))
    model = unet(use_linear_projection=linear)
    plain = of_unet(model)
    if order == "fused first":
        assert fuse(model)
        adapted(model, kind)
    else:
        assert fuse(adapted(model, kind))
    torch.testing.assert_close(of_unet(model), wanted, atol=1e-4, rtol=1e-4)
    assert (plain - wanted).abs().max() > 0.02
    model.disable_adapters()
    torch.testing.assert_close(of_unet(model), plain, atol=ROUNDING, rtol=ROUNDING)


def test_convolutions_that_go_around_the_edges_do_so_in_fused_blocks() -> None:
    def tiled(model: Any) -> Any:
        for one in model.modules():
            if isinstance(one, nn.Conv2d):
                one.padding_mode = "circular"
        return model

    plain, wanted = of_vae(vae()), of_vae(tiled(vae()))
    model = tiled(vae())
    assert fuse(model)
    torch.testing.assert_close(of_vae(model), wanted, atol=ROUNDING, rtol=ROUNDING)
    assert (plain - wanted).abs().max() > 0.01


def test_what_took_the_place_of_a_convolution_is_called() -> None:
    model = vae()
    fuse(model)
    block = next(one for one in model.decoder.modules() if isinstance(one, ResnetBlock2D))
    called: list[int] = []
    own = block.conv1.forward
    block.conv1.forward = lambda values: called.append(1) or own(values)
    wanted = of_vae(vae())
    torch.testing.assert_close(of_vae(model), wanted, atol=ROUNDING, rtol=ROUNDING)
    assert called == [1]


@pytest.mark.parametrize(
    ("mode", "changes", "left"),
    [
        ("regional", {}, False),
        ("full", {}, True),
        ("regional", {"down_block_types": ("DownBlock2D",) * 2}, False),
    ],
)
def test_what_is_compiled_is_left_to_the_compiler(
    mode: str, changes: dict[str, Any], left: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compilation, "_on_gpu", lambda module: True)
    denoiser, decoder = unet(**changes), vae()
    gates = [Gate("unet", denoiser, "forward"), Gate("vae", decoder, "decode")]
    compilation.speed_up(gates, mode)
    assert changed(denoiser) != left
    assert changed(decoder)


def test_blocks_that_are_compiled_themselves_are_not_fused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compilation, "_on_gpu", lambda module: True)
    plain = {"down_block_types": ("DownBlock2D",) * 2, "up_block_types": ("UpBlock2D",) * 2}
    torch.manual_seed(0)
    denoiser = UNet2DModel(sample_size=16, block_out_channels=(32, 64), norm_num_groups=8, **plain)
    compilation.speed_up([Gate("unet", denoiser, "forward")], "regional")
    assert not changed(denoiser)


def changed(model: torch.nn.Module) -> bool:
    """Whether something inside it computes in another way."""
    return any("forward" in vars(one) for one in model.modules() if one is not model)


def test_on_a_processor_nothing_is_fused() -> None:
    model = vae()
    compilation.speed_up([Gate("vae", model, "decode")], "regional")
    assert not changed(model)
