"""CUDA graphs of denoiser calls: a call whose shape is seen again is recorded, then replayed.

Without them the host launches thousands of small kernels a step, and a GPU of today waits for it.
A graph belongs to a module, a layout, a number of rows and a set of adapters; that is the key. The
device thread records when a key comes the second time, checks that the replay equals the plain
call, and forgets what is seldom used when the graphs outgrow their bytes. A call that cannot be
recorded runs as it always did, with one line in the log.
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Callable, Hashable, Mapping
from typing import Any, Protocol
from weakref import WeakSet

import torch

from atelier.hardware.plan import MemoryPlan
from atelier.hardware.recording import recording_into
from atelier.images.shortage import is_out_of_memory, release

log = logging.getLogger(__name__)

SEEN_BEFORE = 1
"""A key is recorded the next time it comes after this many plain calls. With the one before the
recording they are the warm-up that torch's guide asks for, so that lazy initialisation is over:
https://docs.pytorch.org/docs/stable/notes/cuda.html#cuda-graphs"""

TOLERANCE = 2**-7
"""Share of the largest value by which a replay may differ: one step of bf16, since some kernels add
up in any order. Most replays are equal to the bit."""

Function = Callable[..., Any]


class Recording(Protocol):
    """One recorded call."""

    bytes: int

    def replay(self, kwargs: Mapping[str, Any]) -> Any:
        """Run it with new values of the same shapes. The result is the caller's to keep."""

    def again(self) -> None:
        """Run it with the values that its inputs have now."""


Recorder = Callable[[Function, Mapping[str, Any]], Recording]

_Key = tuple[Any, ...]
"""The caller's key, and the shape, type and device of each tensor."""


def graph_bytes(plan: MemoryPlan) -> int:
    """What recorded calls may hold: a share of what the plan leaves free. None are recorded where
    weights move, since a recording holds their addresses."""
    if plan.sharded:
        log.info("CUDA graphs are off: blocks of sharded weights are gathered at every call")
        return 0
    able = plan.device.startswith("cuda") and plan.placement == "resident"
    return plan.headroom_bytes // 4 if able else 0


class GraphStore:
    """The graphs of one device; for the device thread alone."""

    def __init__(self, record: Recorder, max_bytes: int) -> None:
        self._record = record
        self._max_bytes = max_bytes
        self._seen: dict[_Key, int] = {}
        self._graphs: OrderedDict[_Key, Recording] = OrderedDict()
        self._refused: set[_Key] = set()
        self.settled = True
        """Whether the last call ran as the next one of its kind will: not to be recorded yet."""

    def __len__(self) -> int:
        return len(self._graphs)

    @property
    def bytes(self) -> int:
        """What all graphs hold."""
        return sum(graph.bytes for graph in self._graphs.values())

    def call(self, key: Hashable, function: Function, kwargs: Mapping[str, Any]) -> Any:
        """The result of `function(**kwargs)`, replayed if the key is recorded for tensors of these
        shapes and types.

        Raises:
            Whatever the function raises; a failure to record is no error.
        """
        shapes = ((one.shape, one.dtype, one.device) for one in tensors_of(dict(kwargs)))
        own = (key, *shapes)
        graph = self._graphs.get(own)
        self.settled = graph is not None or own in self._refused
        if graph is not None:
            self._graphs.move_to_end(own)
            return graph.replay(kwargs)
        result = _called(function, kwargs)
        count = self._seen.get(own, 0)
        self._seen[own] = count + 1
        if count >= SEEN_BEFORE and own not in self._refused:
            self._try(own, function, kwargs, result)
        return result

    def forget(self, belongs: Callable[[Any], bool]) -> None:
        """Forget the graphs whose key belongs to what goes: their memory may be another's soon."""
        for kept in (self._graphs, self._seen):
            for key in [key for key in kept if belongs(key[0])]:
                del kept[key]
        self._refused = {key for key in self._refused if not belongs(key[0])}

    def clear(self) -> None:
        """Forget every graph: the modules behind them have changed, or memory is short."""
        self._graphs.clear()
        self._seen.clear()

    def _try(self, key: _Key, function: Function, kwargs: Mapping[str, Any], expected: Any) -> None:
        try:
            graph = self._record(function, kwargs)
            wrong = difference(graph.replay(kwargs), expected)
        except Exception as error:  # whatever a kernel dislikes about being recorded
            if is_out_of_memory(error):
                self.clear()
                release()
            self._refuse(key, f"{type(error).__name__}: {error}")
            return
        if wrong > TOLERANCE:
            self._refuse(key, f"the replay differs from the plain call by {wrong:.2g} of its range")
            return
        self._graphs[key] = graph
        while self.bytes > self._max_bytes and len(self._graphs) > 1:
            self._graphs.popitem(last=False)
        if self.bytes > self._max_bytes:
            self._graphs.pop(key)
            self._refuse(key, f"its {graph.bytes} bytes are more than all graphs may have")

    def _refuse(self, key: _Key, reason: str) -> None:
        self._refused.add(key)
        log.warning("a call is not recorded as a CUDA graph and runs as before: %s", reason)


