"""Which calls a group shares, and how: decided for each call, trusted only once it was compared.

A call with at least as many rows as there are ranks is shared by rows, one with fewer over the
sequence where the denoiser can, else by rows as far as they go. The first time for a layout and a
way the call is made by the first rank alone too; if the results differ, or the way fails, another
one is tried and at last none, with one line in the log. Calls with image prompts, and those of
pipelines that exchange the denoiser's processors, are the first rank's alone: only there they are
in place.

Of sharded modules no call is one rank's alone, since all hold a part of the weights: what is not
shared is made by every rank, and the first one's result counts.
"""

from __future__ import annotations

import itertools
import logging
import weakref
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from atelier.errors import GenerationFailed
from atelier.images import orders
from atelier.images.adapters import PLAIN, Adaptation
from atelier.images.graphs import CudaRecorder, Function, Recorder, Recording
from atelier.images.group import RankGroup
from atelier.images.interception import Call, Gate
from atelier.images.parallel import SharingWay
from atelier.images.shards import ShardedModule, stand_behind
from atelier.images.stacking import Layout, Stacker
from atelier.images.verifier import apart

log = logging.getLogger(__name__)


class Share:
    """One call, as the group makes it. Called with the leaves of its layout."""

    def __init__(self, group: RankGroup, order: orders.SharedCall, key: Hashable) -> None:
        self.group, self.order, self.key = group, order, key

    def __call__(self, leaves: list[Any]) -> Any:
        return self.group.run(self.order, replace(self.order.layout, leaves=leaves))


class Sharing:
    """The verdicts of one group; for the device thread alone."""

    def __init__(self, group: RankGroup) -> None:
        self._group = group
        self._verdicts: dict[Hashable, bool] = {}

    def share(self, call: Call, layout: Layout, adapters: Adaptation = PLAIN) -> Share | None:
        """How the group makes this call; None: the first rank makes it alone. `layout` is merged,
        for `call` and those that it is stacked with; `adapters` are active."""
        name = call.gate.name
        if name not in self._group.joint or adapters.image_prompts:
            return None
        loras = tuple(lora for lora, _ in adapters.loras)
        for way in self._ways(name, layout.rows):
            key = (id(call.gate), layout.key, way, loras)
            if self._verdicts.get(key) is not False:
                try:
                    blank = orders.blanked(layout, self._group.device)
                except orders.Untold:
                    return None
                return Share(self._group, orders.SharedCall(name, way, blank), key)
        return None

    def _ways(self, name: str, rows: int) -> list[SharingWay]:
        sequence = [SharingWay.SEQUENCE] if self._group.joint[name].splits_sequences else []
        rows_first = rows >= self._group.size
        by_rows = [SharingWay.ROWS] if rows > 1 else []
        return [*by_rows, *sequence] if rows_first else [*sequence, *by_rows]

    def is_proven(self, share: Share) -> bool:
        """Whether its result was seen to be right, for a call of the same layout."""
        return self._verdicts.get(share.key, False)

    def prove(self, share: Share, layout: Layout, plain: Callable[[], Any]) -> Any:
        """Make the call in both ways and remember whether they agree; the plain result."""
        expected = plain()
        order = share.order
        told = f"{order.module}, {layout.rows} x {layout.shape} by {order.way.value}"
        try:
            wrong = apart(expected, share(layout.leaves))
        except Exception as error:  # on every rank alike, or the group were lost
            self._verdicts[share.key] = False
            log.warning("%s: not shared: %s: %s", told, type(error).__name__, error)
            return expected
        self._verdicts[share.key] = right = wrong <= 1
        reason = f"differs by {wrong:.2g} of the tolerance"
        if right:
            log.info("%s: shared by %d ranks (%s)", told, self._group.size, reason)
        else:
            log.warning("%s: not shared: it %s", told, reason)
        return expected


class GroupRecorder:
    """Records shared calls on every rank, others on this one alone."""

    def __init__(self, recorder: Recorder) -> None:
        self._recorder = recorder
        self._names = itertools.count()

    def __call__(self, function: Function, kwargs: Mapping[str, Any]) -> Recording:
        if not isinstance(function, Share):
            return self._recorder(getattr(function, "alone", function), kwargs)
        group, order = function.group, function.order
        own = group.joint[order.module].function(order.way, order.layout)
        name = next(self._names)
        recording = group.record(name, order, lambda: self._recorder(own, kwargs))
        return GroupRecording(group, name, recording)


class GroupRecording:
    """A call that is recorded on every rank."""

    def __init__(self, group: RankGroup, name: int, own: Recording) -> None:
        self._group, self._name, self._own = group, name, own
        self.bytes = own.bytes
        weakref.finalize(self, group.forget, name).atexit = False

    def replay(self, kwargs: Mapping[str, Any]) -> Any:
        """See `Recording`."""
        self._group.replay(self._name)
        return self._own.replay(kwargs)

    def again(self) -> None:
        """See `Recording`."""
        self._group.replay(self._name)
        self._own.again()


def recorder_for(group: RankGroup | None) -> Recorder:
    """What records denoiser calls on a GPU, or on those of a group."""
    return GroupRecorder(CudaRecorder()) if group else CudaRecorder()


@contextmanager
def mirrored(group: RankGroup, gates: Sequence[Gate]) -> Iterator[None]:
    """What the first rank runs alone, all ranks run inside: so each has compiled what it will be
    asked for."""
    chosen = [gate for gate in gates if gate.name in group.joint]
    before = [gate.real for gate in chosen]
    for gate in chosen:
        gate.real = _mirroring(group, gate)
    try:
        yield
    finally:
        for gate, real in zip(chosen, before, strict=True):
            gate.real = real


def share_calls(
    group: RankGroup, gates: Sequence[Gate], sharded: Mapping[str, ShardedModule]
) -> None:
    """Give the group the gates, once they are compiled; every rank then makes each call of a
    sharded module, whoever asks for it."""
    stand_behind(gates, sharded)
    group.take(gates)
    for gate in gates:
        if gate.name in sharded:
            gate.real = _together(group, gate)


def _together(group: RankGroup, gate: Gate) -> Callable[..., Any]:
    def together(*args: Any, **kwargs: Any) -> Any:
        layout = gate.stacker.layout(args, kwargs, digest=id)
        try:
            if layout.key is None:
                raise orders.Untold("something else than tensors and plain values")
            layout = Stacker.merged([orders.moved(layout, group.device)])
            blank = orders.blanked(layout, group.device)
        except orders.Untold as error:
            raise GenerationFailed(
                f"{gate.name} is called with {error}, which cannot be told to the devices that hold"
                " shares of its weights; the server can serve this with SHARD_WEIGHTS=false"
            ) from error
        return group.run(orders.SharedCall(gate.name, SharingWay.MIRROR, blank), layout)

    return together


def _mirroring(group: RankGroup, gate: Gate) -> Callable[..., Any]:
    real = gate.real

    def mirror(*args: Any, **kwargs: Any) -> Any:
        layout = gate.stacker.layout(args, kwargs, digest=id)
        if layout.key is None:
            return real(*args, **kwargs)
        layout = Stacker.merged([layout])
        try:
            blank = orders.blanked(layout, group.device)
        except orders.Untold:
            return real(*args, **kwargs)
        return group.run(orders.SharedCall(gate.name, SharingWay.MIRROR, blank), layout)

    mirror.alone = real  # type: ignore[attr-defined]  # what is recorded: a replay tells nobody
    return mirror
