"""One tiny model and one server for all text tests."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.text.running import Server, serving
from tests.text.tiny import make_checkpoint


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random model with a chat template that teaches tools."""
    return make_checkpoint(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="session")
def server(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server of the tiny model, which guesses tokens; `tests.text.faulty` can be told to fail by
    signals."""
    log = tmp_path_factory.mktemp("log") / "server.log"
    given = {"MAX_NUM_SEQS": "8", "PROMPT_LOOKUP": "true"}
    with serving(checkpoint, log, module="tests.text.faulty", **given) as running:
        yield running
