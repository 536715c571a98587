"""Figures of a run, from its records."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Iterable, Sequence

from pydantic import BaseModel

from atelier.bench.interval import percentile
from atelier.bench.record import Record
from atelier.bench.slo import Slo


class Distribution(BaseModel):
    """Seconds, in a few numbers."""

    count: int
    mean: float
    p50: float
    p90: float
    p95: float
    p99: float

    @classmethod
    def of(cls, values: Iterable[float | None]) -> Distribution | None:
        """None if there is nothing to tell of."""
        ordered = sorted(value for value in values if value is not None)
        if not ordered:
            return None
        shares = {f"p{share}": percentile(ordered, share) for share in (50, 90, 95, 99)}
        return cls(count=len(ordered), mean=statistics.fmean(ordered), **shares)


class TokenCheck(BaseModel):
    """How the token counts of `usage` compare with what was streamed."""

    usage: int
    """Output tokens of all requests by `usage`."""
    chunks: int
    """Chunks that carried text; never taken for a count of tokens."""
    checked: int = 0
    """Requests whose streamed text was counted in the server's tokenizer."""
    differing: int = 0
    """Those whose count is off by more than the end token and two tokens at borders."""
    without_usage: int = 0

    @property
    def per_chunk(self) -> float | None:
        return self.usage / self.chunks if self.chunks else None


class RunFigures(BaseModel):
    """One run. Rates are over `seconds`, from the first begin to the last end."""

    requests: int
    errors: dict[str, int]
    malformed: int
    seconds: float
    requests_per_s: float
    ttft: Distribution | None
    itl: Distribution | None
    tpot: Distribution | None
    e2e: Distribution | None
    preview: Distribution | None
    prompt_tokens_per_s: float | None = None
    output_tokens_per_s: float | None = None
    cached_share: float | None = None
    """Of prompt tokens, where `usage` tells."""
    tokens: TokenCheck | None = None
    pictures_per_s: float | None = None
    megapixels_per_s: float | None = None
    goodput_per_s: float | None = None
    good_share: float | None = None
    lag_p99: float = 0.0


def figures(records: Sequence[Record], slo: Slo | None = None) -> RunFigures:
    """The figures of all records of a run."""
    good = [record for record in records if record.ok]
    seconds = busy_seconds(records)
    per_s = 1 / seconds if seconds > 0 else 0.0
    found = RunFigures(
        requests=len(records),
        errors=dict(Counter(record.error for record in records if not record.ok)),
        malformed=sum(bool(record.malformed) for record in good),
        seconds=seconds,
        requests_per_s=len(good) * per_s,
        ttft=Distribution.of(record.ttft for record in good),
        itl=Distribution.of(gap for record in good for gap in record.gaps()),
        tpot=Distribution.of(record.tpot for record in good),
        e2e=Distribution.of(record.seconds for record in good),
        preview=Distribution.of(record.first_preview for record in good),
        lag_p99=percentile(sorted(record.lag for record in records), 99) if records else 0.0,
    )
    if any(record.arrivals for record in good):
        _tokens(found, good, per_s)
    if pictures := sum(record.pictures for record in good):
        found.pictures_per_s = pictures * per_s
        found.megapixels_per_s = sum(record.pixels for record in good) / 1e6 * per_s
    if slo and slo.bounded and records:
        kept = sum(slo.kept_by(record) for record in records)
        found.goodput_per_s, found.good_share = kept * per_s, kept / len(records)
    return found


def busy_seconds(records: Iterable[Record]) -> float:
    """From the first begin to the last end, of each round by itself: between the rounds of an A/B
    the other arm has its turn."""
    spans: dict[int, tuple[float, float]] = {}
    for record in records:
        begun, ended = spans.get(record.round, (record.begun, record.ended))
        spans[record.round] = min(begun, record.begun), max(ended, record.ended)
    return sum(ended - begun for begun, ended in spans.values())


def _tokens(found: RunFigures, good: Sequence[Record], per_s: float) -> None:
    found.tokens = TokenCheck(
        usage=sum(record.output_tokens or 0 for record in good),
        chunks=sum(len(record.arrivals) for record in good),
        checked=sum(record.counted_tokens is not None for record in good),
        differing=sum(differs(record) for record in good),
        without_usage=sum(record.output_tokens is None for record in good),
    )
    found.output_tokens_per_s = found.tokens.usage * per_s
    prompt = sum(record.prompt_tokens or 0 for record in good)
    found.prompt_tokens_per_s = prompt * per_s
    cached = [record for record in good if record.cached_tokens is not None and prompt]
    if cached:
        found.cached_share = sum(record.cached_tokens or 0 for record in cached) / prompt


def differs(record: Record) -> bool:
    """Whether `usage` cannot be right: it says fewer tokens than chunks came, or another number
    than the text has. The end token has no text, and text cut at both ends may take a token more
    or less than the model wrote."""
    told, counted = record.output_tokens, record.counted_tokens
    if told is None:
        return False
    if len(record.arrivals) > told:
        return True
    return counted is not None and abs(told - counted) > max(3, 0.05 * told)
