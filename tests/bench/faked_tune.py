"""`atelier tune` whose trials start the fake server: python -m tests.bench.faked_tune PLAN OUT"""

from __future__ import annotations

import sys
from pathlib import Path

from atelier.cli.tune import run
from atelier.tune import serving

serving.PROGRAM = (sys.executable, "-m", "tests.bench.fake_server")

if __name__ == "__main__":
    sys.exit(not run(Path(sys.argv[1]), Path(sys.argv[2]), None, ""))
