"""The account of memory of a group's other devices: each holds the denoiser and the activations of
its share of the rows. Encoders and VAE are the first rank's alone, whose plan decides everything
but the size of a batch.

Sharded, each holds its share of the denoiser and of large encoders, and the activations of all
rows: calls that are not shared are made on every device, since each has to bring its weights.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from atelier.errors import PlanError
from atelier.hardware.fit import GUIDED_ROWS, Fit, Load
from atelier.hardware.machine import Device
from atelier.hardware.plan import FollowerAccount, MemoryPlan
from atelier.units import gib


def with_followers(plan: MemoryPlan, fit: Fit, others: Sequence[Device]) -> MemoryPlan:
    """The plan with the accounts of the group's other devices, and with as many rows as fit all.

    Raises:
        PlanError: one of them lacks room.
    """
    for rows in range(plan.max_rows, 0, -1):
        made = _with_rows(plan, fit, rows)
        accounts = _accounts(made, fit, others)
        if all(one.headroom_bytes >= 0 for one in accounts):
            return _completed(made, fit, accounts)
    short = min(accounts, key=lambda one: one.headroom_bytes)
    raise PlanError(
        f"{plan.model} does not fit SEQUENCE_PARALLEL_SIZE={len(others) + 1}: a rank on"
        f" {short.device} needs {gib(short.weights_bytes)} for"
        f" {'its share of the weights' if fit.is_sharded else 'the denoiser'} and"
        f" {gib(short.activation_bytes)} for activations, {gib(-short.headroom_bytes)} more than it"
        " may use; free memory there, or set SEQUENCE_PARALLEL_SIZE lower"
    )


def _with_rows(plan: MemoryPlan, fit: Fit, rows: int) -> MemoryPlan:
    if rows == plan.max_rows:
        return plan
    pictures = 1 if plan.vae_slicing else rows
    worst = fit.worst(Load(fit.native_pixels, rows, pictures, plan.vae_tiling))
    return replace(
        plan,
        max_rows=rows,
        weights_bytes=worst.weights,
        activation_bytes=worst.activations,
        headroom_bytes=fit.budget - worst.total,
        reasons={**plan.reasons, "max_rows": "memory of the group allows no more"},
    )


def _accounts(plan: MemoryPlan, fit: Fit, others: Sequence[Device]) -> list[FollowerAccount]:
    """What each of the others holds. Ranks on processors share one memory with the first."""
    held = fit.held
    own = {name for name, role in held.roles.items() if role == "denoiser"} | set(fit.sharded)
    weights = sum(held.parts[name] for name in own) + fit.gathered({"denoiser", "text_encoder"})
    share = max(GUIDED_ROWS, -(-plan.max_rows // (1 if fit.is_sharded else len(others) + 1)))
    load = Load(fit.native_pixels, min(share, plan.max_rows), 1, tiled=False)
    activations = next(one for one in fit.stages(load) if one.name == "denoise").activations
    left, accounts = plan.headroom_bytes, []
    for device in others:
        whole = int(device.free_bytes * fit.wishes.memory_fraction)
        left = (left if device.kind == "cpu" else whole) - weights - activations
        accounts.append(FollowerAccount(device.name, weights, activations, left))
    return accounts


def _completed(plan: MemoryPlan, fit: Fit, accounts: list[FollowerAccount]) -> MemoryPlan:
    shared = fit.device.kind == "cpu"
    left = accounts[-1].headroom_bytes if shared else plan.headroom_bytes
    return replace(plan, followers=tuple(accounts), headroom_bytes=left)


def check_kin(first: Device, others: Sequence[Device]) -> None:
    """Ranks wait for each other at every call, and NCCL does not join slices of a GPU.

    Raises:
        PlanError: one of the devices is a slice of a GPU, or of another kind than the first.
    """
    for rank, other in enumerate(others, start=1):
        if first.mig or other.mig:
            raise PlanError(
                "SEQUENCE_PARALLEL_SIZE needs whole GPUs: slices (MIG) cannot be joined; set it to"
                " 1"
            )
        if (first.kind, first.capability) != (other.kind, other.capability):
            raise PlanError(
                f"a group needs devices of one kind: rank 0 has {first.name}, rank {rank}"
                f" {other.name}; choose others with CUDA_VISIBLE_DEVICES"
            )
