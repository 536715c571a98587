"""The embedded engine: continuous batching of one transformers model, in a thread of its own.

`submit` checks and queues; the thread admits requests into the batch, steps it, and sends events.
If a step fails, the requests in the batch fail and the next ones are served; if steps keep failing,
the engine reports itself dead. Loading and chat templates are left to others.
"""

from __future__ import annotations

import logging
import random
import threading
import time
from collections import deque
from typing import TYPE_CHECKING

import torch

from atelier.errors import (
    AtelierError,
    Busy,
    Cancelled,
    DeadlineExceeded,
    Draining,
    GenerationFailed,
    NotReady,
)
from atelier.events import Event, Queued
from atelier.streams import EventStream, MakeStream
from atelier.text.embedded.admission import ContextLimits, Vocabulary, check_fit
from atelier.text.embedded.batch import Batch
from atelier.text.embedded.detokenizer import Detokenizer
from atelier.text.embedded.failures import of_a_step
from atelier.text.embedded.grammar import GrammarDesk
from atelier.text.embedded.runner import Runner
from atelier.text.embedded.sampling import SamplingRow
from atelier.text.embedded.sequence import RunningRequest, Sequence
from atelier.text.embedded.speculation import Speculation

if TYPE_CHECKING:
    from atelier.text.request import TextRequest

log = logging.getLogger(__name__)

MOST_FAILURES = 3
"""Steps that may fail in a row before the engine gives up."""


