"""What a search found, as tables for a terminal, as JSON, and as an HTML page."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from html import escape
from typing import Any

import matplotlib.pyplot as plt
from rich import box
from rich.console import Console
from rich.markup import escape as plain
from rich.table import Table

from atelier.bench import plots
from atelier.bench.page import STYLE, table
from atelier.bench.result import Client
from atelier.bench.tables import show_comparison
from atelier.tune.final import Final
from atelier.tune.outputs import Contribution
from atelier.tune.plan import TunePlan
from atelier.tune.search import Tried
from atelier.tune.space import size, told

COLOURS = {"complete": "#2563a8", "pruned": "#9aa5b1", "out of bounds": "#c2571a"}


@dataclass(frozen=True)
class Summary:
    """Everything a report tells of a search."""

    plan: TunePlan
    tried: list[Tried]
    killed: int
    start: Tried | None
    best: Tried | None
    contributions: list[Contribution]
    final: Final | None

    @property
    def gain(self) -> float | None:
        """The best's goal as a ratio to the start's, above 1 is better."""
        if not (self.best and self.start and self.best.value and self.start.value):
            return None
        ratio = self.best.value / self.start.value
        return ratio if self.plan.direction == "maximize" else 1 / ratio

    def headline(self) -> str:
        """The outcome in a sentence."""
        whole = size(self.plan.space)
        of = f" of {whole} points" if whole else ""
        count = f"{len(self.tried)} trials{of}"
        if self.best is None:
            return f"{count}: none was measured within the bounds"
        gain = f", {self.gain:.3f} times the start" if self.gain else ""
        what = told(self.best.point, self.plan.start_point)
        return f"{count}: best is {what}: {self.plan.goal} {self.best.value:.4g}{gain}"

    def document(self) -> dict[str, Any]:
        """For tune.json: all of it, with the plan and the machine."""
        return {
            "plan": self.plan.model_dump(mode="json"),
            "client": Client.here().model_dump(),
            "trials": [asdict(one) for one in self.tried],
            "killed": self.killed,
            "best": asdict(self.best) if self.best else None,
            "gain": self.gain,
            "contributions": [asdict(one) for one in self.contributions],
            "final": self.final.model_dump() if self.final else None,
        }

    def show(self, console: Console) -> None:
        """Print it."""
        trials = Table(*TRIAL_HEAD, box=box.SIMPLE_HEAD, title="Trials", title_justify="left")
        for row in self._trial_rows():
            trials.add_row(*map(plain, row))
        console.print(trials)
        changes = Table(
            *CHANGE_HEAD, box=box.SIMPLE_HEAD, title="What each change brings alone",
            title_justify="left",
        )  # fmt: skip
        for row in self._change_rows():
            changes.add_row(*map(plain, row))
        console.print(changes)
        if self.final:
            show_comparison(self.final.comparison, console)
            console.print(_turns(self.final, self.plan.goal), markup=False)
        console.print(self.headline(), style="bold", markup=False)

    def page(self) -> str:
        """The report as one HTML file without scripts or links."""
        title = f"Tuning {self.plan.start.get('model_id', 'builtin/shapes')} for {self.plan.goal}"
        parts = [f"<h1>{escape(title)}</h1><p>{escape(self.headline())}.</p>"]
        if self.killed:
            parts.append(f"<p class=note>{self.killed} trials were cut short and run again.</p>")
        parts += ["<h2>What each change brings alone</h2>", self._changes_plot()]
        parts.append(table(list(CHANGE_HEAD), list(self._change_rows())))
        if self.final:
            parts += ["<h2>The best against the start</h2>", plots.ratios(self.final.comparison)]
            parts.append(f"<p>{escape(_turns(self.final, self.plan.goal))}.</p>")
        parts += ["<h2>Trials</h2>", self._trials_plot()]
        parts.append(table(list(TRIAL_HEAD), list(self._trial_rows())))
        parts += ["<h2>Plan</h2>", f"<pre>{escape(self.plan.model_dump_json(indent=1))}</pre>"]
        body = "\n".join(parts)
        return (
            f"<!doctype html><html lang=en><meta charset=utf-8><title>{escape(title)}</title>"
            f"<style>{STYLE}</style><body>\n{body}\n</body></html>\n"
        )

    def _trial_rows(self) -> list[list[str]]:
        return [
            [
                str(one.number),
                one.state + (" *" if self.best and one.number == self.best.number else ""),
                "" if one.value is None else f"{one.value:.4g}",
                f"{one.seconds:.0f}",
                told(one.point, self.plan.start_point),
                one.reason,
            ]
            for one in self.tried
        ]

    def _change_rows(self) -> list[list[str]]:
        return [
            [
                one.setting,
                str(one.value),
                "" if one.alone is None else f"{one.alone:.3f}",
                "yes" if one.chosen else "",
                one.reason,
            ]
            for one in self.contributions
        ]

    def _changes_plot(self) -> str:
        rows = [one for one in self.contributions if one.alone is not None]
        with plt.style.context(plots.STYLE):
            figure, axis = plt.subplots(figsize=(8, 1.2 + 0.32 * len(rows)))
            for place, one in enumerate(rows):
                share = 100 * ((one.alone or 1) - 1)
                colour = COLOURS["complete" if one.chosen else "pruned"]
                axis.barh(place, share, color=colour)
            axis.axvline(0, color="black", lw=0.8)
            axis.set_yticks(range(len(rows)), [f"{one.setting} = {one.value}" for one in rows])
            axis.set_ylim(len(rows) - 0.5, -0.5)
            axis.set_xlabel(f"change of {self.plan.goal} against the start, % (right is better)")
            return plots.as_svg(figure)

    def _trials_plot(self) -> str:
        with plt.style.context(plots.STYLE):
            figure, axis = plt.subplots(figsize=(9, 3))
            for state, colour in COLOURS.items():
                own = [one for one in self.tried if one.state == state]
                axis.plot([one.number for one in own], [one.value or 0.0 for one in own], "o", ms=5,
                          color=colour, label=state)  # fmt: skip
            for one in self.tried:
                if one.value is None:
                    axis.axvline(one.number, color=plots.FAILED, lw=1, ls=":")
            axis.set_xlabel("trial (dotted: failed)")
            axis.set_ylabel(self.plan.goal)
            axis.set_ylim(bottom=0)
            axis.legend(fontsize=7, frameon=False)
            return plots.as_svg(figure)


TRIAL_HEAD = ("trial", "state", "value", "seconds", "what differs from the start", "reason")
CHANGE_HEAD = ("setting", "value", "times the start", "in the best", "reason")


def _turns(final: Final, goal: str) -> str:
    start, best = (", ".join(f"{one:.4g}" for one in arm) for arm in (final.start, final.best))
    return f"{goal} in turns: start {start}; best {best}"
