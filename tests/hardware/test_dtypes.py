"""Which type is chosen for which device and checkpoint, and that every departure is said."""

import logging
from dataclasses import replace

import pytest

from atelier.hardware.dtypes import LARGE, DtypeSelector
from atelier.hardware.machine import Device
from atelier.settings import load_settings
from atelier.sources.checkpoint.folder import inspect
from tests.sources.checkpoints import language_model, pipeline, write_weights

A10G = Device("cuda", 0, "NVIDIA A10G", (8, 6), 24, 24, True, False)
T4 = Device("cuda", 0, "Tesla T4", (7, 5), 16, 16, False, False)
MPS = Device("mps", 0, "Apple M3", None, 16, 16, True, False)
CPU = Device("cpu", 0, "CPU", None, 16, 16, False, False)
CPU_AMX = Device("cpu", 0, "CPU with AMX", None, 16, 16, True, False)


@pytest.fixture
def stable_diffusion(tmp_path):
    return inspect(pipeline(tmp_path / "sd", "float16"))


def choose(device, checkpoint, dtype):
    return DtypeSelector(device, load_settings(dtype=dtype)).select(checkpoint)


@pytest.mark.parametrize(
    ("device", "asked", "chosen", "said"),
    [
        (A10G, "auto", "bfloat16", "NVIDIA A10G computes in bfloat16"),
        (T4, "auto", "float16", "has no bfloat16 (compute capability 7.5, from 8.0 on)"),
        (MPS, "auto", "float16", "Metal"),
        (CPU, "auto", "float32", "this CPU lacks it"),
        (CPU_AMX, "auto", "float32", "this CPU has it"),
        (T4, "bfloat16", "float16", "DTYPE=bfloat16, but Tesla T4 has no bfloat16"),
        (T4, "float32", "float32", "DTYPE=float32"),
        (CPU, "bfloat16", "bfloat16", "slow here"),
        (CPU_AMX, "bfloat16", "bfloat16", "DTYPE=bfloat16"),
        (CPU, "float16", "float32", "CPUs emulate float16"),
        (CPU_AMX, "float16", "bfloat16", "CPUs emulate float16"),
        (A10G, "native", "float16", "unet's headers say float16"),
        (CPU, "native", "float32", "unet's headers say float16, but CPUs emulate float16"),
    ],
)
def test_the_type_suits_device_and_wish_and_says_why(stable_diffusion, device, asked, chosen, said):
    choice = choose(device, stable_diffusion, asked)
    assert choice.dtype == chosen
    assert said in choice.reason
    assert str(choice.torch_dtype) == f"torch.{chosen}"


def test_a_large_language_model_is_computed_as_stored_where_the_cpu_can(tmp_path):
    small = inspect(language_model(tmp_path))

    def of(**changes):
        return replace(small, components=tuple(replace(one, **changes) for one in small.components))

    short, full = {"float16": 8}, {"float32": 8}
    assert choose(CPU_AMX, of(bytes=LARGE, dtypes=short), "auto").dtype == "bfloat16"
    assert choose(CPU, of(bytes=LARGE, dtypes=short), "auto").dtype == "float32"
    assert choose(CPU_AMX, of(bytes=LARGE, dtypes=full), "auto").dtype == "float32"
    assert choose(CPU_AMX, small, "auto").dtype == "float32"


def test_a_fallback_is_logged_and_a_granted_wish_is_not(stable_diffusion, caplog):
    choose(A10G, stable_diffusion, "bfloat16")
    assert not caplog.records
    choose(T4, stable_diffusion, "bfloat16")
    [record] = [one for one in caplog.records if one.levelno == logging.WARNING]
    assert "dtype float16 instead of bfloat16" in record.getMessage()


def test_a_vae_that_overflows_stays_in_float32_beside_float16_alone(stable_diffusion):
    half = choose(T4, stable_diffusion, "auto")
    assert (half.of("vae"), half.of("unet")) == ("float32", "float16")
    assert "force_upcast" in half.component_reasons["vae"]
    assert choose(A10G, stable_diffusion, "auto").of("vae") == "bfloat16"


def test_mixed_headers_follow_the_denoiser_and_name_the_rest(tmp_path):
    root = pipeline(tmp_path, "float16")
    write_weights(root / "text_encoder" / "model.safetensors", {"big.weight": (64, 64)}, "float32")
    choice = choose(A10G, inspect(root), "native")
    assert choice.dtype == "float16"
    assert "(also float32 in the checkpoint)" in choice.reason


def test_a_storage_type_is_not_computed_in(tmp_path):
    root = language_model(tmp_path)
    write_weights(root / "model.safetensors", {"q.weight": (8, 8)}, "float64")
    choice = choose(A10G, inspect(root), "native")
    assert choice.dtype == "bfloat16"
    assert "float64, which is a storage type only" in choice.reason