class TransformersEngine:
    """Serves a loaded model through `runner`; starts its thread at once."""

    def __init__(
        self,
        runner: Runner,
        vocabulary: Vocabulary,
        limits: ContextLimits,
        speculation: Speculation | None = None,
    ) -> None:
        self.limits = limits
        self.restarts = 0
        self._recent_s = 1.0
        self.dead: str | None = None
        self._vocabulary = vocabulary
        self._batch = Batch(runner, limits.prefill_tokens, speculation)
        self._jobs: list[RunningRequest] = []
        self._unadmitted: deque[Sequence] = deque()
        self._wake = threading.Condition()
        self._outbox: deque[tuple[EventStream, Event]] = deque()
        self._draining = self._closed = False
        self._failures = 0
        self._grammars = GrammarDesk(
            vocabulary.tokenizer, vocabulary.size, set(vocabulary.eos), self._nudge
        )
        self._thread = self._start()

    @property
    def running(self) -> int:
        """Sequences in the batch."""
        return len(self._batch.running)

    @property
    def waiting(self) -> int:
        """Sequences not yet in the batch."""
        return len(self._unadmitted)

    @property
    def depth(self) -> int:
        """Requests waiting or running."""
        return len(self._jobs)

    @property
    def cache_use(self) -> float:
        """Share of the key-value cache in use, 0 to 1."""
        return self._batch.used

    def gauges(self) -> dict[str, float]:
        """What is counted, by name."""
        counts = {"running": float(self.running), "waiting": float(self.waiting)}
        return counts | {"cache_use": self.cache_use}

    def submit(
        self,
        request: TextRequest,
        prompt: list[int],
        tool_grammar: str | None = None,
        reasoning: bool = False,
        make_stream: MakeStream = EventStream,
    ) -> EventStream:
        """Admit a tokenized request; call from an event loop, which will receive the events, unless
        the stream that `make_stream` makes has another carrier. With `reasoning` a grammar begins
        after the reasoning, which the prompt has opened.

        Raises:
            InvalidRequest: the prompt is empty, holds unknown tokens, or does not fit the context
                with one token more.
            Busy: the queue is full. Draining, NotReady: nothing is admitted any more.
        """
        max_tokens = check_fit(request, prompt, self.limits, self._vocabulary)
        seed = random.getrandbits(32) if request.seed is None else request.seed
        stop_ids = frozenset(request.stop_token_ids) | (
            frozenset() if request.ignore_eos else self._vocabulary.eos
        )
        with self._wake:
            self.check_room()
            job: RunningRequest
            stream = make_stream(lambda: self._cancel(job))
            deadline = time.monotonic() + min(
                request.timeout or self.limits.timeout, self.limits.timeout
            )
            grammars = self._grammars.ask(request, tool_grammar, reasoning)
            job = RunningRequest(
                request,
                prompt,
                max_tokens,
                seed,
                stop_ids,
                stream,
                self._emit_later,
                deadline,
                grammars,
            )
            job.sequences = [self._sequence(job, choice) for choice in range(request.n)]
            stream.put(Queued(len(self._unadmitted), self._wait_s()))
            self._jobs.append(job)
            self._unadmitted.extend(job.sequences)
            if not self._thread.is_alive():
                self._thread = self._start()
            self._wake.notify()
        return stream

    def drain(self, seconds: float) -> None:
        """Admit nothing more and let running work end; what is left after `seconds` fails."""
        self._draining = True
        end = time.monotonic() + seconds
        while self._jobs and time.monotonic() < end:
            time.sleep(0.02)
        with self._wake:
            for job in self._jobs:
                job.fail(
                    Draining("the server is shutting down and the request did not end in time")
                )
            self._wake.notify()

    def close(self) -> None:
        """Stop the thread; what still runs fails."""
        self.drain(0)
        with self._wake:
            self._closed = True
            self._wake.notify()
        self._thread.join()
        self._grammars.close()

    def check_room(self, more: int = 0) -> None:
        """See that a request can be admitted after `more` that are on their way.

        Raises:
            Busy, Draining, NotReady: it cannot.
        """
        if self.dead is not None:
            raise NotReady(f"the engine stopped: {self.dead}")
        if self._draining:
            raise Draining("the server is shutting down and takes no new requests")
        # One that has ended stays until the next step; its place is free already.
        held = sum(not job.ended for job in self._jobs) + more
        if held >= self.limits.queue:
            raise Busy(
                f"{held} requests are waiting or running, the limit is {self.limits.queue}",
                max(1.0, self._wait_s()),
            )

    def _sequence(self, job: RunningRequest, choice: int) -> Sequence:
        device = self._batch.runner.device
        row = SamplingRow.of(
            job.request, self._vocabulary.defaults, (job.seed + choice) % 2**63, device
        )
        if job.request.seed is None:
            row.generator = None
        detokenizer = Detokenizer(
            self._vocabulary.tokenizer, job.request.stop, job.request.skip_special_tokens
        )
        return Sequence(job, choice, row, detokenizer)

    def _nudge(self) -> None:
        with self._wake:
            self._wake.notify()

    def _wait_s(self) -> float:
        """Seconds until a newcomer starts: the batches ahead of it, each as long as a recent
        request."""
        slots = len(self._batch.slots)
        return len(self._unadmitted) / slots * self._recent_s

    def _cancel(self, job: RunningRequest) -> None:
        with self._wake:
            job.fail(Cancelled("the client went away"))
            self._wake.notify()

    def _emit_later(self, stream: EventStream, event: Event) -> None:
        self._outbox.append((stream, event))

    def _flush(self) -> None:
        EventStream.put_all([self._outbox.popleft() for _ in range(len(self._outbox))])

    def _start(self) -> threading.Thread:
        thread = threading.Thread(target=self._loop, name="text-engine", daemon=True)
        thread.start()
        return thread

    def _loop(self) -> None:
        """Work until closed. An error that escapes a step fails the batch, not the engine."""
        if self._batch.runner.device.type == "cuda":
            torch.cuda.set_device(self._batch.runner.device)
        while not self._closed:
            try:
                with self._wake:
                    while not (self._closed or self._jobs or self._outbox):
                        self._wake.wait()
                    self._retire()
                self._admit()
                if self._batch.running:
                    self._batch.step()
                    self._failures = 0
                else:
                    time.sleep(0.001)
            except BaseException as error:
                self._recover(error)
            self._flush()

    def _admit(self) -> None:
        """Drop what is over, then move waiting sequences into free slots, first come first
        served."""
        self._batch.evict()
        held: list[Sequence] = []
        while self._unadmitted and not self._batch.full:
            sequence = self._unadmitted.popleft()
            if sequence.over:
                continue
            if not self._admissible(sequence):
                held.append(sequence)
                continue
            self._batch.admit(sequence)
        self._unadmitted.extendleft(reversed(held))

    def _admissible(self, sequence: Sequence) -> bool:
        """Whether its grammar is ready and, for further choices, the prompt's keys are there to be
        copied."""
        job = sequence.job
        if sequence.choice and not job.sequences[0].position:
            return False
        if not job.grammars.done():
            return False
        try:
            sequence.grammar = job.grammars.result()[sequence.choice]
        except Exception as error:
            job.fail(
                error
                if isinstance(error, AtelierError)
                else GenerationFailed(f"response_format: {error}")
            )
            return False
        return True

    def _retire(self) -> None:
        """Forget jobs that ended or whose time is up, and learn how long they took; call with the
        lock held."""
        now = time.monotonic()
        for job in self._jobs:
            if now > job.deadline:
                job.fail(
                    DeadlineExceeded(
                        "the request took longer than REQUEST_TIMEOUT or its own timeout allows"
                    )
                )
        ended = [job for job in self._jobs if job.ended]
        for job in ended:
            if job.started:
                self._recent_s += 0.2 * (time.monotonic() - job.started - self._recent_s)
        if ended:
            self._jobs[:] = [job for job in self._jobs if not job.ended]

    def _recover(self, error: BaseException) -> None:
        """Fail what was in the batch, and go on with an empty one."""
        log.error("a batch step failed; its requests fail and serving goes on", exc_info=error)
        self._failures += 1
        self.restarts += 1
        told = of_a_step(error)
        for sequence in self._batch.running:
            sequence.job.fail(told)
        try:
            self._batch.clear()
        except Exception as fault:
            self._failures = MOST_FAILURES
            error = fault
        if self._failures >= MOST_FAILURES:
            self.dead = f"{self._failures} batch steps failed in a row, the last with {error}"
            for job in self._jobs:
                job.fail(told)
