"""One denoiser call on several devices: what every rank of a group does with it.

A rank is a process with a device and a denoiser, whole or in shares (`shards.py`). All ranks make
the same calls in the same order; the first one has the arguments and hands them out. There are two
ways to share the work.
Rows over ranks: each rank computes its share of the rows, which works for every denoiser. Sequence
over ranks (Ulysses, arXiv:2309.14509, by diffusers): each rank has a part of the tokens, and of the
heads while attention is computed; it works for denoisers with a plan for it.
Which way a call goes and whether that is right is `sharing.py`'s business.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from enum import Enum
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.utils import _pytree as pytree

from atelier.images.interception import Gate
from atelier.images.stacking import Layout, Stacker

LOOPBACK = {"GLOO_SOCKET_IFNAME": "lo", "NCCL_SOCKET_IFNAME": "lo"}
"""A group is on one machine: its ranks find each other there, and nobody else finds them."""


class SharingWay(Enum):
    """How the ranks of a group share a call."""

    ROWS = "rows"
    SEQUENCE = "sequence"
    MIRROR = "mirror"


def join(store: Path, rank: int, size: int, device: str) -> None:
    """Make this process a rank of a group. Returns when all of them are there.

    Args:
        store: a file that none but the ranks can read; they find each other by it.
    """
    for name, value in LOOPBACK.items():
        os.environ.setdefault(name, value)
    place = torch.device(device)
    if place.type == "cuda":
        torch.cuda.set_device(place)
    dist.init_process_group(
        "nccl" if place.type == "cuda" else "gloo",
        store=dist.FileStore(str(store), size),
        rank=rank,
        world_size=size,
    )


class JointModule:
    """A denoiser, or another module that all ranks have, as one of them has it."""

    def __init__(self, gate: Gate, split: SequenceSplit | None) -> None:
        self.module: Any = gate.module
        self._real: Callable[..., Any] = gate.real
        self._split = split

    @property
    def splits_sequences(self) -> bool:
        """Whether it has a plan for `SharingWay.SEQUENCE`."""
        return self._split is not None

    def run(self, way: SharingWay, layout: Layout) -> Any:
        """The result of the whole call, on every rank. `layout` is merged; its tensors are read on
        the first rank and written on the others."""
        for tensor in layout.tensors:
            hand_out(tensor)
        if way is SharingWay.ROWS:
            return self._run_rows(layout)
        sharing = self._split.on() if way is SharingWay.SEQUENCE and self._split else nullcontext()
        with sharing:
            return self._real(**Stacker.arguments(layout))

    def function(self, way: SharingWay, layout: Layout) -> Callable[..., Any]:
        """`run` as a function of the layout's leaves, to be recorded."""

        def shared(leaves: list[Any]) -> Any:
            return self.run(way, replace(layout, leaves=leaves))

        return shared

    def _run_rows(self, layout: Layout) -> Any:
        """All shares have the same number of rows, so that the results have one shape: where the
        rows do not divide, shares overlap."""
        rank, size = dist.get_rank(), dist.get_world_size()
        each = -(-layout.rows // size)
        own = min(rank * each, layout.rows - each)
        part = Stacker.part(layout, own, own + each)
        results = _gathered(self._real(**Stacker.arguments(part)), size)
        parts = []
        for index, result in enumerate(results):
            begin = index * each
            overlap = begin - min(begin, layout.rows - each)
            if overlap < each:
                cut = [overlap, each - overlap] if overlap else [each]
                parts.append(Stacker.split(result, cut, layout.takes_lists)[-1])
        return Stacker.join(parts, layout.takes_lists)


def hand_out(tensor: torch.Tensor) -> None:
    """Every rank's tensor becomes the first one's. As bytes, since gloo does not know all types."""
    if tensor.numel():
        dist.broadcast(tensor.reshape(-1).view(torch.uint8), 0)


def _gathered(result: Any, size: int) -> list[Any]:
    """The results of all ranks, in order."""
    leaves, spec = pytree.tree_flatten(result)
    columns = [_gather(leaf, size) if torch.is_tensor(leaf) else [leaf] * size for leaf in leaves]
    return [pytree.tree_unflatten(list(row), spec) for row in zip(*columns, strict=True)]


def _gather(tensor: torch.Tensor, size: int) -> Sequence[torch.Tensor]:
    own = tensor.contiguous().reshape(-1).view(torch.uint8)
    everyones = own.new_empty(size, own.numel())
    dist.all_gather(list(everyones), own)
    return everyones.view(tensor.dtype).reshape(size, *tensor.shape).unbind()


class SequenceSplit:
    """diffusers' context parallelism on one module, switched on for single calls."""

    def __init__(self, module: Any, config: Any) -> None:
        """`config` is a diffusers `ParallelConfig` that is set up. Call before gates are put up:
        hooks take the place of the module's `forward`."""
        from diffusers.hooks import apply_context_parallel

        self._config = config
        self._active = False
        processors = [getattr(part, "processor", None) for part in module.modules()]
        self._processors: list[Any] = [
            one for one in processors if hasattr(one, "_parallel_config")
        ]
        apply_context_parallel(module, config.context_parallel_config, module._cp_plan)
        for part in module.modules():
            registry = getattr(part, "_diffusers_hook", None)
            for hook in registry.hooks.values() if registry else ():
                self._make_conditional(hook.fn_ref)

    def _make_conditional(self, functions: Any) -> None:
        """A hook that does nothing while the split is off."""
        before, after = functions.pre_forward, functions.post_forward

        def pre_forward(module: Any, *args: Any, **kwargs: Any) -> Any:
            return before(module, *args, **kwargs) if self._active else (args, kwargs)

        def post_forward(module: Any, output: Any) -> Any:
            return after(module, output) if self._active else output

        functions.pre_forward, functions.post_forward = pre_forward, post_forward

    @contextmanager
    def on(self) -> Iterator[None]:
        """The module's calls inside are shared over the sequence."""
        self._set(True)
        try:
            yield
        finally:
            self._set(False)

    def _set(self, active: bool) -> None:
        self._active = active
        for processor in self._processors:
            processor._parallel_config = self._config if active else None


def sequence_splits(denoisers: dict[str, Any], device: str) -> dict[str, SequenceSplit]:
    """Those of the denoisers, by name, that can be split over the sequence, switched off. All ranks
    call it, after `join`."""
    size = dist.get_world_size()
    able = {
        name: module
        for name, module in denoisers.items()
        if getattr(module, "_cp_plan", None)
        and getattr(module.config, "num_attention_heads", 0) % size == 0
    }
    if not able:
        return {}
    from diffusers import ContextParallelConfig, ParallelConfig
    from torch.distributed.device_mesh import init_device_mesh

    own = ContextParallelConfig(ulysses_degree=size)
    place = torch.device(device)
    mesh = init_device_mesh(place.type, own.mesh_shape, mesh_dim_names=own.mesh_dim_names)
    config = ParallelConfig(context_parallel_config=own)
    config.setup(dist.get_rank(), size, place, mesh=mesh)
    return {name: SequenceSplit(module, config) for name, module in able.items()}
