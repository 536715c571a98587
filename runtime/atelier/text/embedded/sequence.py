"""What the engine knows of a request (`RunningRequest`) and of each of its choices (`Sequence`)
while they run."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from atelier.errors import AtelierError
from atelier.events import (
    Event,
    Failed,
    Finished,
    Likelihood,
    PromptRead,
    Started,
    Token,
    Usage,
)
from atelier.streams import EventStream
from atelier.text.embedded.detokenizer import Detokenizer
from atelier.text.embedded.grammar import Grammar
from atelier.text.embedded.sampling import SamplingRow
from atelier.text.embedded.speculation import Acceptance

if TYPE_CHECKING:
    from atelier.text.request import TextRequest

Emit = Callable[[EventStream, Event], None]


@dataclass
class RunningRequest:
    """A request with its stream; it ends when its last sequence does, or at once when it fails.
    `likelihoods` are those of its prompt, as far as it is read."""

    request: TextRequest
    prompt: list[int]
    max_tokens: int
    seed: int
    stop_ids: frozenset[int]
    stream: EventStream
    emit: Emit
    deadline: float
    grammars: Future[list[Grammar | None]]
    sequences: list[Sequence] = field(default_factory=list)
    created: float = field(default_factory=time.monotonic)
    started: float = 0.0
    first_token: float = 0.0
    cached: int = 0
    drafted: int = 0
    accepted: int = 0
    ended: bool = False
    likelihoods: list[Likelihood] = field(default_factory=list)

    def start(self) -> None:
        """The first prefill begins."""
        if not self.started:
            self.started = time.monotonic()
            self.emit(self.stream, Started(self.seed))

    def tell_prompt(self) -> None:
        """Send the log probabilities of the prompt, which is read now."""
        if not self.ended:
            self.emit(self.stream, PromptRead(tuple(self.prompt), tuple(self.likelihoods)))

    def fail(self, error: AtelierError) -> None:
        """End the job with an error; nothing of it is sent afterwards."""
        if not self.ended:
            self.ended = True
            self.emit(self.stream, Failed(error))

    def finish_if_done(self) -> None:
        """Send the last event once every choice has ended."""
        if self.ended or not all(sequence.reason for sequence in self.sequences):
            return
        self.ended = True
        now = time.monotonic()
        timings = {
            "queue": self.started - self.created,
            "prefill": self.first_token - self.started,
            "decode": now - self.first_token,
        }
        generated = sum(len(sequence.tokens) for sequence in self.sequences)
        usage = Usage(len(self.prompt), self.cached, generated, self.drafted, self.accepted)
        self.emit(
            self.stream,
            Finished(
                timings,
                usage,
                tuple(sequence.reason for sequence in self.sequences),
                tuple(sequence.detokenizer.stopped for sequence in self.sequences),
            ),
        )


@dataclass(eq=False)
class Sequence:
    """One choice of a job. `past` counts the prompt tokens in the cache, `position` the column of
    the next token."""

    job: RunningRequest
    choice: int
    row: SamplingRow
    detokenizer: Detokenizer
    grammar: Grammar | None = None
    slot: int = -1
    past: int = 0
    position: int = 0
    tokens: list[int] = field(default_factory=list)
    reason: str = ""
    unsent: list[int] = field(default_factory=list)
    last_token: float = 0.0
    acceptance: Acceptance = field(default_factory=Acceptance)

    @property
    def over(self) -> bool:
        """Nothing more is to be computed for it."""
        return bool(self.reason) or self.job.ended

    @property
    def scored(self) -> bool:
        """Whether its reading of the prompt is to give the prompt's log probabilities."""
        return self.choice == 0 and self.job.request.prompt_logprobs is not None

    def judge(self, guessed: int, accepted: int) -> None:
        """So many tokens were guessed for it, and so many of them came true."""
        self.acceptance.note(guessed, accepted)
        self.job.drafted += guessed
        self.job.accepted += accepted

    def close(self) -> None:
        """The prompt is read, and no answer is wanted."""
        self.job.first_token = self.job.first_token or time.monotonic()
        self._send("", likelihood=None, reason="length")

    def take(self, token: int, likelihood: Likelihood | None) -> None:
        """Account for a drawn token: send its text, and end the choice if this was its last."""
        job = self.job
        self.last_token = time.monotonic()
        job.first_token = job.first_token or self.last_token
        self.tokens.append(token)
        full = self.grammar.accept(token) if self.grammar is not None else False
        if token in job.stop_ids:
            self._send(self.detokenizer.flush(), likelihood=None, reason="stop")
            return
        self.unsent.append(token)
        text = self.detokenizer.add(token)
        reason = "stop" if self.detokenizer.stopped or full else ""
        if not reason and len(self.tokens) >= job.max_tokens:
            reason = "length"
        if reason:
            text += self.detokenizer.flush()
        self._send(text, likelihood, reason)

    def _send(self, text: str, likelihood: Likelihood | None, reason: str) -> None:
        if text or likelihood is not None or (reason and self.unsent):
            likelihoods = () if likelihood is None else (likelihood,)
            self.job.emit(
                self.job.stream, Token(self.choice, text, tuple(self.unsent), likelihoods)
            )
            self.unsent.clear()
        if reason:
            self.reason = reason
            self.job.finish_if_done()
