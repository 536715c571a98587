"""`atelier`, whose workers have the faults of `faults.py`."""

from atelier.cli.main import main as cli
from atelier.workers import handle

handle.PRELOADED = dict.fromkeys(handle.PRELOADED, "tests.workers.faults")


def main() -> None:
    cli()


if __name__ == "__main__":
    main()
