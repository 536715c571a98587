"""Two results of earlier runs, compared."""

from __future__ import annotations

import datetime
from pathlib import Path

from atelier.bench.comparison import from_results
from atelier.bench.result import BenchResult, Measured, read
from atelier.errors import SettingsError


def compared(a: Path, b: Path) -> BenchResult:
    """A result that holds the first server of both files as A and B, and a comparison of every
    load that both have.

    Raises:
        SettingsError: a file is no result, or they have no load in common.
    """
    results = {"a": read(a), "b": read(b)}
    levels: dict[str, list[Measured]] = {}
    for arm, result in results.items():
        own = [level for level in result.levels if level.arm == "a"]
        levels[arm] = [level.model_copy(update={"arm": arm}) for level in own]
    twins = [
        (first, second)
        for first in levels["a"]
        for second in levels["b"]
        if first.load == second.load
    ]
    if not twins:
        raise SettingsError(
            f"{a} and {b} have no load in common: "
            + "; ".join(f"{one.arm} has {one.load.title}" for two in levels.values() for one in two)
            + ": bench --repeat asks the same again"
        )
    servers = [result.servers[0].model_copy(update={"arm": arm}) for arm, result in results.items()]
    notes = [f"{arm}: {note}" for arm, result in results.items() for note in result.notes]
    if results["a"].client != results["b"].client:
        notes.append("the two runs were made on different machines or with different versions")
    return BenchResult(
        created=datetime.datetime.now(datetime.UTC).replace(microsecond=0),
        command=["atelier", "bench", "compare", str(a), str(b)],
        client=results["b"].client,
        servers=servers,
        slo=results["a"].slo,
        levels=[level for twin in twins for level in twin],
        comparisons=[
            from_results(first.records, second.records, first.load.title) for first, second in twins
        ],
        notes=notes,
    )
