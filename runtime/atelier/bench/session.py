"""A whole run of `atelier bench`: connects, measures level after level, compares, and makes the
result."""

from __future__ import annotations

import datetime
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path

from atelier.bench import aiperf, saturation
from atelier.bench.comparison import interleave
from atelier.bench.driver import Tell, conversations_of, measure, silent
from atelier.bench.figures import RunFigures, figures
from atelier.bench.load import OfferedLoad
from atelier.bench.record import Record
from atelier.bench.result import BenchResult, Client, Measured, ServerFacts
from atelier.bench.slo import Slo
from atelier.bench.target import Target, connected
from atelier.errors import SettingsError

LATE_SECONDS = 0.02


@dataclass
class BenchWish:
    """What the caller wants measured. `tool` is an AIPerf program that makes the requests."""

    urls: list[str]
    loads: list[OfferedLoad]
    model: str = ""
    key: str = ""
    slo: Slo = field(default_factory=Slo)
    saturate: bool = False
    tool: Path | None = None
    command: list[str] = field(default_factory=list)

    def check(self) -> None:
        """Refuse what cannot be done together.

        Raises:
            SettingsError: says which options exclude each other.
        """
        if len(self.urls) > 1 and self.saturate:
            raise SettingsError("--saturate steps the load of one server: give one URL")
        if len(self.urls) > 1 and self.tool:
            raise SettingsError(
                "--aiperf measures one server: an interleaved A/B is made by Atelier itself"
            )
        if self.saturate and any(load.trace for load in self.loads):
            raise SettingsError("--saturate steps users or a rate: a trace has its own times")


class Session:
    """Runs a wish. `tell` hears of every request, `begin` of every level with its size."""

    def __init__(self, wish: BenchWish, tell: Tell = silent) -> None:
        wish.check()
        self._wish, self._tell = wish, tell
        self.result = BenchResult(
            created=datetime.datetime.now(datetime.UTC).replace(microsecond=0),
            command=wish.command,
            client=Client.here(),
            servers=[],
            slo=wish.slo,
        )

    @property
    def expected(self) -> int:
        """Requests that will be sent, if no bound of time ends them; saturation is not counted."""
        per_arm = sum(conversations_of(load) * load.turns for load in self._wish.loads)
        return per_arm * len(self._wish.urls)

    async def run(self) -> BenchResult:
        """Everything in turn.

        Raises:
            TargetError: a server cannot be measured.
        """
        wish = self._wish
        async with AsyncExitStack() as stack:
            targets = [
                await stack.enter_async_context(
                    connected(url, wish.model, wish.key, wish.loads[0].kind, wish.loads[0].timeout)
                )
                for url in wish.urls
            ]
            arms = list(zip("ab", targets, strict=False))
            self.result.servers = [ServerFacts.of(arm, target) for arm, target in arms]
            self._check_kinds(targets)
            if len(targets) == 2:
                first, other = targets
                for load in wish.loads:
                    await self._compare(first, other, load)
            elif wish.saturate:
                first = targets[0]
                self.result.saturation = await saturation.search(
                    lambda load: self._level(first, load), wish.loads[0]
                )
            else:
                for load in wish.loads:
                    await self._level(targets[0], load)
        return self.result

    def _check_kinds(self, targets: Sequence[Target]) -> None:
        if len({target.kind for target in targets}) > 1:
            raise SettingsError(
                "one URL serves pictures and the other text: they cannot be compared"
            )
        drawn = targets[0].kind == "pictures"
        for load in self._wish.loads:
            if drawn and (load.turns > 1 or load.scenario != "chat" or load.trace):
                raise SettingsError(f"{targets[0].url} serves pictures: text options do not apply")

    async def _level(self, target: Target, load: OfferedLoad) -> RunFigures:
        if self._wish.tool:
            records = await aiperf.measure(self._wish.tool, target, load, self._wish.key)
            return self._keep("a", load, records, tool="aiperf")
        return self._keep("a", load, await measure(target, load, self._tell))

    async def _compare(self, a: Target, b: Target, load: OfferedLoad) -> None:
        records, comparison = await interleave(a, b, load, self._tell)
        for arm in ("a", "b"):
            self._keep(arm, load, [record for record in records if record.arm == arm])
        self.result.comparisons.append(comparison)

    def _keep(
        self, arm: str, load: OfferedLoad, records: list[Record], tool: str = "atelier"
    ) -> RunFigures:
        found = figures(records, self._wish.slo)
        self.result.levels.append(
            Measured(arm=arm, load=load, figures=found, records=records, tool=tool)
        )
        where = f"{arm}, {load.title}: " if len(self._wish.urls) > 1 else f"{load.title}: "
        self.result.notes += [where + note for note in notes(found)]
        return found


def notes(found: RunFigures) -> list[str]:
    """What a reader of the figures must know."""
    said = []
    tokens = found.tokens
    if tokens and tokens.without_usage:
        said.append(
            f"{tokens.without_usage} answers had no usage: their tokens are not counted, and they"
            " have no time per token"
        )
    if tokens and tokens.differing:
        said.append(
            f"the usage of {tokens.differing} answers cannot be right: it differs from the tokens"
            " that were streamed"
        )
    if tokens and tokens.per_chunk and tokens.per_chunk > 1.2:
        said.append(
            f"a chunk holds {tokens.per_chunk:.1f} tokens on average: a gap between chunks is"
            " shared among them"
        )
    if found.malformed:
        said.append(f"{found.malformed} answers are not the JSON that was asked for")
    if found.lag_p99 > LATE_SECONDS:
        said.append(
            f"requests began up to {found.lag_p99 * 1000:.0f} ms late (p99): this client is too"
            " busy for the rate"
        )
    return said
