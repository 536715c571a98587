"""The memory plan for published models on common devices: a table of cases, and what explicit
wishes change.

Parameter counts were taken from the published architectures, built on torch's meta device: elements
in all, and elements of weight matrices (which quantization packs).
"""

import json
from dataclasses import replace

import pytest

from atelier.errors import PlanError
from atelier.hardware.account import ModelSizes, Shapes, WeightedPart
from atelier.hardware.choice import plan
from atelier.hardware.machine import Device
from atelier.hardware.plan import MemoryPlan, Wishes
from atelier.units import GIB

BOTH = frozenset({"bitsandbytes", "torchao"})


def gpu(name: str, gib: float, capability: tuple[int, int], host_gib: float = 128) -> Device:
    """A GPU with nothing else on it: what a fresh context leaves free is about half a GiB less than
    there is."""
    return Device(
        "cuda",
        0,
        name,
        capability,
        int(gib * GIB),
        int((gib - 0.5) * GIB),
        bfloat16=capability >= (8, 0),
        fp8=capability >= (8, 9),
        host_free_bytes=int(host_gib * GIB),
    )


L40S = gpu("NVIDIA L40S", 44.5, (8, 9))
A10G = gpu("NVIDIA A10G", 22.2, (8, 6))
T4 = gpu("Tesla T4", 14.6, (7, 5))
H200 = gpu("NVIDIA H200", 139.8, (9, 0))
H100 = gpu("NVIDIA H100 80GB HBM3", 79.1, (9, 0))
CPU = Device("cpu", 0, "CPU", None, 8 * GIB, 8 * GIB, False, False, host_free_bytes=8 * GIB)


def part(name: str, role: str, parameters: int, linear: int) -> WeightedPart:
    return WeightedPart(name, role, parameters, linear, parameters * 2)  # type: ignore[arg-type]


CLIP_L = part("text_encoder", "text_encoder", 123_060_480, 84_934_656)
CLIP_G = part("text_encoder_2", "text_encoder", 694_659_840, 630_784_000)
T5 = part("text_encoder_3", "text_encoder", 4_762_310_656, 4_630_511_616)
VAE4 = part("vae", "vae", 83_653_863, 2_097_152)
VAE16 = part("vae", "vae", 83_819_683, 2_097_152)

SD15 = ModelSizes(
    "sd15",
    (part("unet", "denoiser", 859_520_964, 270_049_280), CLIP_L, VAE4),
    Shapes("unet", 320, 8, 0, 128, 6, 512 * 512, 512 * 512),
)
SDXL = ModelSizes(
    "sdxl",
    (part("unet", "denoiser", 2_567_463_684, 2_232_647_680), CLIP_L, CLIP_G, VAE4),
    Shapes("unet", 320, 8, 0, 128, 6, 1024 * 1024),
)
SD35M = ModelSizes(
    "sd35m",
    (part("transformer", "denoiser", 2_243_171_520, 2_241_822_720), CLIP_L, CLIP_G, T5, VAE16),
    Shapes("transformer", 1536, 16, 333, 128, 6, 1024 * 1024),
)
FLUX = ModelSizes(
    "flux1-dev",
    (part("transformer", "denoiser", 11_901_408_320, 11_898_322_944), CLIP_L, T5, VAE16),
    Shapes("transformer", 3072, 16, 512, 128, 6, 1024 * 1024),
)
QWEN = ModelSizes(
    "qwen-image",
    (
        part("transformer", "denoiser", 20_430_401_088, 20_424_818_688),
        part("text_encoder", "text_encoder", 8_292_166_656, 7_744_815_104),
        part("vae", "vae", 126_892_531, 0),
    ),
    Shapes("transformer", 3072, 16, 512, 96, 18, 1024 * 1024, 256 * 256),
)

AUTO = Wishes(packages=BOTH)

DECISIONS = (
    *("device", "dtype", "placement", "quantization", "low_cpu_mem", "vae_slicing", "vae_tiling"),
    *("attention_slicing", "attention_backend", "compile", "max_rows", "max_pixels"),
)


def wishes_for(sizes: ModelSizes, device: Device, **changes: object) -> Wishes:
    """What the type selector gives: bfloat16, float16 on a T4 (SDXL's VAE in float32 there),
    float32 on a CPU."""
    dtype = "float32" if device.kind == "cpu" else "bfloat16" if device.bfloat16 else "float16"
    kept = {"vae": "float32"} if dtype == "float16" and sizes is SDXL else {}
    return replace(AUTO, dtype=dtype, component_dtypes=kept, **changes)  # type: ignore[arg-type]


