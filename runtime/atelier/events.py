"""What an engine says while it works on a request: small immutable events, in order, over a queue.

A stream begins with `Queued`, any number of `Warned`, then `Started`, any number of `Step`,
`Preview`, `Image`, `PromptRead` or `Token`, and ends with exactly one `Finished` or `Failed`.
Events carry plain data only, so that an engine may live in another process.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from atelier.errors import AtelierError


@dataclass(frozen=True)
class Queued:
    """The request was admitted. `position` counts the requests ahead; `wait_s` is the estimate in
    seconds."""

    position: int
    wait_s: float


@dataclass(frozen=True)
class Warned:
    """Something is drawn otherwise than it was asked for; `message` says what and why."""

    message: str


@dataclass(frozen=True)
class Started:
    """The first step is about to run. `seed` is the seed in use, drawn by the engine if the request
    gave none."""

    seed: int


@dataclass(frozen=True)
class Step:
    """Denoising step `index` (1-based) of `total` is done."""

    index: int
    total: int


@dataclass(frozen=True)
class Preview:
    """A small picture of the unfinished latents after step `step`: `pixels` is height x width x 3,
    uint8, row-major."""

    step: int
    width: int
    height: int
    pixels: bytes


@dataclass(frozen=True)
class Image:
    """A finished picture, `index` of its request: `pixels` is height x width x `channels` (3 or 4),
    uint8 rows. `flags` are the labels that a filter gave it."""

    index: int
    seed: int
    width: int
    height: int
    channels: int
    pixels: bytes
    flags: tuple[str, ...] = ()


@dataclass(frozen=True)
class Likelihood:
    """Log probability of a token, and of the likeliest tokens in its place, as (id, log
    probability), best first. `rank` is its place among all tokens, from 1; 0: not counted."""

    id: int
    logprob: float
    best: tuple[tuple[int, float], ...] = ()
    rank: int = 0


@dataclass(frozen=True)
class PromptRead:
    """The prompt of a text request that asked for its log probabilities: the token ids, and the
    likelihood of each but the first."""

    ids: tuple[int, ...]
    likelihoods: tuple[Likelihood, ...]


@dataclass(frozen=True)
class Token:
    """A piece of generated text for choice `choice`; `ids` are the token ids it came from."""

    choice: int
    text: str
    ids: tuple[int, ...] = ()
    likelihoods: tuple[Likelihood, ...] = ()


@dataclass(frozen=True)
class Usage:
    """Tokens of a text request: of the prompt, of the prompt but found in the cache, generated for
    all choices, and of these guessed before and come true (`accepted` of `drafted`)."""

    prompt: int
    cached: int
    generated: int
    drafted: int = 0
    accepted: int = 0


@dataclass(frozen=True)
class Finished:
    """The last event of a request that succeeded. `timings` are seconds by stage (queue, encode,
    denoise, decode).

    A text request also has its `usage` and, by choice, the `reasons` why generation ended (stop or
    length) and the stop string that ended it, `stopped`. A picture drawn with a step cache has the
    number of steps that were computed, `steps_run`.
    """

    timings: dict[str, float] = field(default_factory=dict)
    usage: Usage | None = None
    reasons: tuple[str, ...] = ()
    stopped: tuple[str | None, ...] = ()
    steps_run: int | None = None


@dataclass(frozen=True)
class Failed:
    """The last event of a request that did not."""

    error: AtelierError


Event = Queued | Warned | Started | Step | Preview | Image | PromptRead | Token | Finished | Failed
