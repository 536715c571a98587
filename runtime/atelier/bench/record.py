"""What was seen of one request. All times are seconds on the client's clock."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel

Kind = Literal["text", "pictures"]


class Record(BaseModel):
    """One request. `begun` counts from the start of its run, every other time from `begun`.

    Token counts are those of the server's `usage`. `arrivals` has one time a chunk that carried
    text, which may hold several tokens: `arrival_tokens` says how many, where the server tells.
    """

    index: int
    turn: int = 0
    arm: str = "a"
    round: int = 0
    begun: float = 0.0
    lag: float = 0.0
    """How much later than planned the client began; its own fault, not the server's."""
    seconds: float = 0.0
    arrivals: list[float] = []
    arrival_tokens: list[int] = []
    prompt_tokens: int | None = None
    cached_tokens: int | None = None
    output_tokens: int | None = None
    counted_tokens: int | None = None
    """Tokens of the streamed text in the server's tokenizer, to check `output_tokens` with."""
    text: str = ""
    malformed: str = ""
    """Why an answer that had to have a form (JSON, a tool call) has not."""
    previews: list[float] = []
    pictures: int = 0
    pixels: int = 0
    error: str = ""
    """The kind of failure, such as `http 429` or `timeout`; empty: it went well."""
    message: str = ""

    @property
    def ok(self) -> bool:
        return not self.error

    @property
    def ended(self) -> float:
        """When it ended, counted from the start of the run."""
        return self.begun + self.seconds

    @property
    def ttft(self) -> float | None:
        """Seconds to the first text."""
        return self.arrivals[0] if self.arrivals else None

    @property
    def tpot(self) -> float | None:
        """Seconds per output token after the first: (last text - first text) / (tokens - 1)."""
        if not self.arrivals or not self.output_tokens or self.output_tokens < 2:
            return None
        return (self.arrivals[-1] - self.arrivals[0]) / (self.output_tokens - 1)

    @property
    def first_preview(self) -> float | None:
        return self.previews[0] if self.previews else None

    def gaps(self) -> list[float]:
        """Seconds between tokens. A chunk of several tokens shares its gap among them: each token
        counts, with its part."""
        if len(self.arrivals) < 2 or not self.output_tokens:
            return []
        pairs = zip(self.arrivals, self.arrivals[1:], strict=False)
        times = [later - earlier for earlier, later in pairs]
        if len(self.arrival_tokens) == len(self.arrivals):
            shared = zip(times, self.arrival_tokens[1:], strict=True)
            return [gap / count for gap, count in shared for _ in range(count)]
        per_chunk = self.output_tokens / len(self.arrivals)
        return [gap / per_chunk for gap in times]
