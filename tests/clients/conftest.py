"""The two built-in models behind real servers, and a way to run the programs of other people's
clients against both."""

from __future__ import annotations

import functools
import json
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import ROOT, Server, StartServer

PYTHON = ROOT / ".engines" / "clients" / "bin" / "python"
FOLDER = Path(__file__).parent
PROGRAMS = FOLDER / "programs"
PIXELS = 128 * 128
"""Of the largest picture that the tests' server draws: small ones are there sooner."""

PROGRAM_SECONDS = 240
OWN_SETTINGS = ("OPENAI_", "ANTHROPIC_", "LANGCHAIN_", "LANGSMITH_", "LITELLM_", "PYTHON")
"""Beginnings of variables that a developer may have set for such clients: not for these."""

RunProgram = Callable[[str], dict[str, dict[str, Any]]]
"""The name of a program to what each of its cases gave, or how it failed."""


@pytest.fixture(scope="session")
def shapes(start_server: StartServer) -> Iterator[Server]:
    """The built-in picture model, which draws sizes beyond its own at the nearest, and quickly:
    what is looked at is how it answers."""
    with start_server(
        model_id="builtin/shapes",
        model_name="shapes",
        size_fallback="nearest",
        max_pixels=str(PIXELS),
        step_cache="high",
    ) as running:
        yield running


@pytest.fixture(scope="session")
def run_program(shapes: Server, scenes: Server) -> RunProgram:
    """Runs a program of `programs/` once, however many tests ask for what it gave."""

    @functools.cache
    def run(name: str) -> dict[str, dict[str, Any]]:
        kept = {key: value for key, value in os.environ.items() if not key.startswith(OWN_SETTINGS)}
        given = {
            "SHAPES_URL": shapes.url,
            "SCENES_URL": scenes.url,
            "LITELLM_LOCAL_MODEL_COST_MAP": "True",  # else it waits for one from the web
        }
        done = subprocess.run(
            [_interpreter(name), str(PROGRAMS / name)],
            env=kept | given,
            capture_output=True,
            text=True,
            timeout=PROGRAM_SECONDS,
        )
        assert done.returncode == 0, done.stderr
        told: dict[str, dict[str, Any]] = json.loads(done.stdout)
        return told

    return run


def _interpreter(program: str) -> str:
    """What runs a program; its test is skipped where that or the client is missing."""
    if program.endswith(".py"):
        if not (PYTHON.parents[1] / ".installed").exists():
            pytest.skip("make clients has not run")
        return str(PYTHON)
    node = shutil.which("node")
    if node is None:
        pytest.skip("there is no node here")
    if not (FOLDER / "node_modules" / "openai").exists():
        pytest.skip("make clients has not run, or there was no npm")
    return node