def made(sizes: ModelSizes, device: Device, **changes: object) -> MemoryPlan:
    return plan(sizes, device, wishes_for(sizes, device, **changes))


TABLE = [
    # model, device, QUANTIZATION, placement, quantization
    (SD15, L40S, "none", "resident", "none"),
    (SD15, A10G, "none", "resident", "none"),
    (SD15, T4, "none", "resident", "none"),
    (SD15, H200, "auto", "resident", "none"),
    (SD15, CPU, "none", "resident", "none"),
    (SDXL, L40S, "none", "resident", "none"),
    (SDXL, A10G, "none", "resident", "none"),
    (SDXL, T4, "auto", "resident", "none"),
    (SD35M, A10G, "auto", "resident", "none"),
    (SD35M, T4, "none", "model_offload", "none"),
    (SD35M, T4, "auto", "model_offload", "none"),
    (FLUX, H100, "auto", "resident", "none"),
    (FLUX, L40S, "auto", "resident", "none"),
    (FLUX, A10G, "none", "group_offload", "none"),
    (FLUX, A10G, "auto", "resident", "int8"),
    (FLUX, T4, "none", "group_offload", "none"),
    (FLUX, T4, "auto", "model_offload", "int8"),
    (FLUX, L40S, "fp8", "resident", "fp8"),
    (FLUX, A10G, "nf4", "resident", "nf4"),
    (QWEN, H200, "auto", "resident", "none"),
    (QWEN, H100, "auto", "resident", "none"),
    (QWEN, L40S, "auto", "model_offload", "none"),
    (QWEN, A10G, "none", "group_offload", "none"),
    (QWEN, A10G, "auto", "resident", "nf4"),
    (QWEN, T4, "auto", "model_offload", "nf4"),
]


@pytest.mark.parametrize(
    ("sizes", "device", "wish", "placement", "quantization"),
    TABLE,
    ids=lambda value: getattr(value, "name", value),
)
def test_each_model_gets_the_mildest_arrangement_that_fits(
    sizes, device, wish, placement, quantization
):
    plan = made(sizes, device, quantization=wish)
    assert (plan.placement, plan.quantization) == (placement, quantization)
    assert plan.weights_bytes + plan.activation_bytes + plan.headroom_bytes == plan.budget_bytes
    assert plan.headroom_bytes >= 0
    assert plan.max_rows >= 2


def test_nothing_slow_is_on_where_memory_is_plenty():
    for sizes in (SD15, SDXL, SD35M, FLUX, QWEN):
        plan = made(sizes, H200, quantization="auto")
        assert not (plan.vae_slicing or plan.vae_tiling or plan.attention_slicing), plan.table()
        assert (plan.placement, plan.quantization, plan.compile, plan.max_rows) == (
            "resident",
            "none",
            "regional",
            8,
        )
        assert plan.max_pixels == 2048 * 2048


def test_a_small_card_tiles_the_decode_of_large_pictures_and_says_how_much_is_lacking():
    plan = made(SDXL, T4)
    assert plan.vae_tiling and plan.vae_slicing
    assert "4,194,304 pixels whole needs 15.0 GiB" in plan.reasons["vae_tiling"]
    assert plan.dtype_of("vae") == "float32" and plan.dtype_of("unet") == "float16"


def test_a_cpu_never_offloads_nor_compiles():
    plan = made(SD15, CPU, cpu_offload="true")
    assert (plan.placement, plan.compile) == ("resident", "off")
    assert "ENABLE_CPU_OFFLOAD=true has no effect" in plan.reasons["placement"]


@pytest.mark.parametrize("field", ["vae_slicing", "vae_tiling", "attention_slicing", "low_cpu_mem"])
@pytest.mark.parametrize("wish", ["true", "false"])
def test_an_explicit_switch_always_wins(field, wish):
    plan = made(SDXL, A10G, **{field: wish})
    assert getattr(plan, field) is (wish == "true")
    assert plan.reasons[field] == f"asked by ENABLE_{field.upper()}={wish}"


def test_offload_asked_for_wins_over_plenty_of_memory():
    assert made(FLUX, H200, cpu_offload="true").placement == "model_offload"
    assert (
        made(FLUX, H200, cpu_offload="true").reasons["placement"]
        == "asked by ENABLE_CPU_OFFLOAD=true"
    )


