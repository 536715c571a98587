"""Put a gate in front of the modules of a pipeline, so that a call made inside a request's greenlet
parks there.

The gate replaces `forward` (of a VAE: `encode` and `decode`) on the module instance. Called from
the engine's own greenlet it is the real function; called from a request's greenlet it hands the
arguments to the engine and returns what the engine answers. Pipelines notice nothing: they call
their modules as always.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from enum import Enum
from functools import wraps
from typing import Any

import greenlet
import torch
from torch.utils import _pytree as pytree

from atelier.images.stacking import Layout, Stacker
from atelier.sources.checkpoint.roles import role_of


class Stage(Enum):
    """What a module does in a picture's life; also the name of its share in `Finished.timings`."""

    ENCODE = "encode"
    CONTROL = "control"
    DENOISE = "denoise"
    DECODE = "decode"
    CHECK = "check"
    UPSCALE = "upscale"


class Gate:
    """One intercepted function. `real` is what the pipeline would have called, hooks and
    compilation included."""

    def __init__(
        self, name: str, module: torch.nn.Module, method: str, stage: Stage | None = None
    ) -> None:
        self.name = name
        self.module = module
        self.stage = stage or _stage(name, method)
        self.real: Callable[..., Any] = getattr(module, method)
        self.stacker = Stacker(inspect.signature(self.real))
        # A VAE encodes to a distribution, one object whose rows cannot be told apart, and a
        # pipeline's own checker answers with words beside tensors.
        own_checker = name == "safety_checker" and stage is None
        self.stackable = method != "encode" and not own_checker
        self._method = method
        self._gated = self._make_gated()

    @property
    def offloaded(self) -> torch.nn.Module | None:
        """The module, if it may be kept in RAM; controls are always on the device."""
        return None if self.stage is Stage.CONTROL else self.module

    def take_down(self) -> None:
        """Leave the module as it was: one in training must be called directly."""
        vars(self.module).pop(self._method, None)

    def put_up(self) -> None:
        """Stand before the module, again if something else took the place: offload hooks do when
        adapters are loaded."""
        standing = getattr(self.module, self._method)
        if standing is not self._gated:
            self.real = standing
            setattr(self.module, self._method, self._gated)

    def _make_gated(self) -> Callable[..., Any]:
        @wraps(self.real)
        def gated(*args: Any, **kwargs: Any) -> Any:
            current = greenlet.getcurrent()
            if isinstance(current, Parking) and not current.uninterrupted:
                return current.park(Call(self, args, kwargs))
            return self.real(*args, **kwargs)

        return gated


@dataclass(eq=False)
class Call:
    """A parked call: the gate, the arguments, and how they can be stacked."""

    gate: Gate
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    layout: Layout = field(init=False)

    def run(self) -> Any:
        """The call as the pipeline made it. Denoisers empty lists and dictionaries that they are
        given, so it gets copies: it may have to be run again."""
        args, kwargs = pytree.tree_map(lambda leaf: leaf, (self.args, self.kwargs))
        return self.gate.real(*args, **kwargs)


class Parking(greenlet.greenlet):
    """A greenlet whose gated calls are answered by its parent, unless `uninterrupted`."""

    uninterrupted = False

    def park(self, call: Call) -> Any:
        """Wait until the engine has run the call; its result comes back, its exception is
        raised."""
        return self.parent.switch(call)


def install(pipeline: Any) -> list[Gate]:
    """Put gates before every module of `pipeline` and of pipelines inside it. Call once for a set
    of shared modules."""
    gates: dict[int, list[Gate]] = {}
    for name, module in _modules(pipeline):
        if id(module) in gates:
            continue
        is_vae = hasattr(module, "decode") and hasattr(module, "encode")
        methods = ("encode", "decode") if is_vae else ("forward",)
        gates[id(module)] = [Gate(name, module, method) for method in methods]
        put_up(gates[id(module)])
        if hasattr(module, "generate"):
            _keep_together(module)
    return [gate for each in gates.values() for gate in each]


def put_up(gates: Sequence[Gate]) -> None:
    """See `Gate.put_up`."""
    for gate in gates:
        gate.put_up()


def is_pipeline(value: Any) -> bool:
    """True of a diffusers pipeline; combined ones hold others as plain attributes."""
    return hasattr(value, "components") and callable(value)


def _modules(pipeline: Any) -> Iterator[tuple[str, torch.nn.Module]]:
    for name, value in vars(pipeline).items():
        if isinstance(value, torch.nn.Module):
            yield name, value
        elif is_pipeline(value):
            yield from _modules(value)


def _keep_together(module: Any) -> None:
    """Let nobody in between the tokens that a language model writes: it keeps positions on the
    module from one to the next, and samples with torch's global generator, which the pipeline
    seeded just before."""
    real = module.generate

    @wraps(real)
    def generate(*args: Any, **kwargs: Any) -> Any:
        current = greenlet.getcurrent()
        if not isinstance(current, Parking):
            return real(*args, **kwargs)
        current.uninterrupted = True
        try:
            return real(*args, **kwargs)
        finally:
            current.uninterrupted = False

    module.generate = generate


def _stage(name: str, method: str) -> Stage:
    if method == "decode":
        return Stage.DECODE
    if method == "encode":
        return Stage.ENCODE
    if name == "safety_checker":
        return Stage.CHECK
    encodes = role_of(name) in ("text_encoder", "image_encoder")
    return Stage.ENCODE if encodes else Stage.DENOISE
