"""Stack the arguments of several calls of one module along the batch axis, and split what it
returns.

A call is described by a `Layout`: which of its tensors carry one row a sample, which are shared,
and a key. Calls with equal keys can be stacked. What is not understood gets no key and runs alone.
Being wrong here is caught by `verifier.py`, which compares stacked with lone results before
stacking is trusted.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any

import torch
from torch.utils import _pytree as pytree

PRIMITIVE = (str, int, float, bool, type(None), torch.dtype, torch.device)
TIMESTEPS = ("timestep", "timesteps", "t", "sigma")

RESIDUALS = re.compile(r"residual|controlnet")
"""Arguments that are lists of one tensor for each block, never for each sample, however many."""


def _holds_nothing(cache: Any) -> bool:
    """True of GLM-Image's key-value cache when no input picture is in it; the denoiser then ignores
    it."""
    return all(layer.mode is None for layer in cache.caches)


UNUSED: dict[str, Callable[[Any], bool]] = {"GlmImageKVCache": _holds_nothing}
"""Objects that only some calls make use of, by class, with what tells whether this one does."""


class Unsplittable(Exception):
    """The module returned something whose rows cannot be told apart."""


class Role(Enum):
    """What a leaf of the arguments is to the batch."""

    ROWS = "one row a sample along axis 0"
    TIMESTEP = "one a row, or one for all rows, which is expanded"
    LIST = "a Python list with one entry a sample"
    SHARED = "the same for all samples"


@dataclass(frozen=True)
class Layout:
    """One call, taken apart. `key` is None if the call cannot be stacked with any other."""

    key: Hashable | None
    rows: int
    leaves: list[Any]
    roles: list[Role]
    spec: Any

    @property
    def shape(self) -> str:
        """The shape of one row of the first tensor, such as 16x64x64, to report step times by."""
        return next(
            ("x".join(map(str, tensor.shape[1:])) for tensor in self.tensors if tensor.dim() > 1),
            "",
        )

    @property
    def takes_lists(self) -> bool:
        """Whether there is a list with an entry a sample among the arguments."""
        return Role.LIST in self.roles

    @property
    def positions(self) -> int:
        """Height times width of the first tensor's last two axes."""
        return next(
            (tensor.shape[-1] * tensor.shape[-2] for tensor in self.tensors if tensor.dim() > 2), 1
        )

    @property
    def tensors(self) -> list[torch.Tensor]:
        """All tensors of the call, those in per-sample lists included."""
        flat = (
            entry for leaf in self.leaves for entry in (leaf if isinstance(leaf, list) else [leaf])
        )
        return [entry for entry in flat if torch.is_tensor(entry)]


class Stacker:
    """Takes calls of one function apart and puts them together again."""

    def __init__(self, signature: inspect.Signature) -> None:
        self._signature = signature

    def layout(self, args: tuple[Any, ...], kwargs: dict[str, Any], digest: Any) -> Layout:
        """Describe one call.

        Args:
            digest: function from a tensor to a hashable of its content, for tensors that all
                samples share.
        """
        try:
            named = dict(self._signature.bind(*args, **kwargs).arguments)
        except TypeError:
            return Layout(None, 0, [], [], None)
        for name, parameter in self._signature.parameters.items():
            if parameter.kind is inspect.Parameter.VAR_KEYWORD:
                named |= named.pop(name, {})
        rows = _rows(named)
        names, leaves, spec = _flatten(named, rows)
        if not rows:
            return Layout(None, 0, leaves, [], spec)
        mixed = {name for name, value in named.items() if _is_mixed(value, rows)}
        roles, parts = [], []
        for name, leaf in zip(names, leaves, strict=True):
            role, part = _role(name, leaf, 0 if name in mixed else rows, digest)
            if role is None:
                return Layout(None, rows, leaves, [], spec)
            roles.append(role)
            parts.append(part)
        return Layout((str(spec), tuple(parts)), rows, leaves, roles, spec)

    @staticmethod
    def merged(layouts: Sequence[Layout]) -> Layout:
        """The layout of one call that does the work of all."""
        first = layouts[0]
        leaves = []
        for index, role in enumerate(first.roles):
            column = [layout.leaves[index] for layout in layouts]
            if role is Role.SHARED:
                leaves.append(column[0])
            elif role is Role.LIST:
                leaves.append(_List(entry for part in column for entry in part))
            else:
                if role is Role.TIMESTEP:
                    column = [
                        part.reshape(-1).expand(layout.rows)
                        for part, layout in zip(column, layouts, strict=True)
                    ]
                leaves.append(torch.cat(column))
        rows = sum(layout.rows for layout in layouts)
        return Layout(first.key, rows, leaves, first.roles, first.spec)

    @staticmethod
    def arguments(layout: Layout) -> dict[str, Any]:
        """The keyword arguments of the call that a layout describes."""
        return _unlist(pytree.tree_unflatten(layout.leaves, layout.spec))

    @staticmethod
    def split(result: Any, rows: Sequence[int], lists: bool) -> list[Any]:
        """Cut the result of a stacked call into the results that the lone calls would have had.

        Args:
            lists: the module takes lists with an entry a sample (`Layout.takes_lists`), and so may
                give some. One that takes none gives lists with an entry a block.

        Raises:
            Unsplittable: a part of the result has no axis of the right length.
        """
        total = sum(rows)

        def is_per_sample(node: Any) -> bool:
            return (
                lists
                and isinstance(node, list)
                and len(node) == total
                and all(torch.is_tensor(entry) for entry in node)
            )

        leaves, spec = pytree.tree_flatten(result, is_leaf=is_per_sample)
        columns = [_cut(leaf, rows, total) for leaf in leaves]
        return [
            pytree.tree_unflatten([column[index] for column in columns], spec)
            for index in range(len(rows))
        ]

    @staticmethod
    def part(layout: Layout, start: int, end: int) -> Layout:
        """Some of the rows of one call: those from `start` to before `end`."""
        leaves = [
            leaf[start:end]
            if role in (Role.ROWS, Role.LIST) or (role is Role.TIMESTEP and leaf.numel() > 1)
            else leaf
            for role, leaf in zip(layout.roles, layout.leaves, strict=True)
        ]
        rows = min(end, layout.rows) - start
        return Layout(layout.key, rows, leaves, layout.roles, layout.spec)

    @staticmethod
    def join(results: Sequence[Any], lists: bool) -> Any:
        """The result that the whole call would have had, from those of its parts, which came from
        `split`."""
        whole = _is_tensor_list if lists else None
        flat = [pytree.tree_flatten(result, is_leaf=whole) for result in results]
        columns = zip(*(leaves for leaves, _ in flat), strict=True)
        return pytree.tree_unflatten([_joined(column) for column in columns], flat[0][1])


