"""Weights in shares: each rank of a group keeps its part of every block of a module, and a block is
whole only while it computes.

So every rank makes every call of such a module, at the same time: a block is gathered from all.
That this is so is `sharing.py`'s business. Not torch's FSDP 2, which notes every call for a
backward pass; here none ever comes, and the notes would grow for as long as the server runs.
"""

from __future__ import annotations

import fcntl
import itertools
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from atelier.errors import GenerationFailed
from atelier.hardware.account import GROUP_SHARE
from atelier.images.interception import Gate

MOST = GROUP_SHARE / 2
"""Of a module's weights, in one block: two are whole at a time, the one at work and the next."""

LEAST = MOST / 10
"""Smaller parts are not worth a transfer of their own: they stay whole on every rank."""

ALIGNMENT = 256
"""Bytes: where weights begin in a block, as an allocator of a GPU would place them."""


_gather = getattr(dist, "all_gather_single", dist.all_gather_into_tensor)
"""The second is its name before torch 2.13."""


class ShardedBlock:
    """The weights of one block: this rank's share of their bytes, all of them while it computes."""

    def __init__(self, block: nn.Module, device: torch.device) -> None:
        self._weights = list(block.parameters())
        ends = itertools.accumulate(_aligned(one.nbytes) for one in self._weights)
        self._begins = [0, *ends]
        ranks = dist.get_world_size()
        each = _aligned(-(-self._begins.pop() // ranks))
        self._whole_bytes = each * ranks
        whole = torch.zeros(self._whole_bytes, dtype=torch.uint8)
        for weight, place in zip(self._weights, self._places(whole), strict=True):
            place.copy_(weight.data)
        begin = each * dist.get_rank()
        self.share = whole[begin : begin + each].clone().to(device)
        # Whoever looks at a weight meanwhile finds its shape, type and device, and no values.
        self._absent = [
            torch.full((1,), torch.nan, dtype=one.dtype, device=device).expand(one.shape)
            for one in self._weights
        ]
        self._coming: tuple[torch.Tensor, Any] | None = None
        self._take_away()

    def fetch(self) -> None:
        """Begin to gather it, unless that has begun."""
        if self._coming is None:
            whole = self.share.new_empty(self._whole_bytes)
            work = _gather(whole, self.share, async_op=True)
            self._coming = whole, work

    def complete(self) -> None:
        """Have the weights in place for what is computed from now on."""
        self.fetch()
        assert self._coming is not None
        whole, work = self._coming
        work.wait()
        for weight, place in zip(self._weights, self._places(whole), strict=True):
            weight.data = place

    def release(self) -> None:
        """Let go of what other ranks hold."""
        if self._coming is not None:
            self._coming[1].wait()
            self._coming = None
            self._take_away()

    def _take_away(self) -> None:
        for weight, absent in zip(self._weights, self._absent, strict=True):
            weight.data = absent

    def _places(self, whole: torch.Tensor) -> Iterator[torch.Tensor]:
        for weight, begin in zip(self._weights, self._begins, strict=True):
            part = whole[begin : begin + weight.nbytes]
            yield part.view(weight.dtype).view(weight.shape)


class ShardedModule:
    """A module of which this rank keeps a share, and the call that stands before it."""

    def __init__(self, module: nn.Module, device: str) -> None:
        """Take `module` from RAM to the device, block after block, and of each only the share: the
        whole is never on one device. All ranks have joined before."""
        self.module = module.requires_grad_(False)
        place = torch.device(device)
        self._blocks: list[ShardedBlock] = []
        for block in blocks_of(module):
            own = ShardedBlock(block, place)
            block.register_forward_pre_hook(self._before(own))
            block.register_forward_hook(_after(own), always_call=True)
            self._blocks.append(own)
        module.to(place)  # what is whole, and buffers
        self._real: Callable[..., Any] = module.forward
        self._joint = False
        self._next: dict[ShardedBlock, ShardedBlock] = {}
        self._last: ShardedBlock | None = None

    @property
    def bytes(self) -> int:
        """What this rank holds of the weights between calls."""
        shares = sum(one.share.nbytes for one in self._blocks)
        rest = (one.untyped_storage() for one in self.module.parameters())
        return shares + sum({one.data_ptr(): one.nbytes() for one in rest}.values())

    def stand_behind(self, gate: Gate) -> None:
        """What the gate calls gets its weights from now on."""
        self._real, gate.real = gate.real, self.call

    def call(self, *args: Any, **kwargs: Any) -> Any:
        """The module's function, on every rank at once. One that fails, as it then does on every
        rank, leaves no block whole."""
        self._joint = True
        try:
            return self._real(*args, **kwargs)
        finally:
            self._joint, self._last = False, None
            for block in self._blocks:
                block.release()

    def _before(self, block: ShardedBlock) -> Callable[..., None]:
        """While it computes, the block comes that came after it the last time."""

        def hook(module: nn.Module, args: Any) -> None:
            if not self._joint:  # the other ranks know nothing of it: waiting for them has no end
                raise GenerationFailed(
                    f"a part of {type(self.module).__name__} is called by itself, which does not go"
                    " with weights in shares; the server can serve this with SHARD_WEIGHTS=false"
                )
            block.complete()
            if self._last is not None:
                self._next[self._last] = block
            self._last = block
            if following := self._next.get(block):
                following.fetch()

        return hook


def _after(block: ShardedBlock) -> Callable[..., None]:
    return lambda module, args, result: block.release()


def blocks_of(module: nn.Module) -> list[nn.Module]:
    """The parts that are gathered one after the other: the largest that hold at most `MOST` of the
    weights, or that cannot be divided. A weight with two owners is in none."""
    whole = sum(one.numel() for one in module.parameters())
    owners = Counter(id(one) for part in module.modules() for one in part.parameters(recurse=False))

    def cut(part: nn.Module) -> Iterator[nn.Module]:
        for child in part.children():
            weights = list(child.parameters())
            size = sum(one.numel() for one in weights)
            if size <= LEAST * whole:
                continue
            small = size <= MOST * whole or not list(child.children())
            called = type(child).forward is not nn.Module.forward  # lists of modules are not
            if small and called and all(owners[id(one)] == 1 for one in weights):
                yield child
            else:
                yield from cut(child)

    return list(cut(module))


def shard(pipeline: Any, names: Sequence[str], device: str) -> dict[str, ShardedModule]:
    """Keep shares of these components of the pipeline, as far as it has them, on the device."""
    parts = {name: pipeline.components.get(name) for name in names}
    return {name: ShardedModule(one, device) for name, one in parts.items() if one is not None}


def stand_behind(gates: Sequence[Gate], sharded: Mapping[str, ShardedModule]) -> None:
    """See `ShardedModule.stand_behind`, for those of the gates whose modules are sharded."""
    for gate in gates:
        one = sharded.get(gate.name)
        if one is not None and gate.module is one.module:
            one.stand_behind(gate)


@contextmanager
def in_turn(folder: Path) -> Iterator[None]:
    """One rank after the other reads its weights, so that RAM holds one whole copy at a time. The
    turn of a rank that dies is over."""
    with (folder / "turn").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _aligned(size: int) -> int:
    return -(-size // ALIGNMENT) * ALIGNMENT
