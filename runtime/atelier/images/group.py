"""A group as its first rank sees it: orders to the followers, their answers, and their end.

Nobody waits for the followers of a call: they run beside this process, and the device's own
collectives keep the ranks together. What does end is told at once: a follower that is gone, or that
failed where this rank did not, leaves the others waiting inside a collective, so the group is lost
and its worker ends. A call that failed on every rank alike is an error like any other.
"""

from __future__ import annotations

import itertools
import logging
import pickle
import threading
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch

from atelier.errors import StartError
from atelier.hardware.machine import Device
from atelier.hardware.plan import MemoryPlan
from atelier.images import orders
from atelier.images.interception import Gate
from atelier.images.parallel import JointModule, SequenceSplit, join, sequence_splits
from atelier.images.shards import in_turn
from atelier.sources.checkpoint.contents import Checkpoint

log = logging.getLogger(__name__)

GRACE_S = 10.0
"""Ranks that fail alike do so within this time of each other."""


class RankGroup:
    """The first rank and its followers. Orders come from one thread at a time."""

    def __init__(
        self, followers: Sequence[Connection], store: Path, lost: Callable[[str], None]
    ) -> None:
        """`store` is the file that the ranks meet at; `lost` is told why the group cannot go on,
        and ends the process."""
        self.size = len(followers) + 1
        self.joint: dict[str, JointModule] = {}
        self.device = torch.device("cpu")
        self._followers = followers
        self._store = store
        self._names: set[str] = set()
        self._lost = lost
        self._closing = False
        self._numbers = itertools.count()
        self._answers: dict[int, dict[int, orders.OrderAnswer]] = {}
        self._failed_here: set[int] = set()
        self._patient: set[int] = set()
        self._splits: dict[str, SequenceSplit] = {}
        self._heard = threading.Condition()
        for rank, connection in enumerate(followers, start=1):
            threading.Thread(
                target=self._listen, args=(rank, connection), name=f"from rank {rank}", daemon=True
            ).start()

    # The start

    def devices(self) -> list[Device]:
        """What the followers have, as it is now."""
        return self._ask(orders.Describe())

    def load(self, checkpoint: Checkpoint, plan: MemoryPlan, environment: dict[str, str]) -> int:
        """Join the followers, and have them load their modules, for which it does not wait; the
        number is for `meet`.

        Raises:
            StartError: the ranks do not find each other.
        """
        self.device = torch.device(plan.device)
        number = self._tell(orders.JoinGroup())
        try:
            join(self._store, 0, self.size, plan.device)
        except RuntimeError as error:
            raise StartError(f"the ranks of the group cannot join: {error}") from error
        self._wait(number)
        return self._tell(orders.LoadModules(checkpoint, plan, environment))

    def turn(self) -> AbstractContextManager[None]:
        """See `in_turn`."""
        return in_turn(self._store.parent)

    def meet(self, loading: int, pipeline: Any) -> None:
        """Wait until the followers have loaded; what they have of `pipeline` is joint. Call before
        gates are put up.

        Raises:
            StartError: a follower could not load, or cannot share calls.
        """
        names = self._wait(loading)[0]
        modules = {name: getattr(pipeline, name) for name in names}
        number = self._tell(orders.PrepareCalls())
        try:
            self._splits = sequence_splits(modules, str(self.device))
        except RuntimeError as error:
            raise StartError(f"the ranks of the group cannot share calls: {error}") from error
        self._wait(number)
        self._names = set(names)
        told = ", ".join(self._splits) or "none"
        log.info("%d ranks share %s; over the sequence: %s", self.size, ", ".join(names), told)

    def take(self, gates: Sequence[Gate]) -> None:
        """Gates were put up; calls of what all ranks have can be shared. Call after they are
        compiled."""
        self.joint = {
            gate.name: JointModule(gate, self._splits.get(gate.name))
            for gate in gates
            if gate.name in self._names
        }

    def stop_compiling(self) -> None:
        """The warm-up is over, on every rank."""
        self._tell(orders.StopCompiling())

    def close(self) -> None:
        """The followers end."""
        self._closing = True
        self._tell(orders.Leave())

    # Calls

    def run(self, call: orders.SharedCall, layout: Any) -> Any:
        """Make a call on every rank; its result. `layout` has the tensors of `call`.

        Raises:
            Whatever the module raises on every rank.
        """
        number = self._tell(call)
        try:
            return self.joint[call.module].run(call.way, layout)
        except Exception as error:
            self._settle(number, error)
            raise

    def record(self, name: int, call: orders.SharedCall, here: Callable[[], Any]) -> Any:
        """Record a call on every rank; `here` does so on this one.

        Raises:
            RuntimeError: a follower could not. Whatever `here` raises.
        """
        number = self._tell(orders.RecordCall(name, call))
        try:
            made = here()
        except Exception as error:
            self._settle(number, error)
            raise
        if failed := self._errors(self._collect(number)):
            raise RuntimeError(failed)
        return made

    def replay(self, name: int) -> None:
        """The followers replay what was recorded."""
        self._tell(orders.ReplayCall(name))

    def forget(self, name: int) -> None:
        """The followers drop what was recorded."""
        self._tell(orders.ForgetCall(name))

    def tell(self, order: orders.Order) -> None:
        """An order that is answered only if it fails."""
        self._tell(order)

    # Messages

    def _tell(self, order: orders.Order) -> int:
        number = next(self._numbers)
        if isinstance(order, orders.PATIENT):
            self._patient.add(number)
        told = pickle.dumps((number, order))
        for rank, connection in enumerate(self._followers, start=1):
            try:
                connection.send_bytes(told)
            except OSError as error:
                if not self._closing:
                    self._lost(f"rank {rank} is gone: {error}")
        return number

    def _ask(self, order: orders.Order) -> list[Any]:
        return self._wait(self._tell(order))

    def _wait(self, number: int) -> list[Any]:
        """The followers' values.

        Raises:
            StartError: one failed.
        """
        answers = self._collect(number)
        if failed := self._errors(answers):
            raise StartError(failed)
        return [answer.value for answer in answers]

    def _collect(self, number: int, seconds: float | None = None) -> list[orders.OrderAnswer]:
        """The answers to an order, in order of ranks: all, or those that came in `seconds`."""
        with self._heard:
            self._heard.wait_for(lambda: self._count(number) == self.size - 1, seconds)
            came = self._answers.pop(number, {})
        return [came[rank] for rank in sorted(came)]

    def _count(self, number: int) -> int:
        return len(self._answers.get(number, {}))

    @staticmethod
    def _errors(answers: list[orders.OrderAnswer]) -> str:
        found = [answer.error for answer in answers if answer.error]
        return f"a follower of the group failed: {found[0]}" if found else ""

    def _settle(self, number: int, error: Exception) -> None:
        """This rank failed at an order. If all others did too, nobody waits for anybody."""
        with self._heard:
            self._failed_here.add(number)
        answers = self._collect(number, GRACE_S)
        if len([answer for answer in answers if answer.error]) < self.size - 1:
            self._lost(f"the first rank failed where others did not: {error}")

    def _listen(self, rank: int, connection: Connection) -> None:
        try:
            while True:
                answer: orders.OrderAnswer = connection.recv()
                with self._heard:
                    self._answers.setdefault(answer.number, {})[rank] = answer
                    self._heard.notify_all()
                if answer.error and answer.number not in self._patient:
                    threading.Timer(GRACE_S, self._check, (rank, answer)).start()
        except (EOFError, OSError):
            if not self._closing:
                self._lost(f"rank {rank} is gone")

    def _check(self, rank: int, answer: orders.OrderAnswer) -> None:
        """A follower failed: if it was alone with that, the others wait for it in vain."""
        with self._heard:
            waits = answer.number in self._answers and answer.number not in self._failed_here
        if waits and not self._closing:
            self._lost(f"rank {rank} failed alone: {answer.error}")
