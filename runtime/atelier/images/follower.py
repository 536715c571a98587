"""A rank of a group that is not the first: it loads what all ranks have, denoisers and what is
sharded, and obeys the first one's orders.

One thread reads orders, the main thread obeys them. When the first rank goes away, the process ends
at once, whatever it is at.
"""

from __future__ import annotations

import logging
import os
import queue
import threading
from collections.abc import Callable
from contextlib import nullcontext
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch

from atelier.hardware.machine import DeviceManager, set_cpu_threads
from atelier.hardware.plan import MemoryPlan
from atelier.images import compilation, joint_adapters, orders
from atelier.images.graphs import CudaRecorder, Recorder, Recording
from atelier.images.interception import install
from atelier.images.loader import PipelineLoader, models_of
from atelier.images.parallel import JointModule, join, sequence_splits
from atelier.images.shards import ShardedModule, in_turn, stand_behind
from atelier.settings import Settings

log = logging.getLogger(__name__)


class FollowingRank:
    """One such rank. `settings` are this rank's own: its device, its share of the cores."""

    def __init__(
        self,
        connection: Connection,
        settings: Settings,
        store: Path,
        rank: int,
        recorder: Callable[[], Recorder] = CudaRecorder,
    ) -> None:
        """`recorder` makes what records calls, once there is something to record."""
        self._connection = connection
        self._settings = settings
        self._store = store
        self._rank = rank
        self._make_recorder = recorder
        self._recorder: Recorder | None = None
        if settings.device.startswith("cuda"):
            torch.cuda.set_device(settings.device)
        self._device = DeviceManager(settings).select()
        self._pipeline: Any = None
        self._plan: MemoryPlan | None = None
        self._names: list[str] = []
        self._sharded: dict[str, ShardedModule] = {}
        self._joint: dict[str, JointModule] = {}
        self._recordings: dict[int, Recording] = {}
        self._orders: queue.SimpleQueue[tuple[int, orders.Order]] = queue.SimpleQueue()
        self._obeying: dict[type, Callable[[Any], Any]] = {
            orders.Describe: lambda order: DeviceManager(settings).select(),
            orders.JoinGroup: self._join,
            orders.LoadModules: self._load,
            orders.PrepareCalls: self._prepare,
            orders.SharedCall: self._call,
            orders.RecordCall: self._record,
            orders.ReplayCall: lambda order: self._recordings[order.name].again(),
            orders.ForgetCall: self._forget,
            orders.LoadAdapter: lambda order: joint_adapters.load(
                self._pipeline, order, self._device.torch
            ),
            orders.DropAdapter: lambda order: joint_adapters.drop(self._pipeline, order),
            orders.UseAdapters: lambda order: joint_adapters.use(self._pipeline, order),
            orders.StopCompiling: self._stop_compiling,
        }

    def follow(self) -> None:
        """Obey until told to leave."""
        if self._device.kind == "cpu":
            set_cpu_threads(self._settings)
        threading.Thread(target=self._read, name="from the first rank", daemon=True).start()
        with torch.no_grad():
            while True:
                number, order = self._orders.get()
                if isinstance(order, orders.Leave):
                    return
                self._obey(number, order)

    def _read(self) -> None:
        try:
            while True:
                self._orders.put(self._connection.recv())
        except (EOFError, OSError):  # the first rank is gone
            os._exit(0)

    def _obey(self, number: int, order: orders.Order) -> None:
        try:
            value = self._obeying[type(order)](order)
        except Exception as error:
            log.warning("an order failed: %s: %s", type(error).__name__, error)
            answer = orders.OrderAnswer(number, error=f"{type(error).__name__}: {error}")
        else:
            if not isinstance(order, orders.ANSWERED):
                return
            answer = orders.OrderAnswer(number, value)
        self._connection.send(answer)

    def _join(self, order: orders.JoinGroup) -> None:
        size = self._settings.sequence_parallel_size
        join(self._store, self._rank, size, self._device.torch_device)

    def _load(self, order: orders.LoadModules) -> list[str]:
        """The names of the modules."""
        os.environ.update(order.environment)
        plan = order.plan.on(self._device.torch_device)
        loader = PipelineLoader(order.checkpoint, plan, self._settings, following=True)
        with in_turn(self._store.parent) if plan.sharded else nullcontext():
            self._pipeline = loader.load()
        self._plan, self._sharded = plan, loader.sharded
        self._names = models_of(self._pipeline)
        return self._names

    def _prepare(self, order: orders.PrepareCalls) -> None:
        assert self._plan is not None
        modules = {name: getattr(self._pipeline, name) for name in self._names}
        splits = sequence_splits(modules, self._plan.device)
        gates = install(self._pipeline)
        if self._plan.compile != "off":
            compilation.speed_up(gates, self._plan.compile)
        stand_behind(gates, self._sharded)
        self._joint = {
            gate.name: JointModule(gate, splits.get(gate.name))
            for gate in gates
            if gate.name in self._names
        }

    def _call(self, order: orders.SharedCall) -> None:
        layout = orders.filled(order.layout, self._device.torch)
        self._joint[order.module].run(order.way, layout)

    def _record(self, order: orders.RecordCall) -> None:
        call = order.call
        layout = orders.filled(call.layout, self._device.torch)
        function = self._joint[call.module].function(call.way, call.layout)
        if self._recorder is None:
            self._recorder = self._make_recorder()
        self._recordings[order.name] = self._recorder(function, {"leaves": layout.leaves})

    def _forget(self, order: orders.ForgetCall) -> None:
        self._recordings.pop(order.name, None)

    def _stop_compiling(self, order: orders.StopCompiling) -> None:
        if self._plan is not None and self._plan.compile != "off":
            compilation.finish()