def _is_tensor_list(node: Any) -> bool:
    return isinstance(node, list) and all(torch.is_tensor(entry) for entry in node)


def _joined(parts: Sequence[Any]) -> Any:
    if isinstance(parts[0], list):
        return [entry for part in parts for entry in part]
    return torch.cat(list(parts)) if torch.is_tensor(parts[0]) else parts[0]


class _List(list):  # type: ignore[type-arg]
    """A per-sample list, kept whole as one leaf."""


def _rows(named: dict[str, Any]) -> int:
    """How many samples the call is for: the length of the first tensor with two axes, or of a
    leading list of tensors."""
    first = next(iter(named.values()), None)
    if isinstance(first, list) and first and all(torch.is_tensor(entry) for entry in first):
        return len(first)
    tensors = (leaf for leaf in pytree.tree_leaves(named) if torch.is_tensor(leaf))
    return next((tensor.shape[0] for tensor in tensors if tensor.dim() >= 2), 0)


def _flatten(named: dict[str, Any], rows: int) -> tuple[list[str], list[Any], Any]:
    """Leaves with the name of the argument they belong to; a list with one entry a sample stays one
    leaf."""
    marked = {
        name: _List(value) if _is_per_sample(name, value, rows) else value
        for name, value in named.items()
    }
    names: list[str] = []
    for name, value in marked.items():
        names += [name] * len(pytree.tree_leaves(value, is_leaf=_is_list))
    leaves, spec = pytree.tree_flatten(marked, is_leaf=_is_list)
    return names, leaves, spec


def _is_per_sample(name: str, value: Any, rows: int) -> bool:
    listed = isinstance(value, list) and not RESIDUALS.search(name)
    return listed and len(value) == rows and bool(rows)


def _is_list(node: Any) -> bool:
    return isinstance(node, _List)


def _unlist(arguments: dict[str, Any]) -> dict[str, Any]:
    return {
        name: list(value) if isinstance(value, _List) else value
        for name, value in arguments.items()
    }


def _is_mixed(value: Any, rows: int) -> bool:
    """True of a list or tuple of tensors of which some, but not all, are as long as there are
    samples: Kandinsky 5's positions along three axes are, one of which is a single frame. Such
    tensors have no batch axis."""
    if not isinstance(value, list | tuple) or not all(torch.is_tensor(entry) for entry in value):
        return False
    lengths = {entry.shape[:1] for entry in value}
    return len(lengths) > 1 and (rows,) in lengths


def _role(name: str, leaf: Any, rows: int, digest: Any) -> tuple[Role | None, Hashable]:
    if isinstance(leaf, _List):
        return Role.LIST, ("list", *(_describe(entry) for entry in leaf[:1]))
    if isinstance(leaf, PRIMITIVE):
        return Role.SHARED, leaf
    if isinstance(leaf, torch.Generator):
        return Role.SHARED, "generator"
    if not torch.is_tensor(leaf):
        kind_of = type(leaf).__name__
        return (
            (Role.SHARED, kind_of) if kind_of in UNUSED and UNUSED[kind_of](leaf) else (None, None)
        )
    kind = (leaf.dtype, str(leaf.device))
    if name in TIMESTEPS and leaf.numel() in (1, rows):
        # Whole and 32-bit timesteps of different schedulers meet in one exact type; half types
        # would round the whole ones.
        exact = leaf.dtype in (torch.int32, torch.int64, torch.float32)
        return Role.TIMESTEP, (name, "exact" if exact else leaf.dtype, str(leaf.device))
    if leaf.dim() and leaf.shape[0] == rows:
        return Role.ROWS, (tuple(leaf.shape[1:]), *kind)
    return Role.SHARED, (digest(leaf), *kind)


def _describe(entry: Any) -> Hashable:
    """Samples of a list may differ along their first axis: the channels of latents never do, the
    tokens of texts may."""
    return (
        (tuple(entry.shape[1:]), entry.dtype, str(entry.device))
        if torch.is_tensor(entry)
        else repr(entry)
    )


def _cut(leaf: Any, rows: Sequence[int], total: int) -> list[Any]:
    if isinstance(leaf, list) or (torch.is_tensor(leaf) and leaf.dim() and leaf.shape[0] == total):
        ends = [sum(rows[: index + 1]) for index in range(len(rows))]
        return [leaf[end - count : end] for end, count in zip(ends, rows, strict=True)]
    if isinstance(leaf, PRIMITIVE):
        return [leaf] * len(rows)
    raise Unsplittable(
        f"{type(leaf).__name__} of shape {tuple(getattr(leaf, 'shape', ()))} for {total} rows"
    )
