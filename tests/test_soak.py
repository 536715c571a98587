"""A few seconds of `benchmarks/soak.py`: a crowd of good, bad, slow and impatient clients, devices
short of memory, workers that are killed."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest

from benchmarks.arms import server_process
from benchmarks.soak import LIMITS, soak
from tests.conftest import ROOT

PROBE_SECONDS = 2.0  # p99 on a crowded machine; the benchmark reports the real figure


@pytest.mark.alone
def test_a_crowd_leaves_the_server_as_it_was(tiny_checkpoint: Path) -> None:
    paths = f"{ROOT / 'runtime'}{os.pathsep}{ROOT}"
    given = LIMITS | {
        "model_id": str(tiny_checkpoint),
        "device": "cpu",
        "pythonpath": paths,
        "fault_every": "25",
    }
    with server_process("benchmarks.faulty", **given) as url:
        report = asyncio.run(soak(url, seconds=10, clients=10, side=32, kill_every=4))
    assert report.problems() == []
    assert report.kills > 0
    assert report.shortages > 0
    assert report.depth == 0
    for path in report.probes:
        assert report.p99(path) < PROBE_SECONDS, path
