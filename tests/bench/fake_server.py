"""`serve` of the fake engine for trials: how fast it is follows from the settings in its
environment, and with some it does not start.

    python -m tests.bench.fake_server serve --http_port=PORT --grpc_port=PORT
"""

from __future__ import annotations

import asyncio
import os
import sys

from aiohttp import web

from tests.bench import fake_engine

SECONDS = {"1": 0.006, "2": 0.004, "4": 0.002}
"""Of a token, by MAX_NUM_SEQS."""
SLOWER = 1.5
"""Times, with DTYPE=bfloat16."""


async def serve(port: int) -> None:
    runner = web.AppRunner(fake_engine.engine())
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", port).start()
    await asyncio.Event().wait()


def main() -> None:
    if os.environ["DTYPE"] == "float16":
        sys.exit("SettingsError: DTYPE=float16 is not possible here")
    if os.environ["MAX_NUM_SEQS"] == "64":
        sys.exit("torch.OutOfMemoryError: tried to allocate 99 GiB")
    seconds = SECONDS[os.environ["MAX_NUM_SEQS"]]
    fake_engine.TOKEN_S = seconds * (SLOWER if os.environ["DTYPE"] == "bfloat16" else 1)
    port = next(word for word in sys.argv if word.startswith("--http_port=")).partition("=")[2]
    asyncio.run(serve(int(port)))


if __name__ == "__main__":
    main()
