"""What the first rank of a group tells its followers, and what they answer: plain data, pickled
over pipes of their own. Tensors do not go this way but from device to device."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch.utils import _pytree as pytree

from atelier.hardware.plan import MemoryPlan
from atelier.images.parallel import SharingWay
from atelier.images.stacking import PRIMITIVE, Layout
from atelier.sources.checkpoint.contents import Checkpoint


@dataclass(frozen=True)
class Blank:
    """A tensor to be handed out: its form."""

    shape: torch.Size
    dtype: torch.dtype


@dataclass(frozen=True)
class Describe:
    """Say what device you have."""


@dataclass(frozen=True)
class LoadModules:
    """Load the modules of this checkpoint that all ranks have, as planned. `environment` are the
    variables that point compilers to their caches."""

    checkpoint: Checkpoint
    plan: MemoryPlan
    environment: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class JoinGroup:
    """Meet the others."""


@dataclass(frozen=True)
class PrepareCalls:
    """Everyone has loaded; from now on calls can be shared."""


@dataclass(frozen=True)
class SharedCall:
    """Make this call of a module. `layout` holds `Blank`s for tensors."""

    module: str
    way: SharingWay
    layout: Layout


@dataclass(frozen=True)
class RecordCall:
    """Record this call under a name, to be replayed."""

    name: int
    call: SharedCall


@dataclass(frozen=True)
class ReplayCall:
    """Replay what was recorded under this name."""

    name: int


@dataclass(frozen=True)
class ForgetCall:
    """It is not replayed any more."""

    name: int


@dataclass(frozen=True)
class AdapterLayer:
    """What an adapter has in one layer: the path of what it wraps, PEFT's numbers, and the forms of
    its tensors by their names."""

    path: str
    numbers: dict[str, float]
    forms: dict[tuple[str, str], Blank]


@dataclass(frozen=True)
class LoadAdapter:
    """Put this adapter into a module. `config` is PEFT's; the tensors are handed out."""

    module: str
    key: str
    config: Any
    layers: list[AdapterLayer]


@dataclass(frozen=True)
class DropAdapter:
    """Take it out again."""

    module: str
    key: str


@dataclass(frozen=True)
class UseAdapters:
    """Make exactly these adapters of a module active, with their weights."""

    module: str
    selection: tuple[tuple[str, float], ...]


@dataclass(frozen=True)
class StopCompiling:
    """The warm-up is over."""


@dataclass(frozen=True)
class Leave:
    """The group ends."""


Order = (
    Describe
    | JoinGroup
    | LoadModules
    | PrepareCalls
    | SharedCall
    | RecordCall
    | ReplayCall
    | ForgetCall
    | LoadAdapter
    | DropAdapter
    | UseAdapters
    | StopCompiling
    | Leave
)

ANSWERED = (Describe, JoinGroup, LoadModules, PrepareCalls, RecordCall)
"""Orders that are answered when they are done; of the others only failures are."""

PATIENT = (Describe, LoadModules)
"""Orders that the first rank asks for the answer of when it has time."""


@dataclass(frozen=True)
class OrderAnswer:
    """To the first rank: what came of the order of this number."""

    number: int
    value: Any = None
    error: str = ""


class Untold(Exception):
    """An argument of the call cannot be told to another process."""


def blanked(layout: Layout, device: torch.device) -> Layout:
    """The layout with the form of each tensor in its place.

    Raises:
        Untold: something in it is neither a tensor on the group's devices nor plain.
    """
    return replace(layout, key=None, leaves=[_blank(leaf, device) for leaf in layout.leaves])


def _blank(leaf: Any, device: torch.device) -> Any:
    if torch.is_tensor(leaf):
        if leaf.device.type != device.type or type(leaf) is not torch.Tensor:
            raise Untold(f"a tensor of {leaf.device.type}")
        return Blank(leaf.shape, leaf.dtype)
    if isinstance(leaf, list | tuple):
        return type(leaf)(_blank(each, device) for each in leaf)
    if not isinstance(leaf, PRIMITIVE) or isinstance(leaf, torch.device):
        raise Untold(type(leaf).__name__)
    return leaf


def moved(layout: Layout, device: torch.device) -> Layout:
    """The layout with every tensor on the group's device: sharded modules take none from
    elsewhere."""
    return replace(
        layout,
        leaves=pytree.tree_map_only(torch.Tensor, lambda one: one.to(device), layout.leaves),
    )


def filled(layout: Layout, device: torch.device) -> Layout:
    """The layout with an empty tensor in place of each blank."""
    return replace(layout, leaves=[_fill(leaf, device) for leaf in layout.leaves])


def _fill(leaf: Any, device: torch.device) -> Any:
    if isinstance(leaf, Blank):
        return torch.empty(leaf.shape, dtype=leaf.dtype, device=device)
    nested = isinstance(leaf, list | tuple) and not isinstance(leaf, torch.Size)
    return type(leaf)(_fill(each, device) for each in leaf) if nested else leaf
