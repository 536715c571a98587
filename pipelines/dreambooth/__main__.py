"""`python -m pipelines.dreambooth`: what `accelerate launch -m` starts on each GPU."""

import sys

from atelier.errors import AtelierError
from pipelines.dreambooth.cli import app

if __name__ == "__main__":
    try:
        app()
    except AtelierError as error:
        sys.exit(f"atelier: {error}")
