"""`atelier`, whose worker has the faults of `faults.py`."""

from atelier.cli.main import main as cli
from atelier.workers import handle

handle.PRELOADED = dict.fromkeys(handle.PRELOADED, "tests.text.faults")


def main() -> None:
    cli()