class CudaRecorder:
    """Records with `torch.cuda.CUDAGraph`; all graphs share one memory pool.

    Once none of them is left it is another pool: torch refuses one that no graph holds, as long as
    something else lies in it, such as the workspace that cuBLAS took from it.
    """

    def __init__(self) -> None:
        self._recordings: WeakSet[CudaRecording] = WeakSet()
        self._pool: Any = None

    def __call__(self, function: Function, kwargs: Mapping[str, Any]) -> Recording:
        if not self._recordings:
            self._pool = torch.cuda.graph_pool_handle()
        recording = CudaRecording(function, kwargs, self._pool)
        self._recordings.add(recording)
        return recording


class CudaRecording:
    """A graph with its input buffers and the outputs that a replay writes."""

    def __init__(self, function: Function, kwargs: Mapping[str, Any], pool: Any) -> None:
        self._inputs = map_tensors(dict(kwargs), lambda one: one.clone())
        self._graph = torch.cuda.CUDAGraph()
        with recording_into(self._graph, pool):
            before = torch.cuda.memory_reserved()  # in here: entering gave back what was cached
            self._outputs = _called(function, self._inputs)
        grown = max(0, torch.cuda.memory_reserved() - before)
        self.bytes = grown + sum(one.nbytes for one in tensors_of(self._inputs))

    def replay(self, kwargs: Mapping[str, Any]) -> Any:
        """See `Recording`. The next replay overwrites the outputs, so the caller gets copies."""
        for own, given in zip(tensors_of(self._inputs), tensors_of(dict(kwargs)), strict=True):
            own.copy_(given, non_blocking=True)
        self.again()
        return map_tensors(self._outputs, lambda one: one.clone())

    def again(self) -> None:
        """See `Recording`."""
        self._graph.replay()


def _called(function: Function, kwargs: Mapping[str, Any]) -> Any:
    """The result for these arguments, which are left as they are: denoisers empty lists and
    dictionaries that they are given."""
    return function(**map_tensors(dict(kwargs), lambda one: one))


def map_tensors(value: Any, change: Callable[[torch.Tensor], torch.Tensor]) -> Any:
    """The same nest of dicts, lists and tuples with every tensor changed."""
    if torch.is_tensor(value):
        return change(value)
    if isinstance(value, Mapping):
        changed = {name: map_tensors(each, change) for name, each in value.items()}
        return type(value)(**changed) if type(value) is not dict else changed
    if isinstance(value, list | tuple):
        return type(value)(map_tensors(each, change) for each in value)
    return value


def tensors_of(value: Any) -> list[torch.Tensor]:
    """All tensors of a nest, in order."""
    found: list[torch.Tensor] = []

    def keep(one: torch.Tensor) -> torch.Tensor:
        found.append(one)
        return one

    map_tensors(value, keep)
    return found


def difference(one: Any, other: Any) -> float:
    """The largest difference of two results, as a share of the largest value; 0 if they are equal
    to the bit."""
    worst = 0.0
    for a, b in zip(tensors_of(one), tensors_of(other), strict=True):
        if not torch.equal(a, b):
            apart = float((a.float() - b.float()).abs().max())
            worst = max(worst, apart / max(float(b.float().abs().max()), 1e-12))
    return worst
