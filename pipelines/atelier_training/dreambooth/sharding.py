"""With `shard`, a process keeps its part of every weight (FSDP 2), and a block is gathered while it
computes.

Masters, gradients and optimizer state are then in parts too, without a word about it elsewhere;
only what is written to disk has to be made whole, and what is read has to be cut.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn
from torch.distributed import get_world_size
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor


def shard(module: nn.Module, blocks: Iterable[nn.Module], device: torch.device) -> None:
    """Spread `module` over the devices of all processes: each of its `blocks`, then what is left.
    It may be larger than one device: block after block is moved there and cut."""
    # The warning is about writing into what a module returned, which losses do not.
    warnings.filterwarnings("ignore", message="FSDP2-wrapped module", category=UserWarning)
    mesh = init_device_mesh(device.type, (get_world_size(),))
    for part in (*blocks, module):
        fully_shard(part, mesh=mesh)


def whole(state: Any, keep: bool) -> Any:
    """`state`, a nest of dicts and lists, with sharded tensors gathered onto the CPU. All processes
    call it; those that do not `keep` the result get None for each, so that one alone holds the
    whole."""
    if isinstance(state, dict):
        return {name: whole(value, keep) for name, value in state.items()}
    if isinstance(state, list):
        return [whole(value, keep) for value in state]
    if not isinstance(state, DTensor):
        return state
    gathered = state.full_tensor()
    return gathered.cpu() if keep else None


def local(tensor: torch.Tensor) -> torch.Tensor:
    """The storage of this process's part, or the tensor itself if it is not sharded."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def part_like(value: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """The part of a whole tensor that this process holds if `like` is sharded; otherwise the value
    itself."""
    if not isinstance(like, DTensor):
        return value
    # Each process has read the value, so nobody has to send it.
    return distribute_tensor(
        value.to(like.device), like.device_mesh, like.placements, src_data_rank=None
    )
