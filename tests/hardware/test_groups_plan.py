"""The memory plan of a group, what a group cannot be made of, and the plan against what a run
took."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from atelier.errors import PlanError, SettingsError
from atelier.hardware.choice import plan
from atelier.hardware.machine import Device
from atelier.hardware.plan import MemoryPlan
from atelier.hardware.ranks import device_names, on_processor, settings_of
from atelier.serving.assembly import serve_kind
from atelier.settings import Settings
from atelier.units import GIB
from atelier.workers.placement import place
from tests.hardware.test_memory_plan import (
    A10G,
    AUTO,
    CPU,
    FLUX,
    H100,
    H200,
    L40S,
    SD15,
    T4,
    gpu,
    part,
)

A4000 = gpu("NVIDIA RTX A4000", 15.7, (8, 6))


def shared(device: Device, *others: Device, **wishes: Any) -> MemoryPlan:
    """FLUX.1-dev in bf16 by a group."""
    ranks = 1 + len(others)
    return plan(FLUX, device, replace(AUTO, ranks=ranks, **wishes), others)


def test_followers_hold_the_denoiser_and_its_activations_alone() -> None:
    made = shared(H100, H100)
    [account] = made.followers
    assert account.weights_bytes == made.component_bytes["transformer"]
    assert account.weights_bytes < made.weights_bytes - 9 * GIB  # no T5 there
    assert 0 < account.activation_bytes <= made.activation_bytes
    assert "rank 1 on NVIDIA H100 80GB HBM3: denoiser 22.2 GiB" in made.table()
    assert made.asdict()["followers"][0]["headroom_bytes"] == account.headroom_bytes


def test_a_group_never_offloads_and_says_what_would_fit() -> None:
    lonely = plan(FLUX, T4, replace(AUTO, dtype="float16"))
    assert lonely.placement == "group_offload"
    with pytest.raises(PlanError, match="SEQUENCE_PARALLEL_SIZE=1, which may offload"):
        plan(FLUX, T4, replace(AUTO, dtype="float16", ranks=2), [T4])


def test_a_full_neighbour_makes_batches_smaller_until_nothing_fits() -> None:
    busy = replace(H100, free_bytes=26 * GIB)
    made = shared(H100, busy, rows=64)
    assert made.max_rows < shared(H100, H100, rows=64).max_rows
    assert made.reasons["max_rows"] == "memory of the group allows no more"
    with pytest.raises(PlanError, match=r"SEQUENCE_PARALLEL_SIZE=2: a rank on NVIDIA H100 .* more"):
        shared(H100, replace(H100, free_bytes=20 * GIB), shard_weights="false")
    with pytest.raises(PlanError, match=r"a rank on NVIDIA H100 .* for its share of the weights"):
        shared(H100, replace(H100, free_bytes=16 * GIB))


def test_ranks_on_a_processor_share_one_memory() -> None:
    roomy = replace(CPU, free_bytes=16 * GIB)
    alone = plan(SD15, roomy, replace(AUTO, dtype="float32", rows=2))
    two = plan(SD15, roomy, replace(AUTO, dtype="float32", rows=2, ranks=2), [roomy])
    [account] = two.followers
    taken = account.weights_bytes + account.activation_bytes
    assert two.headroom_bytes == alone.headroom_bytes - taken


def test_flux_in_bf16_fits_two_devices_of_24_gb_in_shares() -> None:
    alone = plan(FLUX, A10G, replace(AUTO, dtype="bfloat16"))
    assert (alone.placement, alone.sharded) == ("group_offload", ())
    assert "sharding" not in alone.table()
    for quantization in ("none", "auto"):
        made = shared(A10G, A10G, quantization=quantization)
        assert made.sharded == ("transformer", "text_encoder_3")
        assert (made.placement, made.quantization, made.compile) == ("resident", "none", "off")
        assert made.component_bytes["transformer"] == 11_901_408_320
        assert made.headroom_bytes >= 0
        assert made.max_rows >= 2
        [account] = made.followers
        assert account.headroom_bytes > made.headroom_bytes  # no CLIP, no VAE there
        assert "13.3 GiB short with all weights (31.4 GiB) on one device" in made.table()
        assert "share of transformer and text_encoder_3" in made.reasons["sharding"]
        assert "rank 1 on NVIDIA A10G: shares 17.7 GiB" in made.table()
        assert made.asdict()["sharded"] == ["transformer", "text_encoder_3"]


def test_a_language_model_that_writes_is_whole_on_the_first_device() -> None:
    writer = part("vision_language_encoder", "text_encoder", 4_000_000_000, 3_900_000_000)
    sizes = replace(FLUX, parts=(*FLUX.parts[:2], writer, *FLUX.parts[3:]))
    made = plan(sizes, L40S, replace(AUTO, ranks=2, shard_weights="true"), [L40S])
    assert made.sharded == ("transformer",)
    assert made.component_bytes["vision_language_encoder"] == 8_000_000_000


def test_weights_that_fit_are_not_sharded_unless_asked() -> None:
    made = shared(H100, H100)
    assert (made.sharded, made.reasons["sharding"]) == ((), "not needed")
    asked = shared(H100, H100, shard_weights="true")
    assert asked.sharded
    assert asked.reasons["sharding"] == "asked by SHARD_WEIGHTS=true"
    assert asked.weights_bytes < made.weights_bytes - 12 * GIB


def test_shares_come_before_quantization_and_quantization_before_nothing() -> None:
    made = shared(A10G, A10G, quantization="auto", shard_weights="false")
    assert (made.quantization, made.sharded) == ("int8", ())
    assert made.reasons["sharding"] == "asked by SHARD_WEIGHTS=false"
    small = shared(A4000, A4000, quantization="auto")
    assert (small.quantization, small.sharded) == ("nf4", ())
    assert small.reasons["sharding"] == "does not suffice"


def test_a_neighbour_without_room_for_the_whole_gets_a_share() -> None:
    made = shared(H100, replace(H100, free_bytes=22 * GIB))
    assert "the other devices lack room for all weights" in made.reasons["sharding"]
    assert made.sharded == ("transformer", "text_encoder_3")


def test_two_devices_of_16_gb_are_told_what_would_fit() -> None:
    with pytest.raises(PlanError) as caught:
        shared(A4000, A4000)
    told = str(caught.value)
    assert "in bfloat16 with placement resident and a share of the weights on each of 2" in told
    assert "SEQUENCE_PARALLEL_SIZE=4, on as many such devices" in told
    assert "SEQUENCE_PARALLEL_SIZE=1, which may offload" in told
    assert "QUANTIZATION=nf4" in told
    assert shared(A4000, A4000, A4000, A4000).sharded


@pytest.mark.parametrize(
    ("wishes", "told"),
    [
        ({"shard_weights": "false"}, "SHARD_WEIGHTS=auto"),
        ({"compile": "regional"}, "COMPILE=off"),
        (
            {"shard_weights": "false", "compile": "regional"},
            "SHARD_WEIGHTS=auto with COMPILE=off",
        ),
    ],
)
def test_what_forbids_shares_is_named_where_they_would_fit(
    wishes: dict[str, Any], told: str
) -> None:
    with pytest.raises(PlanError) as caught:
        shared(A10G, A10G, **wishes)
    assert told in str(caught.value).split("Any one of these makes it fit: ")[1].split("; ")


@pytest.mark.parametrize(
    ("wishes", "told"),
    [
        ({"quantization": "fp8"}, "SHARD_WEIGHTS=true with QUANTIZATION=fp8"),
        ({"quantization": "nf4"}, "SHARD_WEIGHTS=true with QUANTIZATION=nf4"),
        ({"compile": "regional"}, "COMPILE=regional: sharded weights are neither"),
        ({"ranks": 1}, "set SEQUENCE_PARALLEL_SIZE to their number"),
    ],
)
def test_shares_that_were_asked_for_and_cannot_be_had_are_refused(
    wishes: dict[str, Any], told: str
) -> None:
    asked = replace(AUTO, **({"ranks": 2, "shard_weights": "true"} | wishes))
    with pytest.raises(PlanError) as caught:
        plan(FLUX, L40S, asked)
    assert told in str(caught.value)
    packed = replace(FLUX, parts=tuple(replace(one, packed=True) for one in FLUX.parts))
    with pytest.raises(PlanError, match="the weights of flux1-dev are packed already"):
        plan(packed, L40S, replace(AUTO, ranks=2, shard_weights="true"))


@pytest.mark.parametrize(
    ("other", "told"),
    [
        (replace(H100, mig=True), "slices (MIG) cannot be joined"),
        (L40S, "rank 0 has NVIDIA H100 80GB HBM3, rank 1 NVIDIA L40S"),
        (CPU, "devices of one kind"),
    ],
)
def test_a_group_is_of_whole_devices_of_one_kind(other: Device, told: str) -> None:
    with pytest.raises(PlanError) as caught:
        shared(H100, other)
    assert told in str(caught.value)


@pytest.mark.parametrize(
    ("devices", "given", "told"),
    [
        (0, {"device": "cuda:1"}, "SEQUENCE_PARALLEL_SIZE=2 with DEVICE=cuda:1"),
        (1, {}, "needs as many devices"),
        (3, {}, "SEQUENCE_PARALLEL_SIZE=2 does not divide the 3 devices"),
        (2, {"enable_cpu_offload": "true"}, "ENABLE_CPU_OFFLOAD=true"),
        (2, {"compile": "full"}, "COMPILE=full"),
    ],
)
def test_what_a_group_cannot_be_is_said(
    devices: int, given: dict[str, Any], told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: devices)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: devices > 0)
    with pytest.raises(SettingsError) as caught:
        settings_of(Settings(sequence_parallel_size=2, **given), 0, True)
    assert told in str(caught.value)


def test_commands_without_followers_and_language_models_refuse_a_group() -> None:
    with pytest.raises(SettingsError, match="works with `atelier serve` alone"):
        settings_of(Settings(sequence_parallel_size=2), 0, False)
    language = Settings(model_id="builtin/scenes", sequence_parallel_size=2)
    with pytest.raises(SettingsError, match="SEQUENCE_PARALLEL_SIZE=2 is for pictures"):
        serve_kind(language, None, None)  # type: ignore[arg-type]


def test_devices_of_a_group_are_consecutive(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = Settings(sequence_parallel_size=2, data_parallel_size=2, device="cuda")
    assert [place(settings, n, 2).environment for n in (0, 1)] == [
        {"CUDA_VISIBLE_DEVICES": "0,1"},
        {"CUDA_VISIBLE_DEVICES": "2,3"},
    ]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5,6,7")
    assert place(settings, 1, 2).environment == {"CUDA_VISIBLE_DEVICES": "6,7"}
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    ranks = [settings_of(settings, rank, True) for rank in (0, 1)]
    assert [one.device for one in ranks] == ["cuda:0", "cuda:1"]
    assert device_names(ranks[0]) == ["cuda 4", "cuda 5"]


def test_workers_compute_where_there_is_a_device(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """DEVICE=auto with several workers, told without torch: a driver's file is a GPU, unless
    CUDA_VISIBLE_DEVICES hides it."""
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    settings = Settings(data_parallel_size=2)
    assert on_processor(settings, tmp_path)
    (tmp_path / "nvidiactl").touch()
    assert on_processor(settings, tmp_path)
    (tmp_path / "nvidia0").touch()
    assert not on_processor(settings, tmp_path)
    assert not on_processor(Settings(device="cuda:1"), tmp_path)
    for hidden in ("", " ", "-1"):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", hidden)
        assert on_processor(settings, tmp_path)
    assert place(settings, 1, 2).overrides["device"] == "cpu"


def test_cores_are_shared_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr("atelier.workers.placement.usable_cpus", lambda: 16.0)
    monkeypatch.setattr("atelier.hardware.ranks.usable_cpus", lambda: 16.0)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    settings = Settings(sequence_parallel_size=2, device="cpu")
    assert place(settings, 1, 4).overrides == {"device": "cpu", "omp_num_threads": 2}
    assert settings_of(settings, 1, True).omp_num_threads == 8
    assert settings_of(Settings(sequence_parallel_size=4), 1, True).omp_num_threads == 4


@pytest.mark.parametrize(
    ("promised_gib", "taken_gib", "error"),
    [(40, 40, 0.0), (40, 44, 0.1), (40, 30, -0.25), (54.4, 52.6, -0.0331), (0, 0, -1.0)],
)
def test_the_error_of_a_plan_is_a_share_of_its_promise(
    promised_gib: float, taken_gib: float, error: float
) -> None:
    weights = int(promised_gib * GIB * 0.75)
    rest = int(promised_gib * GIB) - weights
    made = replace(shared(H200), weights_bytes=weights, activation_bytes=rest)
    assert made.error_ratio(int(taken_gib * GIB)) == pytest.approx(error, abs=1e-4)
