"""A language model served by a worker: what protocols ask of `TextModel`, without torch.

An answer that has not begun is asked for again when its worker dies; one that has begun ends with
an error, since its words are the client's already.
"""

from __future__ import annotations

import asyncio
import copy
import itertools
import time
import weakref
from collections.abc import Callable
from contextlib import AbstractContextManager, suppress
from typing import Any

from atelier.errors import AtelierError, Cancelled, DeadlineExceeded, Draining, NotReady
from atelier.events import Failed, Finished, Token
from atelier.settings import Settings
from atelier.streams import EventStream
from atelier.text.metrics import follow_engine
from atelier.text.observer import SilentTextObserver, TextObserver, counted_refusals
from atelier.text.parsing import AnswerParser
from atelier.text.request import TextRequest
from atelier.text.token_names import TokenNames
from atelier.workers import messages as m
from atelier.workers.handle import WorkerHandle
from atelier.workers.inquiries import Inquiries
from atelier.workers.text_ticket import TextTicket
from atelier.workers.workforce import Workforce

GRACE_S = 0.3
"""The worker gets this long to end an overdue request itself."""


class TextFront:
    """One embedded language model, served by a worker. For the event loop."""

    def __init__(
        self,
        settings: Settings,
        observer: TextObserver | None = None,
        on_beyond_repair: Callable[[AtelierError], None] = lambda error: None,
    ) -> None:
        self.name = settings.served_name
        self.forwards: tuple[str, ...] = ()
        self.observer = observer or SilentTextObserver()
        self.on_beyond_repair = on_beyond_repair
        self._settings = settings
        self._workforce: Workforce | None = None
        self._numbers = itertools.count()
        self._tickets: dict[int, TextTicket] = {}
        self._inquiries = Inquiries(
            lambda question: self.workers[0].send(question),
            settings.max_queue_size,
            settings.request_timeout,
        )
        self._parsers: dict[int, AnswerParser] = {}
        self._draining = False
        self._idle = asyncio.Event()
        follow_engine(self.name, self)

    # The life of the worker

    async def load(self) -> None:
        """Start the worker; returns when it can serve.

        Raises:
            StartError: it cannot.
        """
        self._workforce = Workforce(
            self._settings,
            "text",
            hear=self._hear,
            lost=self._lose,
            beyond_repair=self._give_up,
        )
        await self._workforce.start()

    async def drain(self, seconds: float) -> None:
        """Finish what runs, within `seconds`, and end the worker."""
        self._draining = True
        if self._workforce is None:
            return
        self._workforce.interrupt()
        if self._tickets and self._workforce.ready:
            self._idle.clear()
            with suppress(TimeoutError):
                await asyncio.wait_for(self._idle.wait(), seconds)
        self._fail_all(Draining("the server stopped before the answer was done"))
        await self._workforce.stop()

    @property
    def workers(self) -> list[WorkerHandle]:
        """The one worker."""
        return self._workforce.workers if self._workforce else []

    @property
    def ready(self) -> bool:
        """Whether a request would be served now."""
        serving = self._workforce is not None and bool(self._workforce.ready)
        return serving and not self._draining

    @property
    def progress(self) -> str:
        """What the start, or a restart, is doing."""
        if self._draining:
            return "draining"
        return self._workforce.progress if self._workforce else "not started"

    def check_ready(self) -> None:
        """Raise Draining or NotReady unless `ready`, with what is going on."""
        if self._draining:
            raise Draining("the server is shutting down; send the request to another replica")
        if not self.ready:
            raise NotReady(f"the model {self.name} is not ready: {self.progress}")

    # Requests

    async def submit(self, request: TextRequest) -> EventStream:
        """Have a request admitted; its events follow in the stream.

        Raises:
            NotReady, InvalidRequest, Busy, Draining: the request is refused.
        """
        self.check_ready()
        loop = asyncio.get_running_loop()
        number = next(self._numbers)
        stream = EventStream(lambda: self._cancel(number))
        ticket = TextTicket(number, request, stream, loop.create_future())
        limit = self._settings.request_timeout
        seconds = min(request.timeout or limit, limit)
        ticket.timer = loop.call_later(seconds + GRACE_S, self._overdue, ticket)
        self._tickets[number] = ticket
        self._send(ticket)
        try:
            self._parsers[id(request)] = await ticket.admitted
            weakref.finalize(request, self._parsers.pop, id(request), None)
        except BaseException:
            self._forget(ticket)
            raise
        return stream

    def parser(self, request: TextRequest) -> AnswerParser:
        """What takes this request's answer apart: a new one for each choice."""
        return copy.deepcopy(self._parsers[id(request)])

    def _send(self, ticket: TextTicket) -> None:
        worker = self.workers[0]
        worker.tickets[ticket.number] = ticket
        worker.send(m.Generate(ticket.number, ticket.request))

    def _cancel(self, number: int) -> None:
        if ticket := self._tickets.get(number):
            self.workers[0].send(m.Cancel(number))
            self._end(ticket, Cancelled("the client went away"))

    def _overdue(self, ticket: TextTicket) -> None:
        waited = time.monotonic() - ticket.since
        self.workers[0].send(m.Cancel(ticket.number))
        late = f"the request's time was up after {waited:.1f} s"
        self._end(ticket, DeadlineExceeded(late))

    def _end(self, ticket: TextTicket, error: AtelierError) -> None:
        if not ticket.admitted.done():
            ticket.admitted.set_exception(error)
        else:
            ticket.stream.put_from_loop(Failed(error))
        self._forget(ticket)

    def _forget(self, ticket: TextTicket) -> None:
        if self._tickets.pop(ticket.number, None) is None:
            return
        if ticket.timer:
            ticket.timer.cancel()
        for worker in self.workers:
            worker.tickets.pop(ticket.number, None)
        if not self._tickets:
            self._idle.set()

    def _fail_all(self, error: AtelierError) -> None:
        for ticket in list(self._tickets.values()):
            self._end(ticket, error)
        self._inquiries.fail(error)

    def _hear(self, worker: WorkerHandle, message: Any) -> None:
        if isinstance(message, m.Observed):
            getattr(self.observer, message.method)(*message.arguments)
        elif isinstance(message, m.ModelLoaded):
            for waiting in self._tickets.values():
                self._send(waiting)
        elif self._inquiries.hear(message):
            return
        elif ticket := self._tickets.get(message.number):
            self._follow(ticket, message)

    def _follow(self, ticket: TextTicket, message: Any) -> None:
        if isinstance(message, m.Admitted):
            if not ticket.admitted.done():
                ticket.admitted.set_result(message.extra)
        elif isinstance(message, m.Refused):
            self._end(ticket, message.error)
        elif isinstance(message, m.Happened):
            event = message.event
            ticket.started = ticket.started or isinstance(event, Token)
            ticket.stream.put_from_loop(event)
            if isinstance(event, Finished | Failed):
                self._forget(ticket)

    def _lose(self, worker: WorkerHandle) -> None:
        """The worker is gone: what has begun fails, the rest is asked again when it is back."""
        worker.tickets = {}
        told = NotReady("the engine ended during the answer and is being restarted")
        for ticket in list(self._tickets.values()):
            if ticket.started:
                self._end(ticket, told)
        self._inquiries.fail(told)

    def _give_up(self, error: AtelierError) -> None:
        self._fail_all(NotReady(error.message))
        self.on_beyond_repair(error)

    # What protocols ask besides

    def refusals(self, protocol: str) -> AbstractContextManager[None]:
        """Count an error raised inside as a request of this protocol that was not admitted."""
        return counted_refusals(self.observer, protocol)

    async def _ask(self, method: str, *arguments: Any) -> Any:
        self.check_ready()
        return await self._inquiries.ask(next(self._numbers), method, *arguments)

    async def tokenize(self, request: TextRequest) -> list[int]:
        """The prompt's token ids as the engine would see them."""
        ids: list[int] = await self._ask("tokenize", request)
        return ids

    async def detokenize(self, ids: list[int]) -> str:
        """Text of token ids, special tokens included."""
        text: str = await self._ask("detokenize", ids)
        return text

    async def embed(self, text: str | list[int]) -> tuple[list[float], int]:
        """The vector of a text and how many tokens it has."""
        vector: tuple[list[float], int] = await self._ask("embed", text)
        return vector

    @property
    def names(self) -> TokenNames:
        """What token ids are called.

        Raises:
            NotReady: the model is not loaded.
        """
        self.check_ready()
        names: TokenNames = self._trait("names", None)
        return names

    def _trait(self, name: str, default: Any) -> Any:
        return next((one.traits[name] for one in self.workers if name in one.traits), default)

    @property
    def context(self) -> int:
        """Tokens of prompt and answer together."""
        return int(self._trait("context", 0))

    @property
    def vocabulary_size(self) -> int:
        """Token ids go from 0 to one less."""
        return int(self._trait("vocabulary_size", 0))

    @property
    def template_takes(self) -> list[str]:
        """Of the protocols' fields those that the chat template reads."""
        return list(self._trait("template_takes", []))

    @property
    def depth(self) -> int:
        """Requests waiting or running."""
        return len(self._tickets)

    def device_memory(self) -> tuple[int, int]:
        """Bytes of the device used and free."""
        return self.workers[0].memory if self.workers else (0, 0)

    def _gauge(self, name: str) -> float:
        return self.workers[0].gauges.get(name, 0.0) if self.workers else 0.0

    @property
    def running(self) -> float:
        """Sequences in the batch."""
        return self._gauge("running")

    @property
    def waiting(self) -> float:
        """Sequences not yet in the batch."""
        return self._gauge("waiting")

    @property
    def cache_use(self) -> float:
        """Share of the key-value cache in use."""
        return self._gauge("cache_use")

    def metadata(self) -> dict[str, Any]:
        """What the model's metadata endpoint adds."""
        described = [worker.describe() for worker in self.workers]
        base: dict[str, Any] = self._trait("metadata", {"engine": self._settings.engine})
        return base | ({"workers": described} if described else {})