def test_offload_forbidden_ends_in_an_error_that_names_figures_and_remedies():
    with pytest.raises(PlanError) as caught:
        made(FLUX, A10G, cpu_offload="false")
    assert "flux1-dev does not fit" in str(caught.value)
    assert "13.3 GiB short on NVIDIA A10G" in str(caught.value)
    assert "ENABLE_CPU_OFFLOAD=auto; QUANTIZATION=int8; QUANTIZATION=nf4" in str(caught.value)


def test_every_remedy_in_the_error_does_make_it_fit():
    with pytest.raises(
        PlanError, match=r"Any one of these makes it fit: DTYPE=bfloat16 with QUANTIZATION=int8$"
    ):
        made(SDXL, CPU)
    assert (
        plan(SDXL, CPU, replace(AUTO, dtype="bfloat16", quantization="int8")).placement
        == "resident"
    )


def test_where_nothing_helps_the_error_says_how_much_memory_would():
    with pytest.raises(
        PlanError, match=r"No setting makes it fit: it takes a device with [\d.]+ GiB free"
    ) as caught:
        made(QWEN, CPU)
    enough = float(str(caught.value).split("a device with ")[1].split()[0]) + 0.1
    roomy = replace(CPU, free_bytes=int(enough * GIB))
    assert made(QWEN, roomy).placement == "resident"


def test_offload_needs_the_weights_to_fit_into_ram():
    small_node = gpu("Tesla T4", 14.6, (7, 5), host_gib=14)
    with pytest.raises(PlanError, match="short on RAM, where offloaded weights lie"):
        made(FLUX, small_node)


def test_quantization_needs_its_package_and_its_hardware():
    with pytest.raises(PlanError, match=r"nf4 needs bitsandbytes.*pip install 'atelier\[gpu\]'"):
        made(FLUX, A10G, quantization="nf4", packages=frozenset())
    with pytest.raises(PlanError, match=r"fp8 needs compute capability 8\.9 or more; NVIDIA A10G"):
        made(FLUX, A10G, quantization="fp8")
    assert made(FLUX, A10G, quantization="int8").quantization_backend == "torchao"
    assert made(FLUX, T4, quantization="int8").quantization_backend == "bitsandbytes"
    assert made(FLUX, A10G, quantization="auto", packages=frozenset()).placement == "group_offload"


def test_only_the_denoiser_and_large_text_encoders_are_quantized():
    plan = made(FLUX, A10G, quantization="nf4")
    assert plan.quantized == ("transformer", "text_encoder_3")
    whole = made(FLUX, H200)
    assert plan.component_bytes["vae"] == whole.component_bytes["vae"]
    assert plan.component_bytes["transformer"] < 0.3 * whole.component_bytes["transformer"]


def test_the_batch_is_bounded_by_the_setting_and_by_memory():
    assert made(SDXL, H200, rows=4).max_rows == 4
    assert made(FLUX, A10G, quantization="auto", rows=32).max_rows < 32
    assert "MAX_BATCH_SIZE=32" in made(FLUX, A10G, quantization="auto", rows=32).reasons["max_rows"]


def test_compiling_is_left_out_where_it_cannot_work():
    assert made(FLUX, H100).compile == "regional"
    assert made(FLUX, A10G, quantization="nf4").compile == "off"
    assert made(SD35M, T4).compile == "off"
    assert made(FLUX, H100, compile="full").reasons["compile"] == "asked by COMPILE=full"


def test_a_language_model_is_placed_by_the_same_arithmetic():
    llama = ModelSizes("llama-8b", (part("model", "denoiser", 8_030_261_248, 7_504_924_672),))
    assert made(llama, L40S).placement == "resident"
    assert made(llama, L40S).max_pixels == 0
    small = made(llama, T4, quantization="auto")
    assert (small.placement, small.quantization) == ("resident", "int8")


def test_every_decision_has_a_reason_and_the_plan_is_plain_data():
    plan = made(FLUX, A10G, quantization="auto")
    told = json.loads(json.dumps(plan.asdict()))
    for decision in DECISIONS:
        assert told["reasons"][decision], decision
        assert decision in plan.table()
    assert told["quantized"] == ["transformer", "text_encoder_3"]
    assert all(len(line) < 200 for line in plan.table().splitlines())
