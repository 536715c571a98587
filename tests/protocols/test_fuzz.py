"""Changed bodies of all protocols for half a minute; `benchmarks/fuzz.py` does it for ten."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.fuzz import fuzz
from tests.conftest import StartServer

SECONDS = 15


@pytest.mark.parametrize("kind", ["pictures", "text"])
def test_no_changed_body_is_a_fault(
    start_server: StartServer, tiny_checkpoint: Path, kind: str
) -> None:
    model = str(tiny_checkpoint) if kind == "pictures" else "builtin/scenes"
    limits = {"max_steps": "10", "max_pixels": "16384", "request_timeout": "10"}
    with start_server(model_id=model, **limits) as server:
        found = fuzz(
            server.url, server.model, kind == "text", SECONDS, seed=3, pid=server.process.pid
        )
    assert not found.faults, "\n".join(found.faults[:5])
    assert sum(found.codes.values()) > 50 and {200, 400} <= set(found.codes)
    assert found.grown_files < 20
    assert found.grown_bytes < 200 * 2**20
