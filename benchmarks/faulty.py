"""The server with devices that are short of memory now and then: `python -m benchmarks.faulty serve
...`. The faults are in `faults.py`, which its workers import."""

from __future__ import annotations

from atelier.cli.main import main as cli
from atelier.workers import handle


def main() -> None:
    handle.PRELOADED = dict.fromkeys(handle.PRELOADED, "benchmarks.faults")
    cli()


if __name__ == "__main__":
    main()
